package scheduler_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/kvcache"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/engine/speculate"
)

const vocab = 40

// client is what the outside knows of a request.
type client struct {
	*scheduler.Request
	got        []int32
	logProbs   []float32
	finish     scheduler.Finish
	ends       int
	bornAtStep uint64
}

// driver runs a scheduler over the fake backend, and keeps what every client saw.
type driver struct {
	t       require.TestingT
	sched   *scheduler.Scheduler
	device  *fakebackend.Backend
	batch   backend.Batch
	result  backend.Result
	flying  []backend.StepID
	clients []*client
	steps   uint64
}

func newDriver(t require.TestingT, cfg scheduler.Config) *driver {
	return &driver{t: t, sched: scheduler.New(cfg), device: fakebackend.New(backend.Info{
		VocabSize: vocab, MaxContext: cfg.MaxContext, MaxRows: cfg.MaxRows, MaxTokens: cfg.MaxTokens,
		PageSize: cfg.PageSize, NumPages: cfg.NumPages, MaxVerify: cfg.MaxVerify, DraftHead: true,
	})}
}

func (d *driver) add(c *client) {
	c.Owner = c
	if !c.HasPenalty() && !c.Constrained {
		c.Guesses = speculate.NewSequence(speculate.Match{Min: 1, Max: 4}, c.Prompt)
		if len(d.clients)%2 == 1 {
			c.Guesses = speculate.NewHead(len(c.Prompt))
		}
	}
	c.bornAtStep = d.steps
	d.clients = append(d.clients, c)
	d.sched.Add(c.Request)
	require.NoError(d.t, d.sched.Check())
}

func (d *driver) cancel(c *client) {
	if d.sched.Cancel(c.Request) {
		c.finish = scheduler.Cancelled
		c.ends++
	}
	require.NoError(d.t, d.sched.Check())
}

// launch plans and launches a step if there is one.
func (d *driver) launch() bool {
	plan := d.sched.Next(&d.batch)
	require.NoError(d.t, d.sched.Check())
	if plan.Rows == 0 {
		return false
	}
	id, err := d.device.Launch(&d.batch)
	require.NoError(d.t, err)
	d.flying = append(d.flying, id)
	d.steps++
	return true
}

// await commits the oldest step and hands tokens to their clients.
func (d *driver) await() {
	require.NoError(d.t, d.device.Wait(d.flying[0], &d.result))
	d.flying = d.flying[1:]
	for _, o := range d.sched.Commit(&d.result) {
		c := o.Request.Owner.(*client)
		require.Zero(d.t, c.ends, "a request that had ended got an outcome")
		c.logProbs = append(c.logProbs, o.PromptLogProbs...)
		if o.Sampled > 0 {
			c.got = append(c.got, o.Result.Token)
			for _, more := range o.Result.More[:o.Sampled-1] {
				c.got = append(c.got, more.Token)
			}
			if c.Constrained && o.Finish == scheduler.Running {
				d.sched.SetMask(c.Request, parityMask(o.Result.Token))
			}
		}
		if o.Finish != scheduler.Running {
			c.finish = o.Finish
			c.ends++
		}
	}
	require.NoError(d.t, d.sched.Check())
}

// drain runs until nothing is left to do and checks that nothing is left behind.
func (d *driver) drain(ahead bool) {
	bound := d.steps + 200
	for _, c := range d.clients {
		// Preemption repeats work; each request makes progress while it is the oldest.
		bound += 20 * uint64(len(c.Prompt)+c.MaxNewTokens)
	}
	for !d.sched.Idle() {
		for d.launch() && ahead && len(d.flying) < backend.MaxInFlight {
		}
		require.NotEmpty(d.t, d.flying, "nothing in flight, nothing to launch, and %d requests left",
			d.sched.NumRunning()+d.sched.NumWaiting())
		d.await()
		require.Less(d.t, d.steps, bound, "starvation")
	}
	d.sched.Flush()
	require.Equal(d.t, d.sched.Cache().NumPages(), d.sched.Cache().Available())
	require.Zero(d.t, d.sched.Cache().Cached())
	for _, c := range d.clients {
		c.verify(d.t)
	}
}

