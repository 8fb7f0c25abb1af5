package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// object is a JSON object that is being read field by field. The first problem found is kept in err and stays there; readers after
// it do nothing. A field that is null counts as absent, as clients write null for "not set". Every read takes the field out, so
// that what remains is unknown.
type object struct {
	path   string // of the object itself, "" or "sampling_params."
	fields map[string]json.RawMessage
	err    *apiError
}

// parseObject reads body, which must be one JSON object in UTF-8.
func parseObject(body []byte) (*object, *apiError) {
	if !utf8.Valid(body) {
		return nil, badRequest("", "invalid_utf8", "the body is not valid UTF-8")
	}
	o := &object{}
	if err := json.Unmarshal(body, &o.fields); err != nil {
		return nil, jsonProblem("", "the body", err)
	}
	if o.fields == nil {
		return nil, badRequest("", "invalid_json", "the body is null: want a JSON object")
	}
	return o, nil
}

func jsonProblem(param, what string, err error) *apiError {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return badRequest(param, "invalid_json", "%s is not valid JSON: %s at byte %d", what, syntax.Error(), syntax.Offset)
	case errors.As(err, &kind):
		return badRequest(param, "invalid_type", "%s is %s: want an object", what, article(kind.Value))
	}
	return badRequest(param, "invalid_json", "%s is not valid JSON", what)
}

func article(kind string) string {
	if kind == "array" || kind == "object" {
		return "an " + kind
	}
	return "a " + kind
}

// take removes and returns a field. Absent and null give ok = false.
func (o *object) take(name string) (raw json.RawMessage, ok bool) {
	raw, ok = o.fields[name]
	if !ok {
		return nil, false
	}
	delete(o.fields, name)
	return raw, o.err == nil && !isNull(raw)
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

// has tells that a field is there and not null, and leaves it.
func (o *object) has(name string) bool {
	raw, ok := o.fields[name]
	return ok && !isNull(raw)
}

// fail records the first problem, with the field named as the client wrote it.
func (o *object) fail(name, code, format string, args ...any) {
	if o.err == nil {
		field := o.path + name
		o.err = badRequest(field, code, "%s: %s", field, fmt.Sprintf(format, args...))
	}
}

func (o *object) wantType(name, want string, raw json.RawMessage) {
	o.fail(name, "invalid_type", "is %s: want %s", kindOf(raw), want)
}

func kindOf(raw json.RawMessage) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}

// text reads a string of at most limit bytes.
func (o *object) text(name string, dst *string, limit int) {
	if raw, ok := o.take(name); ok {
		o.textOf(name, raw, dst, limit)
	}
}

func (o *object) textOf(name string, raw json.RawMessage, dst *string, limit int) {
	if raw[0] != '"' {
		o.wantType(name, "a string", raw)
		return
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		o.fail(name, "invalid_json", "is not a valid string")
		return
	}
	if len(s) > limit {
		o.fail(name, "too_large", "has %d bytes: want at most %d", len(s), limit)
		return
	}
	*dst = s
}

func (o *object) boolean(name string, dst *bool) {
	raw, ok := o.take(name)
	if !ok {
		return
	}
	switch string(raw) {
	case "true":
		*dst = true
	case "false":
		*dst = false
	default:
		o.wantType(name, "true or false", raw)
	}
}

// integer reads a whole number in lo..hi. 16.0 is one.
func (o *object) integer(name string, dst *int, lo, hi int) {
	raw, ok := o.take(name)
	if !ok {
		return
	}
	n, ok := wholeNumber(raw)
	switch {
	case !ok && kindOf(raw) != "a number":
		o.wantType(name, "an integer", raw)
	case !ok:
		o.fail(name, "invalid_value", "is %s: want an integer", clip(raw))
	case n < int64(lo) || n > int64(hi):
		o.fail(name, "invalid_value", "is %d: want %s", n, between(lo, hi))
	default:
		*dst = int(n)
	}
}

func wholeNumber(raw json.RawMessage) (int64, bool) {
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n, true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int64(f), true
}

func between(lo, hi int) string {
	if hi == math.MaxInt32 {
		return fmt.Sprintf("at least %d", lo)
	}
	return fmt.Sprintf("%d to %d", lo, hi)
}

// number reads a finite number in lo..hi.
func (o *object) number(name string, dst *float32, lo, hi float64) {
	if raw, ok := o.take(name); ok {
		if f, ok := o.numberOf(name, raw, lo, hi); ok {
			*dst = float32(f)
		}
	}
}

