//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// draftHead is an EAGLE-3 head on the device: a backend of one layer on the model's stream, with a plan, a ring, a cache and slots of its own.
// Its steps, here called passes, are launched when a step of the model was awaited, for the pairs that they read depend on what was accepted.
//
// A pass of prompt rows reads pairs of tokens and the model's states, see [backend.Follower]; one of decode rows goes on from the head's own
// output of the pass before. [stepShape.decodeOnly] tells the two apart.
type draftHead struct {
	config   *model.DraftHead
	layer    *Backend
	ids      []int32 // the model's ids of what the head can guess
	follower *backend.Follower

	// aux is bf16 [2*rows + MaxRows, 3, the model's hidden]: the states of two steps' tokens, rows of each, and then one that is held for each slot.
	aux      ptr
	rows     int
	index    *driver.Pinned // i32 [tokens]: of a pass of pairs, rows of aux; else rows of last
	gathered ptr            // bf16 [tokens, 3, the model's hidden], fc's input
	pairs    ptr            // bf16 [tokens, 2, hidden], the layer's
	last     ptr            // bf16 [MaxRows, hidden]: what the pass made of the rows that it sampled

	fc                    weight
	normToken, normHidden ptr
	embed                 *ptr // the model's, or the head's own

	weightPlaces, workPlaces, kvPlaces *arena
	parts                              []part

	steps   [backend.MaxInFlight]followedStep
	fresh   []bool // [slot] the sequence has had no pass yet
	running bool   // a pass was launched and not awaited
	pass    passRows
	result  backend.Result
}

// planDraftHead gives the head's tensors and activations their places, beside a model of shape s and with buffers b.
func planDraftHead(c *model.DraftHead, w *weights.Store, d device, s shape, b *buffers) (*draftHead, error) {
	if err := checkModel(&c.Layer); err != nil {
		return nil, fmt.Errorf("draft head: %w", err)
	}
	ids, err := w.DraftVocabulary(c)
	if err != nil {
		return nil, err
	}
	h := &draftHead{config: c, ids: ids, rows: s.tokenRows(), embed: &b.Embed, weightPlaces: &arena{}, kvPlaces: &arena{}}
	h.layer = &Backend{device: d, launched: 1, awaited: 1, graphs: map[stepShape]*driver.Graph{}, seen: map[stepShape]int{}, eager: map[stepShape][]node{}}
	own := newShape(&c.Layer)
	own.Vocab, own.TiedHead = c.VocabSize, false
	own.Page, own.MaxContext, own.MaxPages, own.MaxRows = s.Page, s.MaxContext, s.MaxPages, s.MaxRows
	own.MaxTokens = pad(s.MaxTokens+s.MaxRows, tokenPad) // each token makes a pair at most, and so does the one sampled
	h.layer.shape = own
	layers := make([]layerWeights, 1)
	if err := h.placeWeights(w, own, layers); err != nil {
		return nil, err
	}
	h.workPlaces = workArena(d, own, &h.layer.buffers)
	tokens, hidden := int64(own.tokenRows()), int64(own.Hidden)
	h.workPlaces.take(&h.aux, int64(2*h.rows+s.MaxRows)*int64(h.auxCols())*bf16Bytes)
	h.workPlaces.take(&h.gathered, tokens*int64(h.auxCols())*bf16Bytes)
	h.workPlaces.take(&h.pairs, tokens*2*hidden*bf16Bytes)
	h.workPlaces.take(&h.last, int64(own.logitRows())*hidden*bf16Bytes)
	h.layer.planner = &planner{device: d, shape: own, buffers: &h.layer.buffers, layers: layers, blasOnly: true, reads: h}
	return h, nil
}

// auxCols is the width of a row of aux.
func (h *draftHead) auxCols() int { return len(h.config.AuxLayers) * h.config.TargetHiddenSize }

