//go:build cuda

package cuda

import (
	"fmt"
	"math"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// check tells what is wrong with a batch, before anything of it is run. It changes nothing.
func (b *Backend) check(batch *backend.Batch) error {
	if len(batch.Rows) == 0 {
		return fmt.Errorf("batch has no rows")
	}
	if len(batch.Rows) > b.info.MaxRows {
		return fmt.Errorf("batch has %d rows, limit %d", len(batch.Rows), b.info.MaxRows)
	}
	clear(b.inBatch)
	tokens := 0
	for i := range batch.Rows {
		r := &batch.Rows[i]
		if err := b.checkRow(r); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if b.inBatch[r.Slot] {
			return fmt.Errorf("row %d: slot %d appears twice", i, r.Slot)
		}
		b.inBatch[r.Slot] = true
		tokens += r.NumTokens()
	}
	if tokens > b.info.MaxTokens {
		return fmt.Errorf("batch has %d tokens, limit %d", tokens, b.info.MaxTokens)
	}
	return nil
}

func (b *Backend) checkRow(r *backend.Row) error {
	if r.Slot < 0 || r.Slot >= b.info.MaxRows {
		return fmt.Errorf("slot %d is not in 0..%d", r.Slot, b.info.MaxRows-1)
	}
	s := &b.slots[r.Slot]
	end := r.Position + r.NumTokens()
	switch {
	case r.Start == nil && !s.started:
		return fmt.Errorf("slot %d has no sequence: set Start", r.Slot)
	case len(r.Tokens) == 0 && (r.Start != nil || !s.hasToken):
		return fmt.Errorf("slot %d has sampled no token to decode from", r.Slot)
	case r.Position < 0 || end > b.info.MaxContext:
		return fmt.Errorf("positions %d..%d are not in the context of %d tokens", r.Position, end-1, b.info.MaxContext)
	case len(r.Pages)*b.info.PageSize < end:
		return fmt.Errorf("page table of %d pages holds %d tokens, the row needs %d", len(r.Pages), len(r.Pages)*b.info.PageSize, end)
	case r.Start == nil && len(r.Pages) < s.pages:
		return fmt.Errorf("page table of %d pages had %d before: it only grows", len(r.Pages), s.pages)
	case r.Targets != nil && len(r.Targets) != len(r.Tokens):
		return fmt.Errorf("%d targets for %d tokens", len(r.Targets), len(r.Tokens))
	case r.Mask != nil && len(r.Mask) != b.shape.maskWords():
		return fmt.Errorf("mask has %d words, want %d", len(r.Mask), b.shape.maskWords())
	case r.Mask != nil && r.Sample && !allowsAny(r.Mask, b.info.VocabSize):
		return fmt.Errorf("mask allows no token")
	}
	known := 0 // pages that the device has were checked when it got them
	if r.Start == nil {
		known = s.pages
	}
	for i, p := range r.Pages[known:] {
		if p < 0 || int(p) >= b.info.NumPages {
			return fmt.Errorf("page %d of the table is %d, not in 0..%d", known+i, p, b.info.NumPages-1)
		}
	}
	if err := b.checkTokens("token", r.Tokens); err != nil {
		return err
	}
	if err := b.checkTokens("target", r.Targets); err != nil {
		return err
	}
	if r.Start != nil {
		return b.checkStart(r.Start)
	}
	return nil
}

func (b *Backend) checkStart(s *backend.Start) error {
	p := &s.Sampling
	for _, v := range []struct {
		name       string
		value      float32
		least, top float64
	}{
		{"temperature", p.Temperature, 0, math.MaxFloat32}, {"top-p", p.TopP, 0, 1}, {"min-p", p.MinP, 0, 1},
		{"repetition penalty", p.RepetitionPenalty, 0, math.MaxFloat32}, {"presence penalty", p.PresencePenalty, -math.MaxFloat32, math.MaxFloat32},
		{"frequency penalty", p.FrequencyPenalty, -math.MaxFloat32, math.MaxFloat32},
	} {
		if x := float64(v.value); !(x >= v.least && x <= v.top) {
			return fmt.Errorf("%s %v is not in [%v, %v]", v.name, v.value, v.least, v.top)
		}
	}
	switch {
	case p.TopK < 0 || p.TopLogProbs < 0:
		return fmt.Errorf("top-k %d and %d top log probabilities must not be negative", p.TopK, p.TopLogProbs)
	case p.TopLogProbs > maxTop:
		return fmt.Errorf("%d top log probabilities: the CUDA backend gives up to %d", p.TopLogProbs, maxTop)
	case len(p.Bias) > maxBias:
		return fmt.Errorf("%d biased tokens: the CUDA backend takes up to %d", len(p.Bias), maxBias)
	}
	for _, x := range p.Bias {
		if err := b.checkTokens("bias token", []int32{x.Token}); err != nil {
			return err
		}
		if x.Bias != x.Bias || math.IsInf(float64(x.Bias), 1) {
			return fmt.Errorf("bias of token %d is %v", x.Token, x.Bias)
		}
	}
	if err := b.checkTokens("prompt token", s.Prompt); err != nil {
		return err
	}
	return b.checkTokens("output token", s.Output)
}

func (b *Backend) checkTokens(what string, ids []int32) error {
	for i, t := range ids {
		if t < 0 || int(t) >= b.info.VocabSize {
			return fmt.Errorf("%s %d is %d, not in the vocabulary 0..%d", what, i, t, b.info.VocabSize-1)
		}
	}
	return nil
}

func allowsAny(mask []uint32, vocabulary int) bool {
	for _, w := range mask[:vocabulary/32] {
		if w != 0 {
			return true
		}
	}
	return vocabulary%32 != 0 && mask[vocabulary/32]<<(32-vocabulary%32) != 0
}
