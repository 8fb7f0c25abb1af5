package jinja

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func batch(c *Call, v Value) (Value, error) {
	n, err := c.option(0, "linecount", 0)
	if err != nil {
		return nil, err
	}
	items, err := c.run.items(v)
	if err != nil {
		return nil, err
	}
	if n < 1 {
		return nil, errors.New("linecount must be at least 1")
	}
	fill, filled := c.Arg(1, "fill_with")
	var out []Value
	for at := 0; at < len(items); {
		end := at + int(min(n, int64(len(items)-at)))
		part := items[at:end:end]
		if err := c.run.take(entryBytes); err != nil {
			return nil, err
		}
		if short := n - int64(len(part)); filled && fill != nil && short > 0 {
			if err := c.run.times(n, itemBytes); err != nil {
				return nil, err
			}
			part = slices.Concat(part, slices.Repeat([]Value{fill}, int(short)))
		}
		out = append(out, &List{Items: part})
		at = end
	}
	return &List{Items: out}, nil
}

func first(c *Call, v Value) (Value, error) {
	if s, ok := v.(string); ok {
		if f, ok, err := c.run.character(s, 0); ok || err != nil {
			return f, err
		}
	}
	items, err := c.run.items(v)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return Undefined{problem: "No first item, sequence was empty."}, nil
	}
	return items[0], nil
}

func last(c *Call, v Value) (Value, error) {
	if s, ok := v.(string); ok {
		if f, ok, err := c.run.character(s, -1); ok || err != nil {
			return f, err
		}
	}
	items, err := c.run.items(v)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return Undefined{problem: "No last item, sequence was empty."}, nil
	}
	return items[len(items)-1], nil
}

func itemsFilter(c *Call, v Value) (Value, error) {
	switch v := v.(type) {
	case Undefined:
		return &List{}, nil
	case *Dict:
		return c.run.pairs(v)
	}
	//lint:ignore ST1005 Jinja's own words, which templates' users know
	return nil, errors.New("Can only get item pairs from a mapping.")
}

func (r *run) pairs(d *Dict) (Value, error) {
	if err := r.take((2*itemBytes + entryBytes) * len(d.keys)); err != nil {
		return nil, err
	}
	out := make([]Value, len(d.keys))
	for i, key := range d.keys {
		out[i] = tuple(key, d.values[key])
	}
	return &List{Items: out}, nil
}

func join(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err != nil {
		return nil, err
	}
	between, err := c.text(0, "d", "")
	if err != nil {
		return nil, err
	}
	path, hasPath := c.Arg(1, "attribute")
	p := printer{r: c.run}
	for i, item := range items {
		if hasPath && path != nil {
			if item, err = c.run.path(item, path); err != nil {
				return nil, err
			}
		}
		if i > 0 {
			if err := p.add(between); err != nil {
				return nil, err
			}
		}
		text, err := c.run.str(item)
		if err == nil {
			err = p.add(text)
		}
		if err != nil {
			return nil, err
		}
	}
	return p.String(), nil
}

// path is the attribute of v that path names, "a.b.0".
func (r *run) path(v, path Value) (Value, error) { return r.pathOr(v, path, nil) }

// pathOr is path, with def, if it is not none, in the place of what is undefined on the way.
func (r *run) pathOr(v, path, def Value) (Value, error) {
	text, ok := path.(string)
	if !ok {
		return r.item(v, path)
	}
	for part := range strings.SplitSeq(text, ".") {
		var key Value = part
		if i, err := strconv.ParseInt(part, 10, 64); err == nil && part[0] >= '0' && part[0] <= '9' {
			key = i
		}
		var err error
		if v, err = r.item(v, key); err != nil {
			return nil, err
		}
		if _, undefined := v.(Undefined); undefined && def != nil {
			v = def
		}
	}
	return v, nil
}

func list(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	return &List{Items: items}, err
}

func mapFilter(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err == nil {
		err = c.run.take(itemBytes * len(items))
	}
	if err != nil {
		return nil, err
	}
	path, byPath := c.Named("attribute")
	def, _ := c.Named("default")
	name := ""
	if !byPath {
		if name, err = c.text(0, "", ""); err != nil {
			return nil, err
		}
		if filters[name] == nil {
			return nil, fmt.Errorf("no filter named %s", quoted(name))
		}
	}
	out := make([]Value, len(items))
	for i, item := range items {
		if err := c.run.step(); err != nil {
			return nil, err
		}
		if !byPath {
			out[i], err = filters[name](&Call{Args: c.Args[1:], names: c.names, named: c.named, run: c.run}, item)
		} else {
			out[i], err = c.run.pathOr(item, path, def)
		}
		if err != nil {
			return nil, err
		}
	}
	return &List{Items: out}, nil
}

// choose is select, reject, selectattr and rejectattr.
func choose(wanted, byPath bool) func(c *Call, v Value) (Value, error) {
	return func(c *Call, v Value) (Value, error) {
		items, err := c.run.items(v)
		if err == nil {
			err = c.run.take(itemBytes * len(items))
		}
		if err != nil {
			return nil, err
		}
		args := c.Args
		var path Value
		if byPath {
			if len(args) == 0 {
				return nil, errors.New("missing parameter for attribute name")
			}
			path, args = args[0], args[1:]
		}
		var out []Value
		for _, item := range items {
			field := item
			if byPath {
				if field, err = c.run.path(item, path); err != nil {
					return nil, err
				}
			}
			holds := truth(field)
			if len(args) > 0 {
				name, err := c.run.str(args[0])
				if err != nil {
					return nil, err
				}
				if holds, err = c.run.test(name, field, args[1:]); err != nil {
					return nil, err
				}
			}
			if err := c.run.step(); err != nil {
				return nil, err
			}
			if holds == wanted {
				out = append(out, item)
			}
		}
		return &List{Items: out}, nil
	}
}

