package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/engine"
)

// specName is the part of a row's name that tells of speculation; "" without.
func specName(o engine.Options) string {
	if o.SpeculativeAlgorithm == "" {
		return ""
	}
	drafts := o.SpeculativeNumTokens
	if o.SpeculativeDraftModel != "" {
		drafts = min(drafts, o.SpeculativeNumSteps)
	}
	name := fmt.Sprintf("/spec=%s/drafts=%d", strings.ToLower(o.SpeculativeAlgorithm), drafts)
	if o.SpeculativeEager {
		name += "/adaptive=off"
	}
	return name
}

// acceptFigures are what an engine's counters say of speculation between two moments.
func acceptFigures(before, after engine.Stats) []figure {
	after.DraftedRowsTotal -= before.DraftedRowsTotal
	after.DraftTokensTotal -= before.DraftTokensTotal
	after.AcceptedTotal -= before.AcceptedTotal
	length, ok := after.AcceptLength()
	if !ok {
		return nil
	}
	return []figure{{"accept-len", length}, {"accept-pct", 100 * float64(after.AcceptedTotal) / float64(after.DraftTokensTotal)}}
}

// draftCounters asks our kind of server for its counters of speculation; zeros where it has none.
func (t *target) draftCounters() (s engine.Stats) {
	info, err := t.client.Get(context.Background(), "/get_server_info")
	if err != nil {
		return s
	}
	r := gjson.GetBytes(info, "internal_states.0")
	s.DraftedRowsTotal, s.DraftTokensTotal = r.Get("spec_verifications_total").Uint(), r.Get("spec_draft_tokens_total").Uint()
	s.AcceptedTotal = r.Get("spec_accepted_tokens_total").Uint()
	return s
}

// generation is a batch run as requests: with the scheduler, and with guesses if the engine makes them.
type generation struct {
	decode time.Duration // from the last row's first token to its last
	tokens [][]int32
}

// generate runs the batch's prompts as requests, greedily, whatever the end-of-sequence token.
func (c *oneBatch) generate(tokens int) (*generation, error) {
	if err := c.engine.FlushCache(); err != nil {
		return nil, err
	}
	g := &generation{tokens: make([][]int32, c.batch)}
	outs, errs := make([]*engine.Output, c.batch), make([]error, c.batch)
	var running sync.WaitGroup
	for i := range c.batch {
		running.Go(func() {
			r := engine.Request{InputIDs: c.prompts[i], Sampling: engine.DefaultSampling(tokens)}
			r.Sampling.IgnoreEOS = true
			outs[i], errs[i] = c.engine.Generate(context.Background(), r)
		})
	}
	running.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var first, last time.Time
	for i, out := range outs {
		if len(out.TokenIDs) != tokens {
			return nil, fmt.Errorf("row %d has %d tokens, want %d", i, len(out.TokenIDs), tokens)
		}
		g.tokens[i] = out.TokenIDs
		if out.FirstToken.After(first) {
			first = out.FirstToken
		}
		if out.Finished.After(last) {
			last = out.Finished
		}
	}
	g.decode = last.Sub(first)
	return g, nil
}

// ownWords gives prompts of the batch's length that are the last of what the model says to its own in so many tokens. Greedy decoding falls
// into repeating itself sooner or later, with weights from a seed too.
func (c *oneBatch) ownWords(tokens int) ([][]int32, error) {
	g, err := c.generate(tokens)
	if err != nil {
		return nil, err
	}
	prompts := make([][]int32, c.batch)
	for i := range prompts {
		all := slices.Concat(c.prompts[i], g.tokens[i])
		prompts[i] = all[len(all)-c.in:]
	}
	return prompts, nil
}

// speculate times the batch as requests with guesses, and beside it the static batch with nothing but decode steps, one launched ahead
// of the other: what speculation brings is the ratio of their rates. A request alone must get the same tokens; among others a near-tie may flip.
func (c *oneBatch) speculate(b *testing.B, name string) {
	leaf(b, name+"/phase=speculate", func(b *testing.B) {
		var rate, speedup, same float64
		var accepts []figure
		runs := 0.0
		for b.Loop() {
			if runs == 0 && !set.skipWarmup {
				if _, err := c.generate(c.out); err != nil { // costs are learnt, graphs are made
					b.Fatal(err)
				}
			}
			before := c.engine.Stats()
			g, err := c.generate(c.out)
			if err != nil {
				b.Fatal(err)
			}
			accepts = append(accepts, acceptFigures(before, c.engine.Stats())...)
			plain, err := c.engine.StaticBatchOverlapped(c.prompts, c.out, 0)
			if err != nil {
				b.Fatal(err)
			}
			var decode time.Duration
			for _, step := range plain.Decode {
				decode += step
			}
			rate += float64(c.batch*(c.out-1)) / g.decode.Seconds()
			speedup += decode.Seconds() / g.decode.Seconds()
			common := commonTokens(plain.Tokens, g.tokens)
			if c.batch == 1 && common < 1 {
				b.Fatalf("speculation changed the tokens: the first %.0f%% are the same", 100*common)
			}
			same += common
			runs++
		}
		f := []figure{{"spec-tok/s", rate / runs}, {"speedup", speedup / runs}, {"same-pct", 100 * same / runs}}
		table.report(b, append(f, meanFigures(accepts, 2)...))
	})
}

// commonTokens is the part of the tokens, row by row up to the first difference, that two runs have in common.
func commonTokens(a, b [][]int32) float64 {
	same, all := 0, 0
	for i := range a {
		all += len(a[i])
		for j := range a[i] {
			if a[i][j] != b[i][j] {
				break
			}
			same++
		}
	}
	return float64(same) / float64(all)
}
