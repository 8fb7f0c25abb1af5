package scheduler_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/scheduler"
)

// TestScripts runs the scripts in testdata, which show decisions one by one; -rewrite renews their expectations. Prompts
// are letters; what the fake model samples follows from them. Commands:
//
//	new rows=N tokens=N context=N page=N pages=N [chunk=N] [lpm] [prefix]
//	add NAME PROMPT new=N [times=N] [min=N] [stop=TOKEN] [constrained] [logprobs]
//	cancel NAME, mask NAME, launch, await
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var s *script
			datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
				if d.Cmd == "new" {
					s = newScript(t, d)
				} else {
					s.run(t, d)
				}
				return s.flush()
			})
		})
	}
}

type script struct {
	*driver
	names map[string]*client
	of    map[*scheduler.Request]string
	out   strings.Builder
	seen  map[string]int // tokens printed
	ended map[string]bool
}

func newScript(t *testing.T, d *datadriven.TestData) *script {
	cfg := scheduler.Config{PrefixCache: d.HasArg("prefix")}
	d.ScanArgs(t, "rows", &cfg.MaxRows)
	d.ScanArgs(t, "tokens", &cfg.MaxTokens)
	d.ScanArgs(t, "context", &cfg.MaxContext)
	d.ScanArgs(t, "page", &cfg.PageSize)
	d.ScanArgs(t, "pages", &cfg.NumPages)
	d.MaybeScanArgs(t, "chunk", &cfg.ChunkSize)
	d.MaybeScanArgs(t, "mixed", &cfg.MixedTokens)
	if d.HasArg("lpm") {
		cfg.Policy = scheduler.LPM
	}
	return &script{
		driver: newDriver(t, cfg), names: map[string]*client{}, of: map[*scheduler.Request]string{}, seen: map[string]int{},
		ended: map[string]bool{},
	}
}

func (s *script) run(t *testing.T, d *datadriven.TestData) {
	switch d.Cmd {
	case "add":
		r := &scheduler.Request{Constrained: d.HasArg("constrained"), PromptLogProbs: d.HasArg("logprobs")}
		for _, letter := range d.CmdArgs[1].Key {
			r.Prompt = append(r.Prompt, letter-'a')
		}
		times := 1
		d.MaybeScanArgs(t, "times", &times)
		r.Prompt = slices.Repeat(r.Prompt, times)
		d.ScanArgs(t, "new", &r.MaxNewTokens)
		if d.HasArg("stop") {
			var stop int32
			d.ScanArgs(t, "stop", &stop)
			r.StopTokens = []int32{stop}
		}
		if d.HasArg("min") {
			d.ScanArgs(t, "min", &r.MinNewTokens)
			r.MinMask = []uint32{^(uint32(1) << r.StopTokens[0]), 0xFF}
		}
		r.Sampling.RepetitionPenalty = 1
		c := &client{Request: r}
		s.names[d.CmdArgs[0].Key], s.of[r] = c, d.CmdArgs[0].Key
		s.add(c)
	case "cancel":
		s.cancel(s.names[d.CmdArgs[0].Key])
	case "mask":
		s.sched.SetMask(s.names[d.CmdArgs[0].Key].Request, firstMask)
	case "launch":
		if !s.launch() {
			s.out.WriteString("nothing to launch\n")
			return
		}
		for _, row := range s.batch.Rows {
			fmt.Fprintf(&s.out, "slot %d at %d", row.Slot, row.Position)
			if row.Start != nil {
				s.out.WriteString(" start")
			}
			if len(row.Tokens) > 0 {
				fmt.Fprintf(&s.out, " prefill %d", len(row.Tokens))
			}
			if row.Sample {
				s.out.WriteString(" sample")
			}
			if row.Mask != nil {
				s.out.WriteString(" masked")
			}
			fmt.Fprintf(&s.out, " pages %v\n", row.Pages)
		}
	case "await":
		s.await()
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
}

// flush tells what has changed for clients, and how full the engine is.
func (s *script) flush() string {
	for _, c := range s.clients {
		name := s.of[c.Request]
		if tokens := c.got[s.seen[name]:]; len(tokens) > 0 {
			fmt.Fprintf(&s.out, "%s got %v\n", name, tokens)
			s.seen[name] = len(c.got)
		}
		if c.ends > 0 && !s.ended[name] {
			s.ended[name] = true
			fmt.Fprintf(&s.out, "%s ended: %s\n", name, [...]string{"", "length", "stop", "cancelled", "not finite"}[c.finish])
		}
	}
	fmt.Fprintf(&s.out, "running %d waiting %d in flight %d pages free %d cached %d\n",
		s.sched.NumRunning(), s.sched.NumWaiting(), s.sched.InFlight(),
		s.sched.Cache().Available()-s.sched.Cache().Cached(), s.sched.Cache().Cached())
	text := s.out.String()
	s.out.Reset()
	return text
}
