//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// arena lays out one allocation. Places are given before there is memory: sizes come first, so that too little of it is told
// before anything is allocated.
type arena struct {
	size   int64
	places []place
}

type place struct {
	to *ptr
	at int64
}

// take gives *to the address of bytes more, once the arena is bound.
func (a *arena) take(to *ptr, bytes int64) {
	a.places = append(a.places, place{to, a.size})
	a.size += (bytes + 255) &^ 255
}

// bind sets every address.
func (a *arena) bind(base ptr) {
	for _, p := range a.places {
		*p.to = base + ptr(p.at)
	}
}

// part is a tensor's place in device memory.
type part struct {
	name  string // Hugging Face name
	to    *ptr
	shift int64 // bytes past *to
	order int   // rowsInOrder, rowsOfGate or rowsOfUp
}

// weightArena gives every tensor of the model its place: q, k and v one behind the other, gate and up interleaved.
func weightArena(c *model.Config, s shape, b *buffers, layers []layerWeights) (*arena, []part) {
	a := &arena{}
	var parts []part
	one := func(name string, to *ptr, elements int) {
		a.take(to, int64(elements)*bf16Bytes)
		parts = append(parts, part{name: name, to: to})
	}
	join := func(to *ptr, rows, cols int, suffix string, prefix string, names []string, counts []int) {
		a.take(to, int64(rows)*int64(cols)*bf16Bytes)
		shift := int64(0)
		for i, n := range names {
			parts = append(parts, part{name: prefix + n + suffix, to: to, shift: shift})
			shift += int64(counts[i]) * int64(cols) * bf16Bytes
		}
	}
	one("model.embed_tokens.weight", &b.Embed, s.Vocab*s.Hidden)
	qkv, counts := []string{"q_proj", "k_proj", "v_proj"}, []int{s.qDim(), s.kvDim(), s.kvDim()}
	for i := range layers {
		l, prefix := &layers[i], fmt.Sprintf("model.layers.%d.", i)
		one(prefix+"input_layernorm.weight", &l.Norm1, s.Hidden)
		join(&l.WQKV, s.qkvDim(), s.Hidden, ".weight", prefix+"self_attn.", qkv, counts)
		if s.QKVBias {
			join(&l.BQKV, s.qkvDim(), 1, ".bias", prefix+"self_attn.", qkv, counts)
		}
		if s.QKNorm {
			one(prefix+"self_attn.q_norm.weight", &l.QNorm, s.Dim)
			one(prefix+"self_attn.k_norm.weight", &l.KNorm, s.Dim)
		}
		one(prefix+"self_attn.o_proj.weight", &l.WO, s.Hidden*s.qDim())
		one(prefix+"post_attention_layernorm.weight", &l.Norm2, s.Hidden)
		a.take(&l.WGU, int64(2*s.Inter)*int64(s.Hidden)*bf16Bytes)
		parts = append(parts, part{name: prefix + "mlp.gate_proj.weight", to: &l.WGU, order: rowsOfGate},
			part{name: prefix + "mlp.up_proj.weight", to: &l.WGU, order: rowsOfUp})
		one(prefix+"mlp.down_proj.weight", &l.WDown, s.Hidden*s.Inter)
	}
	one("model.norm.weight", &b.Norm, s.Hidden)
	if !s.TiedHead {
		one("lm_head.weight", &b.Head, s.Vocab*s.Hidden)
	}
	return a, parts
}

// countBytes is the size of the penalties' counts. A row starts on four bytes: the kernels change two counts at a time.
func (s shape) countBytes() int64 { return 2 * int64(s.MaxRows) * int64(pad(s.Vocab, 2)) }

// logitRows is the number of rows for which there is room for logits.
func (s shape) logitRows() int { return pad(s.MaxRows, deterministicRows) }

// tokenRows is the number of rows of the activations: a step's tokens, padded.
func (s shape) tokenRows() int { return pad(s.MaxTokens, deterministicRows) }

