package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

var (
	simSeed   = flag.Uint64("sim.seed", 0, "first seed of TestSessionSimulation; 0 draws one")
	simWorlds = flag.Int("sim.worlds", 150, "worlds that TestSessionSimulation plays")
	simWorld  = flag.String("sim.world", "", "file with a world that TestSessionSimulation printed: play it alone")
)

// sessionWorld is all that happens in one simulation: a server with an engine on a fake device, and what clients do to it. Times are the
// fake clock's. A world is data, so that a failing one can be cut down and printed.
type sessionWorld struct {
	Rows, Pages, PageSize, Queue, Chunk, Connections int
	Overlap, Cache                                   bool
	Step, Header, Write, Lag                         time.Duration // of a step; timeouts
	FaultAt                                          int           // the step that the device fails at; 0: none
	Stop                                             time.Duration // when the server shuts down, with a second to drain; 0: when all have gone
	Sessions                                         []session
}

// session is one client.
type session struct {
	ID, Prompt, Salt, Tokens int
	Shared                   int // tokens of the prompt that others' begin with, too
	At                       time.Duration
	Stream                   bool
	Way                      string // whole, leave, abort, slow, late, mute, cut: see play
	After                    int    // events
	Pause                    time.Duration
	Timeout                  float64 // seconds that the request allows; 0: none
}

const simVocab = 60

func newSessionWorld(seed uint64) sessionWorld {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := sessionWorld{
		Rows: 1 + rng.IntN(8), PageSize: 1 + rng.IntN(8), Queue: 2 + rng.IntN(20), Chunk: rng.IntN(3) * (1 + rng.IntN(20)), Connections: 6 + rng.IntN(60),
		Overlap: rng.IntN(4) > 0, Cache: rng.IntN(4) > 0, Step: time.Duration(500+rng.IntN(20_000))*time.Microsecond + 7*time.Nanosecond,
		Header: 5 * time.Second, Write: time.Second, Lag: 2 * time.Second,
	}
	w.Pages = (100+rng.IntN(300))/w.PageSize + 2
	if rng.IntN(8) == 0 {
		w.FaultAt = 1 + rng.IntN(200)
	}
	if rng.IntN(4) == 0 {
		w.Stop = time.Duration(rng.IntN(2000)) * time.Millisecond
	}
	at := time.Duration(0)
	for id := range 10 + rng.IntN(40) {
		at += time.Duration(rng.ExpFloat64() * float64(30*time.Millisecond))
		s := session{
			ID: id, Prompt: 1 + rng.IntN(40), Salt: rng.IntN(2), Tokens: 1 + rng.IntN(50), At: at + time.Duration(id), Stream: rng.IntN(5) > 0,
			Way: []string{"whole", "whole", "whole", "leave", "leave", "abort", "slow", "late", "mute", "cut"}[rng.IntN(10)], After: rng.IntN(6),
		}
		s.Shared = rng.IntN(s.Prompt)
		switch s.Way {
		case "slow":
			s.Pause = time.Duration(10+rng.IntN(2500)) * time.Millisecond
		case "late":
			s.Timeout = 0.001 + rng.Float64()
		}
		w.Sessions = append(w.Sessions, s)
	}
	return w
}

func (s *session) prompt() []int32 {
	ids := make([]int32, s.Prompt)
	for i := range ids {
		ids[i] = int32(i % simVocab)
		if i >= s.Shared {
			ids[i] = int32((s.ID*7 + i*11) % simVocab)
		}
	}
	return ids
}

// pipes is a network without a kernel: a connection is a pipe in memory, whose deadlines the fake clock moves.
type pipes struct {
	queue chan net.Conn
	once  sync.Once
	shut  chan struct{}
}

func newPipes() *pipes { return &pipes{queue: make(chan net.Conn), shut: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.queue:
		return c, nil
	case <-p.shut:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.shut) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "pipe"} }

func (p *pipes) dial() (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case p.queue <- theirs:
		return ours, nil
	case <-p.shut:
		return nil, net.ErrClosed
	}
}

