package cpu

import (
	"fmt"
	"math"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
)

// draftHead is an EAGLE-3 head at work. It reads pairs: a token and the model's hidden state of the token before it. The pair's keys and
// values lie in the head's own cache, in the model's pages, at the position of the hidden state. What it makes of a sequence's last pair
// guesses the next token; a guess and the head's own output are the pair that guesses one further.
//
// It sees what it has read of a sequence, which need not begin where the sequence does: pages of a cached prefix hold pairs only if those who
// filled them were followed.
type draftHead struct {
	stepper // of the one layer: its own activations and cache, the model's workers

	config     *model.DraftHead
	target     *stepper
	fc         *matrix
	hiddenNorm []float32
	ids        []int32   // [config.VocabSize] the model's ids of what it can guess
	runs       []headRun // by slot
	filled     []int     // [page] its first positions that hold pairs of the tokens there

	// The step being read.
	aux      [3][]float32 // [tokens, config.TargetHiddenSize] behind each of config.AuxLayers
	fusions  []fusion
	gathered []float32 // [fusions, 3*config.TargetHiddenSize]
	fused    []float32 // [fusions, hidden]
	pairs    []float32 // [pairs, 2*hidden]: the layer's input
	chains   []chain
}

// headRun is what the head has of a sequence.
type headRun struct {
	since  int       // the first position that it sees, the beginning of a page
	hidden []float32 // the last token's state, if the token behind it is not known yet; else nil
}

// fusion is a hidden state to be made of a token of the step: row to of x, or what a run waits with.
type fusion struct {
	token, to int
	run       *headRun // nil: to counts
}

// chain is a row whose guesses are being made.
type chain struct {
	row   int // of the step
	wants int
	at    int // the last pair's row of x
	last  backend.Row
}

func (l *loader) draftHead(cfg *model.Config, target *stepper) *draftHead {
	c, at := cfg.DraftHead, model.DraftHeadPrefix
	h := &draftHead{config: c, target: target, fc: l.matrix(at + "fc.weight"), hiddenNorm: l.vector(at + "midlayer.hidden_norm.weight")}
	n := &network{embedding: target.net.embedding, layers: make([]layer, 1), norm: l.vector(at + "norm.weight"), head: l.matrix(at + "lm_head.weight")}
	if c.OwnEmbedding {
		n.embedding = l.matrix(at + "embed_tokens.weight")
	}
	l.layer(&n.layers[0], at+"midlayer.", &c.Layer)
	h.ids = l.vocabularyMap(c)
	h.stepper = stepper{
		cfg: &c.Layer, net: n, pool: target.pool, kernels: target.kernels, invFreq: c.Layer.InvFreq(),
		cache: kvCache{layers: 1, heads: c.Layer.NumKVHeads, dim: c.Layer.HeadDim, pageSize: target.cache.pageSize, dtype: target.cache.dtype,
			scales: []float32{1, 1}, pages: make([]kvPage, len(target.cache.pages))},
		scratch: make([]scratch, target.pool.threads()),
	}
	h.runs, h.filled = make([]headRun, len(target.sequences)), make([]int, len(target.cache.pages))
	return h
}

// vocabularyMap returns the model's ids of the tokens that the head can guess.
func (l *loader) vocabularyMap(c *model.DraftHead) []int32 {
	ids := make([]int32, c.VocabSize)
	for i := range ids {
		ids[i] = int32(i)
	}
	if !c.HasMap() {
		return ids
	}
	t := l.tensor(model.DraftHeadPrefix + model.DraftVocabularyMap)
	if t == nil {
		return nil
	}
	for i, offset := range t.Int64s() {
		id := int64(i) + offset
		if id < 0 || id >= int64(c.Layer.VocabSize) {
			l.err = fmt.Errorf("weight %s: token %d of the head stands for %d, outside of the vocabulary of %d", t.Name, i, id, c.Layer.VocabSize)
			return nil
		}
		ids[i] = int32(id)
	}
	return ids
}

// capture keeps the model's residual stream x, [tokens, hidden], behind layer l if the head reads it.
func (h *draftHead) capture(l int, x []float32) {
	for i, aux := range h.config.AuxLayers {
		if l == aux {
			copy(grow(&h.aux[i], len(x)), x)
		}
	}
}

// follow reads what the step has made known of the rows that are followed, and makes the guesses that they ask for.
func (h *draftHead) follow(step *step) {
	began := time.Now()
	h.rows, h.fusions, h.chains = h.rows[:0], h.fusions[:0], h.chains[:0]
	// Each token makes at most one pair, and so does the one sampled.
	hidden := h.cfg.HiddenSize
	x := grow(&h.x, (len(h.target.tokens)+len(step.rows))*hidden)
	first, pairs := 0, 0
	for i := range step.rows {
		r := &step.rows[i]
		if step.starts[i] != nil {
			h.runs[r.Slot] = headRun{since: h.since(r)}
		}
		if r.Follow && !step.results[i].NonFinite {
			pairs += h.read(step, i, first, x[pairs*hidden:], pairs)
		} else {
			h.forget(r)
		}
		first += r.NumTokens()
	}
	if len(h.fusions) == 0 {
		return
	}
	h.fuse(x)
	if pairs > 0 {
		h.forward()
		h.guess(step)
	}
	step.headTime = time.Since(began)
}

// since is the first position from which on all pages before the row's hold pairs.
func (h *draftHead) since(r *backend.Row) int {
	size := h.cache.pageSize
	at := r.Position / size * size
	for at > 0 && h.filled[r.Pages[at/size-1]] == size {
		at -= size
	}
	return at
}

