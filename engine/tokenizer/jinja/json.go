package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// toJSON is the filter tojson as transformers defines it: Python's json.dumps with ensure_ascii=False. It keeps the order of keys.
func toJSON(c *Call, v Value) (Value, error) {
	w := jsonWriter{printer: printer{r: c.run}, item: ", ", key: ": ", indent: -1}
	w.ascii = c.flag(0, "ensure_ascii")
	if v, ok := c.Arg(1, "indent"); ok && v != nil {
		n, err := integer(v)
		if err != nil {
			return nil, fmt.Errorf("indent: %w", err)
		}
		w.indent = int(min(max(n, 0), 16))
		w.item = ","
	}
	if v, ok := c.Arg(2, "separators"); ok && v != nil {
		l, ok := v.(*List)
		if !ok || len(l.Items) != 2 {
			return nil, errors.New("separators wants two strings")
		}
		var isText [2]bool
		w.item, isText[0] = l.Items[0].(string)
		w.key, isText[1] = l.Items[1].(string)
		if !isText[0] || !isText[1] {
			return nil, errors.New("separators wants two strings")
		}
	}
	w.sorted = c.flag(3, "sort_keys")
	if err := w.value(v, 0); err != nil {
		return nil, err
	}
	return w.String(), nil
}

type jsonWriter struct {
	printer
	item, key     string
	indent        int // -1: on one line
	ascii, sorted bool
}

const blanks = "                "

// line begins a line, if lines there are.
func (w *jsonWriter) line(depth int) error {
	if w.indent < 0 {
		return nil
	}
	if err := w.add("\n"); err != nil {
		return err
	}
	for range depth {
		if err := w.add(blanks[:w.indent]); err != nil {
			return err
		}
	}
	return nil
}

func (w *jsonWriter) value(v Value, depth int) error {
	if depth > maxValueDepth {
		return fmt.Errorf("a value is nested more than %d deep", maxValueDepth)
	}
	if err := w.r.step(); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		return w.add("null")
	case bool:
		return w.add(strconv.FormatBool(v))
	case int64:
		return w.add(strconv.FormatInt(v, 10))
	case float64:
		switch {
		case math.IsNaN(v):
			return w.add("NaN")
		case math.IsInf(v, 1):
			return w.add("Infinity")
		case math.IsInf(v, -1):
			return w.add("-Infinity")
		}
		return w.add(floatText(v))
	case string:
		return w.quote(v)
	case *List:
		return w.parts("[", "]", len(v.Items), depth, func(i int) error { return w.value(v.Items[i], depth+1) })
	case *Dict:
		keys := v.keys
		if w.sorted {
			if err := w.r.take(itemBytes * len(keys)); err != nil {
				return err
			}
			keys = slices.Sorted(slices.Values(keys))
		}
		return w.parts("{", "}", len(keys), depth, func(i int) error {
			err := w.quote(keys[i])
			if err == nil {
				err = w.add(w.key)
			}
			if err == nil {
				err = w.value(v.values[keys[i]], depth+1)
			}
			return err
		})
	}
	return errors.New("value is undefined or a function")
}

func (w *jsonWriter) parts(open, shut string, n, depth int, part func(i int) error) error {
	if err := w.add(open); err != nil {
		return err
	}
	for i := range n {
		if i > 0 {
			if err := w.add(w.item); err != nil {
				return err
			}
		}
		if err := w.line(depth + 1); err != nil {
			return err
		}
		if err := part(i); err != nil {
			return err
		}
	}
	if n > 0 {
		if err := w.line(depth); err != nil {
			return err
		}
	}
	return w.add(shut)
}

func (w *jsonWriter) quote(s string) error {
	if err := w.r.take(6*len(s) + 2); err != nil { // as if each were escaped
		return err
	}
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
	return nil
}
