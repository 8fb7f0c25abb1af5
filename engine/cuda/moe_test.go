//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cpu"
)

// mixtureLayer is a mixture layer's weights, on the host and on the device.
type mixtureLayer struct {
	*rig
	gamma, router  []float32 // router [experts, hidden]
	gate, up, down []float32 // [experts, inter, hidden] twice, [experts, hidden, inter]
	w              layerWeights
}

func newMixtureLayer(t testing.TB, hidden int, m moeShape) *mixtureLayer {
	r := newRig(t, mixtureShape(hidden, m))
	rows, inside := 1/math.Sqrt(float64(hidden)), 1/math.Sqrt(float64(m.Inter))
	l := &mixtureLayer{rig: r, gamma: r.normal(hidden, 0.3), router: r.normal(m.Experts*hidden, rows), gate: r.normal(m.Experts*m.Inter*hidden, rows),
		up: r.normal(m.Experts*m.Inter*hidden, rows), down: r.normal(m.Experts*m.Inter*hidden, inside)}
	for i := range l.gamma {
		l.gamma[i]++
	}
	for _, v := range [][]float32{l.gate, l.up} {
		for i := range v {
			v[i] = toBF16(v[i])
		}
	}
	gateUp := make([]float32, 2*len(l.gate))
	for e := range m.Experts {
		for j := range m.Inter {
			at := (e*2*m.Inter + j/8*16 + j%8) * hidden
			copy(gateUp[at:at+hidden], l.gate[(e*m.Inter+j)*hidden:])
			copy(gateUp[at+8*hidden:at+9*hidden], l.up[(e*m.Inter+j)*hidden:])
		}
	}
	l.w = layerWeights{Norm2: r.putBF16(l.gamma), Router: r.putBF16(l.router), WGU: weight{Data: r.putBF16(gateUp)}, WDown: weight{Data: r.putBF16(l.down)}, Layer: 3}
	return l
}

// mixtureCase is a step's tokens in front of a mixture layer.
type mixtureCase struct {
	*mixtureLayer
	b              *buffers
	m              int
	x              []float32 // [m, hidden]
	slots          []int32
	xExact, xPlain []float32 // normed: exactly, and rounded as Hugging Face does
	logits         []float32 // of xPlain
}

func (l *mixtureLayer) tokens(t testing.TB, m int, same bool) *mixtureCase {
	r, layer := l.in(t), *l
	r.shape.MaxTokens = m
	layer.rig = r
	s, h := r.shape, r.shape.Hidden
	c := &mixtureCase{mixtureLayer: &layer, m: m, b: &buffers{}, x: r.normal(m*h, 1.5), slots: make([]int32, m)}
	if same {
		for i := range m {
			copy(c.x[i*h:], c.x[:h])
		}
	}
	positions := make([]int32, m)
	for i := range c.slots {
		c.slots[i], positions[i] = int32(i), int32(7*i)
		if i%5 == 4 { // padding
			c.slots[i] = -1
		}
	}
	for _, room := range c.b.MoE.rooms(s) {
		*room.to = r.room(int(room.bytes))
	}
	c.b.X, c.b.XN, c.b.Act = r.putBF16(c.x), r.room(s.tokenRows()*h*bf16Bytes), r.room(int(s.actBytes()))
	c.b.TokSlot, c.b.TokPos = put(r, c.slots), put(r, positions)
	c.xExact, c.xPlain, c.logits = make([]float32, m*h), make([]float32, m*h), make([]float32, m*s.MoE.Experts)
	ones := slices.Repeat([]float32{1}, h)
	for i := range m {
		cpu.RMSNorm(c.xExact[i*h:(i+1)*h], c.x[i*h:(i+1)*h], c.gamma, s.Eps)
		plain := c.xPlain[i*h : (i+1)*h]
		cpu.RMSNorm(plain, c.x[i*h:(i+1)*h], ones, s.Eps)
		for j := range plain {
			plain[j] = toBF16(toBF16(plain[j]) * c.gamma[j])
		}
	}
	cpu.MatMul(c.logits, c.xPlain, c.router, m, s.MoE.Experts, h)
	return c
}

// choice is what the device chose for a token, by ascending expert.
type choice struct {
	expert int
	weight float32
}

