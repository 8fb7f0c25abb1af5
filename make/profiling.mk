# Profiling: see docs/profiling.md.
.PHONY: nsys-one-batch nsys-server nsys-sessions nsys-stop trace-viewer

# NSYSFLAGS go to nsys, ARGS to the program; MODEL, OUT, STEPS and NSYS as profiling/nsys/record.sh tells.
export MODEL OUT STEPS NSYS
nsys-one-batch: ## record OneBatch with Nsight Systems: make nsys-one-batch MODEL=DIR ARGS='--batch 1' NSYSFLAGS='--duration=30'
	@GO='$(GO)' sh profiling/nsys/record.sh one-batch $(NSYSFLAGS) -- $(ARGS)

nsys-server: ## record a server with Nsight Systems: make nsys-server MODEL=DIR NSYSFLAGS='--delay=60 --duration=70'
	@GO='$(GO)' sh profiling/nsys/record.sh server $(NSYSFLAGS) -- $(ARGS)

nsys-sessions: ## list what Nsight Systems records
	@sh profiling/nsys/record.sh sessions

nsys-stop: ## stop a recording and write its report: make nsys-stop SESSION=server
	@sh profiling/nsys/record.sh stop $(SESSION)

trace-viewer: ## look at TRACE in Chromium's own trace viewer: make trace-viewer TRACE=x.trace.json.gz SHOT=x.png
	@TRACE='$(abspath $(TRACE))' SHOT='$(abspath $(SHOT))' TOKAMAK_REQUIRE_BROWSER=1 $(GO) test -count=1 -v -run TestBrowserTraceViewer ./profiling/chrometrace
