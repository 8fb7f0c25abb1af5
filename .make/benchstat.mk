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
HOSTPKGS = ./engine/scheduler ./engine/kvcache ./engine/tokenizer ./engine/server
HOSTBENCH = ^Benchmark(Step|EncodePrompt|DecodeStream|Event|Match)$$
HOSTCOUNT ?= 10
HOSTTIME ?= 50ms
.PHONY: bench-host ab bisect history-page
bench-host: ## benchmark the host's hot path (scheduler step, tokenizer, SSE writer): benchfmt on stdout
	@$(GO) test -run '^$$' -bench '$(HOSTBENCH)' -benchmem -benchtime $(HOSTTIME) -count $(HOSTCOUNT) $(HOSTPKGS)

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

.PHONY: host-gate bench-pr bench-pr-number nightly actionlint
host-gate: ## judge the host's hot path against BASE, interleaved
	@worst=0; for pkg in $(HOSTPKGS); do \
	  $(GO) run ./benchstat/ab --base $$(git merge-base $(BASE) HEAD) --pkg $$pkg --bench '$(HOSTBENCH)' --benchtime $(HOSTTIME) --threshold 0.10 --n $(N) -- -test.benchmem; \
	  code=$$?; [ $$code -le $$worst ] || worst=$$code; done; exit $$worst

bench-pr: ## the work tree against its merge base with BASE; results and verdict.md in .cache/pr
	@rm -rf .cache/pr; $(GO) run ./benchstat/ab --base $$(git merge-base $(BASE) HEAD) --bench '$(BENCH)' --n $(N) --out .cache/pr $(if $(TAGS),--tags $(TAGS)) $(ABFLAGS); \
	  code=$$?; $(GO) run ./benchstat --format md .cache/pr/base.txt .cache/pr/new.txt > .cache/pr/verdict.md; exit $$code

bench-pr-number:
	@mkdir -p .cache/pr && printf '%s' '$(PR)' > .cache/pr/number.txt

nightly: ## benchmark this commit, add it to HISTORY, draw the page
	@mkdir -p .cache && $(GO) test ./benchmarks -run '^$$' -bench '$(BENCH)' -benchtime 1x -count 10 -timeout 0 $(if $(TAGS),-tags $(TAGS)) > .cache/nightly.txt
	@$(GO) run ./benchstat history add $(HISTORY) .cache/nightly.txt
	@$(GO) run ./benchstat history page $(HISTORY) > .cache/history.html

actionlint: ## check the workflows
	@$(GO) run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

.PHONY: browser
browser: ## look at our pages in a real headless browser (installs Debian's chromium if it can)
	@command -v chromium >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)
	TOKAMAK_REQUIRE_BROWSER=1 CGO_ENABLED=0 $(GO) test -run Browser ./...

.PHONY: aa
aa: ## how noisy is this machine? runs one build 20 times and reports false alarms and the smallest visible change
	@mkdir -p .cache && $(GO) test $(PKG) -run '^$$' -bench '$(BENCH)' -benchtime 1x -count 20 -timeout 0 $(if $(TAGS),-tags $(TAGS)) > .cache/aa.txt && $(GO) run ./benchstat --aa .cache/aa.txt
