package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/tokenizer/jinja"
)

// goValue converts a plain Go value; a json.RawMessage keeps the order of its keys.
func goValue(v any) (jinja.Value, error) {
	if raw, ok := v.(json.RawMessage); ok {
		return jsonValue(raw)
	}
	return plainValue(v), nil
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
		return nil, err
	}
	switch token {
	case json.Delim('['):
		l := jinja.NewList()
		for dec.More() {
			item, err := nextValue(dec)
			if err != nil {
				return item, err
			}
			l.Items = append(l.Items, item)
		}
		_, err := dec.Token()
		return l, err
	case json.Delim('{'):
		d := jinja.NewDict()
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return d, err
			}
			item, err := nextValue(dec)
			if err != nil {
				return item, err
			}
			d.Set(key.(string), item)
		}
		_, err := dec.Token()
		return d, err
	}
	return plainValue(token), nil
}

// plainValue converts what encoding/json makes, and named types of it. Keys of maps are sorted. Other types are undefined.
func plainValue(v any) jinja.Value {
	switch v := v.(type) {
	case nil, bool, int64, float64, string:
		return v
	case int:
		return int64(v)
	case json.Number:
		// Integers stay integers, as json.dumps writes them.
		if !strings.ContainsAny(string(v), ".eE") {
			if i, err := v.Int64(); err == nil {
				return i
			}
		}
		if f, err := v.Float64(); err == nil {
			return f
		}
		return string(v)
	}
	switch r := reflect.ValueOf(v); {
	case r.Kind() == reflect.Slice:
		l := jinja.NewList()
		for i := range r.Len() {
			l.Items = append(l.Items, plainValue(r.Index(i).Interface()))
		}
		return l
	case r.Kind() == reflect.Map && r.Type().Key().Kind() == reflect.String:
		d := jinja.NewDict()
		keys := r.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, key := range keys {
			d.Set(key.String(), plainValue(r.MapIndex(key).Interface()))
		}
		return d
	}
	return jinja.Undefined{}
}
