package server

import (
	"github.com/tokamak-engine/tokamak/engine"
)

const defaultMaxTokens = 16 // of /v1/completions, as OpenAI's

// completionsRequest is a decoded POST /v1/completions.
type completionsRequest struct {
	*openAIRequest
	echo   bool
	echoes []string // the prompt's text for each generation, if echo is set
}

func (c *call) completions() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	q, err := c.decodeCompletions(o)
	if err != nil {
		return err
	}
	enc := &completionsEncoder{c: c, q: q, total: promptUsage(q.work), states: make([]completionsState, len(q.work.requests))}
	if q.stream {
		return c.stream(q.work, enc)
	}
	outputs, err := c.collect(q.work)
	if err != nil {
		return err
	}
	return c.answer(enc.whole(outputs))
}

func (c *call) decodeCompletions(o *object) (*completionsRequest, error) {
	m := c.live.model
	common, s, n := c.openAICommon(o, defaultMaxTokens)
	q := &completionsRequest{openAIRequest: common}
	list, _ := o.prompts("prompt", m)
	if list == nil && o.err == nil {
		o.fail("prompt", "missing_field", "want a string, a list of strings, token ids or a list of lists of token ids")
	}
	o.boolean("echo", &q.echo)
	q.readLogProbs(o)
	bestOf := n
	o.integer("best_of", &bestOf, 1, maxChoices)
	if bestOf != n {
		o.fail("best_of", "unsupported_parameter", "is %d and n is %d: choosing among more than n is not supported", bestOf, n)
	}
	o.refuse("the models served here continue text, they do not fill gaps", "suffix")
	salt := o.cacheSalt()
	if s.MaxNewTokens == 0 && !q.echo {
		o.fail("max_tokens", "invalid_value", "is 0: want at least 1, or echo: true to score the prompt")
	}
	if q.stream && q.echo && q.logProbs {
		o.fail("echo", "unsupported_parameter", "with logprobs is only answered without stream")
	}
	lenientOpenAI(o)
	if o.err != nil {
		return nil, o.err
	}
	if err := m.resolve("prompt", list); err != nil {
		return nil, err
	}
	if len(list)*n > maxGenerations {
		return nil, badRequest("n", "too_large", "%d prompts of %d choices each: want at most %d together", len(list), n, maxGenerations)
	}
	if q.work.id == "" {
		q.work.id = "cmpl-" + c.s.newID()
	}
	s.LogProbs, s.TopLogProbs = q.logProbs, q.top
	for _, p := range list {
		q.work.add(engine.Request{InputIDs: p.ids, Sampling: s, CacheSalt: salt, PromptLogProbs: q.echo && q.logProbs}, n)
		if q.echo {
			text := p.text
			if !p.isText && m.codec != nil {
				text = m.codec.Decode(p.ids, s.SkipSpecialTokens)
			}
			for range n {
				q.echoes = append(q.echoes, text)
			}
		}
	}
	return q, nil
}

// cacheSalt reads the name that keeps a client's cached prefixes apart.
func (o *object) cacheSalt() (salt string) {
	o.text("extra_key", &salt, maxNameBytes)
	o.text("cache_salt", &salt, maxNameBytes)
	return salt
}

// readLogProbs reads completions' logprobs: the number of alternatives.
func (q *completionsRequest) readLogProbs(o *object) {
	raw, ok := o.fields["logprobs"]
	if !ok || isNull(raw) {
		return
	}
	if string(raw) == "false" { // chat's form of "no"
		o.ignore("logprobs")
		return
	}
	q.logProbs = true
	o.integer("logprobs", &q.top, 0, maxTopLogProbs)
}

// completionsEncoder writes answers of /v1/completions.
type completionsEncoder struct {
	c      *call
	q      *completionsRequest
	total  usage
	states []completionsState
}

type completionsState struct {
	begun     bool
	completed int
	offset    int // characters of text before the next token
}

func (e *completionsEncoder) contentType() string { return eventStream }

// head adds everything up to the choices.
func (e *completionsEncoder) head(buf []byte) []byte {
	buf = append(buf, `{"id":`...)
	buf = appendString(buf, e.q.work.id)
	buf = append(buf, `,"object":"text_completion","created":`...)
	buf = appendInt(buf, e.q.created)
	buf = append(buf, `,"model":`...)
	buf = appendString(buf, e.q.model)
	return append(buf, `,"choices":[`...)
}

func (e *completionsEncoder) event(buf []byte, index int, ev *engine.Event) []byte {
	st := &e.states[index]
	e.total.completion += len(ev.TokenIDs)
	st.completed += len(ev.TokenIDs)
	buf = e.head(append(buf, "data: "...))
	buf = e.choice(buf, index, ev.Text, ev.TokenIDs, ev.LogProbs, ev.Done)
	st.begun = true
	buf = append(buf, ']')
	if ev.Done != nil {
		e.total.add(ev.Done, isFirstChoice(index, e.q.work.n))
	}
	switch {
	case e.q.eachOwn:
		buf = append(buf, `,"usage":`...)
		buf = usage{prompt: len(e.q.work.requests[index].InputIDs), completion: st.completed}.append(buf)
	case e.q.usage:
		buf = append(buf, `,"usage":null`...)
	}
	return append(buf, "}\n\n"...)
}

