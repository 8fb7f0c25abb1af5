package speculate_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tokamak-engine/tokamak/engine/speculate"
)

// longest is the length of the longest end of tokens that occurs earlier in them, 0 if it is below min.
func longest(tokens []int32, m speculate.Match) int {
	best := 0
	for end := 1; end < len(tokens); end++ {
		n := 0
		for n < min(end, m.Max) && tokens[end-1-n] == tokens[len(tokens)-1-n] {
			n++
		}
		best = max(best, n)
	}
	if best < m.Min {
		return 0
	}
	return best
}

// TestMatches compares with a search through everything, for tokens that come in pieces of any size.
func TestMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := speculate.Match{Min: rapid.IntRange(1, 3).Draw(t, "min"), Max: rapid.IntRange(3, 8).Draw(t, "max")}
		tokens := rapid.SliceOfN(rapid.Int32Range(0, 2), 0, 30).Draw(t, "tokens")
		first := rapid.IntRange(0, len(tokens)).Draw(t, "prompt")
		p := speculate.NewPolicy(15, 64, true)
		q := speculate.NewSequence(m, tokens[:first])
		for n := first; ; n = min(len(tokens), n+rapid.IntRange(1, 4).Draw(t, "piece")) {
			q.Extend(tokens[:n], p)
			require.Equal(t, longest(tokens[:n], m), q.Matched(), "after %v", tokens[:n])
			if q.Matched() > 0 {
				k := rapid.IntRange(1, 12).Draw(t, "drafts")
				drafts := q.Propose(tokens[:n], k, nil)
				require.Len(t, drafts, k)
				require.True(t, follows(tokens[:n], q.Matched(), drafts), "%v after %v", drafts, tokens[:n])
			}
			if n == len(tokens) {
				break
			}
		}
	})
}

// follows tells that drafts continue some earlier place that matches the last n tokens.
func follows(tokens []int32, n int, drafts []int32) bool {
	all := append(slices.Clone(tokens), drafts...)
	for end := n; end < len(tokens); end++ {
		if slices.Equal(tokens[end-n:end], tokens[len(tokens)-n:]) && slices.Equal(all[end:end+len(drafts)], drafts) {
			return true
		}
	}
	return false
}

// TestManyCandidates: where an end occurs more often than is looked at, what is found is still a match.
func TestManyCandidates(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	m := speculate.Match{Min: 1, Max: 10}
	var tokens []int32
	q, p := speculate.NewSequence(m, nil), speculate.NewPolicy(15, 64, true)
	for range 5000 {
		tokens = append(tokens, rng.Int32N(3))
		q.Extend(tokens, p)
		n := q.Matched()
		require.LessOrEqual(t, n, longest(tokens, m))
		if n > 0 {
			require.True(t, follows(tokens, n, q.Propose(tokens, 5, nil)))
		}
	}
}

// TestRepetition: what repeats is proposed on and on, over its end.
func TestRepetition(t *testing.T) {
	tokens := slices.Repeat([]int32{4, 5, 6}, 4)
	q := speculate.NewSequence(speculate.Match{Min: 2, Max: 16}, tokens)
	require.Equal(t, []int32{4, 5, 6, 4, 5, 6, 4, 5, 6, 4}, q.Propose(tokens, 10, nil))
}

// world is a device that takes a time by its tokens, and a text that quotes itself: the next token goes on with the quotation, or another
// one begins. With noise it is anything instead, out of a few tokens.
type world struct {
	rng    *rand.Rand
	time   func(tokens int) time.Duration
	goesOn float64
	noise  bool
	policy *speculate.Policy
	q      *speculate.Sequence
	tokens []int32
	at     int // of the quotation
	spent  time.Duration
}

func newWorld(t func(int) time.Duration, goesOn float64, noise bool) *world {
	w := &world{rng: rand.New(rand.NewPCG(5, 5)), time: t, goesOn: goesOn, noise: noise, policy: speculate.NewPolicy(15, 48, false)}
	for range 2000 {
		w.tokens = append(w.tokens, w.rng.Int32N(1000))
	}
	w.q = speculate.NewSequence(speculate.Match{Min: 2, Max: 16}, w.tokens)
	return w
}

func (w *world) next() int32 {
	if w.noise {
		return w.rng.Int32N(12)
	}
	if w.at++; w.at >= 2000 || w.rng.Float64() > w.goesOn {
		w.at = w.rng.IntN(1900)
	}
	return w.tokens[w.at]
}

// step is one step of one row; it returns the drafts.
func (w *world) step() int {
	n := w.policy.Drafts(w.q, 1, 1, 15)
	if !w.policy.Pays(1, 1, 1+n, 1+w.policy.Gain(w.q, n)) {
		n = 0
	}
	drafts := w.q.Propose(w.tokens, n, nil)
	d := w.time(1 + n)
	w.spent += d
	w.policy.Took(1+n, d)
	for i := range n + 1 {
		w.tokens = append(w.tokens, w.next())
		if i < n && w.tokens[len(w.tokens)-1] != drafts[i] {
			break
		}
	}
	w.q.Extend(w.tokens, w.policy)
	return n
}

