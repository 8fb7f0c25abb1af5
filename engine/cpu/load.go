package cpu

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// layer is one transformer block's weights. Vectors are decoded to float32, nil where the model has none.
type layer struct {
	attentionNorm, mlpNorm []float32
	q, k, v, o             *matrix
	qBias, kBias, vBias    []float32
	qNorm, kNorm           []float32 // [headDim]

	mlp     mlp
	router  *matrix // nil: dense
	experts []mlp
}

// mlp is a gated feed-forward block: down(silu(gate x) * up x).
type mlp struct{ gate, up, down *matrix }

// network is a model's weights as the backend computes with them.
type network struct {
	embedding *matrix
	layers    []layer
	norm      []float32
	head      *matrix // the embedding matrix if it is tied

	bytes int64  // of what a decode step reads
	dtype string // that most of bytes are stored in
	// expertBytes are those of one expert in all layers; of a mixture all experts are stored alike. They are counted in bytes as often as there
	// are experts.
	expertBytes int64
}

// loader takes tensors from a store by name and keeps the first error.
type loader struct {
	store    *weights.Store
	pool     *pool
	progress func(done float64)
	fp8      bool // quantise the layers' matrices
	err      error

	made    float64 // bytes of dummy values made
	byDType map[weights.DType]int64
}

func newLoader(store *weights.Store, p *pool, fp8 bool, progress func(string, float64, float64, string)) *loader {
	const gib = 1 << 30
	total := float64(store.Bytes()) / gib
	return &loader{store: store, pool: p, fp8: fp8, byDType: map[weights.DType]int64{}, progress: func(done float64) {
		if progress != nil {
			progress("dummy weights", min(done/gib, total), total, "GiB")
		}
	}}
}

func (l *loader) network(cfg *model.Config) (*network, error) {
	n := &network{embedding: l.matrix("model.embed_tokens.weight"), layers: make([]layer, cfg.NumLayers), norm: l.vector("model.norm.weight")}
	n.head = n.embedding
	if !cfg.TieEmbeddings {
		n.head = l.matrix("lm_head.weight")
		if n.embedding != nil { // read by row, not by every step
			l.byDType[n.embedding.tensor.DType] -= int64(len(n.embedding.tensor.Data))
		}
	}
	for i := range n.layers {
		l.layer(&n.layers[i], "model.layers."+strconv.Itoa(i)+".", cfg)
	}
	if l.err != nil {
		return nil, l.err
	}
	for i := range n.layers {
		if experts := n.layers[i].experts; len(experts) > 0 {
			for _, m := range []*matrix{experts[0].gate, experts[0].up, experts[0].down} {
				n.expertBytes += int64(len(m.tensor.Data))
			}
		}
	}
	for t, bytes := range l.byDType {
		n.bytes += bytes
		if n.dtype == "" || bytes > l.byDType[dtypeOf[n.dtype]] {
			n.dtype = dtypeNames[t]
		}
	}
	return n, nil
}

func (l *loader) layer(y *layer, at string, cfg *model.Config) {
	y.attentionNorm = l.vector(at + "input_layernorm.weight")
	y.mlpNorm = l.vector(at + "post_attention_layernorm.weight")
	attention := at + "self_attn."
	y.q, y.k = l.matrix(attention+"q_proj.weight"), l.matrix(attention+"k_proj.weight")
	y.v, y.o = l.matrix(attention+"v_proj.weight"), l.matrix(attention+"o_proj.weight")
	if cfg.QKVBias {
		y.qBias, y.kBias, y.vBias = l.vector(attention+"q_proj.bias"), l.vector(attention+"k_proj.bias"), l.vector(attention+"v_proj.bias")
	}
	if cfg.QKNorm {
		y.qNorm, y.kNorm = l.vector(attention+"q_norm.weight"), l.vector(attention+"k_norm.weight")
	}
	if cfg.NumExperts == 0 {
		y.mlp = l.mlp(at + "mlp.")
		return
	}
	y.router = l.matrix(at + "mlp.gate.weight")
	y.experts = make([]mlp, cfg.NumExperts)
	for e := range y.experts {
		y.experts[e] = l.mlp(at + "mlp.experts." + strconv.Itoa(e) + ".")
	}
}

func (l *loader) mlp(at string) mlp {
	return mlp{l.matrix(at + "gate_proj.weight"), l.matrix(at + "up_proj.weight"), l.matrix(at + "down_proj.weight")}
}

func (l *loader) tensor(name string) *weights.Tensor {
	if l.err != nil {
		return nil
	}
	t, ok := l.store.Tensor(name)
	if !ok {
		l.err = fmt.Errorf("weight %s is missing", name)
		return nil
	}
	return t
}

func (l *loader) matrix(name string) *matrix {
	t := l.tensor(name)
	if t == nil {
		return nil
	}
	if l.fp8 && strings.HasSuffix(name, "_proj.weight") {
		t = t.F8E4M3()
	}
	if t.Dummy != nil {
		t = fillDummy(t, l.pool)
		l.made += float64(len(t.Data))
		l.progress(l.made)
	}
	m, err := newMatrix(t)
	if err != nil {
		l.err = err
		return nil
	}
	l.byDType[t.DType] += int64(len(t.Data))
	return m
}

func (l *loader) vector(name string) []float32 {
	t := l.tensor(name)
	if t == nil {
		return nil
	}
	if t.Dummy != nil {
		t = fillDummy(t, l.pool)
	}
	v := make([]float32, t.Shape[0])
	t.Row(0, v)
	return v
}

// dtypeNames are the names that backend.Info and backend.Options use.
var dtypeNames = map[weights.DType]string{
	weights.F32: "float32", weights.F16: "float16", weights.BF16: "bfloat16", weights.Q8_0: "q8_0", weights.Q4_0: "q4_0",
	weights.Q4_1: "q4_1", weights.Q4_K: "q4_k", weights.Q5_K: "q5_k", weights.Q6_K: "q6_k",
	weights.F8E4M3: "fp8_e4m3", weights.I4: "int4",
}

var dtypeOf = func() map[string]weights.DType {
	m := map[string]weights.DType{}
	for t, name := range dtypeNames {
		m[name] = t
	}
	return m
}()

// checkDType tells whether weights stored as stored can be computed with as asked.
func checkDType(asked, stored string) error {
	switch asked {
	case "", "auto", "float32", stored:
		return nil
	case "bfloat16", "float16":
		return fmt.Errorf("the CPU computes weights as they are stored (%s), in float32: want dtype auto, not %s", stored, asked)
	}
	return fmt.Errorf("dtype %q: want %s", asked, strings.Join([]string{"auto", "float32"}, " or "))
}