// small runs a step of few tokens and returns the choices by token.
func (c *mixtureCase) small() [][]choice {
	c.Helper()
	d, s, b := c.device, c.shape, c.b
	class := 1
	for class < c.m {
		class *= 2
	}
	c.run(moeRouterOp(s, b, c.w, c.m, class), moeGateUpOp(d, s, b, c.w, c.m), moeDownOp(d, s, b, c.w, c.m))
	c.run(moeTopKOp(s, b, c.w, c.m)) // the choices stay in the kernels: this one makes the same of the logits
	return c.stored()
}

// large runs a step of many tokens. The router's product of more than moeSortTokens is made here: the engine leaves it to cuBLASLt.
func (c *mixtureCase) large(tile moeTile) [][]choice {
	c.Helper()
	d, s, b := c.device, c.shape, c.b
	if c.m <= moeSortTokens {
		c.run(moeRouterOp(s, b, c.w, c.m, moeRouterTokens), moeTopKOp(s, b, c.w, c.m), moeSortOp(s, b, c.m))
	} else {
		c.run(rmsnormOp(d, s, b, c.w.Norm2, c.m))
		logits := make([]float32, c.m*s.MoE.Experts)
		cpu.MatMul(logits, c.getBF16(b.XN, c.m*s.Hidden), c.router, c.m, s.MoE.Experts, s.Hidden)
		b.MoE.Logits = put(c.rig, logits)
		c.run(moeTopKOp(s, b, c.w, c.m), moeSortOp(s, b, c.m), moePermuteOp(s, b, c.m))
	}
	c.run(moeGEMMGateUpOp(d, s, b, c.w, c.m, tile), moeGEMMDownOp(d, s, b, c.w, c.m, tile), moeCombineOp(s, b, c.m))
	k := s.MoE.TopK
	experts, pair := get[uint16](c.rig, b.MoE.Expert, c.m*k), get[int32](c.rig, b.MoE.Pair, c.m*k)
	next := int32(0)
	for e := range s.MoE.Experts { // pairs are numbered by expert, then by token
		for i := range experts {
			if int(experts[i]) == e {
				require.Equal(c, next, pair[i], "expert %d, token %d", e, i/k)
				next++
			}
		}
	}
	return c.stored()
}

// stored reads what moe_topk stored.
func (c *mixtureCase) stored() [][]choice {
	c.Helper()
	k, b := c.shape.MoE.TopK, c.b
	experts, weight, pair := get[uint16](c.rig, b.MoE.Expert, c.m*k), get[float32](c.rig, b.MoE.Weight, c.m*k), get[int32](c.rig, b.MoE.Pair, c.m*k)
	out := make([][]choice, c.m)
	for i := range experts {
		if c.slots[i/k] < 0 {
			require.Equal(c, uint16(0xFFFF), experts[i])
			require.Equal(c, int32(-1), pair[i])
			continue
		}
		out[i/k] = append(out[i/k], choice{int(experts[i]), weight[i]})
	}
	return out
}

// checkChoices holds the choices against the router's softmax in float64. The device's logits, of size 1, differ from the oracle's by the
// order of fp32 sums and where a normed value is rounded the other way, which moves a logit by 2^-8 of one of its terms: far less than 1e-2.
func (c *mixtureCase) checkChoices(chosen [][]choice) {
	c.Helper()
	m := c.shape.MoE
	const tolerance = 1e-2
	for t, got := range chosen {
		if c.slots[t] < 0 {
			require.Empty(c, got, "padding")
			continue
		}
		logits := c.logits[t*m.Experts : (t+1)*m.Experts]
		require.Len(c, got, m.TopK, "token %d", t)
		least, taken, total, norm := math.Inf(1), map[int]bool{}, 0.0, 0.0
		for i, g := range got {
			require.False(c, taken[g.expert], "token %d has expert %d twice", t, g.expert)
			if i > 0 {
				require.Greater(c, g.expert, got[i-1].expert)
			}
			taken[g.expert] = true
			least = min(least, float64(logits[g.expert]))
			norm += math.Exp(float64(logits[g.expert]))
		}
		if m.Uniform {
			for j := range m.TopK {
				require.True(c, taken[backend.UniformExpert(int(c.slots[t]), 7*t, 3, j, m.Experts, m.TopK)], "token %d", t)
			}
			continue
		}
		for e, l := range logits {
			total += math.Exp(float64(l))
			require.True(c, taken[e] || float64(l) <= least+tolerance, "token %d: expert %d with logit %v was left out, the least taken has %v", t, e, l, least)
		}
		if !m.NormTopK {
			norm = total
		}
		for _, g := range got {
			require.InEpsilon(c, math.Exp(float64(logits[g.expert]))/norm, g.weight, tolerance, "token %d, expert %d", t, g.expert)
		}
	}
}

