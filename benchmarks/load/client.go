package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// Client sends requests to one server in its wire form. It may be used by many goroutines.
type Client struct {
	Kind     *Kind
	BaseURL  string // http://host:port
	Sampling Sampling
	Header   http.Header // sent with every request: keys, routing
	// Decode turns token ids into text for servers that take nothing else. It may be nil for the others.
	Decode func(ids []int32) string
	// TokenizePrompts sends a text's token ids where the server takes them.
	TokenizePrompts bool
	// Timeout of one request, from sending to the end; 0: none.
	Timeout time.Duration

	transport http.Transport
	once      sync.Once
}

// maxErrorBody bounds what is kept of an error reply.
const maxErrorBody = 4 << 10

// maxReply bounds a reply that is not streamed.
const maxReply = 256 << 20

func (c *Client) setup() {
	c.once.Do(func() {
		// No proxy: a benchmark that goes through one measures the proxy. Every connection is kept, or a run of a thousand
		// streams would dial a thousand times a second.
		c.transport.MaxIdleConnsPerHost = 1 << 20
		c.transport.DisableCompression = true
		c.transport.ReadBufferSize = 16 << 10
		c.transport.WriteBufferSize = 16 << 10
		c.transport.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	})
}

// Close drops the connections that are kept for later requests.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// encode makes the body of a request.
func (c *Client) encode(p *prompt) ([]byte, error) {
	body := c.Kind.body(p, &c.Sampling)
	if len(c.Sampling.Extra) > 0 {
		object := body.(fields)
		for key, value := range c.Sampling.Extra {
			// sampling_params is merged rather than replaced: the length asked for stands in it.
			if inner, ok := object[key].(fields); ok {
				var more map[string]json.RawMessage
				if err := json.Unmarshal(value, &more); err != nil {
					return nil, fmt.Errorf("extra body: %s: %w", key, err)
				}
				for k, v := range more {
					inner[k] = v
				}
				continue
			}
			object[key] = value
		}
	}
	return json.Marshal(body)
}

// firstPrompt puts a sample's first turn into the form this server takes.
func (c *Client) firstPrompt(s *datasets.Sample) (*prompt, error) {
	p := &prompt{messages: s.Messages, outputLen: s.OutputLen}
	switch {
	case s.Messages != nil:
		if !c.Kind.chat {
			return nil, fmt.Errorf("the sample is a chat, backend %s takes none: use %s", c.Kind.Name, chatKinds())
		}
		return p, nil
	case s.Text != "" && (s.IDs == nil || !c.TokenizePrompts || !c.Kind.takesIDs):
		p.text = s.Text
	case c.Kind.takesIDs:
		p.ids = s.IDs
	case c.Decode != nil:
		p.text = c.Decode(s.IDs)
	default:
		return nil, fmt.Errorf("backend %s takes text, the dataset has token ids: needs the model's tokenizer (--tokenizer-path)", c.Kind.Name)
	}
	if c.Kind.chat {
		p.messages, p.text = []datasets.Message{{Role: "user", Content: p.text}}, ""
	}
	return p, nil
}

// nextPrompt appends a turn's answer and the user's next turn to what has been said.
func (c *Client) nextPrompt(p *prompt, answer *Result, t *datasets.Turn) *prompt {
	next := &prompt{outputLen: t.OutputLen}
	text := t.Text
	if text == "" && c.Decode != nil {
		text = c.Decode(t.IDs)
	}
	switch {
	case p.messages != nil:
		next.messages = append(p.messages[:len(p.messages):len(p.messages)],
			datasets.Message{Role: "assistant", Content: answer.Text}, datasets.Message{Role: "user", Content: text})
	case p.ids != nil:
		// A server that does not give its answer's ids gets the question's in their place: the lengths are right then, and
		// only the answer's own part of the prefix cache is missed.
		said := answer.OutputIDs
		for i := len(said); i < answer.OutputTokens.N; i++ {
			said = append(said, p.ids[i%len(p.ids)])
		}
		next.ids = append(append(p.ids[:len(p.ids):len(p.ids)], said...), t.IDs...)
	default:
		next.text = p.text + answer.Text + "\n" + text
	}
	return next
}

func chatKinds() string {
	var names []string
	for _, k := range Kinds() {
		if k.chat {
			names = append(names, k.Name)
		}
	}
	return strings.Join(names, ", ")
}

// reply is what a request's goroutine needs to read an answer; it is reused.
type reply struct {
	events events
	text   []byte
}

var replies = sync.Pool{New: func() any { return new(reply) }}

// do sends body and fills in r, from Sent on. clock gives the time since the start of the run. keep asks for r's text and ids.
func (c *Client) do(ctx context.Context, body []byte, r *Result, clock func() time.Duration, keep bool) {
	c.setup()
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Timeout)
		defer cancel()
	}
	r.Failure = c.exchange(ctx, body, r, clock, keep)
	if r.End == 0 {
		r.End = clock()
	}
	if r.Failure == nil {
		r.settle()
		r.Failure = r.check(c.Kind, &c.Sampling)
	}
}

