package backend

import (
	"fmt"
	"math"
)

// Checker tells what is wrong with batches, for a backend to refuse them before anything of them is run. It knows of each slot what the
// launched steps, awaited or not, have made of it.
type Checker struct {
	info    Info
	slots   []checkedSlot
	inBatch []bool
	drafted [MaxInFlight][]int // slots whose row had drafts, of the steps that were not awaited, oldest first
	flying  int
}

type checkedSlot struct {
	started   bool
	hasToken  bool // some launched row of the sequence samples
	penalties bool
	followed  bool // by the draft head, from the start
	uncertain bool // a row with drafts was not awaited: nobody knows where the sequence ends
	pages     int  // of its page table so far; they were checked when they came
}

// NewChecker makes a checker for a backend that is described by info.
func NewChecker(info Info) *Checker {
	return &Checker{info: info, slots: make([]checkedSlot, info.MaxRows), inBatch: make([]bool, info.MaxRows)}
}

// Check returns what is wrong with b, or nil. It changes nothing.
func (c *Checker) Check(b *Batch) error {
	if len(b.Rows) == 0 {
		return fmt.Errorf("batch has no rows")
	}
	if len(b.Rows) > c.info.MaxRows {
		return fmt.Errorf("batch has %d rows, limit %d", len(b.Rows), c.info.MaxRows)
	}
	clear(c.inBatch)
	tokens, drafts := 0, 0
	for i := range b.Rows {
		r := &b.Rows[i]
		if err := c.row(r); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if c.inBatch[r.Slot] {
			return fmt.Errorf("row %d: slot %d appears twice", i, r.Slot)
		}
		c.inBatch[r.Slot] = true
		tokens += r.NumTokens()
		drafts += len(r.Drafts)
	}
	if most := c.info.MaxVerify; drafts > 0 && len(b.Rows)+drafts > most {
		return fmt.Errorf("batch has %d rows and %d draft tokens, limit %d together", len(b.Rows), drafts, most)
	}
	if tokens > c.info.MaxTokens {
		return fmt.Errorf("batch has %d tokens, limit %d", tokens, c.info.MaxTokens)
	}
	return nil
}

// Launched notes that b, which Check found good, is launched.
func (c *Checker) Launched(b *Batch) {
	drafted := &c.drafted[c.flying]
	*drafted = (*drafted)[:0]
	c.flying++
	for i := range b.Rows {
		r := &b.Rows[i]
		s := &c.slots[r.Slot]
		if r.Start != nil {
			*s = checkedSlot{started: true, penalties: r.Start.Sampling.penalises()}
		}
		s.hasToken = s.hasToken || r.Sample
		s.followed = r.Follow
		s.pages = len(r.Pages)
		if len(r.Drafts) > 0 {
			s.uncertain = true
			*drafted = append(*drafted, r.Slot)
		}
	}
}

// Awaited notes that the oldest launched step was awaited.
func (c *Checker) Awaited() {
	oldest := c.drafted[0]
	for _, slot := range oldest {
		c.slots[slot].uncertain = false
	}
	copy(c.drafted[:], c.drafted[1:])
	c.drafted[len(c.drafted)-1] = oldest
	c.flying--
}

func (p *Sampling) penalises() bool {
	return p.RepetitionPenalty != 0 && p.RepetitionPenalty != 1 || p.PresencePenalty != 0 || p.FrequencyPenalty != 0
}

