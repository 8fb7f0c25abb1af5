# One target for each job that CI runs, in the same words. Bare `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build test lint fmt race fuzz purego arrows check tidy-check clean

GO ?= go
# Build tags for every target: `make bench TAGS=cuda`.
TAGS ?=
TAGFLAG = $(if $(TAGS),-tags $(TAGS))
# How long each fuzz target runs.
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

FUZZ ?= .
FUZZJOBS ?= 2
fuzz: ## fuzz every reader of what strangers make, each for FUZZTIME, FUZZJOBS at a time
	@git grep -oE '^func Fuzz\w+' -- '*_test.go' | sed -E 's|^(.*)/[^/]+:func (.*)$$|./\1 \2|' | grep -E '$(FUZZ)' | \
	  xargs -P $(FUZZJOBS) -L 1 sh -c 'start=$$(date +%s); out=$$($(GO) test -run "^$$" -fuzz "^$$1\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s -parallel 1 $$0 2>&1); rc=$$?; \
	    [ $$rc = 0 ] && echo "fuzz $$0 $$1: $$(($$(date +%s)-start)) s, $$(echo "$$out" | grep -oE "execs: [0-9]+" | tail -1)" && exit 0; \
	    echo "fuzz $$0 $$1 failed:"; echo "$$out"; exit 1'

tidy-check: ## go.mod and go.sum say what the code imports
	$(GO) mod tidy -diff

check: lint build test ## what to run before a commit

clean: ## remove what was built here (not the fixture model)
	rm -rf .bin .gpu .cache

include $(wildcard .make/*.mk)
