package jinja

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// filters by name. v is what the filter is applied to, c holds its arguments.
var filters map[string]func(c *Call, v Value) (Value, error)

func init() { // map and select look filters up
	filters = map[string]func(c *Call, v Value) (Value, error){
		"abs": abs, "attr": attr, "batch": batch, "capitalize": textFilter(capitalized), "center": centerFilter, "count": length, "d": fallback,
		"default": fallback, "dictsort": dictSort, "e": escape, "escape": escape, "first": first, "float": toFloat, "format": formatFilter,
		"indent": indent, "int": toInt, "items": itemsFilter, "join": join, "last": last, "length": length, "list": list,
		"lower": textFilter(strings.ToLower), "map": mapFilter, "max": extreme(1), "min": extreme(-1),
		"reject": choose(false, false), "rejectattr": choose(false, true), "replace": replaceFilter, "reverse": reverse, "round": round,
		"safe": toString, "select": choose(true, false), "selectattr": choose(true, true), "sort": sortFilter, "string": toString, "sum": sum,
		"title": textFilter(titled), "tojson": toJSON, "trim": trimFilter, "unique": unique, "upper": textFilter(strings.ToUpper), "wordcount": wordCount,
	}
}

func integer(v Value) (int64, error) {
	i, _, isFloat, ok := number64(v)
	if !ok || isFloat {
		return 0, fmt.Errorf("want an integer, not %s", kind(v))
	}
	return i, nil
}

// option is the argument i or name as an integer, or def.
func (c *Call) option(i int, name string, def int64) (int64, error) {
	if v, ok := c.Arg(i, name); ok && v != nil {
		return integer(v)
	}
	return def, nil
}

// flag is the argument i or name as a truth value.
func (c *Call) flag(i int, name string) bool {
	v, _ := c.Arg(i, name)
	return truth(v)
}

// text is the argument i or name as a string, or def.
func (c *Call) text(i int, name, def string) (string, error) {
	v, ok := c.Arg(i, name)
	if !ok || v == nil {
		return def, nil
	}
	return c.run.str(v)
}

// textFilter applies f, whose result is at most about thrice as long.
func textFilter(f func(string) string) func(c *Call, v Value) (Value, error) {
	return func(c *Call, v Value) (Value, error) {
		s, err := c.run.str(v)
		if err == nil {
			err = c.run.take(3 * len(s))
		}
		if err != nil {
			return nil, err
		}
		return f(s), nil
	}
}

func capitalized(s string) string {
	_, n := utf8.DecodeRuneInString(s)
	return strings.ToUpper(s[:n]) + strings.ToLower(s[n:])
}

// titled is the filter title: words begin behind blanks, hyphens and opening brackets.
func titled(s string) string {
	start := true
	return strings.Map(func(c rune) rune {
		was := start
		start = unicode.IsSpace(c) || strings.ContainsRune("-({[<", c)
		if was && !start {
			return unicode.ToUpper(c)
		}
		return unicode.ToLower(c)
	}, s)
}

func toString(c *Call, v Value) (Value, error) { return c.run.str(v) }

func abs(_ *Call, v Value) (Value, error) {
	i, f, isFloat, ok := number64(v)
	switch {
	case !ok:
		return nil, fmt.Errorf("want a number, not %s", kind(v))
	case isFloat:
		return math.Abs(f), nil
	case i == math.MinInt64:
		return nil, errRange
	}
	return max(i, -i), nil
}

func attr(c *Call, v Value) (Value, error) {
	name, err := c.text(0, "name", "")
	if err != nil {
		return nil, err
	}
	if m := method(v, name); m != nil {
		return m, nil
	}
	if _, ok := v.(*Dict); ok { // an attribute, not an item
		return Undefined{name: name}, nil
	}
	return c.run.lookUp(v, name)
}

func centerFilter(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	width, err := c.option(0, "width", 80)
	if err != nil {
		return nil, err
	}
	return c.run.pad(s, width, " ", 2)
}

