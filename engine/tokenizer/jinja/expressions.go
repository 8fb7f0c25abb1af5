package jinja

import (
	"errors"
	"fmt"
	"slices"
)

var reserved = map[string]bool{
	"true": true, "false": true, "none": true, "True": true, "False": true, "None": true, "and": true, "or": true, "not": true, "in": true,
	"is": true, "if": true, "else": true,
}

func (p *parser) peek() token { return p.tokens[0] }

func (p *parser) next() token {
	t := p.tokens[0]
	if t.kind != 0 {
		p.tokens = p.tokens[1:]
	}
	return t
}

// operator takes the operator o if it is next.
func (p *parser) operator(o string) bool {
	if p.peek().kind == 'o' && p.peek().text == o {
		p.next()
		return true
	}
	return false
}

// name takes the word n if it is next.
func (p *parser) name(n string) bool {
	if p.peek().kind == 'n' && p.peek().text == n {
		p.next()
		return true
	}
	return false
}

func (p *parser) done() error {
	if t := p.peek(); t.kind != 0 {
		return fmt.Errorf("unexpected %.40q", t.text)
	}
	return nil
}

func (p *parser) want(o string) error {
	if !p.operator(o) {
		if p.peek().kind == 0 {
			return fmt.Errorf("want %s", o)
		}
		return fmt.Errorf("want %s, not %.40q", o, p.peek().text)
	}
	return nil
}

// tuple reads an expression, or several with commas, which make a list.
func (p *parser) tuple() (expr, error) { return p.tupleOf((*parser).expression) }

func (p *parser) tupleOf(read func(*parser) (expr, error)) (expr, error) {
	e, err := read(p)
	if err != nil || p.peek().kind != 'o' || p.peek().text != "," {
		return e, err
	}
	items := []expr{e}
	for p.operator(",") {
		if t := p.peek(); t.kind == 0 || t.kind == 'o' && (t.text == ")" || t.text == "=") {
			break
		}
		if e, err = read(p); err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return &listExpr{items, true}, nil
}

func (p *parser) expression() (expr, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.nesting-- }()
	e, err := p.or()
	for n := 0; err == nil && p.name("if"); n++ {
		if n == maxChain {
			return nil, errors.New("too many operators in a row")
		}
		c := &condExpr{then: e}
		if c.condition, err = p.or(); err != nil {
			return nil, err
		}
		if p.name("else") {
			if c.otherwise, err = p.expression(); err != nil {
				return nil, err
			}
		}
		e = c
	}
	return e, err
}

// chain reads operands with operators between them that bind to the left.
func (p *parser) chain(operand func() (expr, error), operator func() string, join func(o string, a, b expr) expr) (expr, error) {
	e, err := operand()
	for n := 0; err == nil; n++ {
		o := operator()
		if o == "" {
			break
		}
		if n == maxChain {
			return nil, errors.New("too many operators in a row")
		}
		var right expr
		if right, err = operand(); err == nil {
			e = join(o, e, right)
		}
	}
	return e, err
}

// oneOf takes one of the operators.
func (p *parser) oneOf(operators ...string) func() string {
	return func() string {
		if t := p.peek(); t.kind == 'o' && slices.Contains(operators, t.text) {
			return p.next().text
		}
		return ""
	}
}

// word takes one of the words.
func (p *parser) word(word string) func() string {
	return func() string {
		if p.name(word) {
			return word
		}
		return ""
	}
}

func (p *parser) or() (expr, error) {
	return p.chain(p.and, p.word("or"), func(_ string, a, b expr) expr { return &logicExpr{a, b, true} })
}

func (p *parser) and() (expr, error) {
	return p.chain(p.not, p.word("and"), func(_ string, a, b expr) expr { return &logicExpr{a, b, false} })
}

func (p *parser) not() (expr, error) {
	if !p.name("not") {
		return p.compare()
	}
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.nesting-- }()
	e, err := p.not()
	return &notExpr{e}, err
}

