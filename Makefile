# One target for each job that CI runs, in the same words. Bare `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build test lint fmt race fuzz fuzz-smoke purego arrows check tidy-check clean

GO ?= go
# Build tags for every target: `make bench TAGS=cuda`.
TAGS ?=
TAGFLAG = $(if $(TAGS),-tags $(TAGS))
# How long each fuzz target runs in fuzz-smoke.
FUZZTIME ?= 30s
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

build: ## build everything; needs neither cgo nor a GPU
	CGO_ENABLED=0 $(GO) build $(TAGFLAG) ./...

test: ## run the tests
	CGO_ENABLED=0 $(GO) test $(TAGFLAG) ./...

purego: ## run the CPU backend's tests without assembly
	CGO_ENABLED=0 $(GO) test -tags purego ./engine/cpu/...

race: ## run the concurrent rooms' tests under the race detector
	CGO_ENABLED=1 $(GO) test -race -short ./engine ./engine/scheduler ./engine/kvcache ./engine/server ./engine/metrics ./engine/trace ./benchmarks/load ./profiling/...

fmt: ## format the code
	gofmt -w $$(git ls-files '*.go')

lint: ## gofmt, go vet and staticcheck
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run: make fmt'; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

arrows: ## check who may import whom
	$(GO) test -run Arrows ./engine

# What every change fuzzes: the readers of files and requests that strangers make. The rest (grammars, chat templates, tokens, results) is
# fuzzed at night, by fuzz-smoke: what it finds there is mended, and does not stop an unrelated change.
FUZZ_CHANGE = ^Fuzz(Safetensors|GGUF|Config|Parse|Parsers|Decode|Events)$$
FUZZ ?= ^Fuzz

fuzz: ## fuzz the readers of outside files and requests, each for FUZZTIME
	@$(MAKE) --no-print-directory fuzz-smoke FUZZ='$(FUZZ_CHANGE)'

fuzz-smoke: ## run every fuzz target for FUZZTIME
	@for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '$(FUZZ)' $$pkg | grep '^Fuzz'); do \
	    echo "fuzz $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg || exit 1; \
	  done; done

tidy-check: ## go.mod and go.sum say what the code imports
	$(GO) mod tidy -diff

check: lint build test ## what to run before a commit

clean: ## remove what was built here (not the fixture model)
	rm -rf .bin .gpu .cache

include $(wildcard .make/*.mk)