// forget notes that the row has put tokens without pairs into its pages.
func (h *draftHead) forget(r *backend.Row) {
	size := h.cache.pageSize
	for at := r.Position; at < r.Position+r.NumTokens(); at = (at/size + 1) * size {
		f := &h.filled[r.Pages[at/size]]
		*f = min(*f, at%size)
	}
}

// fill notes that the positions from..to-1 of a sequence's pages hold pairs.
func (h *draftHead) fill(pages []int32, from, to int) {
	size := h.cache.pageSize
	for at := from; at < to; at++ {
		if f := &h.filled[pages[at/size]]; *f >= at%size { // else there is a gap before
			*f = at%size + 1
		}
	}
}

// read lists the pairs of row i, whose first token is the step's token first: they are rows at and on of x. It returns their number.
func (h *draftHead) read(step *step, i, first int, x []float32, at int) int {
	r, result := &step.rows[i], &step.results[i]
	run := &h.runs[r.Slot]
	known := r.Tokens
	if len(known) == 0 { // the slot's token was paired when it was sampled
		known = append([]int32{0}, r.Drafts[:len(result.More)]...)
	}
	// The row's table begins with the run: so attention sees no more.
	row := backend.Row{Slot: r.Slot, Position: r.Position - run.since, Pages: r.Pages[run.since/h.cache.pageSize:]}
	if run.hidden != nil {
		copy(x, run.hidden)
		row.Position--
		row.Tokens = append(row.Tokens, known[0])
		run.hidden = nil
	}
	pair := func(token int, next int32) {
		h.fusions = append(h.fusions, fusion{token: first + token, to: at + len(row.Tokens)})
		row.Tokens = append(row.Tokens, next)
	}
	for j, token := range known[1:] {
		pair(j, token)
	}
	last := len(known) - 1
	if r.Sample {
		next := result.Token
		if n := len(result.More); n > 0 {
			next = result.More[n-1].Token
		}
		pair(last, next)
	} else {
		run.hidden = make([]float32, h.cfg.HiddenSize)
		h.fusions = append(h.fusions, fusion{token: first + last, run: run})
	}
	n := len(row.Tokens)
	if n > 0 {
		h.rows = append(h.rows, row)
		h.fill(row.Pages, row.Position, row.Position+n)
	}
	if r.Guess > 0 {
		h.chains = append(h.chains, chain{row: i, wants: r.Guess, at: at + n - 1, last: row})
	}
	return n
}

// fuse makes the listed hidden states.
func (h *draftHead) fuse(x []float32) {
	n, hidden, width := len(h.fusions), h.cfg.HiddenSize, h.config.TargetHiddenSize
	gathered, fused := grow(&h.gathered, n*h.fc.k), grow(&h.fused, n*hidden)
	h.each(n, func(i int) {
		token := h.fusions[i].token
		for part := range h.aux {
			copy(gathered[i*h.fc.k+part*width:], h.aux[part][token*width:(token+1)*width])
		}
	})
	h.multiply(gathered, n, product{h.fc, fused})
	for i, f := range h.fusions {
		state := fused[i*hidden : (i+1)*hidden]
		if f.run != nil {
			copy(f.run.hidden, state)
		} else {
			copy(x[f.to*hidden:], state)
		}
	}
}

// forward puts the pairs of h.rows, their hidden states in h.x, through the layer.
func (h *draftHead) forward() {
	h.place()
	for i := range h.tokens { // to positions of the sequence: pairs of several runs may lie in one table
		t := &h.tokens[i]
		t.position += h.runs[t.sequence].since
	}
	n, hidden, y := len(h.tokens), h.cfg.HiddenSize, &h.net.layers[0]
	h.rotations()
	pairs := grow(&h.pairs, n*2*hidden)
	h.each(n, func(i int) {
		embedded, state := pairs[2*i*hidden:(2*i+1)*hidden], pairs[(2*i+1)*hidden:(2*i+2)*hidden]
		h.net.embedding.tensor.Row(int(h.tokens[i].id), embedded)
		RMSNorm(embedded, embedded, y.attentionNorm, h.cfg.RMSNormEps)
		RMSNorm(state, h.x[i*hidden:(i+1)*hidden], h.hiddenNorm, h.cfg.RMSNormEps)
	})
	h.layer(0, pairs)
}

// guess goes on with every chain until it has its guesses: the likeliest token, then the likeliest behind it.
func (h *draftHead) guess(step *step) {
	hidden, vocabulary := h.cfg.HiddenSize, h.config.VocabSize
	for len(h.chains) > 0 {
		logits := h.head(len(h.chains), func(i int) int { return h.chains[i].at })
		going := h.chains[:0]
		h.rows = h.rows[:0]
		for i, c := range h.chains {
			l := logits[i*vocabulary : (i+1)*vocabulary]
			if !isFinite(l) {
				continue
			}
			best := Argmax(l)
			guess := backend.Guess{Token: h.ids[best], Prob: float32(math.Exp(float64(l[best]) - LogSumExp(l)))}
			result := &step.results[c.row]
			result.Guesses = append(result.Guesses, guess)
			if len(result.Guesses) == c.wants {
				continue
			}
			// Rows of x only move to the front.
			copy(h.x[len(going)*hidden:(len(going)+1)*hidden], h.x[c.at*hidden:(c.at+1)*hidden])
			c.at = len(going)
			c.last.Position += len(c.last.Tokens)
			c.last.Tokens = []int32{guess.Token}
			going, h.rows = append(going, c), append(h.rows, c.last)
		}
		if h.chains = going; len(going) > 0 {
			h.forward()
		}
	}
}