// verify compares with what the request alone would have got.
func (c *client) verify(t require.TestingT) {
	require.Equal(t, 1, c.ends, "requests end once")
	want := c.alone()
	if c.finish == scheduler.Cancelled {
		require.LessOrEqual(t, len(c.got), len(want))
		want = want[:len(c.got)]
	} else {
		stopped := len(want) > 0 && slices.Contains(c.StopTokens, want[len(want)-1]) && len(want) > c.MinNewTokens
		require.Equal(t, stopped, c.finish == scheduler.Stop, "reason %d", c.finish)
	}
	require.Equal(t, want, append([]int32{}, c.got...))
	if c.PromptLogProbs && c.finish != scheduler.Cancelled {
		chain, wantProbs := uint64(0), []float32{}
		for i, token := range c.Prompt[:len(c.Prompt)-1] {
			chain = fakebackend.Extend(chain, token)
			wantProbs = append(wantProbs, fakebackend.LogProb(chain, c.Prompt[i+1]))
		}
		require.Equal(t, wantProbs, append([]float32{}, c.logProbs...))
	}
}

func (c *client) alone() []int32 {
	chain := uint64(0)
	for _, token := range c.Prompt {
		chain = fakebackend.Extend(chain, token)
	}
	out := []int32{}
	mask := firstMask
	for range c.MaxNewTokens {
		var m []uint32
		switch {
		case c.Constrained:
			m = mask
		case len(out) < c.MinNewTokens:
			m = c.MinMask
		}
		token := fakebackend.Sample(chain, vocab, m)
		mask = parityMask(token)
		out = append(out, token)
		if slices.Contains(c.StopTokens, token) && len(out) > c.MinNewTokens {
			break
		}
		chain = fakebackend.Extend(chain, token)
	}
	return out
}

var firstMask = []uint32{0x55555555, 0x55}

// parityMask stands for a grammar: after an even token an odd one must follow.
func parityMask(token int32) []uint32 {
	if token%2 == 0 {
		return []uint32{0xAAAAAAAA, 0xAA}
	}
	return firstMask
}

func drawConfig(t *rapid.T) scheduler.Config {
	cfg := scheduler.Config{
		MaxRows:     rapid.IntRange(1, 5).Draw(t, "rows"),
		PageSize:    rapid.IntRange(1, 4).Draw(t, "pageSize"),
		NumPages:    rapid.IntRange(3, 14).Draw(t, "pages"),
		MaxContext:  rapid.IntRange(6, 40).Draw(t, "context"),
		ChunkSize:   rapid.SampledFrom([]int{0, 1, 2, 3, 7}).Draw(t, "chunk"),
		MixedTokens: rapid.SampledFrom([]int{0, 0, 1, 3, 8}).Draw(t, "mixed"),
		Policy:      rapid.SampledFrom([]scheduler.Policy{scheduler.FCFS, scheduler.LPM}).Draw(t, "policy"),
		PrefixCache: rapid.Bool().Draw(t, "prefix"),
		Seed:        1,
	}
	cfg.MaxTokens = cfg.MaxRows + rapid.IntRange(0, 12).Draw(t, "tokens")
	if rapid.Bool().Draw(t, "speculate") {
		cfg.RowDrafts, cfg.MaxVerify = rapid.IntRange(1, 6).Draw(t, "drafts"), rapid.IntRange(1, 9).Draw(t, "verify")
		cfg.EagerDrafts = true
	}
	return cfg
}

