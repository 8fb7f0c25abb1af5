package load

import (
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/benchmarks/load/stub"
)

// The client alone: these say how fast it can send and time requests, against a server that answers at once. The server runs
// in the same process, on the same processors.
//
//	go test ./benchmarks/load -run '^$' -bench Client -benchtime 1x -count 6 -cpu 2

// BenchmarkClientRequests: short answers, as many as possible from 32 users.
func BenchmarkClientRequests(b *testing.B) { clientLoad(b, 32, 40000, 1) }

// BenchmarkClientTokens: streams of 256 chunks of one token.
func BenchmarkClientTokens(b *testing.B) { clientLoad(b, 32, 2000, 256) }

func clientLoad(b *testing.B, users, requests, tokens int) {
	s, err := stub.Start("", false, nil)
	require.NoError(b, err)
	defer s.Close()
	c := client(b, "vllm", s.URL)
	run(b, Config{Client: c, Arrivals: atOnce(), MaxConcurrency: users}, samples(200, 16, tokens))
	work := samples(requests, 16, tokens)
	for b.Loop() {
		got := Summarize(run(b, Config{Client: c, Arrivals: atOnce(), MaxConcurrency: users}, work), nil)
		if got.Completed != requests || got.OutputTokens != requests*tokens {
			b.Fatalf("%d requests with %d tokens; failed: %s", got.Completed, got.OutputTokens, got.FailureText())
		}
		b.ReportMetric(got.PerSecond(got.Completed), "req/s")
		b.ReportMetric(got.PerSecond(got.OutputTokens), "tok/s")
	}
	b.ReportMetric(0, "ns/op")
}

// BenchmarkClientLag: how late requests go out at 1,000 a second.
func BenchmarkClientLag(b *testing.B) {
	s, err := stub.Start("", false, nil)
	require.NoError(b, err)
	defer s.Close()
	c := client(b, "tokamak", s.URL)
	cfg := Config{Client: c, Arrivals: Arrivals{Rate: 1000, Burstiness: 1}}
	run(b, cfg, samples(200, 16, 4))
	runtime.GC()
	for b.Loop() {
		got := Summarize(run(b, cfg, samples(3000, 16, 4)), nil)
		if got.Completed != 3000 {
			b.Fatal(got.FailureText())
		}
		b.ReportMetric(float64(got.Lag.P50)/float64(time.Millisecond), "lag-p50-ms")
		b.ReportMetric(float64(got.Lag.P99)/float64(time.Millisecond), "lag-p99-ms")
		if got.ClientCPU != nil {
			b.ReportMetric(math.Round(1000**got.ClientCPU)/10, "cpu-%")
		}
	}
	b.ReportMetric(0, "ns/op")
}
