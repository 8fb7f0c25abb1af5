package cpu

import (
	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
)

// stepper runs steps, one at a time, on the goroutine that owns it.
type stepper struct {
	cfg     *model.Config
	net     *network
	pool    *pool
	kernels *kernels
	cache   kvCache
	// uniformExperts takes the choice of experts from the router: backend.Options.SimulateUniformExperts.
	uniformExperts bool
	invFreq        []float64

	sequences []*sequence // by slot
	draft     *draftHead  // nil: there is none

	// The step being run.
	rows   []backend.Row
	tokens []tokenPlace
	tasks  []attentionTask
	parts  []partial // of rows whose blocks are shared between workers
	places []samplePlace

	// Activations, row-major by token: the residual stream, its normed form, and what each layer needs. They keep the size
	// of the largest step so far.
	x, normed, q, k, v, attended, gate, up, mlpOut, cos, sin, padded, hidden, logits []float32

	moe     moe
	scratch []scratch // by worker
	notes   notes
}

// scratch is one worker's own memory.
type scratch struct {
	tile                       []float32 // decoded weight rows
	queries, scores, out, page []float32 // attention
	parts                      []partial
	logits                     []float32 // sampling
}

// tokenPlace is where a token of the step belongs.
type tokenPlace struct {
	id       int32
	position int
	page     int32
	slot     int // inside the page
	sequence int // the row's slot
}

// parallelRows is the number of tokens from which per-token work is shared between workers: below it, the sharing costs more.
const parallelRows = 4

// forward puts the step's tokens through the layers and leaves the residual stream in s.x, [tokens, hidden].
func (s *stepper) forward() {
	s.place()
	n, hidden := len(s.tokens), s.cfg.HiddenSize
	x, normed := grow(&s.x, n*hidden), grow(&s.normed, n*hidden)
	s.each(n, func(i int) { s.net.embedding.tensor.Row(int(s.tokens[i].id), x[i*hidden:(i+1)*hidden]) })
	s.rotations()
	s.notes.note("embed", -1, n)
	for l := range s.net.layers {
		s.normRows(normed, x, s.net.layers[l].attentionNorm, n)
		s.notes.note("norm", l, n)
		s.layer(l, normed)
		if s.draft != nil {
			s.draft.capture(l, x)
		}
	}
}

// rotations makes the rotary embedding's factors of the step's positions, [tokens, headDim/2].
func (s *stepper) rotations() {
	n, half := len(s.tokens), s.cfg.HeadDim/2
	cos, sin := grow(&s.cos, n*half), grow(&s.sin, n*half)
	s.each(n, func(i int) {
		CosSin(cos[i*half:(i+1)*half], sin[i*half:(i+1)*half], s.invFreq, s.tokens[i].position, s.cfg.RoPE.AttentionFactor)
	})
}