// ending is how a session saw its request end.
type ending struct {
	status int    // of the answer; 0: none came
	code   string // of an error, in the answer or in the stream
	finish string
	done   int // times that the stream's end was told
	ids    []int32
	left   bool // the client left
	broken bool // the connection ended too early
	at     time.Duration
}

func (e *ending) String() string {
	return fmt.Sprintf("%d %s %s done=%d ids=%d left=%v broken=%v at %v", e.status, e.code, e.finish, e.done, len(e.ids), e.left, e.broken, e.at)
}

// play does what a client does: "leave" goes after some events, "cut" closes the connection in the middle of its request, "mute" sends a
// part of the header and no more, "abort" has its request aborted by another, "slow" reads slowly, "late" has a deadline.
func (s *session) play(p *pipes) (e ending) {
	body := fmt.Sprintf(`{"input_ids":[%s],"rid":"r%d","cache_salt":"%d","stream":%v,"stream_mode":"delta","request_timeout":%g,"sampling_params":{"max_new_tokens":%d,"temperature":0,"ignore_eos":true}}`,
		appendIDs(nil, s.prompt()), s.ID, s.Salt, s.Stream, s.Timeout, s.Tokens)
	text := fmt.Sprintf("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	c, err := p.dial()
	if err != nil {
		e.broken = true
		return e
	}
	defer c.Close()
	switch s.Way {
	case "cut":
		text, e.left = text[:len(text)-1-s.After*3], true
	case "mute":
		text = text[:20+8*s.After] // less than a line, or lines
	}
	if e.left {
		_, _ = io.WriteString(c, text)
		return e
	}
	go io.WriteString(c, text) // a kernel would keep it, too, while an answer comes
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		e.broken = true
		return e
	}
	e.status = resp.StatusCode
	if e.status != 200 || !s.Stream {
		answer, err := io.ReadAll(resp.Body)
		e.broken = err != nil
		e.read(answer)
		return e
	}
	lines := bufio.NewScanner(resp.Body)
	for events := 0; lines.Scan(); {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok:
			continue
		case data == "[DONE]":
			e.done++
			continue
		}
		e.read([]byte(data))
		events++
		time.Sleep(s.Pause)
		if events == s.After+1 {
			switch s.Way {
			case "leave":
				e.left = true
				return e
			case "abort":
				s.abort(p)
			}
		}
	}
	e.broken = lines.Err() != nil
	return e
}

// read takes over what an answer or an event tells.
func (e *ending) read(data []byte) {
	var v struct {
		IDs  []int32 `json:"output_ids"`
		Meta struct {
			Finish *struct{ Type string } `json:"finish_reason"`
		} `json:"meta_info"`
		Error *struct{ Code string }
	}
	if json.Unmarshal(data, &v) != nil {
		e.code = "not JSON: " + string(data)
		return
	}
	e.ids = append(e.ids, v.IDs...)
	if v.Meta.Finish != nil {
		e.finish += v.Meta.Finish.Type
	}
	if v.Error != nil {
		e.code += v.Error.Code
	}
}

