package cpu

import (
	"math"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// tokensPerAttention is the number of a chunk's tokens that one task attends for: with the query heads of a group they share
// each page of keys and values while it is in cache.
const tokensPerAttention = 8

// blockPositions is the number of positions, rounded up to whole pages, that a query's sum is cut into. Blocks lie at fixed
// positions and are merged by ascending position, so a long context can be shared between workers and the result still does
// not depend on how.
const blockPositions = 512

// attentionTask is a run of tokens of one row, one KV head and a range of blocks.
type attentionTask struct {
	row        *backend.Row
	first      int // of the row's tokens in the step
	begin, end int // tokens of the row
	head       int
	block      int // of a row of one token; -1: all blocks
	part       int // index of the task's first partial result in s.parts, where block is not -1
}

// partial is what one query has of one block: sum over its positions of exp((score-largest)*scale) * value in out, [headDim],
// and the sum of those weights.
type partial struct {
	largest, sum float32
	out          []float32
}

// merge adds a later block to p. Both sums are brought to the larger of the two maxima first.
func (p *partial) merge(q *partial, scale float32) {
	largest := max(p.largest, q.largest)
	a, b := exp32((p.largest-largest)*scale), exp32((q.largest-largest)*scale)
	p.largest, p.sum = largest, p.sum*a+q.sum*b
	for i, v := range q.out {
		p.out[i] = p.out[i]*a + v*b
	}
}

// attend computes the attention of all tokens of the step, from s.q [tokens, heads*headDim] and the pages to s.attended, the
// same shape.
func (s *stepper) attend(layer int) {
	group := s.cfg.NumHeads / s.cfg.NumKVHeads
	size := s.blockSize()
	s.tasks = s.tasks[:0]
	first, parts := 0, 0
	for i := range s.rows {
		r := &s.rows[i]
		n := r.NumTokens()
		from, to := windowStart(r.Position+1, s.cfg.SlidingWindow)/size, r.Position/size+1
		for h := range s.cfg.NumKVHeads {
			if n == 1 && to-from > 1 { // a decode row of a long sequence: its blocks are shared between the workers
				for b := from; b < to; b++ {
					s.tasks = append(s.tasks, attentionTask{r, first, 0, 1, h, b, parts})
					parts += group
				}
				continue
			}
			for begin := 0; begin < n; begin += tokensPerAttention {
				s.tasks = append(s.tasks, attentionTask{r, first, begin, min(n, begin+tokensPerAttention), h, -1, 0})
			}
		}
		first += n
	}
	for len(s.parts) < parts {
		s.parts = append(s.parts, partial{out: make([]float32, s.cfg.HeadDim)})
	}
	// Later tokens see more; the longest tasks go first so that no worker ends alone.
	last := len(s.tasks) - 1
	s.pool.run(len(s.tasks), func(worker, task int) {
		s.attendTask(worker, layer, &s.tasks[last-task])
	})
	s.mergeParts()
}

// mergeParts puts together the blocks of rows that were shared between workers.
func (s *stepper) mergeParts() {
	group, scale := s.cfg.NumHeads/s.cfg.NumKVHeads, s.attentionScale()
	for i := 0; i < len(s.tasks); i++ {
		a := &s.tasks[i]
		if a.block < 0 {
			continue
		}
		blocks := 1
		for i+blocks < len(s.tasks) && s.tasks[i+blocks].first == a.first && s.tasks[i+blocks].head == a.head {
			blocks++
		}
		for g := range group {
			whole := &s.parts[a.part+g]
			for b := 1; b < blocks; b++ {
				whole.merge(&s.parts[a.part+b*group+g], scale)
			}
			s.finishQuery(a, g, group, whole)
		}
		i += blocks - 1
	}
}

// finishQuery writes the attention of query i of a task.
func (s *stepper) finishQuery(a *attentionTask, i, group int, p *partial) {
	dim := s.cfg.HeadDim
	at := ((a.first+a.begin+i/group)*s.cfg.NumHeads + a.head*group + i%group) * dim
	inverse := 1 / p.sum
	for d, v := range p.out {
		s.attended[at+d] = v * inverse
	}
}

// blockSize is blockPositions in whole pages.
func (s *stepper) blockSize() int {
	return (blockPositions + s.cache.pageSize - 1) / s.cache.pageSize * s.cache.pageSize
}

func (s *stepper) attentionScale() float32 { return float32(1 / math.Sqrt(float64(s.cfg.HeadDim))) }

// attendTask does one task. Query i of it is head i%group of token i/group.
func (s *stepper) attendTask(worker, layer int, a *attentionTask) {
	cfg, scratch := s.cfg, &s.scratch[worker]
	dim, group := cfg.HeadDim, cfg.NumHeads/cfg.NumKVHeads
	m := (a.end - a.begin) * group
	queries := grow(&scratch.queries, m*dim)
	for i := range m {
		at := ((a.first+a.begin+i/group)*cfg.NumHeads + a.head*group + i%group) * dim
		copy(queries[i*dim:(i+1)*dim], s.q[at:at+dim])
	}
	if a.block >= 0 {
		s.attendBlock(scratch, layer, a, queries, a.block*s.blockSize(), s.parts[a.part:a.part+group])
		return
	}
	whole, next := scratch.partials(2*m, dim)[:m], scratch.partials(2*m, dim)[m:]
	size := s.blockSize()
	end := a.row.Position + a.end
	for begin := windowStart(a.row.Position+a.begin+1, cfg.SlidingWindow) / size * size; begin < end; begin += size {
		s.attendBlock(scratch, layer, a, queries, begin, next)
		for i := range m {
			switch {
			case next[i].sum == 0: // sees nothing of the block
			case whole[i].sum == 0:
				whole[i], next[i] = next[i], whole[i]
			default:
				whole[i].merge(&next[i], s.attentionScale())
			}
		}
	}
	for i := range m {
		s.finishQuery(a, i, group, &whole[i])
	}
}

// partials returns n of the worker's partial results with no sum yet.
func (w *scratch) partials(n, dim int) []partial {
	for len(w.parts) < n {
		w.parts = append(w.parts, partial{})
	}
	for i := range w.parts[:n] {
		w.parts[i].sum = 0
		grow(&w.parts[i].out, dim)
		w.parts[i].out = w.parts[i].out[:dim]
	}
	return w.parts[:n]
}

// attendBlock fills parts, one for each query, with the block of positions from begin on; the sum is 0 for a query that sees
// none of them.
func (s *stepper) attendBlock(scratch *scratch, layer int, a *attentionTask, queries []float32, begin int, parts []partial) {
	c, ks := &s.cache, s.kernels
	dim, group, m := s.cfg.HeadDim, s.cfg.NumHeads/s.cfg.NumKVHeads, len(parts)
	if dim%lanes != 0 {
		ks = &portable // its loops take any length
	}
	// Query i sees positions [low(i), high(i)) of the block; pages that none sees are left out.
	blockBegin, blockEnd := begin, begin+s.blockSize()
	high := func(i int) int { return min(a.row.Position+a.begin+i/group+1, blockEnd) }
	low := func(i int) int {
		return max(windowStart(a.row.Position+a.begin+i/group+1, s.cfg.SlidingWindow), blockBegin)
	}
	begin = low(0) / c.pageSize * c.pageSize
	end := high(m - 1)

	width := (end - begin + 3) / 4 * 4
	scores := grow(&scratch.scores, m*width)
	for p := begin; p < end; p += c.pageSize {
		n := min(c.pageSize, end-p)
		keys := c.rows(a.row.Pages[p/c.pageSize], layer, 0, a.head, n, &scratch.page)
		ks.tile(scores[p-begin:], queries, keys, width, dim, dim, m, n, dim)
	}
	scale := s.attentionScale()
	out := grow(&scratch.out, m*dim)
	clear(out)
	for i := range m {
		parts[i].sum = 0
		if from, to := low(i), high(i); from < to {
			parts[i].largest, parts[i].sum = ks.softmax(scores[i*width:][from-begin:to-begin], scale)
		}
	}
	for p := begin; p < end; p += c.pageSize {
		n := min(c.pageSize, end-p)
		values := c.rows(a.row.Pages[p/c.pageSize], layer, 1, a.head, n, &scratch.page)
		for i := 0; i < m; i += 4 {
			weigh(ks, out[i*dim:], scores[i*width+p-begin:], values, width, min(4, m-i), dim,
				func(r int) (int, int) { return max(low(i+r)-p, 0), min(high(i+r)-p, n) })
		}
	}
	for i := range m {
		copy(parts[i].out, out[i*dim:(i+1)*dim])
	}
}

// weigh adds one page's values to up to four queries' sums. span gives the part of the page that a query sees; the part that
// all see is done for all at once, the rest one by one, so that each query's order stays ascending.
func weigh(ks *kernels, out, p, v []float32, ldp, m, dim int, span func(int) (int, int)) {
	from, to := span(0)
	for r := 1; r < m; r++ {
		f, t := span(r)
		from, to = max(from, f), min(to, t)
	}
	to = max(to, from)
	one := func(r, begin, end int) {
		if begin < end {
			ks.accumulate(out[r*dim:], p[r*ldp+begin:], v[begin*dim:], ldp, 1, end-begin, dim)
		}
	}
	for r := range m {
		f, t := span(r)
		one(r, f, min(from, t))
	}
	if from < to {
		ks.accumulate(out, p[from:], v[from*dim:], ldp, m, to-from, dim)
	}
	for r := range m {
		f, t := span(r)
		one(r, max(to, f), t)
	}
}