func drawClient(t *rapid.T, limit int) *client {
	r := &scheduler.Request{Salt: kvcache.Salt{uint64(rapid.IntRange(0, 1).Draw(t, "salt"))}}
	r.Sampling.RepetitionPenalty = float32(rapid.IntRange(1, 2).Draw(t, "penalty"))
	// Few tokens, so that prefixes meet.
	r.Prompt = rapid.SliceOfN(rapid.Int32Range(0, 1), 1, min(limit-1, 16)).Draw(t, "prompt")
	r.MaxNewTokens = rapid.IntRange(0, min(limit-len(r.Prompt), 20)).Draw(t, "new")
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		r.StopTokens = []int32{3, 4, 5, 6, 7, 8, 9}
		r.MinNewTokens = rapid.IntRange(0, 3).Draw(t, "min")
		r.MinMask = []uint32{^uint32(0x3F8), 0xFF}
	case 1:
		r.PromptLogProbs = true
	case 2:
		r.Constrained = true
	case 3:
		r.StopTokens = []int32{3, 4}
	}
	c := &client{Request: r}
	return c
}

// TestAnyOrderOfEvents lets requests arrive, be cancelled, be launched and awaited in any order under random bounds, few pages
// above all.
func TestAnyOrderOfEvents(t *testing.T) {
	preemptions, shared := uint64(0), uint64(0)
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t, drawConfig(t))
		limit := d.sched.Limit()
		if limit < 2 {
			t.Skip("no room for a token")
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				c := drawClient(t, limit)
				d.add(c)
				if c.Constrained {
					d.sched.SetMask(c.Request, firstMask)
				}
			},
			"cancel": func(t *rapid.T) {
				if len(d.clients) == 0 {
					t.Skip("nobody")
				}
				d.cancel(rapid.SampledFrom(d.clients).Draw(t, "who"))
			},
			"launch": func(t *rapid.T) { d.launch() },
			"await": func(t *rapid.T) {
				if len(d.flying) == 0 {
					t.Skip("nothing flies")
				}
				d.await()
			},
			"step": func(t *rapid.T) {
				for len(d.flying) < backend.MaxInFlight && d.launch() {
				}
				if len(d.flying) > 0 {
					d.await()
				}
			},
		})
		d.drain(rapid.Bool().Draw(t, "ahead"))
		preemptions += d.sched.Counts().Preemptions
		shared += d.sched.Counts().CachedTokens
	})
	if !testing.Short() { // which runs a fifth of the checks
		require.NotZero(t, preemptions, "the test never ran out of pages")
		require.NotZero(t, shared, "the test never hit the prefix cache")
	}
}

// TestOptionsDoNotChangeTokens runs the same requests under many option sets.
func TestOptionsDoNotChangeTokens(t *testing.T) {
	var right, wrong uint64
	for _, pages := range []int{12, 16, 400} {
		for _, chunk := range []int{0, 1, 5, 64} {
			for _, prefix := range []bool{false, true} {
				for _, policy := range []scheduler.Policy{scheduler.FCFS, scheduler.LPM} {
					for _, ahead := range []bool{false, true} {
						drafts := (pages + chunk) % 3 * 3
						t.Run(fmt.Sprintf("pages=%d/chunk=%d/prefix=%t/policy=%d/ahead=%t/drafts=%d", pages, chunk, prefix, policy, ahead, drafts), func(t *testing.T) {
							d := newDriver(t, scheduler.Config{
								MaxRows: 6, MaxTokens: 24, MaxContext: 64, PageSize: 4, NumPages: pages, ChunkSize: chunk,
								Policy: policy, PrefixCache: prefix, RowDrafts: drafts, MaxVerify: 12, EagerDrafts: true,
							})
							for i := range int32(30) {
								prompt := slices.Repeat([]int32{1, 2, 3, i % 3}, int(1+i%5))
								d.add(&client{Request: &scheduler.Request{
									Prompt: append(prompt, i), MaxNewTokens: int(1 + i*7%24), StopTokens: []int32{7},
								}})
							}
							d.drain(ahead) // compares each with the request alone
							c := d.sched.Counts()
							right, wrong = right+c.AcceptedTokens, wrong+c.DraftTokens-c.AcceptedTokens
							if pages == 12 {
								require.NotZero(t, d.sched.Counts().Preemptions)
							}
							if prefix {
								require.NotZero(t, d.sched.Counts().CachedTokens)
							}
						})
					}
				}
			}
		}
	}
	require.Greater(t, right, uint64(100), "guesses that were accepted")
	require.Greater(t, wrong, uint64(100), "guesses that were not")
}

