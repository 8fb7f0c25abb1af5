package engine

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/fixtures/fetch"
)

func TestRegexHoldsEveryToken(t *testing.T) {
	for _, overlap := range []bool{true, false} {
		o := DefaultOptions()
		o.DisableOverlap = !overlap
		info := fakeInfo()
		info.NumPages = 60 // some are preempted
		e := openFake(t, o, info, nil)
		patterns := []string{`(ab|cd)*z`, `the( in)+`, `[a-e]{3,9}`, `é+x?`, `[a-z ]*`}
		var wg sync.WaitGroup
		for i := range 40 {
			wg.Go(func() {
				r := request([]int32{1 + int32(i%20), 2}, 5+i)
				pattern := ""
				if i%2 == 0 { // the others run beside them
					pattern = patterns[i/2%len(patterns)]
					r.Sampling.Regex, r.Sampling.IgnoreEOS = pattern, false
				}
				out, err := e.Generate(context.Background(), r)
				if err != nil {
					t.Errorf("%s: %v", pattern, err)
					return
				}
				if pattern == "" {
					if !slices.Equal(out.TokenIDs, fakebackend.Continue(r.InputIDs, 5+i, len(pieces), nil)) {
						t.Errorf("a request without a grammar got %v", out.TokenIDs)
					}
					return
				}
				whole := regexp.MustCompile("^(?:" + pattern + ")$")
				switch {
				case out.Finish == FinishStop && !whole.MatchString(out.Text):
					t.Errorf("%q does not match %s", out.Text, pattern)
				case out.Finish == FinishLength && len(out.TokenIDs) != 5+i:
					t.Errorf("%d of %d tokens", len(out.TokenIDs), 5+i)
				case out.Finish == FinishAbort:
					t.Errorf("%s was aborted", pattern)
				}
			})
		}
		wg.Wait()
		settled(t, e)
	}
}

// TestAGrammarThatCanOnlyEndEnds: no end-of-sequence token is needed, and none is sampled.
func TestAGrammarThatCanOnlyEndEnds(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	r := request([]int32{1}, 50)
	r.Sampling.Regex = "abc"
	out, events := collect(t, e, r)
	require.Equal(t, "abc", out.Text)
	require.Equal(t, FinishStop, out.Finish)
	require.NotContains(t, out.TokenIDs, int32(0))
	require.LessOrEqual(t, len(events), len(out.TokenIDs)+1)
	settled(t, e)

	r.Sampling.MinNewTokens = 20 // a complete value goes before
	out, _ = collect(t, e, r)
	require.Equal(t, "abc", out.Text)

	r.Sampling.StopTokenIDs = []int32{int32(slices.Index(pieces, "c"))} // the only token that can complete it
	out, _ = collect(t, e, r)
	require.Equal(t, "abc", out.Text)
	require.Equal(t, FinishStop, out.Finish)
	r.Sampling.StopTokenIDs = nil

	r.Sampling.Regex = "a*" // may end at once: a minimum keeps it going
	r.Sampling.IgnoreEOS = false
	out, _ = collect(t, e, r)
	require.GreaterOrEqual(t, len(out.TokenIDs), 20)
}

func TestGrammarsThatCannotBeUsed(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	for field, spoil := range map[string]func(*Sampling){
		"regex":       func(p *Sampling) { p.Regex = "(" },
		"json_schema": func(p *Sampling) { p.JSONSchema = `{"type": "strange"}` },
	} {
		r := request([]int32{1}, 5)
		spoil(&r.Sampling)
		_, err := e.Generate(context.Background(), r)
		var bad *RequestError
		require.ErrorAs(t, err, &bad)
		require.Equal(t, field, bad.Field)
		require.NotContains(t, err.Error(), "\n")
	}
	r := request([]int32{1}, 5)
	r.Sampling.Regex = "[0-9]+" // the fake vocabulary has no digits
	_, err := e.Generate(context.Background(), r)
	require.ErrorContains(t, err, "no token of the vocabulary")
	e.tokenizer = nil
	_, err = e.Generate(context.Background(), r)
	require.ErrorContains(t, err, "without a tokenizer")
}

// TestTheRealModelWritesJSON asks the fixture model, which is small and knows little, for JSON of a schema.
func TestTheRealModelWritesJSON(t *testing.T) {
	path, err := fetch.Path()
	if err != nil {
		t.Skip(err)
	}
	o := DefaultOptions()
	o.Device, o.MaxTotalTokens = "cpu", 4096
	e, err := Open(context.Background(), path, WithOptions(o))
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	r := Request{Prompt: "A city as JSON, with its name and the number of people who live there: ", Sampling: DefaultSampling(80)}
	r.Sampling.JSONSchema = `{"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
		"required": ["name", "people"], "additionalProperties": false}`
	out, err := e.Generate(context.Background(), r)
	require.NoError(t, err)
	require.Equal(t, FinishStop, out.Finish, out.Text)
	var city struct {
		Name   *string
		People *int64
	}
	require.NoError(t, json.Unmarshal([]byte(out.Text), &city), out.Text)
	require.NotNil(t, city.Name)
	require.NotNil(t, city.People)
	t.Log(out.Text)
}
