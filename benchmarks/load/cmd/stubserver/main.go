// Command stubserver runs the scripted server by itself, to measure load clients against: this project's or any other.
//
//	stubserver -addr 127.0.0.1:8000 -ttft 50ms -itl 10ms
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load/stub"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8000", "address to listen on")
	ttft := flag.Duration("ttft", 0, "time to the first token")
	itl := flag.Duration("itl", 0, "time between tokens")
	perChunk := flag.Int("per-chunk", 1, "tokens of a chunk")
	stallAt := flag.Duration("stall-at", 0, "stand still at this time after the first request")
	stallFor := flag.Duration("stall-for", 0, "for this long")
	flag.Parse()
	var started time.Time
	script := func(n int, r *stub.Request) stub.Reply {
		if n == 0 {
			started = r.At
		}
		reply := stub.Reply{Tokens: r.MaxTokens, PerChunk: *perChunk, TTFT: *ttft, ITL: *itl}
		if at := r.At.Sub(started); at >= *stallAt && at < *stallAt+*stallFor {
			reply.TTFT += *stallAt + *stallFor - at
		}
		return reply
	}
	s, err := stub.Start(*addr, false, script)
	if err != nil {
		fmt.Fprintln(os.Stderr, "stubserver:", err)
		os.Exit(1)
	}
	fmt.Fprintln(os.Stderr, "listening on", s.URL)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt)
	<-stop
	s.Close()
}
