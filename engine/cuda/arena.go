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

// part is what a tensor gives to one array on the device.
type part struct {
	tensor *weights.Tensor
	array
	shift int64 // bytes past *to
	order int   // rowsInOrder, rowsOfGate or rowsOfUp
}

// weightArena gives every tensor of the model its place: q, k and v one behind the other, gate and up interleaved. It tells of a tensor
// that the store lacks.
func weightArena(c *model.Config, s shape, w *weights.Store, b *buffers, layers []layerWeights) (*arena, []part, error) {
	a := &arena{}
	var parts []part
	var missing error
	find := func(name string) *weights.Tensor {
		t, ok := w.Tensor(name)
		if !ok {
			missing = fmt.Errorf("weight %s is missing", name)
			return &weights.Tensor{Name: name, Shape: []int{0, 0}}
		}
		return t
	}
	// plain joins tensors as bf16.
	plain := func(to *ptr, elements int, names ...string) {
		a.take(to, int64(elements)*bf16Bytes)
		shift := int64(0)
		for _, name := range names {
			t := find(name)
			parts = append(parts, part{tensor: t, array: bf16Array(to, t.RowLen()), shift: shift})
			shift += int64(t.Rows()) * int64(t.RowLen()) * bf16Bytes
		}
	}
	// matrix joins tensors in the format they allow: one behind the other, or by orders.
	matrix := func(to *weight, rows, cols int, names []string, orders ...int) {
		tensors := make([]*weights.Tensor, len(names))
		for i, name := range names {
			tensors[i] = find(name)
			if s.QuantizeFP8 && tensors[i].Dummy != nil {
				tensors[i] = tensors[i].F8E4M3()
			}
		}
		to.Format, to.Group = formatOf(tensors, s)
		for _, array := range to.arrays(cols) {
			a.take(array.to, int64(rows)*int64(array.rowBytes))
			shift := int64(0)
			for i, t := range tensors {
				p := part{tensor: t, array: array, shift: shift}
				if len(orders) > 0 {
					p.order = orders[i]
				} else {
					shift += int64(t.Rows()) * int64(array.rowBytes)
				}
				parts = append(parts, p)
			}
		}
	}
	plain(&b.Embed, s.Vocab*s.Hidden, "model.embed_tokens.weight")
	for i := range layers {
		l, prefix := &layers[i], fmt.Sprintf("model.layers.%d.", i)
		l.Layer = i
		attn, mlp := prefix+"self_attn.", prefix+"mlp."
		plain(&l.Norm1, s.Hidden, prefix+"input_layernorm.weight")
		matrix(&l.WQKV, s.qkvDim(), s.Hidden, []string{attn + "q_proj.weight", attn + "k_proj.weight", attn + "v_proj.weight"})
		if s.QKVBias {
			plain(&l.BQKV, s.qkvDim(), attn+"q_proj.bias", attn+"k_proj.bias", attn+"v_proj.bias")
		}
		if s.QKNorm {
			plain(&l.QNorm, s.Dim, attn+"q_norm.weight")
			plain(&l.KNorm, s.Dim, attn+"k_norm.weight")
		}
		matrix(&l.WO, s.Hidden, s.qDim(), []string{attn + "o_proj.weight"})
		plain(&l.Norm2, s.Hidden, prefix+"post_attention_layernorm.weight")
		if s.MoE.Experts > 0 {
			plain(&l.Router, s.MoE.Experts*s.Hidden, mlp+"gate.weight")
			parts = append(parts, experts(a, s, l, mlp, find)...)
			continue
		}
		matrix(&l.WGU, 2*s.Inter, s.Hidden, []string{mlp + "gate_proj.weight", mlp + "up_proj.weight"}, rowsOfGate, rowsOfUp)
		matrix(&l.WDown, s.Hidden, s.Inter, []string{mlp + "down_proj.weight"})
	}
	plain(&b.Norm, s.Hidden, "model.norm.weight")
	if !s.TiedHead {
		plain(&b.Head.Data, s.Vocab*s.Hidden, "lm_head.weight")
	}
	return a, parts, missing
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
	for _, p := range []*ptr{&b.RowSlot, &b.RowPos, &b.RowLen, &b.RowStart, &b.RowCtx, &b.RowFrom, &b.SampleTok, &b.SampleSlot, &b.SamplePos, &b.MaskRow} {
		a.take(p, 4*int64(s.logitRows()))
	}
	a.take(&b.X, t*int64(s.Hidden)*bf16Bytes)
	a.take(&b.XN, t*int64(s.Hidden)*bf16Bytes)
	a.take(&b.QKV, t*int64(s.qkvDim())*bf16Bytes)
	a.take(&b.Att, t*int64(s.qDim())*bf16Bytes)
	a.take(&b.GU, s.guBytes())
	a.take(&b.Act, s.actBytes())
	for _, r := range b.MoE.rooms(s) {
		a.take(r.to, r.bytes)
	}
	a.take(&b.XS, int64(s.logitRows())*int64(s.Hidden)*bf16Bytes)
	a.take(&b.Logits, int64(s.logitRows())*int64(s.Vocab)*4)
	a.take(&b.AttnScratch, attnScratchBytes(d, s))
	a.take(&b.HeadScratch, headScratchBytes(d, s))
	a.take(&b.Widened, s.widenedBytes(d))
	a.take(&b.WidenedFirst, 4*int64(s.logitRows()))
	a.take(&b.Sampled, 16*int64(s.logitRows()))
	a.take(&b.Top, 8*maxTop*int64(s.logitRows()))
	a.take(&b.Rope, int64(s.MaxContext)*int64(s.Dim/2)*8)
	a.take(&b.blasWorkspace, blasWorkspaceBytes)
	a.take(&b.QX, t*int64(s.QuantizedCols))
	a.take(&b.QScale, 4*t)
	a.take(&b.Dequantised, int64(s.Dequantised)*bf16Bytes)
	if s.Dequantised > 0 {
		a.take(&b.W4Part, w4GEMMBytes(d))
		a.take(&b.W4Arrived, 4*w4Counters)
	}
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
	perPage := s.pageBytes()*int64(s.Layers) + s.DraftPageBytes
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
