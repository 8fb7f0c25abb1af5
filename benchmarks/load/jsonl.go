package load

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"time"
)

// AppendJSON appends each value as a line to the file at path.
func AppendJSON(path string, values ...any) (err error) {
	var lines bytes.Buffer
	enc := json.NewEncoder(&lines)
	enc.SetEscapeHTML(false)
	for _, v := range values {
		if err := enc.Encode(v); err != nil {
			return fmt.Errorf("result file: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("result file: %w", err)
	}
	_, err = f.Write(lines.Bytes())
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// ResultVersion is that of the lines' fields: a reader that knows another one should say so. New fields leave it as it is.
const ResultVersion = 1

// WriteJSONL appends a run to the file at path: a line with the run's figures, in SGLang's fields and ours with "record": "run",
// then one for each request with "record": "request". more is merged into the run's line. Times of requests are in
// milliseconds from the start of the run.
func WriteJSONL(path string, r *Report, s *Summary, more map[string]any) error {
	lines := make([]any, 0, 1+len(r.Results))
	run := s.fields()
	run["record"], run["version"], run["time"] = "run", ResultVersion, r.Started.UTC().Format(time.RFC3339Nano)
	maps.Copy(run, more)
	lines = append(lines, run)
	for i := range r.Results {
		lines = append(lines, r.Results[i].fields())
	}
	return AppendJSON(path, lines...)
}

func (s *Summary) fields() fields {
	f := fields{
		"duration": s.Duration.Seconds(), "completed": s.Completed, "failed": s.Failed(), "failures": s.Failures,
		"total_input_tokens": s.InputTokens, "total_output_tokens": s.OutputTokens,
		"request_throughput": s.PerSecond(s.Completed), "input_throughput": s.PerSecond(s.InputTokens),
		"output_throughput": s.PerSecond(s.OutputTokens), "total_throughput": s.PerSecond(s.InputTokens + s.OutputTokens),
		"concurrency": s.Concurrency, "max_concurrent_requests": s.PeakConcurrency, "estimated_token_times": s.EstimatedRequests,
	}
	if s.Duration <= 0 {
		for _, rate := range []string{"request", "input", "output", "total"} {
			delete(f, rate+"_throughput") // nothing was sent: no rate
		}
	}
	for _, l := range []struct {
		name string
		d    *Dist
	}{
		{"e2e_latency", &s.E2E}, {"ttft", &s.TTFT}, {"tpot", &s.TPOT}, {"itl", &s.ITL}, {"chunk_gap", &s.ChunkGap}, {"queue", &s.Queued}, {"lag", &s.Lag},
	} {
		if l.d.N == 0 {
			continue
		}
		for stat, v := range map[string]time.Duration{
			"mean": l.d.Mean, "median": l.d.P50, "std": l.d.Std, "p90": l.d.P90, "p95": l.d.P95, "p99": l.d.P99, "max": l.d.Max,
		} {
			f[stat+"_"+l.name+"_ms"] = milliseconds(v)
		}
	}
	if s.CachedKnown {
		f["cached_tokens"] = s.CachedTokens
	}
	if s.Good != nil {
		f["good_requests"], f["request_goodput"] = *s.Good, s.PerSecond(*s.Good)
	}
	if s.Steady != nil {
		f["steady_state_output_throughput"], f["steady_state_window_s"] = s.Steady.OutputRate(), (s.Steady.To - s.Steady.From).Seconds()
	}
	if s.ClientCPU != nil {
		f["client_cpu"] = *s.ClientCPU
	}
	return f
}

func (r *Result) fields() fields {
	f := fields{
		"record": "request", "index": r.Index, "turn": r.Turn, "scheduled_ms": milliseconds(r.Scheduled), "sent_ms": milliseconds(r.Sent),
		"end_ms": milliseconds(r.End), "queued_ms": milliseconds(r.Queued()), "lag_ms": milliseconds(r.Lag()),
		"output_tokens": r.OutputTokens.N, "asked_output_tokens": r.WantOutput, "finish": r.Finish,
	}
	if r.PromptTokens.Known {
		f["prompt_tokens"] = r.PromptTokens.N
	}
	if r.CachedTokens.Known {
		f["cached_tokens"] = r.CachedTokens.N
	}
	if d, ok := r.TTFT(); ok {
		f["ttft_ms"] = milliseconds(d)
		at, tokens := make([]float64, len(r.Chunks)), make([]int, len(r.Chunks))
		for i, c := range r.Chunks {
			at[i], tokens[i] = milliseconds(c.At), c.Tokens
		}
		f["chunk_at_ms"], f["chunk_tokens"] = at, tokens
	}
	if d, ok := r.TPOT(); ok {
		f["tpot_ms"] = milliseconds(d)
	}
	if r.Failure != nil {
		f["failure"], f["failure_detail"] = r.Failure.Reason, r.Failure.Detail
	}
	if r.Text != "" {
		f["text"] = r.Text
	}
	return f
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}