// checkOutput holds x against the mixture of the experts that the device chose, with its weights, expert by expert.
func (c *mixtureCase) checkOutput(chosen [][]choice, what string) {
	c.Helper()
	h, inter := c.shape.Hidden, c.shape.MoE.Inter
	exact, plain := slices.Clone(c.x), slices.Clone(c.x)
	one := []float32{1}
	for e := range c.shape.MoE.Experts {
		var tokens []int
		var weights, xExact, xPlain []float32
		for t, choices := range chosen {
			for _, g := range choices {
				if g.expert == e {
					tokens, weights = append(tokens, t), append(weights, g.weight)
					xExact, xPlain = append(xExact, c.xExact[t*h:(t+1)*h]...), append(xPlain, c.xPlain[t*h:(t+1)*h]...)
				}
			}
		}
		n := len(tokens)
		if n == 0 {
			continue
		}
		g, u, y := make([]float32, n*inter), make([]float32, n*inter), make([]float32, n*h)
		gate, up, down := c.gate[e*inter*h:(e+1)*inter*h], c.up[e*inter*h:(e+1)*inter*h], c.down[e*inter*h:(e+1)*inter*h]
		cpu.MatMul(g, xExact, gate, n, inter, h)
		cpu.MatMul(u, xExact, up, n, inter, h)
		cpu.SwiGLU(g, g, u)
		cpu.MatMul(y, g, down, n, h, inter)
		for i, v := range y {
			exact[tokens[i/h]*h+i%h] += weights[i/h] * v
		}
		cpu.MatMul(g, xPlain, gate, n, inter, h)
		cpu.MatMul(u, xPlain, up, n, inter, h)
		for i := range g {
			act := []float32{toBF16(g[i])}
			cpu.SwiGLU(act, act, one)
			g[i] = toBF16(toBF16(act[0]) * toBF16(u[i]))
		}
		cpu.MatMul(y, g, down, n, h, inter)
		for i, v := range y {
			at := &plain[tokens[i/h]*h+i%h]
			*at = toBF16(*at + toBF16(weights[i/h]*toBF16(v)))
		}
	}
	requireClose(c, exact, plain, c.getBF16(c.b.X, c.m*h), what)
}

// mixtureShapes are a real layer's sizes with few experts, and sizes that leave ragged ends everywhere.
var mixtureShapes = []struct {
	hidden int
	moe    moeShape
}{
	{2048, moeShape{Experts: 12, TopK: 4, Inter: 768, NormTopK: true}},
	{256, moeShape{Experts: 128, TopK: 8, Inter: 96, NormTopK: true}},
	{72, moeShape{Experts: 60, TopK: 4, Inter: 40}},
	{320, moeShape{Experts: 8, TopK: 2, Inter: 176, NormTopK: true}},
	{1000, moeShape{Experts: 6, TopK: 6, Inter: 8}},
	{64, moeShape{Experts: 200, TopK: 3, Inter: 64, Uniform: true, NormTopK: true}},
}

func mixtureShape(hidden int, m moeShape) shape {
	s := testShapes()["qwen3-30b-a3b"]
	s.Hidden, s.MoE = hidden, m
	return s
}

var mixtureTiles = []moeTile{{128, 32}, {256, 64}, {256, 160}}

