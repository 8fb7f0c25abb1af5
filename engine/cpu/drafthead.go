package cpu

import (
	"math"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
)

// draftHead is an EAGLE-3 head at work. What it makes of a sequence's last pair guesses the next token; a guess and the head's own output are
// the pair that guesses one further. See [backend.Follower].
type draftHead struct {
	stepper // of the one layer: its own activations and cache, the model's workers

	config     *model.DraftHead
	target     *stepper
	fc         *matrix
	hiddenNorm []float32
	ids        []int32 // [config.VocabSize] the model's ids of what it can guess
	follower   *backend.Follower
	held       [][]float32 // [slot][hidden] the state of a sequence's last token, if the token behind it was not known

	// The step being read.
	aux      [3][]float32 // [tokens, config.TargetHiddenSize] behind each of config.AuxLayers
	fusions  []fusion
	gathered []float32 // [fusions, 3*config.TargetHiddenSize]
	fused    []float32 // [fusions, hidden]
	pairs    []float32 // [pairs, 2*hidden]: the layer's input
	chains   []chain
}

// fusion is a hidden state to be made of a token of the step.
type fusion struct {
	token int
	to    []float32
}

// chain is a row whose guesses are being made.
type chain struct {
	row   int // of the step
	wants int
	at    int // the last pair's row of x
	last  backend.Row
}

func (l *loader) draftHead(cfg *model.Config, info backend.Info, target *stepper) *draftHead {
	c, at := cfg.DraftHead, model.DraftHeadPrefix
	h := &draftHead{config: c, target: target, fc: l.matrix(at + "fc.weight"), hiddenNorm: l.vector(at + "midlayer.hidden_norm.weight")}
	n := &network{embedding: target.net.embedding, layers: make([]layer, 1), norm: l.vector(at + "norm.weight"), head: l.matrix(at + "lm_head.weight")}
	if c.OwnEmbedding {
		n.embedding = l.matrix(at + "embed_tokens.weight")
	}
	l.layer(&n.layers[0], at+"midlayer.", &c.Layer)
	ids, err := l.store.DraftVocabulary(c)
	if l.err == nil {
		l.err = err
	}
	h.ids = ids
	h.stepper = stepper{
		cfg: &c.Layer, net: n, pool: target.pool, kernels: target.kernels, invFreq: c.Layer.InvFreq(),
		cache: kvCache{layers: 1, heads: c.Layer.NumKVHeads, dim: c.Layer.HeadDim, pageSize: target.cache.pageSize, dtype: target.cache.dtype,
			scales: []float32{1, 1}, pages: make([]kvPage, len(target.cache.pages))},
		scratch: make([]scratch, target.pool.threads()),
	}
	h.follower, h.held = backend.NewFollower(info), make([][]float32, info.MaxRows)
	return h
}

// capture keeps the model's residual stream x, [tokens, hidden], behind layer l if the head reads it.
func (h *draftHead) capture(l int, x []float32) {
	for i, aux := range h.config.AuxLayers {
		if l == aux {
			copy(grow(&h.aux[i], len(x)), x)
		}
	}
}

// follow reads what the step has made known of the rows that are followed, and makes the guesses that they ask for. first are the rows' first
// tokens in the step.
func (h *draftHead) follow(step *step, first []int) {
	began := time.Now()
	h.rows, h.fusions, h.chains = h.rows[:0], h.fusions[:0], h.chains[:0]
	hidden, pairs := h.cfg.HiddenSize, 0
	for i, q := range step.starts {
		if q != nil {
			h.follower.Begin(&step.rows[i])
		}
	}
	// Each token makes at most one pair, and so does the one sampled.
	x := grow(&h.x, (len(h.target.tokens)+len(step.rows))*hidden)
	for _, r := range h.follower.Step(step.rows, first, step.results) {
		row := backend.Row{Slot: r.Slot, Position: r.Position, Tokens: r.Tokens, Pages: r.Pages}
		at := pairs
		if r.Held {
			copy(x[at*hidden:], h.held[r.Slot])
			at++
		}
		for i, token := range r.States {
			h.fusions = append(h.fusions, fusion{token, x[(at+i)*hidden : (at+i+1)*hidden]})
		}
		if r.Holds {
			h.fusions = append(h.fusions, fusion{r.Hold, grow(&h.held[r.Slot], hidden)})
		}
		if pairs += len(r.Tokens); len(r.Tokens) > 0 {
			h.rows = append(h.rows, row)
		}
		if r.Guess > 0 {
			h.chains = append(h.chains, chain{row: r.Row, wants: r.Guess, at: pairs - 1, last: row})
		}
	}
	if len(h.fusions) == 0 {
		return
	}
	h.fuse()
	if pairs > 0 {
		h.forward()
		h.guess(step)
	}
	step.headTime = time.Since(began)
}

// fuse makes the listed hidden states.
func (h *draftHead) fuse() {
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
		copy(f.to, fused[i*hidden:(i+1)*hidden])
	}
}

// forward puts the pairs of h.rows, their hidden states in h.x, through the layer.
func (h *draftHead) forward() {
	h.place()
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
