package jinja

import (
	"errors"
	"fmt"
	"slices"
)

const (
	maxSource  = 1 << 20 // bytes; the longest of real ones has some 20,000
	maxTokens  = 20_000  // of one tag
	maxNesting = 100     // of blocks, and of expressions in each other
	maxChain   = 1000    // operators, filters, attributes in a row
)

// Parse reads a template. Errors tell the line.
func Parse(source string) (*Template, error) {
	if len(source) > maxSource {
		return nil, fmt.Errorf("a template of %d bytes, want at most %d", len(source), maxSource)
	}
	all, err := segments(source)
	if err != nil {
		return nil, err
	}
	p := &parser{segments: all}
	body, end, err := p.block()
	if err == nil && end != "" {
		err = fmt.Errorf("unexpected %s", end)
	}
	if err != nil {
		return nil, p.locate(err)
	}
	return &Template{body}, nil
}

// parser reads statements from segments, and expressions from the tokens of one of them.
type parser struct {
	segments []segment
	at       int // of segments: the next
	line     int
	tokens   []token
	nesting  int
}

func (p *parser) locate(err error) error {
	var located *lineError
	if errors.As(err, &located) {
		return err
	}
	return &lineError{p.line, err}
}

func (p *parser) deeper() error {
	if p.nesting++; p.nesting > maxNesting {
		return errors.New("nested too deep")
	}
	return nil
}

// block reads statements up to a tag that is in ends or at the end, where end is "". The tag's name is taken.
func (p *parser) block(ends ...string) (body []stmt, end string, err error) {
	if err := p.deeper(); err != nil {
		return nil, "", err
	}
	defer func() { p.nesting-- }()
	for p.at < len(p.segments) {
		s := p.segments[p.at]
		p.at++
		p.line = s.line
		if s.kind == 't' {
			body = append(body, textStmt(s.text))
			continue
		}
		if p.tokens, err = tokens(s.text); err != nil {
			return nil, "", err
		}
		if s.kind == '{' {
			e, err := p.tuple()
			if err == nil {
				err = p.done()
			}
			if err != nil {
				return nil, "", err
			}
			body = append(body, &outputStmt{e, s.line})
			continue
		}
		name := p.next().text
		if slices.Contains(ends, name) {
			return body, name, nil
		}
		parse := statements[name]
		if parse == nil {
			return nil, "", fmt.Errorf("unknown or misplaced tag %.40q", name)
		}
		st, err := parse(p, s.line)
		if err != nil {
			return nil, "", err
		}
		body = append(body, st)
	}
	if len(ends) > 0 {
		return nil, "", fmt.Errorf("%s is missing", ends[len(ends)-1])
	}
	return body, "", nil
}

var statements map[string]func(p *parser, line int) (stmt, error)

func init() { // the table and what is in it refer to each other
	statements = map[string]func(p *parser, line int) (stmt, error){
		"if": (*parser).ifStmt, "for": (*parser).forStmt, "set": (*parser).setStmt, "macro": (*parser).macroStmt, "call": (*parser).callStmt,
		"filter": (*parser).filterStmt, "with": (*parser).withStmt, "generation": (*parser).generationStmt,
		"break":    func(p *parser, _ int) (stmt, error) { return jumpStmt{errBreak}, p.done() },
		"continue": func(p *parser, _ int) (stmt, error) { return jumpStmt{errContinue}, p.done() },
	}
}

func (p *parser) ifStmt(line int) (stmt, error) {
	st := &ifStmt{line: line}
	for branch := "if"; branch != "endif"; {
		var b ifBranch
		var err error
		if branch != "else" {
			if b.condition, err = p.tuple(); err != nil {
				return nil, err
			}
		}
		if err := p.done(); err != nil {
			return nil, err
		}
		ends := []string{"elif", "else", "endif"}
		if branch == "else" {
			ends = ends[2:]
		}
		if b.body, branch, err = p.block(ends...); err != nil {
			return nil, err
		}
		st.branches = append(st.branches, b)
	}
	return st, p.done()
}

func (p *parser) forStmt(line int) (stmt, error) {
	st := &forStmt{line: line}
	var err error
	if st.targets, err = p.names("in"); err != nil {
		return nil, err
	}
	if st.over, err = p.tupleOf((*parser).or); err != nil {
		return nil, err
	}
	if p.name("if") {
		if st.condition, err = p.expression(); err != nil {
			return nil, err
		}
	}
	st.recursive = p.name("recursive")
	if err := p.done(); err != nil {
		return nil, err
	}
	var end string
	if st.body, end, err = p.block("else", "endfor"); err == nil && end == "else" {
		if err = p.done(); err == nil {
			st.otherwise, _, err = p.block("endfor")
		}
	}
	if err != nil {
		return nil, err
	}
	return st, p.done()
}

