package backend

import "math"

// StepWeightBytes is what a decode step of so many rows is expected to read of the weights: WeightBytes, and the experts that the rows
// need if they choose evenly. It is exact for a model without experts.
func (i Info) StepWeightBytes(rows int) float64 {
	if i.Experts == 0 {
		return float64(i.WeightBytes)
	}
	return float64(i.WeightBytes) + DistinctExperts(i.Experts, i.ExpertsPerToken, rows)*float64(i.ExpertBytes)
}

// DistinctExperts is the expected number of experts that tokens need if each takes perToken of experts evenly and on its own:
// experts * (1 - (1 - perToken/experts)^tokens). It holds for [UniformExpert] as well as for a random choice.
func DistinctExperts(experts, perToken, tokens int) float64 {
	return float64(experts) * (1 - math.Pow(1-float64(perToken)/float64(experts), float64(tokens)))
}

// UniformExpert is the choice-th of a token's perToken experts under Options.SimulateUniformExperts, as SGLang's switch of that name has
// it: experts at equal distances, from a place that is random for each token and layer. Random is here a hash of the token's slot
// and position, so that neither chunks nor batch mates change it; engine/kernels/moe.cuh computes the same.
func UniformExpert(slot, position, layer, choice, experts, perToken int) int {
	h := uint32(position)*0x9E3779B1 ^ uint32(slot)*0x85EBCA77 ^ uint32(layer)*0xC2B2AE3D
	h ^= h >> 16
	h *= 0x85EBCA6B
	h ^= h >> 13
	h *= 0xC2B2AE35
	h ^= h >> 16
	return (int(h%uint32(experts)) + choice*(experts/perToken)) % experts
}