// layer adds layer l's attention and feed-forward block to the residual stream s.x. in is the attention's input, normed: [tokens, columns of
// its matrices]. It may be s.normed, which is lost.
func (s *stepper) layer(l int, in []float32) {
	n, cfg, y := len(s.tokens), s.cfg, &s.net.layers[l]
	hidden, qSize, kvSize, half := cfg.HiddenSize, cfg.NumHeads*cfg.HeadDim, cfg.NumKVHeads*cfg.HeadDim, cfg.HeadDim/2
	x, normed := s.x[:n*hidden], grow(&s.normed, n*hidden)
	q, k, v := grow(&s.q, n*qSize), grow(&s.k, n*kvSize), grow(&s.v, n*kvSize)
	attended := grow(&s.attended, n*qSize)
	cos, sin := s.cos[:n*half], s.sin[:n*half]

	s.multiply(in, n, product{y.q, q}, product{y.k, k}, product{y.v, v})
	s.notes.note("qkv", l, n, y.q, y.k, y.v)
	s.each(n, func(i int) {
		qi, ki, vi := q[i*qSize:(i+1)*qSize], k[i*kvSize:(i+1)*kvSize], v[i*kvSize:(i+1)*kvSize]
		add(qi, y.qBias)
		add(ki, y.kBias)
		add(vi, y.vBias)
		c, sn := cos[i*half:(i+1)*half], sin[i*half:(i+1)*half]
		s.rotateHeads(qi, y.qNorm, c, sn)
		s.rotateHeads(ki, y.kNorm, c, sn)
		t := &s.tokens[i]
		s.cache.put(t.page, t.slot, l, 0, ki)
		s.cache.put(t.page, t.slot, l, 1, vi)
	})
	s.notes.note("rope_kv", l, n)
	s.attend(l)
	s.notes.note("attention", l, n)
	s.multiply(attended, n, product{y.o, normed})
	s.each(n, func(i int) { add(x[i*hidden:(i+1)*hidden], normed[i*hidden:(i+1)*hidden]) })
	s.notes.note("o", l, n, y.o)
	s.normRows(normed, x, y.mlpNorm, n)
	s.notes.note("norm", l, n)
	if y.router != nil {
		s.mixture(y, l, x, normed, n)
		s.notes.note("experts", l, n)
		return
	}
	out := grow(&s.mlpOut, n*hidden)
	s.feedForward(&y.mlp, out, normed, n)
	s.each(n, func(i int) { add(x[i*hidden:(i+1)*hidden], out[i*hidden:(i+1)*hidden]) })
	s.notes.note("mlp", l, n, y.mlp.gate, y.mlp.up, y.mlp.down)
}

// place lists the step's tokens, reads each decode row's token from its slot and makes room in the cache.
func (s *stepper) place() {
	s.tokens = s.tokens[:0]
	size := s.cache.pageSize
	for i := range s.rows {
		r := &s.rows[i]
		s.cache.touch(r.Pages, r.Position, r.Position+r.NumTokens())
		for j := range r.NumTokens() {
			p := r.Position + j
			t := tokenPlace{position: p, page: r.Pages[p/size], slot: p % size, sequence: r.Slot}
			switch {
			case len(r.Tokens) > 0:
				t.id = r.Tokens[j]
			case j == 0:
				t.id = s.sequences[r.Slot].lastToken
			default:
				t.id = r.Drafts[j-1]
			}
			s.tokens = append(s.tokens, t)
		}
	}
}

// feedForward writes one gated block's output for n tokens to out, [n, hidden].
func (s *stepper) feedForward(w *mlp, out, in []float32, n int) {
	size := w.gate.n
	gate, up := grow(&s.gate, n*size), grow(&s.up, n*size)
	s.multiply(in, n, product{w.gate, gate}, product{w.up, up})
	s.each(n, func(i int) {
		g := gate[i*size : (i+1)*size]
		s.kernels.swiglu(g, g, up[i*size:(i+1)*size])
	})
	s.multiply(gate, n, product{w.down, out})
}

func (s *stepper) rotateHeads(heads, norm, cos, sin []float32) {
	dim := s.cfg.HeadDim
	for h := 0; h < len(heads); h += dim {
		head := heads[h : h+dim]
		if norm != nil {
			RMSNorm(head, head, norm, s.cfg.RMSNormEps)
		}
		Rotate(head, cos, sin)
	}
}

// normRows norms n rows of x into dst.
func (s *stepper) normRows(dst, x, weight []float32, n int) {
	h := len(weight)
	s.each(n, func(i int) { RMSNorm(dst[i*h:(i+1)*h], x[i*h:(i+1)*h], weight, s.cfg.RMSNormEps) })
}

// each calls fn for 0..n-1, shared between workers if n is large.
func (s *stepper) each(n int, fn func(i int)) {
	if n < parallelRows {
		for i := range n {
			fn(i)
		}
		return
	}
	const perTask = 4
	s.pool.run((n+perTask-1)/perTask, func(_, task int) {
		for i := task * perTask; i < min(n, (task+1)*perTask); i++ {
			fn(i)
		}
	})
}

// add adds y to x elementwise; a nil y adds nothing.
func add(x, y []float32) {
	for i, v := range y {
		x[i] += v
	}
}
