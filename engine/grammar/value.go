package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// object is a JSON object with its keys in order, which is the order properties are written in.
type object struct {
	keys   []string
	fields map[string]any
}

func newObject() *object { return &object{fields: map[string]any{}} }

func (o *object) set(key string, v any) {
	if _, ok := o.fields[key]; !ok {
		o.keys = append(o.keys, key)
	}
	o.fields[key] = v
}

func (o *object) has(keys ...string) bool {
	for _, k := range keys {
		if _, ok := o.fields[k]; ok {
			return true
		}
	}
	return false
}

func (o *object) clone() *object {
	c := newObject()
	for _, k := range o.keys {
		c.set(k, o.fields[k])
	}
	return c
}

func (o *object) remove(key string) {
	if _, ok := o.fields[key]; !ok {
		return
	}
	delete(o.fields, key)
	kept := o.keys[:0:0]
	for _, k := range o.keys {
		if k != key {
			kept = append(kept, k)
		}
	}
	o.keys = kept
}

// parseJSON returns nil, bool, json.Number, string, []any or *object.
func parseJSON(text string) (any, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	v, err := parseValue(dec, 0)
	if err != nil {
		return nil, &Error{Problem: fmt.Sprintf("schema is not valid JSON: %v", err)}
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, &Error{Problem: "schema is not valid JSON: more than one value"}
	}
	return v, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > 4*maxSchemaDepth {
		return nil, errors.New("nested too deep")
	}
	token, err := dec.Token()
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			item, err := parseValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, item)
		}
		_, err := dec.Token()
		return list, err
	case json.Delim('{'):
		o := newObject()
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			item, err := parseValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			o.set(key.(string), item)
		}
		_, err := dec.Token()
		return o, err
	}
	return token, nil
}

// compact writes v as JSON without white space, with nothing escaped that need not be.
func compact(v any) string {
	var b strings.Builder
	writeCompact(&b, v)
	return b.String()
}

func writeCompact(b *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		fmt.Fprint(b, v)
	case json.Number:
		b.WriteString(v.String())
	case string:
		b.WriteString(quoted(v))
	case []any:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeCompact(b, item)
		}
		b.WriteByte(']')
	case *object:
		b.WriteByte('{')
		for i, k := range v.keys {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(quoted(k))
			b.WriteByte(':')
			writeCompact(b, v.fields[k])
		}
		b.WriteByte('}')
	}
}

func quoted(s string) string {
	var b bytes.Buffer
	b.WriteByte('"')
	for _, r := range s {
		short, isShort := shortEscapes[r]
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case isShort:
			b.WriteByte('\\')
			b.WriteByte(short)
		case unicode.IsControl(r) && r < 0x20:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