func (s *session) abort(p *pipes) {
	c, err := p.dial()
	if err != nil {
		return
	}
	defer c.Close()
	body := fmt.Sprintf(`{"rid":"r%d"}`, s.ID)
	go fmt.Fprintf(c, "POST /abort_request HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	_, _ = io.Copy(io.Discard, c)
}

// check holds what a session saw against what it was promised.
func (s *session) check(w *sessionWorld, e *ending) error {
	want := fakebackend.Continue(s.prompt(), s.Tokens, simVocab, nil)
	if len(e.ids) > len(want) || !slices.Equal(want[:len(e.ids)], e.ids) {
		return fmt.Errorf("got tokens %v, alone it gets %v", e.ids, want)
	}
	troubled := w.FaultAt > 0 || w.Stop > 0
	switch {
	case e.left:
		return nil
	case e.broken && (s.Way == "mute" || s.Way == "slow" || troubled):
		return nil // a header that never ends; written to too slowly; a server that goes
	case e.broken:
		return errors.New("the connection ended without an answer")
	case s.Way == "mute" && (e.status == 408 || e.status == 400), // in mid-line, net/http takes it for a malformed one
		e.status == 429 && e.code == "queue_full", e.status == 503 && (troubled || e.code == "too_many_connections"):
		return nil
	case e.status == 500 && w.FaultAt > 0:
		return nil
	case e.status != 200 && s.Way == "late" && e.code == "deadline_exceeded", e.status != 200 && w.Stop > 0:
		return nil
	case e.status != 200:
		return fmt.Errorf("status %d", e.status)
	case s.Stream && e.done != 1:
		return fmt.Errorf("%d ends of the stream", e.done)
	case (e.finish == "") == (e.code == ""):
		return fmt.Errorf("finish %q and error %q: want one of them", e.finish, e.code)
	case e.finish == "length" && len(e.ids) != s.Tokens:
		return fmt.Errorf("%d of %d tokens came", len(e.ids), s.Tokens)
	case e.finish == "length", e.finish == "abort" && s.Way == "abort", e.code == "aborted" && s.Way == "abort", e.code == "slow_reader" && s.Way == "slow":
		return nil
	case s.Way == "late" && e.code == "deadline_exceeded", troubled:
		return nil
	}
	return fmt.Errorf("ended with finish %q, error %q", e.finish, e.code)
}

// simulate plays a world and returns what its sessions saw, and the first promise that was broken.
func (w *sessionWorld) simulate(t *testing.T) (endings []ending, err error) {
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	o := engine.DefaultOptions()
	o.LoadFormat, o.SkipTokenizerInit, o.MaxQueuedRequests = "dummy", true, w.Queue
	o.DisableOverlap, o.DisableRadixCache, o.ChunkedPrefillSize = !w.Overlap, !w.Cache, w.Chunk
	device := fakebackend.New(backend.Info{
		Name: "fake", VocabSize: simVocab, MaxContext: 200, MaxRows: w.Rows, MaxTokens: max(w.Rows, 40), PageSize: w.PageSize, NumPages: w.Pages,
	})
	device.BeforeWait = func(step backend.StepID) { time.Sleep(w.Step) }
	device.FailWait = func(step backend.StepID) error {
		if w.FaultAt > 0 && int(step) >= w.FaultAt {
			return errors.New("the device is gone")
		}
		return nil
	}
	began := time.Now()
	e, err := engine.Open(context.Background(), dir, engine.WithOptions(o), engine.WithBackend(func(*model.Config) (backend.Backend, error) { return device, nil }))
	if err != nil {
		return nil, err
	}
	so := DefaultOptions()
	so.ServedModelName, so.LogInterval, so.MaxConnections = "sim", 0, w.Connections
	so.HeaderTimeout, so.WriteTimeout, so.MaxStreamLag = w.Header, w.Write, w.Lag
	s, err := New(so, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	s.Start(e)
	network := newPipes()
	served := make(chan error, 1)
	go func() { served <- s.Serve(network) }()

	endings = make([]ending, len(w.Sessions))
	var clients sync.WaitGroup
	for i := range w.Sessions {
		clients.Go(func() {
			time.Sleep(w.Sessions[i].At)
			endings[i] = w.Sessions[i].play(network)
			endings[i].at = time.Since(began)
		})
	}
	stop := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		return s.Shutdown(ctx)
	}
	if w.Stop > 0 {
		time.Sleep(w.Stop)
		stop()
	}
	clients.Wait()
	time.Sleep(10 * time.Second) // what has been left alone is over by then
	st := e.Stats()
	switch {
	case st.Running+st.Waiting+st.UsedPages+st.StepsInFlight != 0:
		err = fmt.Errorf("%d requests run and %d wait when all clients have gone, %d pages are in use", st.Running, st.Waiting, st.UsedPages)
	case s.bodyBytes.Load() != 0 || len(s.active.find("", true)) != 0:
		err = fmt.Errorf("%d bytes of bodies and %d requests are kept", s.bodyBytes.Load(), len(s.active.find("", true)))
	}
	if w.Stop == 0 && !stop() && err == nil {
		err = errors.New("a server with nothing to do could not drain")
	}
	if failed := <-served; err == nil {
		err = failed
	}
	var ends uint64
	for _, n := range e.Stats().FinishedTotal {
		ends += n
	}
	if counted := uint64(ended(t, s)); err == nil && ends > counted {
		err = fmt.Errorf("the engine ended %d requests, the server counted %d", ends, counted)
	}
	err = errors.Join(err, e.Close())
	for i := range endings {
		if problem := w.Sessions[i].check(w, &endings[i]); problem != nil {
			err = errors.Join(err, fmt.Errorf("session %d (%s): %w: %s", w.Sessions[i].ID, w.Sessions[i].Way, problem, &endings[i]))
		}
	}
	return endings, err
}

// inBubble is simulate on a fake clock. What does not end is a failure of the bubble.
func (w *sessionWorld) inBubble(t *testing.T) (endings []ending, err error) {
	synctest.Test(t, func(t *testing.T) { endings, err = w.simulate(t) })
	return endings, err
}

// shrunk takes sessions out of a failing world for as long as it fails.
func (w sessionWorld) shrunk(t *testing.T) sessionWorld {
	for size := len(w.Sessions) / 2; size > 0; size /= 2 {
		for at := 0; at+size <= len(w.Sessions); {
			smaller := w
			smaller.Sessions = slices.Concat(w.Sessions[:at], w.Sessions[at+size:])
			if _, err := smaller.inBubble(t); err != nil {
				w = smaller
			} else {
				at += size
			}
		}
	}
	return w
}

// TestSessionSimulation plays worlds of clients against the whole server: sessions, engine loop, scheduler and page books, on a fake device
// and a fake clock. Each request ends once, with a reason that it has earned; its tokens are those that it gets alone, in order, none lost or
// doubled; when all have gone nothing is left. A world that breaks a promise is cut down and printed, to be played again.
//
//	go test ./engine/server -run TestSessionSimulation -v -sim.worlds 2000 -sim.seed 1
func TestSessionSimulation(t *testing.T) {
	if *simWorld != "" {
		data, err := os.ReadFile(*simWorld)
		require.NoError(t, err)
		var w sessionWorld
		require.NoError(t, json.Unmarshal(data, &w))
		endings, err := w.inBubble(t)
		for i := range endings {
			t.Logf("%+v: %s", w.Sessions[i], &endings[i])
		}
		require.NoError(t, err)
		return
	}
	first := *simSeed
	if first == 0 {
		first = 1 + rand.Uint64N(1_000_000)
	}
	worlds := *simWorlds
	if testing.Short() {
		worlds = min(worlds, 10)
	}
	seeds := []uint64{50, 68, 245} // which found a fault once
	for seed := range uint64(worlds) {
		seeds = append(seeds, first+seed)
	}
	kinds := map[string]int{}
	var clock time.Duration
	for _, seed := range seeds {
		w := newSessionWorld(seed)
		endings, err := w.inBubble(t)
		if err != nil {
			small := w.shrunk(t)
			_, again := small.inBubble(t)
			text, _ := json.Marshal(small)
			t.Fatalf("seed %d: %v\ncut down to %d of %d sessions: %v\n%s", seed, err, len(small.Sessions), len(w.Sessions), again, text)
		}
		for i := range endings {
			e := &endings[i]
			kind := strings.Trim(fmt.Sprint(e.status, " ", e.code, e.finish), "0 ")
			switch {
			case e.left:
				kind = "left"
			case e.broken:
				kind = "cut off"
			}
			kinds[kind]++
			clock = max(clock, e.at)
		}
	}
	t.Logf("seeds %d..%d, longest world %v: %v", first, first+uint64(worlds)-1, clock, kinds)
}

// TestSessionSimulationReplays holds that a seed says all: two runs of a world end in the same way at the same time.
func TestSessionSimulationReplays(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector runs goroutines in random order: no world replays under it")
	}
	for seed := range uint64(5) {
		w := newSessionWorld(seed)
		one, err := w.inBubble(t)
		require.NoError(t, err)
		two, err := w.inBubble(t)
		require.NoError(t, err)
		for i := range one {
			require.Equal(t, one[i].String(), two[i].String(), "seed %d, session %d", seed, i)
		}
	}
}