func (p *parser) compare() (expr, error) {
	first, err := p.sum()
	if err != nil {
		return nil, err
	}
	c := &compareExpr{first: first}
	for {
		o := p.oneOf("==", "!=", "<", "<=", ">", ">=")()
		switch {
		case o != "":
		case p.name("in"):
			o = "in"
		case p.peek().text == "not" && len(p.tokens) > 1 && p.tokens[1].text == "in":
			p.next()
			p.next()
			o = "not in"
		case len(c.operators) == 0:
			return first, nil
		default:
			return c, nil
		}
		right, err := p.sum()
		if err != nil {
			return nil, err
		}
		c.operators, c.operands = append(c.operators, o), append(c.operands, right)
	}
}

func binary(o string, a, b expr) expr { return &binaryExpr{o, a, b} }

func (p *parser) sum() (expr, error)    { return p.chain(p.concat, p.oneOf("+", "-"), binary) }
func (p *parser) concat() (expr, error) { return p.chain(p.product, p.oneOf("~"), binary) }
func (p *parser) product() (expr, error) {
	return p.chain(p.power, p.oneOf("*", "/", "//", "%"), binary)
}
func (p *parser) power() (expr, error) {
	return p.chain(func() (expr, error) { return p.unary(true) }, p.oneOf("**"), binary)
}

func (p *parser) unary(filters bool) (expr, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer func() { p.nesting-- }()
	var e expr
	var err error
	switch o := p.oneOf("-", "+")(); o {
	case "":
		if e, err = p.primary(); err == nil {
			e, err = p.postfix(e)
		}
	default:
		e, err = p.unary(false)
		e = &signExpr{e, o == "-"}
	}
	if err != nil || !filters {
		return e, err
	}
	return p.filtered(e)
}

func (p *parser) primary() (expr, error) {
	t := p.next()
	switch t.kind {
	case 'v':
		return literal{t.value}, nil
	case 's':
		text := t.value.(string)
		for p.peek().kind == 's' {
			text += p.next().value.(string)
		}
		return literal{text}, nil
	case 'n':
		switch t.text {
		case "true", "True":
			return literal{true}, nil
		case "false", "False":
			return literal{false}, nil
		case "none", "None":
			return literal{nil}, nil
		}
		if reserved[t.text] {
			return nil, fmt.Errorf("unexpected %q", t.text)
		}
		return nameExpr(t.text), nil
	case 'o':
		switch t.text {
		case "(":
			if p.operator(")") {
				return &listExpr{nil, true}, nil
			}
			e, err := p.tuple()
			if err != nil {
				return nil, err
			}
			return e, p.want(")")
		case "[":
			items, err := p.list("]")
			return &listExpr{items, false}, err
		case "{":
			return p.dict()
		}
	case 0:
		return nil, errors.New("an expression is missing")
	}
	return nil, fmt.Errorf("unexpected %.40q", t.text)
}

