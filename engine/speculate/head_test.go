package speculate_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/speculate"
)

// headWorld is a device with a draft head whose guesses are right with some probability, each if those before it are, and which knows a
// little of when they are.
type headWorld struct {
	rng    *rand.Rand
	time   func(tokens int) time.Duration
	price  time.Duration // of reading and of each guess
	right  float64
	steps  int // guesses asked for at a time
	rows   int // decode rows beside this one
	policy *speculate.Policy
	h      *speculate.Head
	tokens []int32

	spent           time.Duration
	asked, followed int
}

func newHeadWorld(t func(int) time.Duration, price time.Duration, right float64) *headWorld {
	w := &headWorld{rng: rand.New(rand.NewPCG(6, 6)), time: t, price: price, right: right, steps: 4, policy: speculate.NewPolicy(4, 48, false)}
	w.request()
	return w
}

func (w *headWorld) request() {
	w.tokens = []int32{1}
	w.h = speculate.NewHead(1)
}

// step is one step of the request and of those beside it.
func (w *headWorld) step() {
	tokens, expected := 1+w.rows, float64(1+w.rows)
	n := w.policy.Drafts(w.h, tokens, expected, 15)
	if !w.policy.Pays(tokens, expected, tokens+n, expected+w.policy.Gain(w.h, n)) {
		n = 0
	}
	drafts := w.h.Propose(w.tokens, n, nil)
	ask, head := 0, time.Duration(0)
	if w.policy.Follow(w.h) {
		w.followed++
		ask = w.policy.Ask(w.h, tokens, expected, w.steps)
		head = w.price * time.Duration(1+ask)
	}
	d := w.time(tokens + len(drafts))
	w.spent += d + head
	w.policy.Took(tokens+len(drafts), d)
	for i := range len(drafts) + 1 { // right guesses are positive, wrong ones negative
		w.tokens = append(w.tokens, 7)
		if i < len(drafts) && drafts[i] != 7 {
			break
		}
	}
	w.h.Extend(w.tokens, w.policy)
	if ask == 0 {
		return
	}
	w.asked++
	w.policy.HeadTook(1, head)
	w.h.Guessed()
	for range ask {
		if w.rng.Float64() < w.right {
			w.h.Add(7, 0.3+0.7*w.rng.Float32())
		} else {
			w.h.Add(-7, 0.8*w.rng.Float32())
		}
	}
}

// run is so many steps, in requests of length tokens; it returns the tokens a second of the one that is looked at.
func (w *headWorld) run(steps, length int) (perSecond float64) {
	said, spent := 0, w.spent
	for range steps {
		if len(w.tokens) > length {
			w.request()
		}
		before := len(w.tokens)
		w.step()
		said += len(w.tokens) - before
	}
	return float64(said) / (w.spent - spent).Seconds()
}

// TestHeadPolicy: the head is asked where its guesses are right and cheap, and costs next to nothing where they are not.
func TestHeadPolicy(t *testing.T) {
	for _, c := range []struct {
		name        string
		time        func(int) time.Duration
		price       time.Duration
		right       float64
		rows        int
		least, most float64 // part of the steps that ask
		gain        float64 // of the rate without a head, at least
	}{
		{"good and cheap", flat, 100 * time.Microsecond, 0.8, 0, 0.95, 1, 2},
		{"middling and cheap", flat, 100 * time.Microsecond, 0.5, 0, 0.9, 1, 1.5},
		{"good and half as dear", half, 100 * time.Microsecond, 0.8, 0, 0.5, 1, 1.05},
		{"wrong", flat, 100 * time.Microsecond, 0.02, 0, 0, 0.05, 0.97},
		{"good, dear to verify", steep, 100 * time.Microsecond, 0.8, 0, 0, 0.05, 0.97},
		{"good, dear to ask", flat, 5 * time.Millisecond, 0.6, 0, 0, 0.05, 0.7},
		{"good, among many", steep, 100 * time.Microsecond, 0.8, 30, 0, 0.05, 0.97},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newHeadWorld(c.time, c.price, c.right)
			w.rows = c.rows
			w.run(1000, 400)
			w.asked = 0
			rate := w.run(4000, 400)
			plain := 1 / c.time(1+c.rows).Seconds()
			asked := float64(w.asked) / 4000
			t.Logf("asked in %.3f of the steps, %.2f of the rate without", asked, rate/plain)
			require.GreaterOrEqual(t, asked, c.least)
			require.LessOrEqual(t, asked, c.most)
			require.GreaterOrEqual(t, rate/plain, c.gain)
		})
	}
}

// TestHeadIsLeftAlone: of a request whose guesses are never right the head reads no more after a while, and of most requests after it nothing
// at all; of one that would pay if it were alone it goes on reading, and is asked again when it is.
func TestHeadIsLeftAlone(t *testing.T) {
	w := newHeadWorld(flat, 100*time.Microsecond, 0)
	w.run(3000, 1<<30)
	require.Less(t, w.followed, 1000)
	before := w.followed
	w.run(40*300, 300)
	require.Less(t, w.followed-before, 40*300/4)

	w = newHeadWorld(func(tokens int) time.Duration { // 16 tokens cost as much as one
		return 5*time.Millisecond + time.Duration(max(0, tokens-16))*5*time.Millisecond
	}, 100*time.Microsecond, 0.9)
	w.run(200, 1<<30)
	w.rows, w.asked = 20, 0
	w.run(3000, 1<<30)
	require.Less(t, w.asked, 100)
	w.rows, w.asked = 0, 0
	w.run(300, 1<<30)
	require.Greater(t, w.asked, 200)
}

// TestHeadGuesses: what was proposed and not verified is still there behind tokens that it foresaw, and gone behind others.
func TestHeadGuesses(t *testing.T) {
	p := speculate.NewPolicy(15, 64, true)
	h := speculate.NewHead(2)
	tokens := []int32{1, 2}
	require.Zero(t, p.Drafts(h, 1, 1, 15))
	h.Guessed()
	for _, token := range []int32{3, 4, 5} {
		h.Add(token, 0.5)
	}
	require.Equal(t, 3, p.Drafts(h, 1, 1, 15))
	require.Equal(t, 2, p.Drafts(h, 1, 1, 2))
	require.Equal(t, []int32{3, 4}, h.Propose(tokens, 2, nil))
	tokens = append(tokens, 3)
	h.Extend(tokens, p)
	require.Equal(t, []int32{4, 5}, h.Propose(tokens, 15, nil))
	tokens = append(tokens, 4, 6)
	h.Extend(tokens, p)
	require.Empty(t, h.Propose(tokens, 15, nil))
}