func (c *Checker) row(r *Row) error {
	if r.Slot < 0 || r.Slot >= c.info.MaxRows {
		return fmt.Errorf("slot %d is not in 0..%d", r.Slot, c.info.MaxRows-1)
	}
	s := c.slots[r.Slot]
	end := r.Position + r.Reach()
	words := (c.info.VocabSize + 31) / 32
	switch {
	case r.Start == nil && !s.started:
		return fmt.Errorf("slot %d has no sequence: set Start", r.Slot)
	case s.uncertain:
		return fmt.Errorf("slot %d is in a step with drafts that was not awaited", r.Slot)
	case len(r.Tokens) == 0 && (r.Start != nil || !s.hasToken):
		return fmt.Errorf("slot %d has sampled no token to decode from", r.Slot)
	case r.Position < 0 || end > c.info.MaxContext:
		return fmt.Errorf("positions %d..%d are not in the context of %d tokens", r.Position, end-1, c.info.MaxContext)
	case len(r.Pages)*c.info.PageSize < end:
		return fmt.Errorf("page table of %d pages holds %d tokens, the row needs %d", len(r.Pages), len(r.Pages)*c.info.PageSize, end)
	case r.Start == nil && len(r.Pages) < s.pages:
		return fmt.Errorf("page table of %d pages had %d before: it only grows", len(r.Pages), s.pages)
	case r.Targets != nil && len(r.Targets) != len(r.Tokens):
		return fmt.Errorf("%d targets for %d tokens", len(r.Targets), len(r.Tokens))
	case r.Mask != nil && len(r.Mask) != words:
		return fmt.Errorf("mask has %d words, want %d", len(r.Mask), words)
	case r.Mask != nil && r.Sample && !allowsAny(r.Mask, c.info.VocabSize):
		return fmt.Errorf("mask allows no token")
	}
	if r.Follow || r.Guess != 0 {
		if err := c.follow(r, &s); err != nil {
			return err
		}
	}
	if len(r.Drafts) > 0 {
		switch {
		case len(r.Drafts) > MaxRowDrafts:
			return fmt.Errorf("%d drafts, limit %d", len(r.Drafts), MaxRowDrafts)
		case len(r.Tokens) > 0 || !r.Sample:
			return fmt.Errorf("drafts belong to a decode row that samples")
		case r.Mask != nil || r.Logits || s.penalties:
			return fmt.Errorf("a row with drafts has no mask, no penalties and gives no logits")
		}
		if err := c.tokens("draft", r.Drafts); err != nil {
			return err
		}
	}
	known := 0
	if r.Start == nil {
		known = s.pages
	}
	for i, p := range r.Pages[known:] {
		if p < 0 || int(p) >= c.info.NumPages {
			return fmt.Errorf("page %d of the table is %d, not in 0..%d", known+i, p, c.info.NumPages-1)
		}
	}
	if err := c.tokens("token", r.Tokens); err != nil {
		return err
	}
	if err := c.tokens("target", r.Targets); err != nil {
		return err
	}
	if r.Start != nil {
		return c.start(r.Start)
	}
	return nil
}

// follow looks at what a row asks of the draft head.
func (c *Checker) follow(r *Row, s *checkedSlot) error {
	switch {
	case !c.info.DraftHead:
		return fmt.Errorf("there is no draft head to follow the row")
	case r.Guess < 0 || r.Guess > MaxRowDrafts:
		return fmt.Errorf("%d guesses, want 0..%d", r.Guess, MaxRowDrafts)
	case r.Guess > 0 && !(r.Follow && r.Sample):
		return fmt.Errorf("guesses belong to a row that is followed and samples")
	case r.Start == nil && !s.followed:
		return fmt.Errorf("slot %d was not followed from its start", r.Slot)
	case r.Start != nil && r.Position%c.info.PageSize != 0:
		return fmt.Errorf("a sequence is followed from the beginning of a page, not from position %d", r.Position)
	}
	return nil
}

func (c *Checker) start(s *Start) error {
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
	if p.TopK < 0 || p.TopLogProbs < 0 {
		return fmt.Errorf("top-k %d and %d top log probabilities must not be negative", p.TopK, p.TopLogProbs)
	}
	for i := range p.Bias {
		x := &p.Bias[i]
		if x.Token < 0 || int(x.Token) >= c.info.VocabSize {
			return fmt.Errorf("bias token %d is %d, not in the vocabulary 0..%d", i, x.Token, c.info.VocabSize-1)
		}
		if x.Bias != x.Bias || math.IsInf(float64(x.Bias), 1) {
			return fmt.Errorf("bias of token %d is %v", x.Token, x.Bias)
		}
	}
	if err := c.tokens("prompt token", s.Prompt); err != nil {
		return err
	}
	return c.tokens("output token", s.Output)
}

func (c *Checker) tokens(what string, ids []int32) error {
	for i, t := range ids {
		if t < 0 || int(t) >= c.info.VocabSize {
			return fmt.Errorf("%s %d is %d, not in the vocabulary 0..%d", what, i, t, c.info.VocabSize-1)
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