// pad brings s to width characters: side 0 pads on the left, 1 on the right, 2 on both.
func (r *run) pad(s string, width int64, fill string, side int) (Value, error) {
	if utf8.RuneCountInString(fill) != 1 {
		return nil, errors.New("the fill character must be exactly one character long")
	}
	if err := r.touch(len(s)); err != nil {
		return nil, err
	}
	short := width - int64(utf8.RuneCountInString(s))
	if short <= 0 {
		return s, nil
	}
	if err := r.times(short, len(fill)); err != nil {
		return nil, err
	}
	if err := r.take(2*len(s) + int(short)*len(fill)); err != nil {
		return nil, err
	}
	left := int(short)
	switch side {
	case 1:
		left = 0
	case 2:
		left = int(short/2 + short&width&1)
	}
	return strings.Repeat(fill, left) + s + strings.Repeat(fill, int(short)-left), nil
}

func length(c *Call, v Value) (Value, error) {
	switch v := v.(type) {
	case string:
		return int64(utf8.RuneCountInString(v)), c.run.touch(len(v))
	case *List:
		return int64(len(v.Items)), nil
	case *Dict:
		return int64(len(v.keys)), nil
	case Undefined:
		return int64(0), nil
	}
	return nil, fmt.Errorf("object of type %s has no len()", quoted(kind(v)))
}

func fallback(c *Call, v Value) (Value, error) {
	_, undefined := v.(Undefined)
	if !undefined && !(c.flag(1, "boolean") && !truth(v)) {
		return v, nil
	}
	if def, ok := c.Arg(0, "default_value"); ok {
		return def, nil
	}
	return "", nil
}

func escape(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err == nil {
		err = c.run.take(6 * len(s))
	}
	if err != nil {
		return nil, err
	}
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "'", "&#39;", `"`, "&#34;").Replace(s), nil
}

func toFloat(c *Call, v Value) (Value, error) {
	if _, f, _, ok := number64(v); ok {
		return f, nil
	}
	if s, ok := v.(string); ok && c.run.touch(len(s)) == nil {
		if f, err := strconv.ParseFloat(strings.TrimSpace(s), 64); err == nil && len(s) < 1000 {
			return f, nil
		}
	}
	if def, ok := c.Arg(0, "default"); ok {
		return def, nil
	}
	return 0.0, nil
}

func toInt(c *Call, v Value) (Value, error) {
	i, f, isFloat, ok := number64(v)
	switch {
	case ok && !isFloat:
		return i, nil
	case ok && math.Abs(f) < 1<<63:
		return int64(f), nil
	}
	if s, ok := v.(string); ok && len(s) < 1000 {
		base, err := c.option(1, "base", 10)
		if err != nil {
			return nil, err
		}
		s = strings.ReplaceAll(strings.TrimSpace(s), "_", "")
		if base == 16 {
			s = strings.TrimPrefix(s, "0x")
		}
		if i, err := strconv.ParseInt(s, int(min(max(base, 0), 36)), 64); err == nil {
			return i, nil
		}
		if f, err := strconv.ParseFloat(s, 64); err == nil && math.Abs(f) < 1<<63 {
			return int64(f), nil
		}
	}
	if def, ok := c.Arg(0, "default"); ok {
		return def, nil
	}
	return int64(0), nil
}

func indent(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	width, _ := c.Arg(0, "width")
	var by string
	switch width := width.(type) {
	case nil:
		by = "    "
	case string:
		by = width
	default:
		n, err := integer(width)
		if err != nil {
			return nil, err
		}
		v, err := c.run.repeat(" ", n)
		if err != nil {
			return nil, err
		}
		by = v.(string)
	}
	lines := int64(strings.Count(s, "\n") + 1)
	if err := c.run.times(2*lines, len(by)+2*itemBytes); err != nil {
		return nil, err
	}
	if err := c.run.take(3 * len(s)); err != nil {
		return nil, err
	}
	all := strings.Split(s, "\n")
	for i, line := range all {
		if i == 0 && c.flag(1, "first") || i > 0 && (line != "" || c.flag(2, "blank")) {
			all[i] = by + line
		}
	}
	return strings.Join(all, "\n"), nil
}

func replaceFilter(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	old, err := c.text(0, "old", "")
	if err != nil {
		return nil, err
	}
	with, err := c.text(1, "new", "")
	if err != nil {
		return nil, err
	}
	count, err := c.option(2, "count", -1)
	if err != nil {
		return nil, err
	}
	return c.run.replace(s, old, with, count)
}

