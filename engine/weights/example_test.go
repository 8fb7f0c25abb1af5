package weights_test

import (
	"fmt"
	"log"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

func ExampleOpen() {
	dir, err := tinymodel.Dir("llama-awq")
	if err != nil {
		log.Fatal(err)
	}
	cfg, err := model.Load(dir, "")
	if err != nil {
		log.Fatal(err)
	}
	store, err := weights.Open(dir, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	t, _ := store.Tensor("model.layers.0.mlp.down_proj.weight")
	fmt.Println(t.DType, t.Shape, "in groups of", t.Quant.GroupSize)

	row := make([]float32, t.RowLen())
	t.Row(0, row)
	fmt.Printf("%.4f\n", row[:3])
	// Output:
	// I4 [64 96] in groups of 32
	// [-0.2538 -0.2115 -0.2538]
}