// TestNobodyIsPassedForEver keeps a stream of requests with a cached prefix coming under the policy that prefers them.
func TestNobodyIsPassedForEver(t *testing.T) {
	d := newDriver(t, scheduler.Config{
		MaxRows: 2, MaxTokens: 16, MaxContext: 64, PageSize: 4, NumPages: 40, ChunkSize: 8, Policy: scheduler.LPM, PrefixCache: true,
	})
	popular := func() {
		d.add(&client{Request: &scheduler.Request{Prompt: slices.Repeat([]int32{9}, 20), MaxNewTokens: 3}})
	}
	popular()
	for !d.sched.Idle() { // its prefix is cached now
		if !d.launch() {
			d.await()
		}
	}
	for range 5 {
		popular()
	}
	poor := &client{Request: &scheduler.Request{Prompt: slices.Repeat([]int32{5}, 9), MaxNewTokens: 3}}
	d.add(poor)
	for d.steps < 400 && poor.ends == 0 {
		for d.sched.NumWaiting() < 5 {
			popular()
		}
		d.launch()
		d.await()
	}
	require.Equal(t, 1, poor.ends)
	require.Greater(t, d.steps, uint64(10), "the policy preferred nobody")
}

// TestCacheAwareAdmission: questions behind a few long prompts, shuffled, in a cache that holds a third of the prompts. In the order of
// arrival most prompts are evicted before their next question comes; admitted by what is cached, most are found.
func TestCacheAwareAdmission(t *testing.T) {
	run := func(policy scheduler.Policy) (cached float64, prefilled uint64) {
		d := newDriver(t, scheduler.Config{
			MaxRows: 4, MaxTokens: 48, MaxContext: 64, PageSize: 4, NumPages: 48, ChunkSize: 48, Policy: policy, PrefixCache: true,
		})
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(12 * 8) {
			prompt := slices.Repeat([]int32{int32(i % 12), 30, int32(i % 12), 31}, 8)
			d.add(&client{Request: &scheduler.Request{Prompt: append(prompt, int32(i/12), int32(20+i/12)), MaxNewTokens: 4}})
		}
		d.drain(true) // which also bounds the steps
		c := d.sched.Counts()
		return float64(c.CachedTokens) / float64(c.PromptTokens), c.PrefillTokens
	}
	fcfs, fcfsTokens := run(scheduler.FCFS)
	lpm, lpmTokens := run(scheduler.LPM)
	t.Logf("found in the cache: %.0f %% in the order of arrival (%d tokens computed), %.0f %% by longest prefix (%d)", 100*fcfs, fcfsTokens, 100*lpm, lpmTokens)
	require.Greater(t, lpm, 0.7)
	require.Less(t, 2*lpmTokens, fcfsTokens)
}

// BenchmarkStep shows the host's price of a decode step.
//
//	go test ./engine/scheduler -run '^$' -bench Step
func BenchmarkStep(b *testing.B) {
	for _, rows := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			cfg := scheduler.Config{
				MaxRows: rows, MaxTokens: 8192, MaxContext: 1 << 20, PageSize: 16, NumPages: 1 << 18, ChunkSize: 8192, PrefixCache: true,
			}
			var sched *scheduler.Scheduler
			var batch backend.Batch
			result := backend.Result{Rows: make([]backend.RowResult, rows)}
			left := 0
			for b.Loop() {
				if left == 0 {
					b.StopTimer()
					sched, left = scheduler.New(cfg), 16000
					for i := range rows {
						sched.Add(&scheduler.Request{Prompt: []int32{int32(i)}, MaxNewTokens: 16384})
					}
					b.StartTimer()
				}
				left--
				sched.Next(&batch)
				sched.Commit(&result)
			}
		})
	}
}