// placeWeights gives every tensor its place, as bf16.
func (h *draftHead) placeWeights(w *weights.Store, s shape, layers []layerWeights) (err error) {
	const prefix = model.DraftHeadPrefix
	join := func(to *ptr, orders []int, names ...string) {
		size, shift := int64(0), int64(0)
		for i, name := range names {
			t, ok := w.Tensor(prefix + name)
			if !ok {
				err = fmt.Errorf("weight %s is missing", prefix+name)
				return
			}
			bytes := int64(t.Rows()) * int64(t.RowLen()) * bf16Bytes
			p := part{tensor: t, array: bf16Array(to, t.RowLen()), shift: shift}
			if orders != nil {
				p.order = orders[i]
			} else {
				shift += bytes
			}
			h.parts = append(h.parts, p)
			size += bytes
		}
		h.weightPlaces.take(to, size)
	}
	b, l := &h.layer.buffers, &layers[0]
	const attn, mlp = "midlayer.self_attn.", "midlayer.mlp."
	if h.config.OwnEmbedding {
		h.embed = &b.Embed
		join(&b.Embed, nil, "embed_tokens.weight")
	}
	join(&h.fc.Data, nil, "fc.weight")
	join(&h.normToken, nil, "midlayer.input_layernorm.weight")
	join(&h.normHidden, nil, "midlayer.hidden_norm.weight")
	join(&l.WQKV.Data, nil, attn+"q_proj.weight", attn+"k_proj.weight", attn+"v_proj.weight")
	join(&l.WO.Data, nil, attn+"o_proj.weight")
	join(&l.Norm2, nil, "midlayer.post_attention_layernorm.weight")
	join(&l.WGU.Data, []int{rowsOfGate, rowsOfUp}, mlp+"gate_proj.weight", mlp+"up_proj.weight")
	join(&l.WDown.Data, nil, mlp+"down_proj.weight")
	join(&b.Norm, nil, "norm.weight")
	join(&b.Head.Data, nil, "lm_head.weight")
	return err
}

// weightBytes and workBytes are 0 where there is no head.
func (h *draftHead) weightBytes() int64 {
	if h == nil {
		return 0
	}
	return h.weightPlaces.size
}

func (h *draftHead) workBytes() int64 {
	if h == nil {
		return 0
	}
	return h.workPlaces.size
}

// open allocates what was planned, brings the weights there and gets the kernels ready. The model's backend b is open but for its graphs.
func (h *draftHead) open(b *Backend, set settings) error {
	in := h.layer
	in.context, in.stream, in.blas, in.noGraph = b.context, b.stream, b.blas, b.noGraph
	in.shape.NumPages, in.planner.shape.NumPages = b.shape.NumPages, b.shape.NumPages
	h.kvPlaces.take(&in.buffers.KV, in.shape.layerKVBytes())
	for _, a := range []*arena{h.weightPlaces, h.workPlaces, h.kvPlaces} {
		base, err := in.alloc(a.size)
		if err != nil {
			return fmt.Errorf("allocate %d MiB of GPU memory for the draft head: %w", a.size>>20, err)
		}
		a.bind(base)
	}
	if err := in.openPinned(); err != nil {
		return err
	}
	var err error
	if h.index, err = driver.AllocPinned(4 * in.shape.tokenRows()); err != nil {
		return err
	}
	clear(h.index.Bytes)
	copied, planner := in.buffers, *in.planner
	copied.Plan = [2]ptr{copied.PlanCopy, copied.PlanCopy}
	planner.buffers = &copied
	in.copied = &planner

	in.compiler = newCompiler(in.device, in.shape, openCache(set.cacheDir))
	in.compiler.edit = set.edit
	in.functions, in.modules = map[unit]*driver.Function{}, map[unit]driver.Module{}
	units := append(in.planner.units(), unit{File: "fill.cu", Symbol: "fill"}, unit{File: "rope_table.cu", Symbol: "rope_table"})
	if in.code, err = in.compiler.all(units, nil); err != nil {
		return err
	}
	if err := in.upload(h.parts, nil); err != nil {
		return err
	}
	if err := in.prepare(&h.config.Layer); err != nil {
		return err
	}
	in.info = backend.Info{VocabSize: in.shape.Vocab}
	in.slots = make([]slot, in.shape.MaxRows)
	h.fresh = make([]bool, in.shape.MaxRows)
	h.follower = backend.NewFollower(b.info)
	for _, n := range buckets { // the first guesses would else be late
		if !in.noGraph && n <= gemvRows {
			if _, err := in.graph(in.padded(stepShape{rows: n, decode: n, tokens: n, samples: n, full: true})); err != nil {
				return err
			}
		}
	}
	return nil
}

// close frees what is the head's own. The stream is idle.
func (h *draftHead) close() {
	if h == nil {
		return
	}
	for _, g := range h.layer.graphs {
		g.Destroy()
	}
	for _, p := range h.layer.memory {
		driver.Free(p)
	}
	h.layer.pinned.free()
	h.index.Free()
}