// workArena gives activations, state and scratch their places; KV pages have their own.
func workArena(d device, s shape, b *buffers) *arena {
	a := &arena{}
	t, rows := int64(s.tokenRows()), int64(s.MaxRows)
	a.take(&b.Step, 8)
	a.take(&b.PlanCopy, int64(newPlanLayout(s).size))
	a.take(&b.SlotToken, 4*rows)
	a.take(&b.SlotParam, 56*rows)
	a.take(&b.Counts, s.countBytes())
	a.take(&b.Bias, 8*maxBias*rows)
	a.take(&b.PageTable, 4*rows*int64(s.MaxPages))
	a.take(&b.Mask, 4*rows*int64(s.maskWords()))
	for _, p := range []*ptr{&b.TokID, &b.TokPos, &b.TokSlot, &b.Targets, &b.TargetLogProbs} {
		a.take(p, 4*t)
	}
	for _, p := range []*ptr{&b.RowSlot, &b.RowPos, &b.RowLen, &b.RowStart, &b.RowCtx, &b.SampleTok, &b.SampleSlot, &b.SamplePos, &b.MaskRow} {
		a.take(p, 4*int64(s.logitRows()))
	}
	a.take(&b.X, t*int64(s.Hidden)*bf16Bytes)
	a.take(&b.XN, t*int64(s.Hidden)*bf16Bytes)
	a.take(&b.QKV, t*int64(s.qkvDim())*bf16Bytes)
	a.take(&b.Att, t*int64(s.qDim())*bf16Bytes)
	a.take(&b.GU, t*int64(2*s.Inter)*bf16Bytes)
	a.take(&b.Act, t*int64(s.Inter)*bf16Bytes)
	a.take(&b.XS, int64(s.logitRows())*int64(s.Hidden)*bf16Bytes)
	a.take(&b.Logits, int64(s.logitRows())*int64(s.Vocab)*4)
	a.take(&b.AttnScratch, attnScratchBytes(d, s))
	a.take(&b.HeadScratch, headScratchBytes(d, s))
	a.take(&b.Sampled, 16*int64(s.logitRows()))
	a.take(&b.Top, 8*maxTop*int64(s.logitRows()))
	a.take(&b.Rope, int64(s.MaxContext)*int64(s.Dim/2)*8)
	a.take(&b.blasWorkspace, blasWorkspaceBytes)
	return a
}

const blasWorkspaceBytes = 32 << 20

func (s shape) maskWords() int { return (s.Vocab + 31) / 32 }

// MemoryError tells that the model does not fit on the device.
type MemoryError struct {
	Weights, Activations, KV int64 // bytes needed; KV is one page at least
	Available                int64 // bytes that may be used
	Free                     int64 // bytes free on the device
}

func (e *MemoryError) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("not enough GPU memory: needs %d MiB (weights %d, activations %d, KV cache %d), may use %d MiB of %d MiB free: "+
		"lower --max-total-tokens, --max-prefill-tokens or --max-running-requests, raise --mem-fraction-static, or use --device cpu",
		(e.Weights+e.Activations+e.KV+mib-1)/mib, e.Weights/mib, e.Activations/mib, e.KV/mib, e.Available/mib, e.Free/mib)
}

// reserve is left to the driver: graphs, code, cuBLASLt.
const reserve = 768 << 20

// sizePages decides the number of KV pages: asked, or what fraction of the device's memory leaves beside the weights.
func sizePages(s shape, o backend.Options, weightBytes, workBytes, free, total int64) (int, error) {
	perPage := s.pageBytes() * int64(s.Layers)
	available := free - reserve
	e := &MemoryError{Weights: weightBytes, Activations: workBytes, KV: perPage, Available: available, Free: free}
	if o.NumPages > 0 {
		e.KV = perPage * int64(o.NumPages)
		if e.Weights+e.Activations+e.KV > available {
			return 0, e
		}
		return o.NumPages, nil
	}
	budget := min(int64(o.MemFraction*float64(total)), available-workBytes)
	if e.Weights+e.KV > budget {
		e.Available = budget + workBytes
		return 0, e
	}
	// More pages than every slot at full context can hold are of no use beyond the prefix cache: leave it the whole budget.
	return int(min((budget-weightBytes)/perPage, 1<<30)), nil
}

// pad rounds n up to a multiple of to.
func pad(n, to int) int { return (n + to - 1) / to * to }

// checkWeights tells of a tensor that the model needs and the store lacks.
func checkWeights(w *weights.Store, parts []part) error {
	for _, p := range parts {
		if _, ok := w.Tensor(p.name); !ok {
			return fmt.Errorf("weight %s is missing", p.name)
		}
	}
	return nil
}
