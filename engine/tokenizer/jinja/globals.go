package jinja

import (
	"errors"
	"fmt"
)

// globals are the functions that every template may call.
var globals = map[string]Value{
	"range": &Function{"range", rangeFunction}, "namespace": &Function{"namespace", newNamespace}, "dict": &Function{"dict", newDict},
	"joiner": &Function{"joiner", joiner}, "cycler": &Function{"cycler", cycler},
}

func rangeFunction(c *Call) (Value, error) {
	if len(c.Args) < 1 || len(c.Args) > 3 {
		return nil, fmt.Errorf("range wants 1 to 3 numbers, got %d", len(c.Args))
	}
	var given [3]int64
	for i, v := range c.Args {
		n, err := integer(v)
		if err != nil {
			return nil, fmt.Errorf("range: %w", err)
		}
		given[i] = n
	}
	first, end, step := int64(0), given[0], int64(1)
	if len(c.Args) > 1 {
		first, end = given[0], given[1]
	}
	if len(c.Args) > 2 {
		step = given[2]
	}
	var count uint64 // the difference of two integers may need 64 bits
	switch {
	case step == 0:
		return nil, errors.New("range: step is 0")
	case step > 0 && first < end:
		count = (uint64(end)-uint64(first)-1)/uint64(step) + 1
	case step < 0 && first > end:
		count = (uint64(first)-uint64(end)-1)/-uint64(step) + 1
	}
	if count > maxRange {
		return nil, fmt.Errorf("range of more than %d numbers", maxRange)
	}
	if err := c.run.take((itemBytes + 8) * int(count)); err != nil {
		return nil, err
	}
	items := make([]Value, count)
	for i := range items {
		items[i] = first + int64(i)*step
	}
	return &List{Items: items}, nil
}

func newNamespace(c *Call) (Value, error) {
	n := &namespace{map[string]Value{}}
	if len(c.Args) > 0 {
		if d, ok := c.Args[0].(*Dict); ok {
			for _, key := range d.keys {
				n.values[key] = d.values[key]
			}
		}
	}
	for i, name := range c.names {
		n.values[name] = c.named[i]
	}
	return n, c.run.take(entryBytes * (1 + len(n.values)))
}

func newDict(c *Call) (Value, error) {
	d := NewDict()
	if len(c.Args) > 0 {
		if from, ok := c.Args[0].(*Dict); ok {
			if err := c.run.take(entryBytes * len(from.keys)); err != nil {
				return nil, err
			}
			for _, key := range from.keys {
				d.Set(key, from.values[key])
			}
		}
	}
	for i, name := range c.names {
		d.Set(name, c.named[i])
	}
	return d, c.run.take(entryBytes * (1 + len(c.names)))
}

// joiner gives nothing when it is called first, then what lies between.
func joiner(c *Call) (Value, error) {
	between, err := c.text(0, "sep", ", ")
	used := false
	return &Function{"joiner", func(*Call) (Value, error) {
		if !used {
			used = true
			return "", nil
		}
		return between, nil
	}}, err
}

func cycler(c *Call) (Value, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("cycler wants at least one item")
	}
	items, at := c.Args, 0
	n := &namespace{map[string]Value{"current": items[0]}}
	move := func(to int) { at = to; n.values["current"] = items[at] }
	n.values["next"] = &Function{"next", func(*Call) (Value, error) {
		v := items[at]
		move((at + 1) % len(items))
		return v, nil
	}}
	n.values["reset"] = &Function{"reset", func(*Call) (Value, error) {
		move(0)
		return nil, nil
	}}
	return n, c.run.take(4 * entryBytes)
}
