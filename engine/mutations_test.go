//go:build mutations

package engine_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mutations are faults that the tests of these rooms must see. Each replaces one piece of source, which must be there once.
var mutations = []struct{ fault, file, old, new string }{
	{"a released page is lost", "kvcache/cache.go", "		c.free = append(c.free, page)\n	case", "	case"},
	{"a shared page is not counted", "kvcache/cache.go", "	c.refs[page]++\n}", "}"},
	{"a page in use can be reclaimed", "kvcache/cache.go", "		c.idle--\n		c.leaves.remove(page)\n", "		c.idle--\n"},
	{"salts are not looked at", "kvcache/cache.go", "page := c.find(salt, parent, tokens[:c.pageSize])", "page := c.find(Salt{}, parent, tokens[:c.pageSize])"},
	{"all salts are one", "submit.go", "sha256.Sum256([]byte(salt))", "sha256.Sum256(nil)"},
	{"a page whose children are gone is never reclaimed", "kvcache/tree.go", "if parent.children == 0 && c.refs[n.parent] == 1 {", "if false {"},
	{"the most recently used page is reclaimed first", "kvcache/tree.go", "return l.nodes[a].used < l.nodes[b].used", "return l.nodes[a].used > l.nodes[b].used"},
	{"a twin page is put into the tree", "kvcache/cache.go", "		if c.find(salt, parent, page) != none {\n			break\n		}\n", ""},
	{"a use is not noted", "kvcache/cache.go", "			c.touch(child)\n", ""},

	{"a cancel is ignored", "scheduler/scheduler.go", "	case running:\n		s.end(r)\n	case preempted", "	case running:\n	case preempted"},
	{"pages are freed while a step uses them", "scheduler/scheduler.go", "	if r.inFlight == 0 {\n		s.release(r)\n		return\n	}\n	s.leaving++", "	if true {\n		s.release(r)\n		return\n	}\n	s.leaving++"},
	{"a slot is lost", "scheduler/scheduler.go", "	s.slots = append(s.slots, r.slot)\n", ""},
	{"a slot is given twice", "scheduler/scheduler.go", "	s.slots = append(s.slots, r.slot)\n", "	s.slots = append(s.slots, r.slot, r.slot)\n"},
	{"two slots are swapped", "scheduler/next.go", "row := backend.Row{Slot: r.slot,", "row := backend.Row{Slot: r.slot ^ 1&^(s.cfg.MaxRows&1),"},
	{"a preempted request goes to the end of the queue", "scheduler/scheduler.go", "slices.Insert(s.waiting, s.waitingAt(r), r)", "append(s.waiting, r)"},
	{"a slot is not started anew", "scheduler/scheduler.go", "	r.started, r.sampled = false, false\n", "	r.sampled = false\n"},
	{"the surplus token is delivered", "scheduler/commit.go", "	if r.state == ended {\n		if p.sample {", "	if false {\n		if p.sample {"},
	{"an ended request keeps its pages", "scheduler/commit.go", "			s.leaving--\n			s.release(r)\n		}\n		return", "			s.leaving--\n		}\n		return"},
	{"prompt log probabilities are shifted by one", "scheduler/commit.go", "[r.targets-p.from : to-p.from]", "[r.targets-p.from+1 : to-p.from+1]"},
	{"a stop token does not stop", "scheduler/request.go", "slices.Contains(r.StopTokens, token)", "slices.Contains(r.StopTokens, -1)"},
	{"one token more than asked for", "scheduler/request.go", "return r.numOutput() < r.MaxNewTokens", "return r.numOutput() <= r.MaxNewTokens"},
	{"the last prompt token is taken from the cache", "scheduler/admit.go", "s.cache.Match(r.Salt, r.tokens[:len(r.tokens)-1], r.pages)", "s.cache.Match(r.Salt, r.tokens, r.pages)"},
	{"a step reads pages that it writes", "scheduler/next.go", "	r.inFlight++\n	s.plan.Tokens", "	s.share(r)\n	r.inFlight++\n	s.plan.Tokens"},
	{"output is forgotten when a request resumes", "scheduler/next.go", "r.start.Prompt, r.start.Output = r.tokens[:len(r.Prompt)], r.tokens[len(r.Prompt):]", "r.start.Prompt, r.start.Output = r.tokens[:len(r.Prompt)], nil"},
	{"the oldest is preempted", "scheduler/next.go", "for i := len(s.running) - 1; i >= 0; i-- {", "for i := range s.running {"},
	{"the minimum of tokens is one too many", "scheduler/next.go", "} else if r.numOutput() < r.MinNewTokens {", "} else if r.numOutput() <= r.MinNewTokens {"},
	{"a constrained request is launched ahead", "scheduler/next.go", "row.Mask, r.maskReady = r.mask, false", "row.Mask = r.mask"},
	{"chunks may be any size", "scheduler/next.go", "		n = min(n, s.cfg.ChunkSize)\n", ""},
	{"the policy passes over a request for ever", "scheduler/admit.go", "s.cfg.Policy == FCFS || r.passed >= maxPassed", "s.cfg.Policy == FCFS"},
	{"a release does not wake the queue", "scheduler/scheduler.go", "	s.unblock()\n}\n\n// requeue", "}\n\n// requeue"},
	{"a prefix in the making is computed again", "scheduler/admit.go", "return longest > 0 && longest > s.cache.MatchLen", "return false && longest > s.cache.MatchLen"},

	{"a run of guesses goes on behind a stop", "scheduler/commit.go", "for n = 1; finish == Running && n <= len(result.More); n++ {", "for n = 1; n <= len(result.More); n++ {"},
	{"refused drafts count as computed", "scheduler/commit.go", "	r.computed -= p.drafts - len(result.More)\n", ""},
	{"a step is planned behind one with drafts", "scheduler/draft.go", "		if st.drafts > 0 {\n			return true\n		}\n", ""},
	{"drafts have no pages", "scheduler/draft.go", "n = s.coverDrafts(r, p.drafts)", "n = p.drafts"},
	{"drafts reach behind the last token", "scheduler/draft.go", "expected, p.r.MaxNewTokens-p.r.numOutput());", "expected, p.r.MaxNewTokens);"},
	{"drafts are made for a masked token", "scheduler/draft.go", "p.r.pending > 1 || b.Rows[i].Mask != nil", "p.r.pending > 1"},
	{"guesses have no pages", "scheduler/draft.go", "1 + s.coverDrafts(r, min(ask-1, s.cfg.MaxContext-r.computed))", "ask"},
	{"guesses reach behind the context", "scheduler/draft.go", "min(ask-1, s.cfg.MaxContext-r.computed)", "ask-1"},
	{"a request with penalties guesses", "submit.go", " && !s.req.HasPenalty()", ""},
	{"the last tokens of a run are lost", "stream.go", "for i := range o.Sampled {", "for i := range min(o.Sampled, 1) {"},

	{"a token is delivered twice", "stream.go", "		f.tokens = append(f.tokens, token.Token)\n", "		f.tokens = append(f.tokens, token.Token, token.Token)\n		f.at = append(f.at, at)\n"},
	{"a reader is not woken", "stream.go", "	if s.each && o.Sampled > 0 {\n		s.notify()", "	if false {\n		s.notify()"},
	{"a reader that left is not reported", "stream.go", "	if !ended {\n		e.loop.post", "	if !ended && e == nil {\n		e.loop.post"},
	{"the end overtakes the last token", "stream.go", "	if o != nil {\n		s.append(o, at)\n	}\n", ""},
	{"the engine does not tell the scheduler of a cancel", "loop.go", "			l.sched.Cancel(&m.stream.req)\n", ""},
	{"a failed device ends nobody", "loop.go", "	for s := range l.streams {\n		l.end(s, FinishAbort, l.failure)\n	}\n", ""},
	{"a failed engine takes requests", "loop.go", "	case l.failure != nil:\n		l.end(s, FinishAbort, l.failure)\n	case", "	case"},
	{"the queue has no bound", "loop.go", "l.sched.NumWaiting() >= l.maxQueue", "false"},
	{"steps are mixed up", "loop.go", "	copy(l.flights[:], l.flights[1:])\n", ""},
	{"closing forgets the running requests", "loop.go", "	for s := range l.streams {\n		l.end(s, FinishAbort, ErrClosed)\n	}\n", ""},
	{"a mask that was made is not used", "constraint.go", "		l.sched.SetMask(&m.stream.req, m.stream.constraint.mask)\n", ""},
	{"the mask is that of the token before", "constraint.go", "if err := c.matcher.Accept(token); err != nil {", "if err := error(nil); err != nil {"},
	{"a complete value does not end", "constraint.go", "	if !more {\n		m.kind = constraintDone\n	}\n", "	_ = more\n"},
	{"a minimum of tokens goes before a grammar", "constraint.go", "	if left == 0 {\n		return\n	}\n", ""},
	{"text that may begin a stop string is not held back", "text.go", "a.release(len(a.held) - beginning(a.held, stops))", "a.release(len(a.held))"},
	{"held text is lost at the end", "text.go", "return text + a.release(len(a.held))", "return text"},
	{"the text of the stop token is given out", "text.go", "	if stops {\n		out.MatchedToken = &out.TokenIDs[n]\n		return ev, false\n	}\n", "	if stops {\n		out.MatchedToken = &out.TokenIDs[n]\n	}\n"},
	{"a static batch leaves its pages in the cache", "static_batch.go", "		l.sched.Flush() // its pages are used below\n", ""},
	{"a static batch decodes at the wrong position", "static_batch.go", "			b.done[row]++\n", ""},
	{"a seed depends on nothing", "submit.go", "uint64(e.options.RandomSeed) + number*0x9E3779B97F4A7C15", "uint64(e.options.RandomSeed)"},
}