func reverse(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err == nil {
		err = c.run.take(itemBytes * len(items))
	}
	if err != nil {
		return nil, err
	}
	items = slices.Clone(items)
	slices.Reverse(items)
	if _, ok := v.(string); !ok {
		return &List{Items: items}, nil
	}
	var b strings.Builder
	for _, item := range items {
		b.WriteString(item.(string))
	}
	return b.String(), nil
}

// sortKey is what items are ordered by: an attribute, in small letters unless case counts.
func (c *Call) sortKey(v Value, path Value, caseCounts bool) (Value, error) {
	if path != nil {
		var err error
		if v, err = c.run.path(v, path); err != nil {
			return nil, err
		}
	}
	if s, ok := v.(string); ok && !caseCounts {
		return strings.ToLower(s), c.run.take(2 * len(s))
	}
	return v, nil
}

// sorted orders items by their keys.
func (r *run) sorted(items, keys []Value, backwards bool) ([]Value, error) {
	if err := r.take(3 * itemBytes * len(items)); err != nil {
		return nil, err
	}
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	var failed error
	slices.SortStableFunc(order, func(a, b int) int {
		if failed != nil {
			return 0
		}
		n, err := r.order(keys[a], keys[b])
		failed = err
		if backwards {
			n = -n
		}
		return n
	})
	out := make([]Value, len(items))
	for i, at := range order {
		out[i] = items[at]
	}
	return out, failed
}

func sortFilter(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err == nil {
		err = c.run.take(itemBytes * len(items))
	}
	if err != nil {
		return nil, err
	}
	path, _ := c.Arg(2, "attribute")
	keys := make([]Value, len(items))
	for i, item := range items {
		if keys[i], err = c.sortKey(item, path, c.flag(1, "case_sensitive")); err != nil {
			return nil, err
		}
	}
	out, err := c.run.sorted(items, keys, c.flag(0, "reverse"))
	return &List{Items: out}, err
}

func dictSort(c *Call, v Value) (Value, error) {
	d, ok := v.(*Dict)
	if !ok {
		return nil, fmt.Errorf("want a mapping, not %s", kind(v))
	}
	by, err := c.text(1, "by", "key")
	if err != nil {
		return nil, err
	}
	if by != "key" && by != "value" {
		return nil, errors.New("by must be key or value")
	}
	pairs, err := c.run.pairs(d)
	if err != nil {
		return nil, err
	}
	items := pairs.(*List).Items
	keys := make([]Value, len(items))
	for i, key := range d.keys {
		var k Value = key
		if by == "value" {
			k = d.values[key]
		}
		if keys[i], err = c.sortKey(k, nil, c.flag(0, "case_sensitive")); err != nil {
			return nil, err
		}
	}
	out, err := c.run.sorted(items, keys, c.flag(2, "reverse"))
	return &List{Items: out}, err
}

// extreme is min (sign -1) or max (1).
func extreme(sign int) func(c *Call, v Value) (Value, error) {
	return func(c *Call, v Value) (Value, error) {
		items, err := c.run.items(v)
		if err != nil {
			return nil, err
		}
		path, _ := c.Arg(1, "attribute")
		var best, bestKey Value = Undefined{problem: "No aggregated item, sequence was empty."}, nil
		for i, item := range items {
			key, err := c.sortKey(item, path, c.flag(0, "case_sensitive"))
			if err != nil {
				return nil, err
			}
			n := 1
			if i > 0 {
				if n, err = c.run.order(key, bestKey); err != nil {
					return nil, err
				}
			}
			if i == 0 || n*sign > 0 {
				best, bestKey = item, key
			}
		}
		return best, nil
	}
}

func sum(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err != nil {
		return nil, err
	}
	var total Value = int64(0)
	if start, ok := c.Arg(1, "start"); ok {
		total = start
	}
	path, _ := c.Arg(0, "attribute")
	for _, item := range items {
		if path != nil {
			if item, err = c.run.path(item, path); err != nil {
				return nil, err
			}
		}
		if total, err = c.run.arithmetic("+", total, item); err != nil {
			return nil, err
		}
		if err := c.run.step(); err != nil {
			return nil, err
		}
	}
	return total, nil
}

func unique(c *Call, v Value) (Value, error) {
	items, err := c.run.items(v)
	if err == nil {
		err = c.run.times(int64(len(items)), itemBytes+entryBytes)
	}
	if err != nil {
		return nil, err
	}
	path, _ := c.Arg(1, "attribute")
	seen := map[string]bool{}
	var out []Value
	for _, item := range items {
		key, err := c.sortKey(item, path, c.flag(0, "case_sensitive"))
		if err != nil {
			return nil, err
		}
		p := printer{r: c.run}
		if err := p.repr(key, 0); err != nil {
			return nil, err
		}
		if !seen[p.String()] {
			seen[p.String()] = true
			out = append(out, item)
		}
	}
	return &List{Items: out}, nil
}
