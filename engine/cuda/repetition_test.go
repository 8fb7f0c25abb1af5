//go:build cuda

package cuda

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/speculate"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// repetition are texts that repeat parts of themselves, as a real model said them: testdata/repetition.py.
func repetition(t testing.TB) (texts []struct{ Prompt, Output []int32 }) {
	data, err := os.ReadFile("testdata/repetition.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &texts))
	require.NotEmpty(t, texts)
	return texts
}

// BenchmarkRepetition is what n-gram drafts bring a large model on real text with repetition, B=1. Its weights are made up and would say something
// else; so steps run with the text's tokens as drafts, and a draft counts as accepted if the text goes on with it. What a step takes does not depend
// on which of its drafts are right. The policy is the engine's own and learns as it does there. Beside it, plain steps launched ahead.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Repetition -benchtime 1x
func BenchmarkRepetition(b *testing.B) {
	const runs = 5
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 48, MaxTokens: 2048, MaxContext: 2048, MaxVerify: 48, MemFraction: 0.4}, settings{})
	texts := repetition(b)
	r := &retelling{TB: b, device: be, policy: speculate.NewPolicy(backend.MaxRowDrafts, 48, false)}
	for i := range int32(2048 / int32(be.Info().PageSize)) {
		r.pages = append(r.pages, i)
	}
	for b.Loop() {
		var speedups, times []float64
		for run := range runs + 1 {
			r.verified, r.drafts, r.accepted = 0, 0, 0
			// Plain steps take the same whatever the text, so one is enough beside the others.
			one := texts[run%len(texts)]
			plain := r.plain(one.Prompt, one.Output).Seconds() / float64(len(one.Output)-1)
			var drafted time.Duration
			tokens := 0
			for _, text := range texts {
				drafted += r.drafted(text.Prompt, text.Output)
				tokens += len(text.Output) - 1
			}
			if run > 0 { // in the first the policy learns what steps cost
				speedups = append(speedups, plain*float64(tokens)/drafted.Seconds())
				times = append(times, 1e3*plain)
			}
		}
		slices.Sort(speedups)
		slices.Sort(times)
		b.ReportMetric(times[runs/2], "plain-ms")
		b.ReportMetric(speedups[runs/2], "speedup")
		b.ReportMetric(speedups[0], "speedup-least")
		b.ReportMetric(speedups[runs-1], "speedup-most")
		b.ReportMetric(1+float64(r.accepted)/float64(r.verified), "accept-len")
		b.ReportMetric(100*float64(r.accepted)/float64(r.drafts), "accept-pct")
	}
	b.ReportMetric(0, "ns/op")
}

// retelling runs the steps that would have said a text.
type retelling struct {
	testing.TB
	device                     *Backend
	policy                     *speculate.Policy
	pages                      []int32
	out                        backend.Result
	verified, drafts, accepted int
}

func (r *retelling) launch(row backend.Row) backend.StepID {
	row.Pages, row.Sample = r.pages, true
	id, err := r.device.Launch(&backend.Batch{Rows: []backend.Row{row}})
	require.NoError(r, err)
	return id
}

func (r *retelling) wait(id backend.StepID) { require.NoError(r, r.device.Wait(id, &r.out)) }

// plain decodes as many tokens as output has behind its first, each step launched before the one in front of it was awaited.
func (r *retelling) plain(prompt, output []int32) time.Duration {
	r.wait(r.launch(backend.Row{Start: &backend.Start{}, Tokens: prompt}))
	began := time.Now()
	last := r.launch(backend.Row{Position: len(prompt)})
	for i := 1; i < len(output)-1; i++ {
		next := r.launch(backend.Row{Position: len(prompt) + i})
		r.wait(last)
		last = next
	}
	r.wait(last)
	return time.Since(began)
}

// drafted says output with drafts, each step awaited before the next.
func (r *retelling) drafted(prompt, output []int32) time.Duration {
	all := slices.Concat(prompt, output)
	q := speculate.NewSequence(speculate.Match{Min: 2, Max: 16}, prompt)
	r.wait(r.launch(backend.Row{Start: &backend.Start{}, Tokens: prompt}))
	began := time.Now()
	last := began
	for n := len(prompt) + 1; n < len(all); {
		q.Extend(all[:n], r.policy)
		k := r.policy.Drafts(q, 1, 1, min(backend.MaxRowDrafts, len(all)-n-1))
		if !r.policy.Pays(1, 1, 1+k, 1+r.policy.Gain(q, k)) {
			k = 0
		}
		drafts := q.Propose(all[:n], k, nil)
		r.wait(r.launch(backend.Row{Position: n - 1, Drafts: drafts}))
		now := time.Now()
		r.policy.Took(1+k, now.Sub(last))
		last = now
		right := backend.Accepted(drafts, func(i int) int32 { return all[n+i] })
		if k > 0 {
			r.verified, r.drafts, r.accepted = r.verified+1, r.drafts+k, r.accepted+right
		}
		n += 1 + right
	}
	return time.Since(began)
}