// failed finds the tests that saw a fault.
var failed = regexp.MustCompile(`--- FAIL: (\w+)|panic: (test timed out)|running tests:\n\s+(Test\w+)`)

// TestMutations puts each fault into the source, by way of a compiler overlay, and demands that a test of these rooms fails.
//
//	go test -tags mutations -run TestMutations -v -timeout 60m ./engine
func TestMutations(t *testing.T) {
	packages := []string{"./kvcache", "./scheduler", "."}
	run := func(args ...string) (string, error) {
		args = append([]string{
			"test", "-count=1", "-failfast", "-timeout=60s", "-skip=TestArrows|TestTheRealModel|TestNothingChanges|TestOpen",
		}, args...)
		// A fault must leave nothing behind that a later run would trip over.
		cmd := exec.Command("go", append(append(args, packages...), "-rapid.nofailfile")...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run()
	require.NoError(t, err, "the tests must pass before a fault: %s", out)
	for _, m := range mutations {
		t.Run(strings.ReplaceAll(m.fault, " ", "_"), func(t *testing.T) {
			list := overlay(t, m.file, m.old, m.new)
			out, err := run("-overlay=" + list)
			require.Error(t, err, "no test saw the fault")
			require.NotContains(t, out, "[build failed]", "the fault must compile: %s", out)
			require.NotContains(t, out, "[setup failed]", "%s", out)
			names := map[string]bool{}
			var caught []string
			for _, found := range failed.FindAllStringSubmatch(out, -1) {
				if name := found[1] + found[2] + found[3]; !names[name] {
					names[name] = true
					caught = append(caught, name)
				}
			}
			require.NotEmpty(t, caught, "%s", out)
			t.Logf("seen: %s, by %s", m.fault, strings.Join(caught, ", "))
		})
	}
	out, err = run()
	require.NoError(t, err, "the tests must pass after the faults too: %s", out)
}

// overlay makes a compiler overlay in which file has one piece replaced, and returns its path.
func overlay(t *testing.T, file, old, new string) string {
	source, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(source), old), "the piece to replace must be in %s once", file)
	mutant := filepath.Join(t.TempDir(), "mutant.go")
	require.NoError(t, os.WriteFile(mutant, []byte(strings.Replace(string(source), old, new, 1)), 0o644))
	original, err := filepath.Abs(file)
	require.NoError(t, err)
	text, err := json.Marshal(map[string]any{"Replace": map[string]string{original: mutant}})
	require.NoError(t, err)
	list := filepath.Join(t.TempDir(), "overlay.json")
	require.NoError(t, os.WriteFile(list, text, 0o644))
	return list
}