func (w *world) run(steps int) (drafts, tokensPerSecond float64) {
	before, spent, all := len(w.tokens), w.spent, 0
	for range steps {
		all += w.step()
	}
	return float64(all) / float64(steps), float64(len(w.tokens)-before) / (w.spent - spent).Seconds()
}

func flat(int) time.Duration { return 5 * time.Millisecond }

func half(tokens int) time.Duration {
	return 5*time.Millisecond + time.Duration(tokens-1)*2500*time.Microsecond
}

func steep(tokens int) time.Duration { return time.Duration(tokens) * 5 * time.Millisecond }

// TestPolicy: drafts come where guesses are right and cheap, and stay away where they are wrong or dear.
func TestPolicy(t *testing.T) {
	for _, c := range []struct {
		name        string
		time        func(int) time.Duration
		goesOn      float64
		noise       bool
		least, most float64 // drafts a step
		gain        float64 // of the rate without drafts, at least
	}{
		{"long quotations, free", flat, 0.98, false, 9, 15, 6},
		{"short quotations, free", flat, 0.7, false, 1, 15, 1.3},
		{"long quotations, dear", steep, 0.98, false, 0, 0.1, 0.93},
		{"noise, free", flat, 0, true, 0, 15, 0.97},
		{"noise, dear", steep, 0, true, 0, 0.1, 0.93},
		{"noise, half as dear", half, 0, true, 0, 0.1, 0.95},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(c.time, c.goesOn, c.noise)
			w.run(100)
			drafts, rate := w.run(3000)
			plain := 1 / c.time(1).Seconds()
			t.Logf("%.2f drafts a step, %.2f of the rate without", drafts, rate/plain)
			require.GreaterOrEqual(t, drafts, c.least)
			require.LessOrEqual(t, drafts, c.most)
			require.GreaterOrEqual(t, rate/plain, c.gain)
		})
	}
}

// TestPolicyComesBack: text that begins to repeat is seen without a draft, and a price that fell is found out.
func TestPolicyComesBack(t *testing.T) {
	w := newWorld(half, 0.98, true)
	w.run(500)
	drafts, _ := w.run(100)
	require.Less(t, drafts, 0.5)
	w.noise = false
	w.run(100)
	drafts, _ = w.run(100)
	require.Greater(t, drafts, 4.0)

	w = newWorld(steep, 0.98, false)
	w.run(100)
	drafts, _ = w.run(200)
	require.Less(t, drafts, 0.5)
	w.time = flat
	w.run(3000)
	drafts, _ = w.run(200)
	require.Greater(t, drafts, 4.0)
}

// TestHiccup: one step that took a second, as the first of its size does, keeps no drafts away.
func TestHiccup(t *testing.T) {
	seen := map[int]int{}
	w := newWorld(func(tokens int) time.Duration {
		if seen[tokens]++; seen[tokens] == 1 || seen[tokens] == 9 {
			return time.Second
		}
		return 5 * time.Millisecond
	}, 0.98, false)
	w.run(300)
	drafts, _ := w.run(200)
	require.Greater(t, drafts, 6.0)
}

// TestLargeBatch: beside many rows a draft must bring as much as what it costs them all.
func TestLargeBatch(t *testing.T) {
	w := newWorld(func(tokens int) time.Duration { return 5*time.Millisecond + time.Duration(tokens)*200*time.Microsecond }, 0.8, false)
	for tokens := range 48 {
		for range 3 {
			w.policy.Took(tokens+1, w.time(tokens+1))
		}
	}
	alone, among := 0, 0
	for range 300 {
		w.step()
		alone += w.policy.Drafts(w.q, 1, 1, 15)
		among += w.policy.Drafts(w.q, 32, 32, 15)
		require.Zero(t, w.policy.Drafts(w.q, 48, 48, 15), "no room")
	}
	require.Positive(t, among)
	require.Less(t, 2*among, alone)
}

// BenchmarkExtend is the host's price of a token, by the length of what came before.
//
//	go test ./engine/speculate -run '^$' -bench .
func BenchmarkExtend(b *testing.B) {
	for _, n := range []int{1 << 10, 1 << 14, 1 << 17} {
		for _, vocabulary := range []int32{20, 50000} {
			b.Run(fmt.Sprintf("tokens=%d/vocabulary=%d", n, vocabulary), func(b *testing.B) {
				rng := rand.New(rand.NewPCG(1, 1))
				p := speculate.NewPolicy(15, 48, false)
				tokens := make([]int32, n, n+4096)
				for i := range tokens {
					tokens[i] = rng.Int32N(vocabulary)
				}
				var q *speculate.Sequence
				left := 0
				for b.Loop() {
					if left == 0 {
						b.StopTimer()
						tokens = tokens[:n]
						q, left = speculate.NewSequence(speculate.Match{Min: 2, Max: 16}, tokens), 4096
						b.StartTimer()
					}
					left--
					tokens = append(tokens, rng.Int32N(vocabulary))
					q.Extend(tokens, p)
					p.Drafts(q, 1, 1, 15)
				}
			})
		}
	}
}