func (r *run) replace(s, old, with string, count int64) (Value, error) {
	if err := r.touch(len(s) + len(old)); err != nil {
		return nil, err
	}
	found := int64(strings.Count(s, old))
	if count >= 0 {
		found = min(found, count)
	}
	if found == 0 {
		return s, nil
	}
	if err := r.times(found, len(with)); err != nil {
		return nil, err
	}
	return strings.Replace(s, old, with, int(found)), r.take(len(s))
}

func round(c *Call, v Value) (Value, error) {
	_, f, isFloat, ok := number64(v)
	if !ok {
		return nil, fmt.Errorf("want a number, not %s", kind(v))
	}
	precision, err := c.option(0, "precision", 0)
	if err != nil {
		return nil, err
	}
	how, err := c.text(1, "method", "common")
	if err != nil {
		return nil, err
	}
	scale := math.Pow(10, float64(min(max(precision, -300), 300)))
	switch how {
	case "common":
		if !isFloat && precision >= 0 {
			return v, nil
		}
		if precision >= 0 && precision <= 300 { // as Python: of the decimal digits, not of the product
			return strconv.ParseFloat(strconv.FormatFloat(f, 'f', int(precision), 64), 64)
		}
		return math.RoundToEven(f*scale) / scale, nil
	case "ceil":
		return math.Ceil(f*scale) / scale, nil
	case "floor":
		return math.Floor(f*scale) / scale, nil
	}
	return nil, errors.New("method must be common, ceil or floor")
}

func trimFilter(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	chars, ok := c.Arg(0, "chars")
	if !ok || chars == nil {
		return strings.TrimFunc(s, isSpace), c.run.touch(len(s))
	}
	cut, err := c.run.str(chars)
	if err == nil {
		err = c.run.trimCost(s, cut)
	}
	return strings.Trim(s, cut), err
}

// trimCost pays for a search of each of s's characters in cut.
func (r *run) trimCost(s, cut string) error {
	if len(cut) > 256 {
		return errors.New("too many characters to strip")
	}
	return r.touch(len(s) * (1 + len(cut)/8))
}

// isSpace is Python's str.isspace.
func isSpace(c rune) bool { return unicode.IsSpace(c) || c >= 0x1c && c <= 0x1f }

func wordCount(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	n, inWord := int64(0), false
	for _, r := range s {
		word := r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r)
		if word && !inWord {
			n++
		}
		inWord = word
	}
	return n, c.run.touch(len(s))
}

func formatFilter(c *Call, v Value) (Value, error) {
	s, err := c.run.str(v)
	if err != nil {
		return nil, err
	}
	return c.run.format(s, tuple(c.Args...))
}

// format is Python's %, for %s, %d, %i, %r and %%, without widths.
func (r *run) format(s string, args Value) (Value, error) {
	items := []Value{args}
	if l, ok := args.(*List); ok && l.tuple {
		items = l.Items
	}
	p := printer{r: r}
	used := 0
	for s != "" {
		at := strings.IndexByte(s, '%')
		if at < 0 || at+1 == len(s) {
			at = len(s)
		}
		if err := p.add(s[:at]); err != nil {
			return nil, err
		}
		if at == len(s) {
			break
		}
		verb := s[at+1]
		s = s[at+2:]
		if verb == '%' {
			if err := p.add("%"); err != nil {
				return nil, err
			}
			continue
		}
		if used == len(items) {
			return nil, errors.New("not enough arguments for format string")
		}
		item := items[used]
		used++
		var err error
		switch verb {
		case 's':
			var text string
			if text, err = r.str(item); err == nil {
				err = p.add(text)
			}
		case 'r':
			err = p.repr(item, 0)
		case 'd', 'i':
			_, f, isFloat, ok := number64(item)
			switch {
			case !ok:
				err = fmt.Errorf("%%%c wants a number, not %s", verb, kind(item))
			case isFloat:
				err = p.add(strconv.FormatFloat(math.Trunc(f), 'f', 0, 64))
			default:
				err = p.repr(item, 0)
			}
		default:
			err = fmt.Errorf("format %%%c is not supported", verb)
		}
		if err != nil {
			return nil, err
		}
	}
	if used < len(items) {
		return nil, errors.New("not all arguments converted during string formatting")
	}
	return p.String(), nil
}
