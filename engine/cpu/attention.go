package cpu

import (
	"math"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// tokensPerAttention is the number of a chunk's tokens that one task attends for: with the query heads of a group they share
// each page of keys and values while it is in cache.
const tokensPerAttention = 8

// attentionTask is a run of tokens of one row and one KV head.
type attentionTask struct {
	row        *backend.Row
	first      int // of the row's tokens in the step
	begin, end int // tokens of the row
	head       int
}

// attend computes the attention of all tokens of the step, from s.q [tokens, heads*headDim] and the pages to s.attended, the
// same shape.
func (s *stepper) attend(layer int) {
	s.tasks = s.tasks[:0]
	first := 0
	for i := range s.rows {
		r := &s.rows[i]
		n := r.NumTokens()
		for begin := 0; begin < n; begin += tokensPerAttention {
			for h := range s.cfg.NumKVHeads {
				s.tasks = append(s.tasks, attentionTask{r, first, begin, min(n, begin+tokensPerAttention), h})
			}
		}
		first += n
	}
	// Later tokens see more; the longest tasks go first so that no worker ends alone.
	last := len(s.tasks) - 1
	s.pool.run(len(s.tasks), func(worker, task int) {
		s.attendTask(worker, layer, &s.tasks[last-task])
	})
}

func (s *stepper) attendTask(worker, layer int, a *attentionTask) {
	c, cfg, ks, scratch := &s.cache, s.cfg, s.kernels, &s.scratch[worker]
	dim, group := cfg.HeadDim, cfg.NumHeads/cfg.NumKVHeads
	if dim%lanes != 0 {
		ks = &portable // its loops take any length
	}
	tokens := a.end - a.begin
	m := tokens * group

	// Query i is head i%group of token i/group. Its sum runs over positions [low(i), high(i)).
	high := func(i int) int { return a.row.Position + a.begin + i/group + 1 }
	low := func(i int) int { return windowStart(high(i), cfg.SlidingWindow) }
	begin, end := low(0)/c.pageSize*c.pageSize, high(m-1)

	queries := grow(&scratch.queries, m*dim)
	for i := range m {
		at := ((a.first+a.begin+i/group)*cfg.NumHeads + a.head*group + i%group) * dim
		copy(queries[i*dim:(i+1)*dim], s.q[at:at+dim])
	}
	width := (end - begin + 3) / 4 * 4
	scores := grow(&scratch.scores, m*width)
	for p := begin; p < end; p += c.pageSize {
		n := min(c.pageSize, end-p)
		keys := c.rows(a.row.Pages[p/c.pageSize], layer, 0, a.head, n, &scratch.page)
		ks.tile(scores[p-begin:], queries, keys, width, dim, dim, m, n, dim)
	}

	scale := float32(1 / math.Sqrt(float64(dim)))
	inverse := grow(&scratch.inv, m)
	for i := range m {
		row := scores[i*width:]
		sum := ks.softmax(row[low(i)-begin:high(i)-begin], scale)
		inverse[i] = 1 / sum
	}

	out := grow(&scratch.out, m*dim)
	clear(out)
	for p := begin; p < end; p += c.pageSize {
		n := min(c.pageSize, end-p)
		values := c.rows(a.row.Pages[p/c.pageSize], layer, 1, a.head, n, &scratch.page)
		for i := 0; i < m; i += 4 {
			rows := min(4, m-i)
			s.weigh(ks, out[i*dim:], scores[i*width+p-begin:], values, width, rows, dim,
				func(r int) (int, int) { return max(low(i+r)-p, 0), min(high(i+r)-p, n) })
		}
	}
	for i := range m {
		at := ((a.first+a.begin+i/group)*cfg.NumHeads + a.head*group + i%group) * dim
		for d, v := range out[i*dim : (i+1)*dim] {
			s.attended[at+d] = v * inverse[i]
		}
	}
}

// weigh adds one page's values to up to four queries' sums. span gives the part of the page that a query sees; the part that
// all see is done for all at once, the rest one by one, so that each query's order stays ascending.
func (s *stepper) weigh(ks *kernels, out, p, v []float32, ldp, m, dim int, span func(int) (int, int)) {
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