// names reads names with commas up to the word end.
func (p *parser) names(end string) (names []string, err error) {
	for {
		parens := p.operator("(")
		t := p.next()
		if t.kind != 'n' || reserved[t.text] {
			return nil, fmt.Errorf("want a name, not %.40q", t.text)
		}
		names = append(names, t.text)
		if parens {
			return nil, errors.New("names in parentheses are not supported")
		}
		if p.name(end) || end == "=" && p.operator("=") {
			return names, nil
		}
		if !p.operator(",") {
			return nil, fmt.Errorf("want , or %s, not %.40q", end, p.peek().text)
		}
	}
}

func (p *parser) setStmt(line int) (stmt, error) {
	st := &setStmt{line: line}
	first := p.next()
	if first.kind != 'n' || reserved[first.text] {
		return nil, fmt.Errorf("want a name, not %.40q", first.text)
	}
	st.names = []string{first.text}
	if p.operator(".") {
		attribute := p.next()
		if attribute.kind != 'n' {
			return nil, fmt.Errorf("want a name, not %.40q", attribute.text)
		}
		st.attribute = attribute.text
	}
	var err error
	switch {
	case p.operator("="):
		st.value, err = p.tuple()
	case st.attribute == "" && p.operator(","):
		var more []string
		if more, err = p.names("="); err == nil {
			st.names = append(st.names, more...)
			st.value, err = p.tuple()
		}
	default: // a block
		if p.operator("|") {
			if st.filters, err = p.filters(&blockText{}); err != nil {
				return nil, err
			}
		}
		if err = p.done(); err == nil {
			st.body, _, err = p.block("endset")
		}
		st.isBlock = true
	}
	if err != nil {
		return nil, err
	}
	return st, p.done()
}

func (p *parser) params() (names []string, defaults []expr, err error) {
	if !p.operator("(") {
		return nil, nil, nil
	}
	for !p.operator(")") {
		t := p.next()
		if t.kind != 'n' || reserved[t.text] {
			return nil, nil, fmt.Errorf("want a parameter's name, not %.40q", t.text)
		}
		var def expr
		if p.operator("=") {
			if def, err = p.expression(); err != nil {
				return nil, nil, err
			}
		}
		names, defaults = append(names, t.text), append(defaults, def)
		if !p.operator(",") && p.peek().text != ")" {
			return nil, nil, fmt.Errorf("want , or ), not %.40q", p.peek().text)
		}
	}
	return names, defaults, nil
}

func (p *parser) macroStmt(line int) (stmt, error) {
	t := p.next()
	if t.kind != 'n' {
		return nil, fmt.Errorf("want a macro's name, not %.40q", t.text)
	}
	m := &macro{name: t.text}
	var err error
	if m.params, m.defaults, err = p.params(); err == nil {
		if err = p.done(); err == nil {
			m.body, _, err = p.block("endmacro")
		}
	}
	if err != nil {
		return nil, err
	}
	p.next() // endmacro may name the macro again
	return &macroStmt{m}, nil
}

func (p *parser) callStmt(line int) (stmt, error) {
	m := &macro{name: "caller"}
	var err error
	if m.params, m.defaults, err = p.params(); err != nil {
		return nil, err
	}
	e, err := p.expression()
	if err != nil {
		return nil, err
	}
	call, ok := e.(*callExpr)
	if !ok {
		return nil, errors.New("want a call behind call")
	}
	if err := p.done(); err != nil {
		return nil, err
	}
	if m.body, _, err = p.block("endcall"); err != nil {
		return nil, err
	}
	return &callStmt{call, m, line}, p.done()
}

func (p *parser) filterStmt(line int) (stmt, error) {
	filters, err := p.filters(&blockText{})
	if err == nil {
		err = p.done()
	}
	if err != nil {
		return nil, err
	}
	body, _, err := p.block("endfilter")
	if err != nil {
		return nil, err
	}
	return &filterStmt{filters, body, line}, p.done()
}

func (p *parser) withStmt(line int) (stmt, error) {
	st := &withStmt{line: line}
	for p.peek().kind != 0 {
		t := p.next()
		if t.kind != 'n' || !p.operator("=") {
			return nil, errors.New("want name = value behind with")
		}
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		st.names, st.values = append(st.names, t.text), append(st.values, e)
		if !p.operator(",") {
			break
		}
	}
	if err := p.done(); err != nil {
		return nil, err
	}
	var err error
	if st.body, _, err = p.block("endwith"); err != nil {
		return nil, err
	}
	return st, p.done()
}

// generationStmt: transformers marks what an assistant says with it; it renders as its body.
func (p *parser) generationStmt(line int) (stmt, error) {
	if err := p.done(); err != nil {
		return nil, err
	}
	body, _, err := p.block("endgeneration")
	if err != nil {
		return nil, err
	}
	return &withStmt{body: body, line: line}, p.done()
}