func (e *completionsEncoder) finish(buf []byte) []byte {
	if e.q.usage {
		buf = e.head(append(buf, "data: "...))
		buf = append(buf, `],"usage":`...)
		buf = e.total.append(buf)
		buf = append(buf, "}\n\n"...)
	}
	return appendDone(buf)
}

func (e *completionsEncoder) fail(buf []byte, err *apiError) []byte { return appendError(buf, err) }

// whole is the answer to a request that did not ask for a stream.
func (e *completionsEncoder) whole(outputs []*engine.Output) []byte {
	buf := e.head(nil)
	for i, out := range outputs {
		if i > 0 {
			buf = append(buf, ',')
		}
		e.total.completion += len(out.TokenIDs)
		e.c.tokens += len(out.TokenIDs)
		e.total.add(out, isFirstChoice(i, e.q.work.n))
		buf = e.choice(buf, i, out.Text, out.TokenIDs, out.LogProbs, out)
	}
	buf = append(buf, `],"usage":`...)
	buf = e.total.append(buf)
	return append(buf, "}\n"...)
}

func (e *completionsEncoder) choice(buf []byte, index int, text string, ids []int32, logProbs []engine.TokenLogProb, done *engine.Output) []byte {
	st := &e.states[index]
	echo := e.q.echo && !st.begun
	buf = append(buf, `{"index":`...)
	buf = appendInt(buf, index)
	buf = append(buf, `,"text":"`...)
	if echo {
		buf = appendEscaped(buf, e.q.echoes[index])
	}
	buf = appendEscaped(buf, text)
	buf = append(buf, `","logprobs":`...)
	if e.q.logProbs {
		var prompt []int32
		var promptLogProbs []engine.TokenLogProb
		if echo {
			prompt = e.q.work.requests[index].InputIDs
			if done != nil {
				promptLogProbs = done.PromptLogProbs
			}
		}
		buf = e.appendLogProbs(buf, st, prompt, promptLogProbs, logProbs)
	} else {
		buf = append(buf, "null"...)
	}
	buf = appendFinishReason(buf, done)
	if e.q.tokenIDs {
		var prompt []int32
		if !st.begun {
			prompt = e.q.work.requests[index].InputIDs
		}
		buf = appendTokenIDs(buf, ids, prompt)
	}
	return append(buf, '}')
}

// appendLogProbs adds OpenAI's four lists. The prompt's tokens come first where they are echoed; the first of them follows
// nothing and has no probability.
func (e *completionsEncoder) appendLogProbs(buf []byte, st *completionsState, prompt []int32, promptLogProbs, logProbs []engine.TokenLogProb) []byte {
	m := e.c.live.model
	all := make([]engine.TokenLogProb, 0, len(prompt)+len(logProbs))
	known := make([]bool, 0, cap(all))
	for i, id := range prompt {
		t := engine.TokenLogProb{Token: id}
		ok := i > 0 && i <= len(promptLogProbs)
		if ok {
			t = promptLogProbs[i-1]
		}
		all, known = append(all, t), append(known, ok)
	}
	for _, t := range logProbs {
		all, known = append(all, t), append(known, true)
	}
	buf = append(buf, `{"text_offset":[`...)
	for i := range all {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = appendInt(buf, st.offset)
		st.offset += len([]rune(m.label(all[i].Token)))
	}
	buf = append(buf, `],"token_logprobs":[`...)
	for i := range all {
		if i > 0 {
			buf = append(buf, ',')
		}
		if !known[i] {
			buf = append(buf, "null"...)
			continue
		}
		buf = appendLogProb(buf, all[i].LogProb)
	}
	buf = append(buf, `],"tokens":[`...)
	for i := range all {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = appendString(buf, m.label(all[i].Token))
	}
	buf = append(buf, `],"top_logprobs":[`...)
	for i := range all {
		if i > 0 {
			buf = append(buf, ',')
		}
		if !known[i] {
			buf = append(buf, "null"...)
			continue
		}
		buf = e.appendTop(buf, all[i].Top)
	}
	return append(buf, "]}"...)
}

// appendTop adds alternatives as an object. Of two tokens with one text, the likelier one stays.
func (e *completionsEncoder) appendTop(buf []byte, top []engine.TokenLogProb) []byte {
	m := e.c.live.model
	seen := make(map[string]bool, len(top))
	buf = append(buf, '{')
	for _, t := range top {
		label := m.label(t.Token)
		if seen[label] {
			continue
		}
		if len(seen) > 0 {
			buf = append(buf, ',')
		}
		seen[label] = true
		buf = appendString(buf, label)
		buf = append(buf, ':')
		buf = appendLogProb(buf, t.LogProb)
	}
	return append(buf, '}')
}
