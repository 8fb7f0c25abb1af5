package grammar

import (
	"encoding/json"
	"math/rand"
	"testing"

	"github.com/stretchr/testify/require"
)

// run draws one output of at most 200 tokens and returns it, with whether it is complete.
func run(t *testing.T, g *Grammar, seed int64) (out []byte, complete bool) {
	rng := rand.New(rand.NewSource(seed))
	m, mask := g.NewMatcher(), make([]uint32, g.vocab.MaskWords())
	for step := range 200 {
		require.True(t, m.Mask(mask), "dead end after %q", out)
		ids := allowed(mask)
		id := ids[rng.Intn(len(ids))]
		if m.Done() && step > 20 {
			id = g.vocab.eos[0]
		} else if step > 20 {
			id = closer(g.vocab, ids, rng)
		}
		require.NoError(t, m.Accept(id))
		if id == g.vocab.eos[0] {
			return out, true
		}
		out = append(out, g.vocab.texts[id]...)
	}
	return out, false
}

// FuzzSchema: any schema is an error or a grammar without dead ends whose outputs are valid.
func FuzzSchema(f *testing.F) {
	for _, test := range schemaCases {
		f.Add(test.schema)
	}
	v := smallVocabulary(f)
	f.Fuzz(func(t *testing.T, schema string) {
		g, err := Compile(Spec{JSONSchema: schema}, v)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		if schema == "" {
			return
		}
		if out, complete := run(t, g, int64(len(schema))); complete {
			require.True(t, json.Valid(out), "%q", out)
		}
	})
}

// FuzzRegex: any pattern is an error or a grammar without dead ends.
func FuzzRegex(f *testing.F) {
	for _, test := range regexCases {
		f.Add(test.pattern)
	}
	v := smallVocabulary(f)
	f.Fuzz(func(t *testing.T, pattern string) {
		g, err := Compile(Spec{Regex: pattern}, v)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		run(t, g, int64(len(pattern)))
	})
}
