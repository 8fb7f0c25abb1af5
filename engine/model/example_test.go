package model_test

import (
	"fmt"
	"log"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

func ExampleLoad() {
	dir, err := configs.Dir("llama-3.1-8b")
	if err != nil {
		log.Fatal(err)
	}
	c, err := model.Load(dir, `{"num_hidden_layers": 1}`)
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range c.Tensors()[:3] {
		fmt.Println(t.Name, t.Shape)
	}
	fmt.Println(c.KVBytesPerToken(2), "bytes of KV cache a token in bfloat16")

	_, err = model.Load(dir, `{"num_key_value_head": 5}`)
	fmt.Println(err)
	// Output:
	// model.embed_tokens.weight [128256 4096]
	// model.layers.0.input_layernorm.weight [4096]
	// model.layers.0.self_attn.q_proj.weight [4096 4096]
	// 4096 bytes of KV cache a token in bfloat16
	// --json-model-override-args: num_key_value_head: unknown key: the nearest known key is num_key_value_heads, a whole number from 1 to 16384
}
