package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"

	"github.com/ardanlabs/jinja"
)

// goValue converts a plain Go value; a json.RawMessage keeps the order of its keys.
func goValue(v any) (jinja.Value, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return jsonValue(raw)
	}
	return jinja.FromGoValue(v), nil
}

// jsonValue parses one JSON value, key order kept.
func jsonValue(raw []byte) (jinja.Value, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := nextValue(dec)
	if err != nil {
		return v, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return v, errors.New("more than one JSON value")
	}
	return v, nil
}

func nextValue(dec *json.Decoder) (jinja.Value, error) {
	token, err := dec.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return jinja.None(), err
	}
	switch token {
	case json.Delim('['):
		items := []jinja.Value{}
		for dec.More() {
			item, err := nextValue(dec)
			if err != nil {
				return item, err
			}
			items = append(items, item)
		}
		_, err := dec.Token()
		return jinja.NewList(items), err
	case json.Delim('{'):
		v := jinja.NewDict()
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return v, err
			}
			item, err := nextValue(dec)
			if err != nil {
				return item, err
			}
			v.AsDict().Set(key.(string), item)
		}
		_, err := dec.Token()
		return v, err
	}
	return jinja.FromGoValue(token), nil
}

// toJSON is the filter tojson as transformers defines it: Python's json.dumps with ensure_ascii=False, which unlike the
// library's own keeps key order when it indents.
func toJSON(args []jinja.Value, kwargs map[string]jinja.Value) (jinja.Value, error) {
	if len(args) == 0 {
		return jinja.None(), errors.New("tojson wants a value")
	}
	w := jsonWriter{item: ", ", key: ": ", indent: -1}
	option := func(position int, name string) (jinja.Value, bool) {
		if v, ok := kwargs[name]; ok {
			return v, !v.IsNone()
		}
		if position < len(args) {
			return args[position], !args[position].IsNone()
		}
		return jinja.None(), false
	}
	if v, ok := option(1, "ensure_ascii"); ok {
		w.ascii = v.IsTruthy()
	}
	if v, ok := option(2, "indent"); ok && v.IsInt() {
		w.indent = int(min(max(v.AsInt(), 0), 16))
		w.item = ","
	}
	if v, ok := option(3, "separators"); ok {
		if !v.IsList() || v.AsList().Len() != 2 || !v.AsList().Get(0).IsString() || !v.AsList().Get(1).IsString() {
			return jinja.None(), errors.New("tojson: separators wants two strings")
		}
		w.item, w.key = v.AsList().Get(0).AsString(), v.AsList().Get(1).AsString()
	}
	if v, ok := option(4, "sort_keys"); ok {
		w.sorted = v.IsTruthy()
	}
	if err := w.value(args[0], 0); err != nil {
		return jinja.None(), err
	}
	return jinja.NewString(w.String()), nil
}

type jsonWriter struct {
	strings.Builder
	item, key     string
	indent        int // -1: on one line
	ascii, sorted bool
}

func (w *jsonWriter) line(depth int) {
	if w.indent >= 0 {
		w.WriteByte('\n')
		w.WriteString(strings.Repeat(" ", w.indent*depth))
	}
}

func (w *jsonWriter) value(v jinja.Value, depth int) error {
	if depth > 200 {
		return errors.New("tojson: value is nested more than 200 deep")
	}
	switch {
	case v.IsNone():
		w.WriteString("null")
	case v.IsBool():
		w.WriteString(strconv.FormatBool(v.AsBool()))
	case v.IsInt():
		w.WriteString(strconv.FormatInt(v.AsInt(), 10))
	case v.IsFloat():
		w.WriteString(pythonFloat(v.AsFloat()))
	case v.IsString():
		w.quote(v.AsString())
	case v.IsList():
		items := v.AsList().Items
		w.WriteByte('[')
		for i, item := range items {
			if i > 0 {
				w.WriteString(w.item)
			}
			w.line(depth + 1)
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		if len(items) > 0 {
			w.line(depth)
		}
		w.WriteByte(']')
	case v.IsDict():
		d := v.AsDict()
		keys := d.OrderedKeys()
		if w.sorted {
			sort.Strings(keys)
		}
		w.WriteByte('{')
		for i, key := range keys {
			if i > 0 {
				w.WriteString(w.item)
			}
			w.line(depth + 1)
			w.quote(key)
			w.WriteString(w.key)
			item, _ := d.Get(key)
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		if len(keys) > 0 {
			w.line(depth)
		}
		w.WriteByte('}')
	default:
		return errors.New("tojson: value is undefined or a function")
	}
	return nil
}

func (w *jsonWriter) quote(s string) {
	w.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			w.WriteByte('\\')
			w.WriteRune(r)
		case r == '\n':
			w.WriteString(`\n`)
		case r == '\r':
			w.WriteString(`\r`)
		case r == '\t':
			w.WriteString(`\t`)
		case r == '\b':
			w.WriteString(`\b`)
		case r == '\f':
			w.WriteString(`\f`)
		case r < 0x20 || w.ascii && r >= 0x7f && r < 0x10000:
			fmt.Fprintf(w, `\u%04x`, r)
		case w.ascii && r >= 0x10000:
			r -= 0x10000
			fmt.Fprintf(w, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			w.WriteRune(r)
		}
	}
	w.WriteByte('"')
}

// pythonFloat writes f as Python's repr does.
func pythonFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// boundedRange is Python's range up to maxRange numbers.
func boundedRange(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) {
	n := [3]int64{0, 0, 1}
	if len(args) < 1 || len(args) > 3 {
		return jinja.None(), fmt.Errorf("range wants 1 to 3 numbers, got %d", len(args))
	}
	for i, a := range args {
		if !a.IsInt() {
			return jinja.None(), errors.New("range wants integers")
		}
		if len(args) == 1 {
			n[1] = a.AsInt()
		} else {
			n[i] = a.AsInt()
		}
	}
	if n[2] == 0 {
		return jinja.None(), errors.New("range: step is 0")
	}
	items := []jinja.Value{}
	for v := n[0]; n[2] > 0 && v < n[1] || n[2] < 0 && v > n[1]; v += n[2] {
		if len(items) == maxRange {
			return jinja.None(), fmt.Errorf("range of more than %d numbers", maxRange)
		}
		items = append(items, jinja.NewInt(v))
	}
	return jinja.NewList(items), nil
}
