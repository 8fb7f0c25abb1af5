# Comparing results: see benchstat/main.go and docs/benchstat.md.
OLD ?= old.txt
NEW ?= new.txt
BASELINES ?= benchstat/baselines

.PHONY: gate baseline
gate: ## judge NEW against OLD: exit 0 no regression, 1 regression, 2 cannot judge
	@$(GO) run ./benchstat $(GATEFLAGS) $(OLD) $(NEW)

baseline: ## store RESULTS (at least 6 samples a row) as this machine's baseline
	@$(GO) run ./benchstat baseline $(BASELINES) $(RESULTS)

# The host's hot path: rows that need no GPU.
HOSTPKGS = ./engine/scheduler ./engine/tokenizer ./engine/server
HOSTCOUNT ?= 10
.PHONY: bench-host ab bisect history-page
bench-host: ## benchmark the host's hot path (scheduler step, tokenizer, SSE writer): benchfmt on stdout
	@$(GO) test -run '^$$' -bench . -benchmem -benchtime 100x -count $(HOSTCOUNT) $(HOSTPKGS)

BASE ?= main
BENCH ?= .
PKG ?= ./benchmarks
N ?= 10
ab: ## BASE against the work tree, interleaved: make ab BASE=main BENCH=OneBatch ABFLAGS='-- --batch-size 1'
	@$(GO) run ./benchstat/ab --base $(BASE) --pkg $(PKG) --bench '$(BENCH)' --n $(N) $(if $(TAGS),--tags $(TAGS)) $(ABFLAGS)

bisect: ## the commit that made METRIC worse: make bisect GOOD=v0.1 BAD=HEAD METRIC=step-ms BENCH=OneBatch
	@$(GO) run ./benchstat/ab bisect --good $(GOOD) --bad $(or $(BAD),HEAD) --metric '$(METRIC)' --pkg $(PKG) --bench '$(BENCH)' --n $(N) $(if $(TAGS),--tags $(TAGS)) $(ABFLAGS)

HISTORY ?= .cache/history
history-page: ## draw the stored results as one HTML page on stdout
	@$(GO) run ./benchstat history page $(HISTORY)
