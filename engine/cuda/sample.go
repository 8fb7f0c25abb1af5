//go:build cuda

package cuda

import "fmt"

// The kernels at the end of a step: sample_fast, or sample and publish; and target_logprob.

// ringParams mirrors Ring of publish.cuh.
type ringParams struct {
	Entries ptr
	Size    uint32
	_       uint32
	Step    ptr
}

func newRingParams(s shape, b *buffers) ringParams {
	return ringParams{Entries: b.Ring, Size: uint32(newRingLayout(s).size), Step: b.Step}
}

// sampleFastParams mirrors Params of sample_fast.cu.
type sampleFastParams struct {
	Best, SampleSlot, SlotToken ptr
	Ring                        ringParams
	Rows, CTAs                  int32
}

var maxTopDefine = fmt.Sprintf("MAX_TOP=%d", maxTop)

// sampleFastOp: the head's candidates to tokens, published.
func sampleFastOp(d device, s shape, b *buffers, samples int) op {
	p := sampleFastParams{Best: b.HeadScratch, SampleSlot: b.SampleSlot, SlotToken: b.SlotToken, Ring: newRingParams(s, b), Rows: int32(samples),
		CTAs: int32(headCTAs(d, s, samples))}
	return op{Name: "sample_fast", Unit: unit{"sample_fast.cu", "sample_fast", maxTopDefine}, Grid: [3]int{1, 1, 1}, Block: 512, PDL: true, Params: paramBytes(&p)}
}

// sampleParams mirrors Params of sample.cu.
type sampleParams struct {
	Logits, SampleSlot, SamplePos, MaskRow, Mask, SlotParam, Counts, Bias, Sampled, Top ptr
}

// sampleCluster is the number of CTAs that share a row's logits: eight, where rows alone would leave most SMs idle.
func sampleCluster(d device, samples int) int {
	if d.SM >= 90 && 8*samples <= d.SMs {
		return 8
	}
	return 1
}

// sampleOp: stored logits to tokens and log probabilities.
func sampleOp(d device, s shape, b *buffers, samples int) op {
	return sampleOpOn(s, b, samples, sampleCluster(d, samples))
}

// sampleOpOn is sampleOp with so many CTAs for a row.
func sampleOpOn(s shape, b *buffers, samples, ctas int) op {
	p := sampleParams{Logits: b.Logits, SampleSlot: b.SampleSlot, SamplePos: b.SamplePos, MaskRow: b.MaskRow, Mask: b.Mask, SlotParam: b.SlotParam,
		Counts: b.Counts, Bias: b.Bias, Sampled: b.Sampled, Top: b.Top}
	cluster := 0
	if ctas > 1 {
		cluster = ctas
	}
	return op{Name: "sample", Unit: unit{"sample.cu", "sample", fmt.Sprintf("CLUSTER=%d MAX_BIAS=%d %s", ctas, maxBias, maxTopDefine)}, Grid: [3]int{samples * ctas, 1, 1},
		Block: 1024, Cluster: cluster, PDL: true, Params: paramBytes(&p), Bytes: int64(samples) * int64(s.Vocab) * 4}
}

// publishParams mirrors Params of publish.cu.
type publishParams struct {
	Sampled, Top, SampleSlot, SlotParam, SlotToken ptr
	Ring                                           ringParams
	Rows                                           int32
	_                                              int32
}

// publishOp: what sample chose, to the slots and the host; with no sampling rows it only closes the step.
func publishOp(_ device, s shape, b *buffers, samples int) op {
	p := publishParams{Sampled: b.Sampled, Top: b.Top, SampleSlot: b.SampleSlot, SlotParam: b.SlotParam, SlotToken: b.SlotToken, Ring: newRingParams(s, b),
		Rows: int32(samples)}
	return op{Name: "publish", Unit: unit{"publish.cu", "publish", maxTopDefine}, Grid: [3]int{1, 1, 1}, Block: 256, PDL: true, Params: paramBytes(&p)}
}

// targetLogprobParams mirrors Params of target_logprob.cu.
type targetLogprobParams struct{ Logits, Target, Out ptr }

// targetLogprobOp: log probabilities of targets first..first+n-1 from the logits of rows 0..n-1.
func targetLogprobOp(_ device, s shape, b *buffers, first, n int) op {
	p := targetLogprobParams{Logits: b.Logits, Target: b.Targets + ptr(4*first), Out: b.TargetLogProbs + ptr(4*first)}
	return op{Name: "target_logprob", Unit: unit{File: "target_logprob.cu", Symbol: "target_logprob"}, Grid: [3]int{n, 1, 1}, Block: 512, PDL: true,
		Params: paramBytes(&p), Bytes: int64(n) * int64(s.Vocab) * 4}
}