// compile makes the kernels of every number of tokens and every tile, all processors at it.
func (l *mixtureLayer) compile() {
	p := &planner{device: l.device, shape: l.shape, buffers: &buffers{}}
	var nodes []node
	for _, m := range []int{1, 2, 4, 8, 16, 64, 300} {
		nodes = append(nodes, p.moe(stepShape{tokens: m}, layerWeights{})...)
	}
	for _, tile := range mixtureTiles {
		nodes = append(nodes, nodesOf(moeGEMMGateUpOp(l.device, l.shape, p.buffers, layerWeights{}, 64, tile), moeGEMMDownOp(l.device, l.shape, p.buffers, layerWeights{}, 64, tile))...)
	}
	var ops []op
	for _, n := range nodes {
		if n.op != nil {
			ops = append(ops, *n.op)
		}
	}
	l.prepare(ops...)
}

// TestMixture holds the kernels of mixture layers, small steps' and large ones', against exact sums: every number of tokens that a
// class of kernels takes, with padding among them, and all tokens at the same experts.
func TestMixture(t *testing.T) {
	for _, c := range mixtureShapes {
		t.Run(fmt.Sprintf("hidden=%d/experts=%d/top=%d/inter=%d", c.hidden, c.moe.Experts, c.moe.TopK, c.moe.Inter), func(t *testing.T) {
			layer := newMixtureLayer(t, c.hidden, c.moe)
			layer.compile()
			for _, m := range []int{1, 2, 3, 5, 8, 9, 13, 16} {
				for _, same := range []bool{false, true} {
					t.Run(fmt.Sprintf("small/m=%d/same=%v", m, same), func(t *testing.T) {
						mc := layer.tokens(t, m, same)
						chosen := mc.small()
						mc.checkChoices(chosen)
						mc.checkOutput(chosen, "small step")
					})
				}
			}
			for i, m := range []int{1, 17, 64, 200, 300} {
				for j, tile := range mixtureTiles {
					if c.hidden == 2048 && (j != i%len(mixtureTiles) || m > 64) {
						continue // the oracle takes seconds
					}
					t.Run(fmt.Sprintf("large/m=%d/tile=%v", m, tile), func(t *testing.T) {
						mc := layer.tokens(t, m, i == 3 && j == 1)
						chosen := mc.large(tile)
						mc.checkChoices(chosen)
						mc.checkOutput(chosen, "large step")
					})
				}
			}
		})
	}
}

// TestMixtureTies: of equal logits the lowest numbers win, as on the CPU.
func TestMixtureTies(t *testing.T) {
	layer := newMixtureLayer(t, 64, moeShape{Experts: 60, TopK: 4, Inter: 40, NormTopK: true})
	clear(layer.router)
	layer.w.Router = layer.putBF16(layer.router)
	for _, m := range []int{3, 40, 300} {
		c := layer.tokens(t, m, false)
		run := c.small
		if m > gemvRows {
			run = func() [][]choice { return c.large(c.shape.moeTile(m)) }
		}
		for token, chosen := range run() {
			if c.slots[token] < 0 {
				continue
			}
			for j, g := range chosen {
				require.Equal(t, choice{j, 0.25}, g, "token %d", token)
			}
		}
	}
}

func TestCheckMixture(t *testing.T) {
	ok := mixtureShape(2048, moeShape{Experts: 128, TopK: 8, Inter: 768})
	require.NoError(t, checkMixture(testDevices["sm_90"], ok))
	require.NoError(t, checkMixture(testDevices["sm_80"], testShapes()["llama-8b"]), "no mixture")
	for name, c := range map[string]struct {
		device string
		hidden int
		moe    moeShape
		want   string
	}{
		"device": {"sm_80", 2048, ok.MoE, "mixtures of experts on compute capability 8.0 (9.0 is)"},
		"many":   {"sm_90", 2048, moeShape{Experts: 512, TopK: 8, Inter: 768}, "512 experts, 8 a token (up to 256 and 32 are)"},
		"ragged": {"sm_90", 2048, moeShape{Experts: 8, TopK: 2, Inter: 100}, "intermediate size 100 (multiples of 8 are)"},
		"wide":   {"sm_90", 16384, ok.MoE, "experts of hidden size 16384"},
	} {
		err := checkMixture(testDevices[c.device], mixtureShape(c.hidden, c.moe))
		require.ErrorContains(t, err, c.want, name)
		assert.NotContains(t, err.Error(), "\n", "one line")
	}
}