func (c *Client) exchange(ctx context.Context, body []byte, r *Result, clock func() time.Duration, keep bool) *Failure {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.BaseURL+c.Kind.path, bytes.NewReader(body))
	if err != nil {
		r.Sent = clock()
		return failf(FailConnect, "%v", err)
	}
	for key, values := range c.Header {
		req.Header[key] = values
	}
	req.Header.Set("Content-Type", "application/json")
	r.Sent = clock()
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return broken(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
		detail := problem(gjson.GetBytes(text, "error"))
		if detail == "" {
			detail = string(bytes.TrimSpace(text))
		}
		return failf(fmt.Sprintf("http-%d", resp.StatusCode), "%s", detail)
	}
	s := replies.Get().(*reply)
	defer replies.Put(s)
	s.text = s.text[:0]
	if !c.Sampling.Stream {
		return c.readWhole(ctx, resp.Body, s, r, clock, keep)
	}
	return c.readStream(ctx, resp.Body, s, r, clock, keep)
}

func (c *Client) readWhole(ctx context.Context, body io.Reader, s *reply, r *Result, clock func() time.Duration, keep bool) *Failure {
	data, err := io.ReadAll(io.LimitReader(body, maxReply))
	if err != nil {
		return broken(ctx, err)
	}
	r.End = clock()
	d, failure := c.event(data)
	if failure != nil {
		return failure
	}
	r.take(d, 0, s, keep)
	r.Chunks = nil
	r.finish(s, keep)
	return nil
}

func (c *Client) readStream(ctx context.Context, body io.Reader, s *reply, r *Result, clock func() time.Duration, keep bool) *Failure {
	s.events.reset(body, c.Kind.jsonLines, clock)
	r.Chunks = make([]Chunk, 0, min(r.WantOutput, 1<<12))
	for {
		data, at, err := s.events.next()
		if errors.Is(err, io.EOF) {
			if c.Kind.endMark {
				return failf(FailTruncated, "the stream ended after %d chunks without its end mark", len(r.Chunks))
			}
			break
		}
		if err != nil {
			return broken(ctx, err)
		}
		d, failure := c.event(data)
		if failure != nil {
			return failure
		}
		r.take(d, at, s, keep)
		r.End = at
		if d.end {
			break
		}
	}
	r.finish(s, keep)
	// What is left is the empty last chunk of the HTTP body: read it, or the connection cannot be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(body, maxErrorBody))
	return nil
}

// event reads one event's data.
func (c *Client) event(data []byte) (*delta, *Failure) {
	if !bytes.Equal(data, doneMark) && !gjson.ValidBytes(data) {
		return nil, failf(FailProtocol, "not JSON: %.200q", data)
	}
	var d delta
	c.Kind.read(data, &d)
	if d.err != "" {
		return nil, failf(FailServer, "%s", d.err)
	}
	return &d, nil
}

// take adds an event to the result.
func (r *Result) take(d *delta, at time.Duration, s *reply, keep bool) {
	fresh := d.text
	if d.cumulative {
		fresh = d.text[min(len(s.text), len(d.text)):]
		if len(fresh) > 0 || len(d.text) > 0 {
			s.text = append(s.text[:0], d.text...)
		}
	} else if keep {
		s.text = append(s.text, d.text...)
	}
	if d.prompt.Known {
		r.PromptTokens = d.prompt
	}
	if d.cached.Known {
		r.CachedTokens = d.cached
	}
	if d.finish != "" {
		r.Finish = d.finish
	}
	tokens := d.tokens
	if d.completion.Known {
		if !d.total {
			tokens = d.completion.N - r.OutputTokens.N
		}
		r.OutputTokens = d.completion
	}
	if keep && d.outputIDs.IsArray() {
		if d.cumulative {
			r.OutputIDs = r.OutputIDs[:0]
		}
		d.outputIDs.ForEach(func(_, id gjson.Result) bool {
			r.OutputIDs = append(r.OutputIDs, int32(id.Int()))
			return true
		})
	}
	if tokens <= 0 && !d.content && len(fresh) == 0 {
		return
	}
	if len(r.Chunks) == 0 {
		r.FirstToken = at
	}
	r.Chunks = append(r.Chunks, Chunk{At: at, Tokens: max(tokens, 0), bytes: len(fresh)})
}

func (r *Result) finish(s *reply, keep bool) {
	if keep {
		r.Text = string(s.text)
		if len(r.OutputIDs) != r.OutputTokens.N {
			r.OutputIDs = nil // not the whole answer's
		}
	}
}

// broken names the reason of a failed exchange.
func broken(ctx context.Context, err error) *Failure {
	var timeout net.Error
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return failf(FailTimeout, "no complete answer in time")
	case ctx.Err() != nil:
		return failf(FailCanceled, "%v", ctx.Err())
	case errors.Is(err, errEventTooLarge):
		return failf(FailProtocol, "%v", err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return failf(FailTimeout, "%v", err)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return failf(FailTruncated, "connection closed within the answer")
	default:
		return failf(FailConnect, "%v", err)
	}
}

// CheckURL refuses a base URL that cannot be one.
func CheckURL(base string) error {
	u, err := url.Parse(base)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return fmt.Errorf("base URL %q: want http://host:port", base)
	}
	return nil
}
