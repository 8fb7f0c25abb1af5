package backend_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

const pageSize = 4

// TestFollower: sequences that come in chunks of any size and then in runs of tokens, some of them in pages that others have filled. Whatever the
// steps, each token but the first makes one pair, with the state of the token before it, at that one's position.
func TestFollower(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const slots, perSlot = 3, 12
		f := backend.NewFollower(backend.Info{PageSize: pageSize, MaxRows: slots, NumPages: slots * perSlot})
		sequences := make([]*following, slots)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			var rows []backend.Row
			var first []int
			var results []backend.RowResult
			state := 0 // tokens of the step before the row
			for slot := range slots {
				if rapid.Bool().Draw(t, "idle") {
					continue
				}
				q := sequences[slot]
				row := backend.Row{Slot: slot, Follow: true, Sample: true}
				if q == nil || q.ended || len(q.tokens) > perSlot*pageSize-20 {
					q = newFollowing(t, slot, perSlot, sequences)
					sequences[slot] = q
					row.Start = &backend.Start{}
					f.Begin(&backend.Row{Slot: slot, Position: q.computed, Pages: q.pages})
				}
				row.Position, row.Pages = q.computed, q.pages
				result := backend.RowResult{Token: rapid.Int32Range(0, 99).Draw(t, "token")}
				if left := q.prompt - q.computed; left > 0 {
					n := rapid.IntRange(1, left).Draw(t, "chunk")
					row.Tokens, row.Sample = q.tokens[q.computed:q.computed+n], n == left
				} else {
					for range rapid.IntRange(0, 3).Draw(t, "drafts") {
						row.Drafts = append(row.Drafts, rapid.Int32Range(0, 99).Draw(t, "draft"))
					}
					for i := range rapid.IntRange(0, len(row.Drafts)).Draw(t, "accepted") {
						// The token before draft i was sampled as draft i; the last one is whatever follows.
						if i == 0 {
							result.Token = row.Drafts[0]
						} else {
							result.More[i-1].Token = row.Drafts[i]
						}
						result.More = append(result.More, backend.Sampled{Token: 77})
					}
				}
				q.step(&row, &result, state)
				rows, first, results = append(rows, row), append(first, state), append(results, result)
				state += row.NumTokens()
			}
			for _, r := range f.Step(rows, first, results) {
				sequences[r.Slot].read(t, &r, rows[r.Row].Position)
			}
			for _, q := range sequences {
				if q != nil {
					q.check(t)
				}
			}
		}
	})
}

// following is a sequence, and what was read of it.
type following struct {
	prompt, computed int
	tokens           []int32
	states           []int // [token] its place in the step that computed it
	pages            []int32
	begins           int // positions that the head does not see
	pairs            int // read so far
	held             int // state that is held; -1: none
	ended            bool
}

// newFollowing begins a sequence, some of them behind whole pages of another one's.
func newFollowing(t *rapid.T, slot, perSlot int, others []*following) *following {
	q := &following{prompt: rapid.IntRange(1, 15).Draw(t, "prompt"), held: -1}
	for i := range perSlot {
		q.pages = append(q.pages, int32(slot*perSlot+i))
	}
	for range q.prompt {
		q.tokens = append(q.tokens, rapid.Int32Range(0, 99).Draw(t, "token"))
	}
	if other := others[(slot+1)%len(others)]; other != nil && other.computed > pageSize && rapid.Bool().Draw(t, "shares") {
		// The last of its whole pages may lack its last pair, then the head sees none of them.
		shared := other.computed / pageSize * pageSize
		q.computed, q.prompt = shared, q.prompt+shared
		q.tokens = append(append([]int32(nil), other.tokens[:shared]...), q.tokens...)
		copy(q.pages, other.pages[:shared/pageSize])
		q.states, q.pairs = make([]int, shared), shared
	}
	return q
}

// step takes what a row computes and gives.
func (q *following) step(row *backend.Row, result *backend.RowResult, first int) {
	n := row.NumTokens()
	if len(row.Tokens) == 0 {
		n = 1 + len(result.More)
	}
	for i := range n {
		q.states = append(q.states, first+i)
	}
	q.computed += n
	if row.Sample {
		q.tokens = append(q.tokens, result.Token)
		for _, m := range result.More {
			q.tokens = append(q.tokens, m.Token)
		}
	}
}

// read takes pairs: token i+1 with the state of token i at position i, less what the head does not see.
func (q *following) read(t *rapid.T, r *backend.Read, rowPosition int) {
	if r.Begins {
		q.begins = rowPosition - r.Position
	}
	states := r.States
	for i, token := range r.Tokens {
		at := r.Position + q.begins + i
		require.Equal(t, q.pairs, at, "pairs come in order, none twice")
		require.Equal(t, q.tokens[at+1], token)
		if i == 0 && r.Held {
			require.Equal(t, q.states[at], q.held)
		} else {
			require.Equal(t, q.states[at], states[0])
			states = states[1:]
		}
		q.pairs++
	}
	require.Empty(t, states)
	q.held = -1
	if r.Holds {
		q.held = r.Hold
		require.Equal(t, q.computed-1, q.pairs, "what is held is the last token's")
		require.Equal(t, q.states[q.pairs], q.held)
	}
	require.Equal(t, q.pages[q.begins/pageSize:], r.Pages)
}

// check holds that nothing is left unread.
func (q *following) check(t *rapid.T) {
	if q.computed == q.prompt && q.held >= 0 || q.computed < q.prompt {
		return
	}
	require.Equal(t, len(q.tokens)-1, q.pairs)
}
