.PHONY: bench bench-one-batch bench-offline bench-serving bench-client
# Flags for the benchmarks, as in `make bench-one-batch BENCH_FLAGS='--model-path M --batch 1,8'`; COUNT repetitions, for benchstat.
BENCH_FLAGS ?=
COUNT ?= 3

# The binary runs by itself and not under `go test`, which would join its two outputs: rows go to stdout, a progress bar and the
# summary to stderr. Without a tag there is no cgo, and the server that Serving builds has none either.
run-bench = @dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	$(if $(TAGS),,CGO_ENABLED=0) $(GO) test $(TAGFLAG) -c -o "$$dir/benchmarks.test" ./benchmarks && \
	"$$dir/benchmarks.test" -test.run '^$$' -test.count $(COUNT) -test.timeout 0 -test.bench

bench: ## the main job: fetch the fixture model, run OneBatch, OfflineThroughput and Serving on it (under 3 minutes on 2 cores)
	@$(GO) run ./fixtures/fetch/cmd/fetch >&2 || echo '# no fixture model (no network?): going on with a tiny model of dummy weights' >&2
	$(run-bench) 'OneBatch|OfflineThroughput|Serving' --batch-size 1,4 --input-len 128 --output-len 32 --num-prompts 16 \
		--random-input-len 64 --random-output-len 32 --request-rate 4 --client-max-lag 0.1 $(BENCH_FLAGS)

bench-one-batch: ## prefill and decode of a fixed batch; flags in BENCH_FLAGS
	$(run-bench) OneBatch $(BENCH_FLAGS)

bench-offline: ## a dataset through the engine in one process; flags in BENCH_FLAGS
	$(run-bench) OfflineThroughput $(BENCH_FLAGS)

bench-serving: ## a dataset offered to a server over HTTP; flags in BENCH_FLAGS
	$(run-bench) Serving $(BENCH_FLAGS)

bench-client: ## how fast the load client itself is, on two processors
	$(GO) test ./benchmarks/load -run '^$$' -bench Client -benchtime 1x -count 6 -cpu 2