// list reads expressions with commas up to end.
func (p *parser) list(end string) (items []expr, err error) {
	for !p.operator(end) {
		if len(items) > 0 {
			if err := p.want(","); err != nil {
				return nil, err
			}
			if p.operator(end) {
				break
			}
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		items = append(items, e)
	}
	return items, nil
}

func (p *parser) dict() (expr, error) {
	d := &dictExpr{}
	for !p.operator("}") {
		if len(d.keys) > 0 {
			if err := p.want(","); err != nil {
				return nil, err
			}
			if p.operator("}") {
				break
			}
		}
		key, err := p.expression()
		if err == nil {
			err = p.want(":")
		}
		if err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		d.keys, d.values = append(d.keys, key), append(d.values, value)
	}
	return d, nil
}

// postfix reads attributes, items and calls.
func (p *parser) postfix(e expr) (expr, error) {
	for n := 0; ; n++ {
		if n == maxChain {
			return nil, errors.New("too many attributes in a row")
		}
		switch {
		case p.operator("."):
			t := p.next()
			switch {
			case t.kind == 'n':
				e = &attributeExpr{e, t.text}
			case t.kind == 'v':
				if _, ok := t.value.(int64); !ok {
					return nil, fmt.Errorf("unexpected %.40q", t.text)
				}
				e = &itemExpr{e, literal{t.value}}
			default:
				return nil, fmt.Errorf("want a name behind ., not %.40q", t.text)
			}
		case p.operator("["):
			item, err := p.subscript(e)
			if err != nil {
				return nil, err
			}
			e = item
		case p.operator("("):
			a, err := p.arguments()
			if err != nil {
				return nil, err
			}
			e = &callExpr{e, a}
		default:
			return e, nil
		}
	}
}

func (p *parser) subscript(of expr) (expr, error) {
	var parts [3]expr
	colons := 0
	for {
		switch {
		case p.operator(":"):
			if colons++; colons > 2 {
				return nil, errors.New("a slice has three parts at most")
			}
		case p.operator("]"):
			if colons > 0 {
				return &sliceExpr{of, parts}, nil
			}
			if parts[0] == nil {
				return nil, errors.New("an index is missing")
			}
			return &itemExpr{of, parts[0]}, nil
		default:
			if parts[colons] != nil {
				return nil, fmt.Errorf("want ], not %.40q", p.peek().text)
			}
			e, err := p.expression()
			if err != nil {
				return nil, err
			}
			parts[colons] = e
		}
	}
}

// arguments reads what stands behind an opening parenthesis.
func (p *parser) arguments() (a arguments, err error) {
	for first := true; !p.operator(")"); first = false {
		if !first {
			if err := p.want(","); err != nil {
				return a, err
			}
			if p.operator(")") {
				break
			}
		}
		if p.peek().kind == 'n' && len(p.tokens) > 1 && p.tokens[1].kind == 'o' && p.tokens[1].text == "=" {
			name := p.next().text
			p.next()
			e, err := p.expression()
			if err != nil {
				return a, err
			}
			a.names, a.named = append(a.names, name), append(a.named, e)
			continue
		}
		e, err := p.expression()
		if err != nil {
			return a, err
		}
		if len(a.names) > 0 {
			return a, errors.New("a positional argument stands behind a named one")
		}
		a.positional = append(a.positional, e)
	}
	return a, nil
}

// filtered reads filters and tests.
func (p *parser) filtered(e expr) (expr, error) {
	for n := 0; ; n++ {
		var err error
		switch {
		case n == maxChain:
			return nil, errors.New("too many filters in a row")
		case p.operator("|"):
			e, err = p.filter(e)
		case p.name("is"):
			e, err = p.test(e)
		case p.operator("("): // of a filter's value
			var a arguments
			a, err = p.arguments()
			e = &callExpr{e, a}
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// filters reads name | name ..., applied to e.
func (p *parser) filters(e expr) (expr, error) {
	e, err := p.filter(e)
	for n := 0; err == nil && p.operator("|"); n++ {
		if n == maxChain {
			return nil, errors.New("too many filters in a row")
		}
		e, err = p.filter(e)
	}
	return e, err
}

func (p *parser) filter(e expr) (expr, error) {
	t := p.next()
	if t.kind != 'n' {
		return nil, fmt.Errorf("want a filter's name, not %.40q", t.text)
	}
	f := &filterExpr{of: e, name: t.text}
	if p.operator("(") {
		var err error
		if f.arguments, err = p.arguments(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (p *parser) test(e expr) (expr, error) {
	negated := p.name("not")
	t := p.next()
	if t.kind != 'n' {
		return nil, fmt.Errorf("want a test's name, not %.40q", t.text)
	}
	st := &testExpr{of: e, name: t.text, negated: negated}
	var err error
	next := p.peek()
	switch {
	case p.operator("("):
		st.arguments, err = p.arguments()
	case next.kind == 's', next.kind == 'v', next.kind == 'o' && (next.text == "[" || next.text == "{"),
		next.kind == 'n' && !slices.Contains([]string{"else", "or", "and", "is", "if", "in", "not", "recursive"}, next.text):
		var arg expr
		if arg, err = p.primary(); err == nil {
			arg, err = p.postfix(arg)
		}
		st.positional = []expr{arg}
	}
	return st, err
}
