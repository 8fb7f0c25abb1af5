//go:build cuda

package cuda

import (
	"errors"
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Mixture layers. A pair is a token and one of its experts; pairs are numbered by expert, then by token. Up to gemvRows tokens take three
// launches that read each needed expert once: moe_router, moe_gate_up, moe_down. More are sorted by expert and multiplied by moe_gemm_sm90.

// moeShape is the sizes of a mixture layer; Experts is 0 where layers are dense.
type moeShape struct {
	Experts, TopK, Inter int
	NormTopK             bool // weights of the chosen sum to 1
	Uniform              bool // experts are chosen evenly instead of by the router
}

func newMoEShape(c *model.Config) moeShape {
	return moeShape{Experts: c.NumExperts, TopK: c.NumExpertsPerToken, Inter: c.MoEIntermediateSize, NormTopK: c.NormTopKProb}
}

const (
	moeMaxExperts   = 256 // one byte more would not do: threads of a CTA stand for experts
	moeMaxTopK      = 32  // lanes of a warp stand for choices
	moeThreads      = 512 // of the kernels of small steps
	moeRouterTokens = 8   // that moe_router has at a time in large steps, whatever their number: sums of a norm follow it
	// moeSortTokens is the most tokens whose rows moe_sort moves, and for which moe_router makes the router's product: then a step has fewer launches.
	moeSortTokens = 256
	// moeSmem is the least shared memory of moe_gate_up: more than half an SM's, so that a second CTA does not come to an SM while others have none.
	moeSmem = 116 << 10
)

// checkMixture tells what of a mixture the kernels cannot run on d.
func checkMixture(d device, s shape) error {
	m := s.MoE
	var problem string
	switch {
	case m.Experts == 0:
		return nil
	case d.SM != 90:
		problem = fmt.Sprintf("mixtures of experts on compute capability %d.%d (9.0 is)", d.SM/10, d.SM%10)
	case m.Experts > moeMaxExperts || m.TopK > moeMaxTopK:
		problem = fmt.Sprintf("%d experts, %d a token (up to %d and %d are)", m.Experts, m.TopK, moeMaxExperts, moeMaxTopK)
	case m.Inter%8 != 0:
		problem = fmt.Sprintf("experts of intermediate size %d (multiples of 8 are)", m.Inter)
	case moeGateUpOp(d, s, &buffers{}, layerWeights{}, gemvRows).Smem > d.MaxSmem:
		problem = fmt.Sprintf("experts of hidden size %d", s.Hidden)
	default:
		return nil
	}
	return errors.New("not supported by the CUDA kernels: " + problem + "; use --device cpu")
}

// distinct is the number of experts that so many tokens are expected to need.
func (m moeShape) distinct(tokens int) float64 {
	return backend.DistinctExperts(m.Experts, m.TopK, tokens)
}

// expertBytes is the size of one expert's weights in one layer.
func (s shape) expertBytes() int64 { return 3 * int64(s.MoE.Inter) * int64(s.Hidden) * bf16Bytes }

// defines are those of moe.cuh.
func (m moeShape) defines(more string, values ...any) string {
	flag := map[bool]int{true: 1}
	return fmt.Sprintf("EXPERTS=%d MOE_INTER=%d NORM_TOP_K=%d TOP_K=%d UNIFORM=%d", m.Experts, m.Inter, flag[m.NormTopK], m.TopK, flag[m.Uniform]) +
		fmt.Sprintf(more, values...)
}

// moeBuffers are what mixture layers need beside the others; activations of pairs are in buffers.Act.
type moeBuffers struct {
	Logits       ptr // f32 [tokenRows, Experts]
	Expert       ptr // u16 [tokenRows, TopK]
	Weight       ptr // f32 [tokenRows, TopK]
	Pair         ptr // i32 [tokenRows, TopK]
	Count, First ptr // i32 [Experts]
	X            ptr // bf16 [tokenRows*TopK, Hidden]: inputs by pair, then outputs
}

// rooms lists what m points at, and its size.
func (m *moeBuffers) rooms(s shape) []moeRoom {
	if s.MoE.Experts == 0 {
		return nil
	}
	tokens, experts := int64(s.tokenRows()), int64(s.MoE.Experts)
	pairs := tokens * int64(s.MoE.TopK)
	return []moeRoom{{&m.Logits, 4 * tokens * experts}, {&m.Expert, 2 * pairs}, {&m.Weight, 4 * pairs}, {&m.Pair, 4 * pairs},
		{&m.Count, 4 * experts}, {&m.First, 4 * experts}, {&m.X, pairs * int64(s.Hidden) * bf16Bytes}}
}

type moeRoom struct {
	to    *ptr
	bytes int64
}

// guBytes and actBytes are the sizes of the feed-forward block's activations.
func (s shape) guBytes() int64 {
	if s.MoE.Experts > 0 {
		return 0 // moe_gate_up and moe_gemm_sm90 keep it to themselves
	}
	return int64(s.tokenRows()) * int64(2*s.Inter) * bf16Bytes
}

func (s shape) actBytes() int64 {
	if s.MoE.Experts > 0 {
		return int64(s.tokenRows()) * int64(s.MoE.TopK*s.MoE.Inter) * bf16Bytes
	}
	return int64(s.tokenRows()) * int64(s.Inter) * bf16Bytes
}

// experts gives a layer's experts their places, those of a kind one behind the other, in bf16 whatever the files hold.
func experts(a *arena, s shape, l *layerWeights, mlp string, find func(name string) *weights.Tensor) []part {
	one := int64(s.MoE.Inter) * int64(s.Hidden) * bf16Bytes
	a.take(&l.WGU.Data, int64(s.MoE.Experts)*2*one)
	a.take(&l.WDown.Data, int64(s.MoE.Experts)*one)
	parts := make([]part, 0, 3*s.MoE.Experts)
	for e := range s.MoE.Experts {
		at := fmt.Sprintf("%sexperts.%d.", mlp, e)
		parts = append(parts, part{tensor: find(at + "gate_proj.weight"), array: bf16Array(&l.WGU.Data, s.Hidden), shift: int64(e) * 2 * one, order: rowsOfGate},
			part{tensor: find(at + "up_proj.weight"), array: bf16Array(&l.WGU.Data, s.Hidden), shift: int64(e) * 2 * one, order: rowsOfUp},
			part{tensor: find(at + "down_proj.weight"), array: bf16Array(&l.WDown.Data, s.MoE.Inter), shift: int64(e) * one})
	}
	return parts
}

// info tells which part of the weights a step reads by its rows' choices.
func (m moeShape) info(i *backend.Info, s shape) {
	if m.Experts == 0 {
		return
	}
	i.Experts, i.ExpertsPerToken, i.ExpertBytes = m.Experts, m.TopK, int64(s.Layers)*s.expertBytes()
	i.WeightBytes -= int64(m.Experts) * i.ExpertBytes
}

// dealingBytes is the size of Dealing of moe.cuh.
func dealingBytes(m moeShape) int {
	pairs := gemvRows * m.TopK
	return 4 * (1 + 3*min(m.Experts, pairs) + 2*pairs + 2*m.Experts + m.Experts/32 + 1)
}

// moe lists what adds a mixture layer's output to the residual stream.
func (p *planner) moe(st stepShape, l layerWeights) []node {
	d, s, b, m := p.device, p.shape, p.buffers, st.tokens
	if m <= gemvRows && !s.Deterministic && s.MaxVerify == 0 { // the sums of moe_down follow the step's experts: drafts would change bits
		class := 1
		for class < m { // warps share tokens evenly
			class *= 2
		}
		return nodesOf(moeRouterOp(s, b, l, m, class), moeGateUpOp(d, s, b, l, m), moeDownOp(d, s, b, l, m))
	}
	var nodes []node
	if m <= moeSortTokens || s.Deterministic {
		nodes = nodesOf(moeRouterOp(s, b, l, m, moeRouterTokens))
	} else {
		nodes = append(nodesOf(rmsnormOp(d, s, b, l.Norm2, m)),
			p.blas(driver.GEMM{Name: "gemm_router", M: m, N: s.MoE.Experts, K: s.Hidden, W: l.Router, X: b.XN, Y: b.MoE.Logits, F32: true})...)
	}
	nodes = append(nodes, nodesOf(moeTopKOp(s, b, l, m), moeSortOp(s, b, m))...)
	if m > moeSortTokens {
		nodes = append(nodes, nodesOf(moePermuteOp(s, b, m))...)
	}
	t := s.moeTile(m)
	return append(nodes, nodesOf(moeGEMMGateUpOp(d, s, b, l, m, t), moeGEMMDownOp(d, s, b, l, m, t),
		moeCombineOp(s, b, m))...)
}

// moeRouterParams mirrors Params of moe_router.cu.
type moeRouterParams struct {
	X, Gamma, W, XN, Logits ptr
	Tokens, _               int32
}

// moeRouterOp: xn = norm(x), and the router's logits of m tokens, class of them at a time: 1, 2, 4, 8 or 16. Sums of a norm follow the class.
func moeRouterOp(s shape, b *buffers, l layerWeights, m, class int) op {
	p := moeRouterParams{X: b.X, Gamma: l.Norm2, W: l.Router, XN: b.XN, Logits: b.MoE.Logits, Tokens: int32(m)}
	shared := moeThreads / 32 * (ceilDiv(class, 8)*16*8*4 + 4) // struct Shared of moe_router.cu
	return op{Name: "moe_router", Unit: unit{"moe_router.cu", "moe_router", s.MoE.defines(" M=%d", class)}, Grid: [3]int{ceilDiv(m, class) * ceilDiv(s.MoE.Experts, 16), 1, 1},
		Block: moeThreads, Smem: shared + min(m, class)*(s.Hidden+32)*bf16Bytes, PDL: true, Params: paramBytes(&p),
		Bytes: int64(s.MoE.Experts+2*m) * int64(s.Hidden) * bf16Bytes, FLOPs: 2 * int64(m) * int64(s.MoE.Experts) * int64(s.Hidden)}
}

// moeTokens mirrors Tokens of moe.cuh.
type moeTokens struct {
	Logits, Slot, Position ptr
	Count, Layer           int32
}

func newMoETokens(b *buffers, l layerWeights, m int) moeTokens {
	return moeTokens{Logits: b.MoE.Logits, Slot: b.TokSlot, Position: b.TokPos, Count: int32(m), Layer: int32(l.Layer)}
}

// moeGateUpParams mirrors Params of moe_gate_up.cu.
type moeGateUpParams struct {
	W, XN, Act ptr
	Tokens     moeTokens
}

// moeBlocks is how many blocks of 16 rows a CTA of moe_gate_up works on at once.
const moeBlocks = 2

// moeGateUpOp: act[pair] = weight * silu(gate) * up.
func moeGateUpOp(d device, s shape, b *buffers, l layerWeights, m int) op {
	blocks := 1
	if s.MoE.Inter%(8*moeBlocks) == 0 {
		blocks = moeBlocks
	}
	tiles, units := ceilDiv(m, 8), ceilDiv(s.MoE.Inter, 8*blocks)
	smem := 2*moeThreads/32*blocks*tiles*16*8*4 + pad(dealingBytes(s.MoE), 16) + m*(s.Hidden+32)*bf16Bytes // struct Shared of moe_gate_up.cu
	p := moeGateUpParams{W: l.WGU.Data, XN: b.XN, Act: b.Act, Tokens: newMoETokens(b, l, m)}
	return op{Name: "moe_gate_up", Unit: unit{"moe_gate_up.cu", "moe_gate_up", s.MoE.defines(" BLOCKS=%d M=%d", blocks, pad(m, 8))},
		Grid: [3]int{min(d.SMs, min(s.MoE.Experts, m*s.MoE.TopK)*units), 1, 1}, Block: moeThreads, Smem: max(moeSmem, smem), PDL: true, Params: paramBytes(&p),
		Bytes: int64(s.MoE.distinct(m)*float64(s.expertBytes())*2/3) + int64(m)*int64(s.Hidden+s.MoE.TopK*s.MoE.Inter)*bf16Bytes,
		FLOPs: 4 * int64(m) * int64(s.MoE.TopK) * int64(s.MoE.Inter) * int64(s.Hidden)}
}

// moeDownParams mirrors Params of moe_down.cu.
type moeDownParams struct {
	W, Act, X ptr
	Tokens    moeTokens
}

// moeDownOp: x[token] += act[pair] wᵀ over the token's pairs.
func moeDownOp(d device, s shape, b *buffers, l layerWeights, m int) op {
	p := moeDownParams{W: l.WDown.Data, Act: b.Act, X: b.X, Tokens: newMoETokens(b, l, m)}
	tiles, staged := ceilDiv(m, 8), 0
	smem := moeThreads/32*tiles*16*8*4 + pad(dealingBytes(s.MoE), 16) // struct Shared of moe_down.cu
	if act := m * s.MoE.TopK * (s.MoE.Inter + 32) * bf16Bytes; tiles == 1 && smem+act <= d.MaxSmem {
		staged = 1
		smem += act
	}
	return op{Name: "moe_down", Unit: unit{"moe_down.cu", "moe_down", s.MoE.defines(" M=%d STAGED=%d", 8*tiles, staged)}, Grid: [3]int{min(d.SMs, ceilDiv(s.Hidden, 16)), 1, 1},
		Block: moeThreads, Smem: smem, PDL: true, Params: paramBytes(&p),
		Bytes: int64(s.MoE.distinct(m)*float64(s.expertBytes())/3) + int64(m)*int64(2*s.Hidden+s.MoE.TopK*s.MoE.Inter)*bf16Bytes,
		FLOPs: 2 * int64(m) * int64(s.MoE.TopK) * int64(s.MoE.Inter) * int64(s.Hidden)}
}
