package chrometrace

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// browser is a headless Chromium driven by the DevTools protocol over a pair of pipes.
type browser struct {
	t       *testing.T
	to      io.Writer
	from    *bufio.Reader
	session string
	next    int
}

func openBrowser(t *testing.T) *browser {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("TOKAMAK_REQUIRE_BROWSER") != "" {
			t.Fatal("no chromium on PATH")
		}
		t.Skip("no chromium on PATH: make browser installs it")
	}
	profile, err := os.MkdirTemp("", "chromium-")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(profile) }) // its children may be writing still
	ourRead, itsWrite, err := os.Pipe()
	require.NoError(t, err)
	itsRead, ourWrite, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe",
		"--window-size=1600,1000", "--user-data-dir="+profile)
	cmd.ExtraFiles = []*os.File{itsRead, itsWrite} // descriptors 3 and 4
	require.NoError(t, cmd.Start())
	itsRead.Close()
	itsWrite.Close()
	t.Cleanup(func() {
		ourWrite.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	_ = ourRead.SetReadDeadline(time.Now().Add(time.Minute))
	return &browser{t: t, to: ourWrite, from: bufio.NewReaderSize(ourRead, 1<<20)}
}

// call sends a command and returns its result; events in between are left out.
func (b *browser) call(method string, params map[string]any, out any) {
	b.t.Helper()
	b.next++
	message := map[string]any{"id": b.next, "method": method, "params": params}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	text, err := json.Marshal(message)
	require.NoError(b.t, err)
	_, err = b.to.Write(append(text, 0))
	require.NoError(b.t, err)
	for {
		line, err := b.from.ReadBytes(0)
		require.NoError(b.t, err, method)
		var reply struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		require.NoError(b.t, json.Unmarshal(line[:len(line)-1], &reply))
		if reply.ID != b.next {
			continue
		}
		require.Nil(b.t, reply.Error, "%s: %+v", method, reply.Error)
		if out != nil {
			require.NoError(b.t, json.Unmarshal(reply.Result, out))
		}
		return
	}
}

// eval runs JavaScript, waits for its promise, and returns its value as JSON.
func (b *browser) eval(script string) json.RawMessage {
	b.t.Helper()
	var reply struct {
		Result           struct{ Value json.RawMessage }
		ExceptionDetails *struct{ Exception struct{ Description string } }
	}
	b.call("Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true}, &reply)
	require.Nil(b.t, reply.ExceptionDetails, "%+v", reply.ExceptionDetails)
	return reply.Result.Value
}

// page opens a page and stays with it.
func (b *browser) page(url string) {
	b.t.Helper()
	var target struct{ TargetID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b.session = attached.SessionID
	b.call("Page.navigate", map[string]any{"url": url}, nil) // returns once the page is the document
}

// sample writes a trace with every kind of event that the profiler makes.
func sample(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "sample.trace.json.gz")
	f, err := os.Create(path)
	require.NoError(t, err)
	w := NewWriter(f)
	w.Process(1, "tokamak", 0)
	w.Thread(Track{1, 1}, "engine loop", 0)
	w.Process(10, "GPU 0", 10)
	w.Thread(Track{10, 7}, "stream 7", 7)
	for i := range 20 {
		at := time.Duration(i) * time.Millisecond
		w.Complete("launch", "backend", Track{1, 1}, at, 100*time.Microsecond, Arg{"step", i})
		w.Complete("gemv", "kernel", Track{10, 7}, at+200*time.Microsecond, 500*time.Microsecond, Arg{"layer", 3}, Arg{"grid", "132x1x1"})
		w.Flow("launch", "launch", uint64(i+1), Track{1, 1}, at+50*time.Microsecond, Track{10, 7}, at+200*time.Microsecond)
		w.Counter("batch rows", Track{1, 4}, at, float64(i))
	}
	w.Async("decode", "request", Track{1, 5}, 1, 0, 10*time.Millisecond)
	w.Async("decode", "request", Track{1, 5}, 2, 5*time.Millisecond, 10*time.Millisecond)
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
	return path
}

// viewers serves the two viewers' own files and the trace. chrome://tracing is not in every Chromium any more; its code is part of
// Perfetto's user interface as the "legacy viewer".
func viewers(t *testing.T, trace string) (origin, catapult, perfetto string) {
	dir := os.Getenv("TRACE_VIEWER")
	if dir == "" {
		t.Skip("TRACE_VIEWER names no directory with the viewers: make trace-viewer gets them")
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*", "assets", "catapult_trace_viewer.html"))
	require.NoError(t, err)
	require.Len(t, pages, 1, dir)
	catapult, err = filepath.Rel(dir, pages[0])
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("/", http.FileServer(http.Dir(dir)))
	mux.HandleFunc("/trace.json.gz", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		http.ServeFile(w, r, trace)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL, s.URL + "/" + catapult, s.URL + "/index.html"
}

func theTrace(t *testing.T) (path string, given bool) {
	if path := os.Getenv("TRACE"); path != "" {
		return path, true
	}
	return sample(t), false
}

// shoot keeps what the page looks like as SHOT-name.png.
func (b *browser) shoot(name string) {
	var shot struct{ Data []byte }
	b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
	require.Greater(b.t, len(shot.Data), 10_000, "a page, not a blank one")
	if to := os.Getenv("SHOT"); to != "" {
		require.NoError(b.t, os.WriteFile(strings.TrimSuffix(to, ".png")+"-"+name+".png", shot.Data, 0o644))
	}
}

// TestBrowserTraceViewer has Chromium's trace viewer (chrome://tracing) import a trace and say what it understood. TRACE names another
// trace, SHOT a PNG to write: make trace-viewer.
func TestBrowserTraceViewer(t *testing.T) {
	path, given := theTrace(t)
	_, page, _ := viewers(t, path)
	b := openBrowser(t)
	b.page(page)
	var seen struct {
		Slices, Kernels, Flows, Async, Counters int
		Warnings                                []string
		Processes, Threads                      []string
		DurationMs                              float64
	}
	require.NoError(t, json.Unmarshal(b.eval(`(async () => {
		const until = async f => { for (let i = 0; i < 600; i++) { const v = f(); if (v) return v; await new Promise(r => setTimeout(r, 100)); } throw new Error("waited in vain: " + f); };
		const view = await until(() => { const v = document.querySelector("x-profiling-view"); return v && v.setActiveTrace && v; });
		const trace = await (await fetch("/trace.json.gz")).arrayBuffer();
		view.setActiveTrace("trace.json.gz", trace);
		const model = await until(() => { const m = view.timelineView_ && view.timelineView_.model; return m && m.bounds.duration && m; });
		const seen = {Slices: 0, Kernels: 0, Flows: model.flowEvents.length, Async: 0, Counters: 0, Processes: [], Threads: [],
			Warnings: model.importWarnings.map(w => w.type + ": " + w.message), DurationMs: model.bounds.duration};
		for (const p of Object.values(model.processes)) {
			seen.Processes.push(p.name || "");
			seen.Counters += Object.keys(p.counters).length;
			for (const th of Object.values(p.threads)) {
				if (th.name) seen.Threads.push(th.name);
				for (const s of th.sliceGroup.slices) { seen.Slices++; if (s.category === "kernel") seen.Kernels++; }
				seen.Async += th.asyncSliceGroup.slices.length;
			}
		}
		await new Promise(r => setTimeout(r, 1500)); // it draws
		return seen;
	})()`), &seen))
	t.Logf("chrome://tracing: %s: %+v", filepath.Base(path), seen)
	assert.Empty(t, seen.Warnings)
	if given {
		assert.Positive(t, seen.Slices)
	} else {
		assert.Equal(t, 40, seen.Slices)
		assert.Equal(t, 20, seen.Kernels)
		assert.Equal(t, 20, seen.Flows)
		assert.Equal(t, 2, seen.Async)
		assert.Equal(t, 1, seen.Counters)
		assert.Subset(t, seen.Processes, []string{"tokamak", "GPU 0"})
		assert.Subset(t, seen.Threads, []string{"engine loop", "stream 7"})
	}
	b.shoot("chrome")
}

// TestBrowserPerfetto has ui.perfetto.dev's code open the trace, and asks its trace processor, a parser independent of ours and of
// Chromium's, for what it found.
func TestBrowserPerfetto(t *testing.T) {
	path, given := theTrace(t)
	origin, _, page := viewers(t, path)
	b := openBrowser(t)
	b.page(page + "#!/?url=" + origin + "/trace.json.gz")
	var seen struct {
		Slices, Kernels, Flows, Counters int
		Errors                           string
	}
	require.NoError(t, json.Unmarshal(b.eval(`(async () => {
		const until = async f => { for (let i = 0; i < 600; i++) { const v = f(); if (v) return v; await new Promise(r => setTimeout(r, 100)); } throw new Error("waited in vain: " + f); };
		const trace = await until(() => window.app && window.app.trace);
		const count = async sql => Number((await trace.engine.query(sql)).firstRow({n: 0}).n);
		const seen = {
			Slices: await count("select count(*) as n from slice"),
			Kernels: await count("select count(*) as n from slice where category = 'kernel'"),
			Flows: await count("select count(*) as n from flow"),
			Counters: await count("select count(*) as n from counter_track"),
			Errors: (await trace.engine.query("select ifnull(group_concat(name || '=' || value), '') as n from stats where severity in ('error', 'data_loss') and value > 0")).firstRow({n: "str"}).n,
		};
		await new Promise(r => setTimeout(r, 3000)); // it draws
		return seen;
	})()`), &seen))
	t.Logf("perfetto: %s: %+v", filepath.Base(path), seen)
	assert.Empty(t, seen.Errors)
	if given {
		assert.Positive(t, seen.Slices)
	} else {
		assert.Equal(t, 42, seen.Slices, "asynchronous ones included")
		assert.Equal(t, 20, seen.Kernels)
		assert.Equal(t, 20, seen.Flows)
		assert.Equal(t, 1, seen.Counters)
	}
	b.shoot("perfetto")
}