func (o *object) numberOf(name string, raw json.RawMessage, lo, hi float64) (float64, bool) {
	if kindOf(raw) != "a number" {
		o.wantType(name, "a number", raw)
		return 0, false
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || f < lo || f > hi {
		o.fail(name, "invalid_value", "is %s: want %g to %g", clip(raw), lo, hi)
		return 0, false
	}
	return f, true
}

// clip shortens what a client sent to what fits into a message.
func clip(raw json.RawMessage) string {
	const most = 40
	if len(raw) <= most {
		return string(raw)
	}
	return string(raw[:most]) + "…"
}

// texts reads a string or a list of at most count strings of at most limit bytes each.
func (o *object) texts(name string, dst *[]string, count, limit int) {
	raw, ok := o.take(name)
	if !ok {
		return
	}
	if raw[0] == '"' {
		var s string
		o.textOf(name, raw, &s, limit)
		*dst = []string{s}
		return
	}
	list, ok := o.listOf(name, raw, count, "a string or a list of strings")
	if !ok {
		return
	}
	out := make([]string, len(list))
	for i, item := range list {
		o.textOf(at(name, i), item, &out[i], limit)
	}
	if o.err == nil {
		*dst = out
	}
}

func at(name string, i int) string { return name + "[" + strconv.Itoa(i) + "]" }

// listOf splits an array of at most count items.
func (o *object) listOf(name string, raw json.RawMessage, count int, want string) ([]json.RawMessage, bool) {
	if raw[0] != '[' {
		o.wantType(name, want, raw)
		return nil, false
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		o.fail(name, "invalid_json", "is not a valid array")
		return nil, false
	}
	if len(list) > count {
		o.fail(name, "too_large", "has %d items: want at most %d", len(list), count)
		return nil, false
	}
	return list, true
}

// ids reads a list of at most count token ids below vocab.
func (o *object) ids(name string, dst *[]int32, count, vocab int) {
	if raw, ok := o.take(name); ok {
		o.idsOf(name, raw, dst, count, vocab)
	}
}

// idsOf reads the numbers of raw, a valid JSON array, without an allocation for each: prompts of token ids are the bulk of what
// load generators send.
func (o *object) idsOf(name string, raw json.RawMessage, dst *[]int32, count, vocab int) {
	if raw[0] != '[' {
		o.wantType(name, "a list of token ids", raw)
		return
	}
	out := make([]int32, 0, min(count, bytes.Count(raw, []byte{','})+1))
	for i := 1; i < len(raw); {
		switch c := raw[i]; {
		case c == ']':
			*dst = out
			return
		case c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r':
			i++
		case c >= '0' && c <= '9':
			id, start := int64(0), i
			for ; i < len(raw) && raw[i] >= '0' && raw[i] <= '9'; i++ {
				id = min(id*10+int64(raw[i]-'0'), math.MaxInt32)
			}
			if raw[i] != ',' && raw[i] != ']' && raw[i] > ' ' {
				o.fail(at(name, len(out)), "invalid_type", "is not a token id: want an integer")
				return
			}
			if id >= int64(vocab) {
				o.fail(at(name, len(out)), "invalid_token_id", "token id %s is outside the vocabulary: want 0 to %d", clip(raw[start:i]), vocab-1)
				return
			}
			if len(out) == count {
				o.fail(name, "too_large", "has more than %d items", count)
				return
			}
			out = append(out, int32(id))
		case c == '-':
			o.fail(at(name, len(out)), "invalid_token_id", "token id is negative: want 0 to %d", vocab-1)
			return
		default:
			o.fail(at(name, len(out)), "invalid_type", "is %s: want a token id", kindOf(raw[i:]))
			return
		}
	}
}

// child reads a nested object; nil if absent. Problems in it must be handed back with [object.join].
func (o *object) child(name string) *object {
	raw, ok := o.take(name)
	if !ok {
		return nil
	}
	return o.childOf(name, raw)
}

func (o *object) childOf(name string, raw json.RawMessage) *object {
	if raw[0] != '{' {
		o.wantType(name, "an object", raw)
		return nil
	}
	c := &object{path: o.path + name + "."}
	if json.Unmarshal(raw, &c.fields) != nil {
		o.fail(name, "invalid_json", "is not a valid object")
		return nil
	}
	return c
}

// join takes over the first problem of a child.
func (o *object) join(c *object) {
	if o.err == nil && c.err != nil {
		o.err = c.err
	}
}

// ignore drops fields that are known and change nothing here.
func (o *object) ignore(names ...string) {
	for _, name := range names {
		delete(o.fields, name)
	}
}

// refuse fails for a known field that would change the answer and is not supported. Values that ask for nothing are let pass.
func (o *object) refuse(why string, names ...string) {
	for _, name := range names {
		raw, ok := o.take(name)
		if !ok {
			continue
		}
		switch string(raw) {
		case `false`, `""`, `[]`, `{}`, `0`, `0.0`:
		default:
			o.fail(name, "unsupported_parameter", "is not supported: %s", why)
		}
	}
}

// strict fails for whatever field is left.
func (o *object) strict() {
	if name, ok := o.firstLeft(); ok {
		o.fail(name, "unknown_parameter", "unknown field")
	}
}

// lenient lets unknown fields pass, as OpenAI-style clients send what other servers know, but for those one slip away from a name
// in known: there the client would wrongly believe that it was heeded.
func (o *object) lenient(known []string) {
	for _, name := range slices.Sorted(maps.Keys(o.fields)) {
		if isNull(o.fields[name]) {
			continue
		}
		for _, k := range known {
			if oneSlip(name, k) {
				o.fail(name, "unknown_parameter", "unknown field: did you mean %s?", k)
				return
			}
		}
	}
}

func (o *object) firstLeft() (string, bool) {
	for _, name := range slices.Sorted(maps.Keys(o.fields)) {
		if !isNull(o.fields[name]) {
			return clip(json.RawMessage(name)), true
		}
	}
	return "", false
}

// oneSlip tells that a becomes b by one letter more, less or other, case aside.
func oneSlip(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 || len(a) < 4 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) == len(b) {
		return i == len(a) || a[i+1:] == b[i+1:]
	}
	return a[i:] == b[i+1:]
}
