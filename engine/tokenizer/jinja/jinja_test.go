package jinja

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fromJSON reads a value as the goldens' variables are written; order of keys as they come.
func fromJSON(t testing.TB, dec *json.Decoder) Value {
	token, err := dec.Token()
	require.NoError(t, err)
	switch token {
	case json.Delim('['):
		l := NewList()
		for dec.More() {
			l.Items = append(l.Items, fromJSON(t, dec))
		}
		_, err := dec.Token()
		require.NoError(t, err)
		return l
	case json.Delim('{'):
		d := NewDict()
		for dec.More() {
			key, err := dec.Token()
			require.NoError(t, err)
			d.Set(key.(string), fromJSON(t, dec))
		}
		_, err := dec.Token()
		require.NoError(t, err)
		return d
	}
	if n, ok := token.(json.Number); ok {
		if i, err := n.Int64(); err == nil {
			return i
		}
		f, err := n.Float64()
		require.NoError(t, err)
		return f
	}
	return token
}

// TestEqualToJinja renders what jinja2 rendered: see jinja.py beside the goldens.
func TestEqualToJinja(t *testing.T) {
	data, err := os.ReadFile("../../../fixtures/goldens/tokenizer/jinja.json")
	require.NoError(t, err)
	var golden struct {
		Vars  json.RawMessage
		Cases []struct {
			Template string
			Want     *string
		}
	}
	require.NoError(t, json.Unmarshal(data, &golden))
	require.Greater(t, len(golden.Cases), 400)
	for _, c := range golden.Cases {
		dec := json.NewDecoder(bytes.NewReader(golden.Vars))
		dec.UseNumber()
		vars := map[string]Value{"raise_exception": &Function{"raise_exception", func(*Call) (Value, error) { return nil, os.ErrInvalid }}}
		d := fromJSON(t, dec).(*Dict)
		for _, key := range d.Keys() {
			vars[key], _ = d.Get(key)
		}
		var got string
		parsed, err := Parse(c.Template)
		if err == nil {
			got, err = parsed.Render(vars, Limits{Work: 1 << 24, Bytes: 1 << 20})
		}
		if c.Want == nil {
			assert.Error(t, err, "%s gave %q", c.Template, got)
			continue
		}
		if assert.NoError(t, err, c.Template) {
			assert.Equal(t, *c.Want, got, c.Template)
		}
	}
}
