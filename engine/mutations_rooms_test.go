//go:build mutations

package engine_test

import (
	"cmp"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// roomMutations are faults in rooms that mutations does not reach, each with the one test that must see it. Files are below the
// repository.
var roomMutations = []struct{ fault, file, old, new, test string }{
	{"a key of another is good enough", "engine/server/handler.go", "return subtle.ConstantTimeCompare(want[:], got[:]) == 1", "return subtle.ConstantTimeCompare(want[:0], got[:0]) == 1", "TestAPIKey"},
	{"any site may call", "engine/server/handler.go", `site != "same-origin" && site != "none"`, `site != "same-origin" && site != "none" && site == "x"`, "TestCrossSiteRequestsAreRefused"},
	{"a body may be any size", "engine/server/handler.go", "case int64(buf.Len()) > most:", "case int64(buf.Len()) > 1<<40:", "TestBodies"},
	{"a body's memory is not given back", "engine/server/handler.go", "c.s.bodyBytes.Add(-c.held)", "c.s.bodyBytes.Add(0)", "TestSoak"},
	{"an id of any form goes into headers and log", "engine/server/handler.go", `id == "" || len(id) > maxIDBytes {`, `id != "" && len(id) <= maxIDBytes {
		return id
	}
	if id == "" || len(id) > maxIDBytes {`, "TestRequestID"},
	{"connections have no bound", "engine/server/conn.go", "l.open.Add(1) <= l.most", "l.open.Add(1) <= l.most || true", "TestTooManyConnections"},
	{"a closed connection is still counted", "engine/server/conn.go", "		c.listener.open.Add(-1)\n", "", "TestTooManyConnections"},
	{"headers have all the time they want", "engine/server/lifecycle.go", "ReadHeaderTimeout: s.options.HeaderTimeout,", "ReadHeaderTimeout: time.Hour,", "TestSlowlorisLeavesRoom"},
	{"a slow reader is waited for", "engine/server/sse.go", "		w.rc.SetWriteDeadline(w.deadline)\n", "		w.rc.SetWriteDeadline(time.Time{})\n", "TestSlowReaderIsCutOff"},
	{"a lagging reader is kept", "engine/server/sse.go", "return lag > w.c.s.options.MaxStreamLag && w.blocked > lag/2", "return false && lag > 0", "TestLaggingReaderIsToldWhy"},
	{"a request that ended stays known", "engine/server/run.go", "return func() { c.s.active.remove(w.id) }, nil", "return func() {}, nil", "TestSoak"},
	{"a stream goes on when its client has left", "engine/server/run.go", "	defer func() { // no goroutine outlives the request\n		cancel(nil)\n", "	defer func() { // no goroutine outlives the request\n		_ = cancel\n", "TestLaggingReaderIsToldWhy"},
	{"memory stays behind each request", "engine/server/run.go", "func (c *call) observe(out *engine.Output) {\n", "var leaked [][]byte\nvar leaking sync.Mutex\n\nfunc (c *call) observe(out *engine.Output) {\n	leaking.Lock()\n	leaked = append(leaked, make([]byte, 1<<17))\n	leaking.Unlock()\n", "TestSoak"},
	{"a goroutine stays behind each request", "engine/server/run.go", "func (c *call) observe(out *engine.Output) {\n", "func (c *call) observe(out *engine.Output) {\n	go func() { select {} }()\n", "TestSoak"},
	{"a failed backend looks healthy", "engine/server/server.go", "if err == nil || s.draining.Load() {", "if true || err == nil {", "TestWeightsCutShortWhileServing"},
	{"the process survives its backend", "engine/cmd/launch_server/run.go", "		return exitBackend\n", "		return exitOK\n", "TestBackendFailureEndsTheProcess"},
	{"nobody drains", "engine/cmd/launch_server/run.go", "drained := l.stop(l.flags.server.ShutdownTimeout)", "drained := l.stop(0)", "TestTerminateUnderLoad"},
	{"completions forget the salt", "engine/server/completions.go", "	return salt\n", "	return \"\"\n", "TestTenantsDoNotSeeEachOthersPrefixes"},

	{"the end is told twice to a slow reader", "engine/server/run.go", "if open > 0 && out.lagging(oldest) {", "if out.lagging(oldest) {", "TestSessionSimulation"},
	{"a body that nobody reads has all the time it wants", "engine/server/handler.go", "if r.ContentLength != 0 {", "if false {", "TestBodies"},
	{"an error after a long wait is not told", "engine/server/handler.go", "			c.extendWrite() // the wait", "			// the wait", "TestAnAnswerAfterALongWait"},
	{"a token is written twice", "engine/server/run.go", "out.buf = enc.event(out.buf, next.index, &next.event)", "out.buf = enc.event(enc.event(out.buf, next.index, &next.event), next.index, &next.event)", "TestSessionSimulation"},
	{"a failed device keeps its pages", "engine/loop.go", "	l.sched.Abandon()\n", "", "TestABackendErrorIsFinal"},
	{"a template doubles a string for nothing", "engine/tokenizer/jinja/operators.go", "		err = r.take(len(x) + len(y))\n", "		err = r.take(0 * len(x))\n		if len(x) > 1<<28 {\n			return x, nil\n		}\n", "TestTemplatesMemory"},
	{"a loop's name stays when the loop has ended", "engine/tokenizer/jinja/loop.go", "in, err := r.inner(r.scope, r.out)\n		if err != nil {\n			return err\n		}\n		l.at = i", "in, err := r, r.step()\n		if err != nil {\n			return err\n		}\n		l.at = i", "TestEqualToJinja"},

	{"an output may end before it is complete", "engine/grammar/matcher.go", "if !m.state.finished {", "if false {", "TestErrors|TestSchemas|TestRegexes|TestTokenisedSamples"},
	{"a grammar may have any number of states", "engine/grammar/errors.go", "maxStates      = 200_000", "maxStates      = 2_000_000_000", "TestHeavySpecs|TestErrors"},
	{"the end is not in the mask", "engine/grammar/mask.go", "			dst[id/32] |= 1 << (id % 32)\n", "", "TestSchemas|TestRegexes|TestTokenisedSamples"},

	{"the sampler ignores the mask", "engine/cpu/sample.go", "		if mask[t/32]>>(t%32)&1 == 0 {", "		if mask[t/32]>>(t%32)&1 > 1 {", "TestSampleProperties|TestConformance$"},
	{"top-p keeps one token too few", "engine/cpu/sample.go", "last := near[kept-1]", "last := near[max(kept-2, 0)]", "TestDrawDistribution|TestSampleProperties"},
	{"top-p keeps one token too many", "engine/cpu/sample.go", "last := near[kept-1]", "last := near[min(kept, len(near)-1)]", "TestConformance$"},
	{"a draw depends on nothing but its seed", "engine/cpu/sample.go", "Gumbel(seed, position, int32(t))", "Gumbel(seed, 0, int32(t))", "TestSampleProperties|TestDrawDistribution|TestConformance$"},
	{"presence is penalised in the prompt too", "engine/cpu/sample.go", "		if n > 0 {\n			l -= s.Presence", "		if n >= 0 {\n			l -= s.Presence", "TestPenalties|TestSampleProperties|TestConformance$"},
	{"a fault of a mapped file ends the process", "engine/cpu/backend.go", "	debug.SetPanicOnFault(true)", "	debug.SetPanicOnFault(false)", "TestWeightsCutShortWhileServing"},

	{"a capture does not end by itself", "profiling/capture.go", "func(st *stage) bool { return len(st.steps) < c.o.NumSteps }", "func(st *stage) bool { return len(st.steps) <= c.o.NumSteps }", "TestExactlySoManySteps"},
	{"a file that was not written whole stays", "profiling/export.go", "		os.Remove(tmp)\n", "", "TestAFullDisk|TestDiskFull"},
	{"a second capture may begin", "profiling/capture.go", "	if running.capture != nil {\n		return nil, ErrRunning", "	if false {\n		return nil, ErrRunning", "TestBadOptions|TestBounds|TestStopEndsEarly"},

	{"a regression passes the gate", "benchstat/gate/decide.go", "		row.Kind = Worse\n", "		row.Kind = NoWorse\n", "TestVerdicts|TestPlantedSlowdownIsCaught"},
	{"the gate does not correct for many rows", "benchstat/gate/decide.go", "row.P*float64(len(family)-i)", "row.P*float64(1+0*i)", "TestFewFalseAlarms|TestVerdicts|TestFormatsGolden"},
	{"higher is taken for worse", "benchstat/gate/decide.go", "if row.Table.Better > 0 {", "if row.Table.Better > 1 {", "TestVerdicts|TestPlantedSlowdownIsCaught|TestFormatsGolden"},
	{"a baseline of another version is read", "benchstat/baseline/baseline.go", "if p.Version != Version {", "if false {", "TestRefusals"},
	{"an index of another version is read", "benchstat/history/store.go", "|| e.Version != Version {", "{", "TestIndexRebuildsItself|TestVersions"},

	{"a header longer than its file is read", "engine/weights/safetensors.go", "if headerBytes > uint64(len(data)-8) {", "if headerBytes > 1<<62 {", "TestBadSafetensors"},
}

// roomOf names the packages whose test sees a fault, where it is not the fault's own.
var roomOf = map[string]string{
	"engine/cpu/backend.go": "engine/server", "benchstat/gate/decide.go": "benchstat",
	"engine/tokenizer/jinja/operators.go": "engine/tokenizer",
}

// TestMutationsOfRooms puts each fault into the source and demands that the test named beside it fails.
//
//	go test -tags mutations -run TestMutationsOfRooms -v -timeout 60m ./engine
func TestMutationsOfRooms(t *testing.T) {
	for _, m := range roomMutations {
		t.Run(strings.ReplaceAll(m.fault, " ", "_"), func(t *testing.T) {
			room := roomOf[m.file]
			if room == "" {
				room = filepath.Dir(m.file)
			}
			run := func(args ...string) (string, error) {
				args = append([]string{"test", "-count=1", "-failfast", "-timeout=120s", "-run=^(" + m.test + ")$"}, args...)
				out, err := exec.Command("go", append(args, "../"+room)...).CombinedOutput()
				return string(out), err
			}
			list := overlay(t, filepath.Join("..", m.file), m.old, m.new)
			out, err := run("-overlay=" + list)
			require.Error(t, err, "%s saw nothing: %s", m.test, out)
			require.NotContains(t, out, "[build failed]", "the fault must compile: %s", out)
			require.NotContains(t, out, "[setup failed]", "%s", out)
			seen := m.test // where the fault ends the process, nothing else can be said
			if names := failed.FindStringSubmatch(out); names != nil {
				seen = cmp.Or(names[1], names[3], m.test)
			}
			out, err = run()
			require.NoError(t, err, "the test must pass without the fault: %s", out)
			require.NotContains(t, out, "no tests to run")
			t.Logf("seen: %s, by %s", m.fault, seen)
		})
	}
}
