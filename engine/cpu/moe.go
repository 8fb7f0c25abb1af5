package cpu

import (
	"cmp"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// moe is a mixture layer's working memory.
type moe struct {
	router      []float32
	assignments []assignment
	in, out     []float32
}

// assignment gives a token to an expert.
type assignment struct {
	token, expert int
	weight        float32
}

// mixture adds to x, [n, hidden], what each token's NumExpertsPerToken likeliest experts make of in, weighted by the router's
// softmax (renormalised over the chosen if NormTopKProb). A token's sum runs over its experts by ascending number. y is layer number l.
func (s *stepper) mixture(y *layer, l int, x, in []float32, n int) {
	m, hidden, experts := &s.moe, s.cfg.HiddenSize, len(y.experts)
	router := grow(&m.router, n*experts)
	s.multiply(in, n, product{y.router, router})
	m.assignments = m.assignments[:0]
	for i := range n {
		m.assignments = append(m.assignments, route(router[i*experts:(i+1)*experts], i, s.cfg.NumExpertsPerToken, s.cfg.NormTopKProb)...)
	}
	if s.uniformExperts {
		for i := range m.assignments {
			a := &m.assignments[i]
			t := &s.tokens[a.token]
			a.expert = backend.UniformExpert(t.sequence, t.position, l, i%s.cfg.NumExpertsPerToken, experts, s.cfg.NumExpertsPerToken)
		}
	}
	slices.SortStableFunc(m.assignments, func(a, b assignment) int { return cmp.Compare(a.expert, b.expert) })
	for rest := m.assignments; len(rest) > 0; {
		count := 1
		for count < len(rest) && rest[count].expert == rest[0].expert {
			count++
		}
		in2, out := grow(&m.in, count*hidden), grow(&m.out, count*hidden)
		for i, a := range rest[:count] {
			copy(in2[i*hidden:], in[a.token*hidden:(a.token+1)*hidden])
		}
		s.feedForward(&y.experts[rest[0].expert], out, in2, count)
		for i, a := range rest[:count] {
			row := x[a.token*hidden : (a.token+1)*hidden]
			for d, v := range out[i*hidden : (i+1)*hidden] {
				row[d] += a.weight * v
			}
		}
		rest = rest[count:]
	}
}

// route picks one token's k experts from its router logits, [experts]: the most probable, the lowest number on a tie.
func route(logits []float32, token, k int, renormalise bool) []assignment {
	softmaxPortable(logits, 1) // leaves exp(l - largest)
	var total float32
	order := make([]assignment, len(logits))
	for e, p := range logits {
		total += p
		order[e] = assignment{token, e, p}
	}
	slices.SortStableFunc(order, func(a, b assignment) int { return cmp.Compare(b.weight, a.weight) })
	order = order[:k]
	if renormalise {
		total = 0
		for _, a := range order {
			total += a.weight
		}
	}
	for i := range order {
		order[i].weight /= total
	}
	return order
}
