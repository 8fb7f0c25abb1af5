package grammar

import "fmt"

// Matcher follows one output through a grammar. It is not safe for concurrent use; matchers of one grammar share what they
// work out.
type Matcher struct {
	g     *Grammar
	state configs
	ended bool // by an end-of-sequence token
}

// frame is a place in a rule that goes on when what is called above it has ended.
type frame struct {
	state int32
	below *frame // nil: the whole value
}

// configs are the places an output may be in. Each has edges over bytes.
type configs struct {
	all []frame
	// finished tells that the outermost rule may have ended here.
	finished bool
}

// unknown is the frame below what is looked at apart from its surroundings: see mask.go.
var unknown = &frame{state: -1}

// enter adds the places that state, above below, comes to without another byte.
func (m *machine) enter(c *configs, state int32, below *frame) {
	s := &m.states[state]
	if len(s.edges) > 0 {
		for _, known := range c.all {
			if known.state == state && known.below == below {
				return
			}
		}
		if len(c.all) == maxPlaces {
			return // each place can come to an end by itself: fewer of them only allow less
		}
		c.all = append(c.all, frame{state, below})
	}
	if s.accept {
		if below == nil || below == unknown {
			c.finished = true
		} else {
			m.enter(c, below.state, below.below)
		}
	}
	for _, call := range s.calls {
		back := below
		if target := &m.states[call.to]; !target.accept || len(target.edges) > 0 || len(target.calls) > 0 {
			back = c.frame(call.to, below)
		}
		m.enter(c, m.starts[call.rule], back)
	}
}

// frame returns a frame that the places found already may share, so that equal places are found equal.
func (c *configs) frame(state int32, below *frame) *frame {
	for i := range c.all {
		if b := c.all[i].below; b != nil && b.state == state && b.below == below {
			return b
		}
	}
	return &frame{state, below}
}

// advance returns the places that b leads to; none: b is not allowed.
func (m *machine) advance(from configs, b byte) (to configs) {
	for i := range from.all {
		if next := m.step(from.all[i].state, b); next >= 0 {
			m.enter(&to, next, from.all[i].below)
		}
	}
	return to
}

func (c *configs) dead() bool { return len(c.all) == 0 && !c.finished }

// NewMatcher returns a matcher at the beginning of an output.
func (g *Grammar) NewMatcher() *Matcher {
	m := &Matcher{g: g}
	g.machine.enter(&m.state, g.machine.starts[0], nil)
	return m
}

// Clone returns a copy that goes its own way from here.
func (m *Matcher) Clone() *Matcher {
	c := *m
	return &c
}

// Accept follows one token. A token that the mask does not allow is an *Error; the matcher stays where it was.
func (m *Matcher) Accept(token int32) error {
	if m.ended {
		return &Error{Problem: fmt.Sprintf("token %d comes after the end", token)}
	}
	for _, eos := range m.g.vocab.eos {
		if token == eos {
			if !m.state.finished {
				return &Error{Problem: "the output ends before its value is complete"}
			}
			m.ended = true
			return nil
		}
	}
	if token < 0 || int(token) >= m.g.vocab.size || m.g.vocab.texts[token] == nil {
		return &Error{Problem: fmt.Sprintf("token %d is no text", token)}
	}
	state := m.state
	for i, b := range m.g.vocab.texts[token] {
		if state = m.g.machine.advance(state, b); state.dead() {
			return &Error{Problem: fmt.Sprintf("token %d (%q) is not allowed here: byte %d", token, m.g.vocab.texts[token], i)}
		}
	}
	m.state = state
	return nil
}

// Done tells if the output may end here: it is a complete value. More may still be allowed.
func (m *Matcher) Done() bool { return m.state.finished }

// Ended tells if an end-of-sequence token was accepted, or the value is complete and nothing but the end can follow.
func (m *Matcher) Ended() bool { return m.ended || m.state.finished && len(m.state.all) == 0 }
