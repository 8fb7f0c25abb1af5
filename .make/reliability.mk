# Reliability and supply chain: see docs/reliability.md and docs/security.md.
.PHONY: sanitize faults soak soak-short sbom govulncheck manifests kubeconform mutations-rooms

# The tests that break things on purpose, by name; they run within `make test` too.
FAULTS = Fault|Fail|Full|Cut|Overwritten|Reset|Dark|Slowloris|Flood|Refused|Hostile|Tenants|Terminate|Kill|NoDevice|Supervisor|Damaged|Memory|Salt|Versions
faults: ## run every test that breaks something: disks, files, networks, devices, processes, hostile clients
	$(GO) test $(TAGFLAG) -count=1 -run '$(FAULTS)' ./engine/... ./profiling ./benchmarks/load ./benchstat/... ./fixtures/datasets

SOAK_TIME ?= 30m
SOAKFLAGS ?=
soak: ## mixed load for SOAK_TIME: memory, goroutines, descriptors and pages stay flat
	$(GO) test $(TAGFLAG) -count=1 -run '^TestSoak$$' -v -timeout 0 ./engine/server -soak.time $(SOAK_TIME) $(SOAKFLAGS)

soak-short: ## the same for 60 s
	@$(MAKE) --no-print-directory soak SOAK_TIME=60s

# Where govulncheck gets its database; empty is the Go project's own. A copy of it: make govulncheck VULNDB=file:///path
VULNDB ?=
govulncheck: ## look for known holes in what the code calls
	$(GO) mod verify
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 $(if $(VULNDB),-db $(VULNDB)) ./...

sbom: ## write the server's bill of materials, CycloneDX, to .cache/sbom.json
	@mkdir -p .cache
	CGO_ENABLED=0 $(GO) run github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0 app -json -licenses -std -main engine/cmd/launch_server -output .cache/sbom.json .

manifests: ## hold deploy/ to Kubernetes' types, the server's flags and metrics; run the cpu image's content as the image would
	cd deploy/check && GOFLAGS=-mod=readonly $(GO) test -count=1 ./...

# Where schemas come from: kubeconform's own, and for custom resources a folder or address, as KUBE_SCHEMAS='default /path/{{.ResourceKind}}_{{.Group}}_{{.ResourceAPIVersion}}.json'
KUBE_SCHEMAS ?= default
kubeconform: ## check the manifests against the API servers' schemas
	$(GO) run github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0 -strict -summary $(foreach s,$(KUBE_SCHEMAS),-schema-location '$(s)') $(KUBECONFORMFLAGS) deploy/k8s

mutations-rooms: ## put faults into server, grammar, sampler, captures, gate and parsers; a named test must see each
	$(GO) test -tags mutations -run TestMutationsOfRooms -v -timeout 60m ./engine

# Models of two layers that reach every kernel in every format, and tests of single kernels at odd shapes: those that a model has not.
SANITIZER ?= compute-sanitizer
SANITIZE ?= racecheck initcheck memcheck synccheck
SANITIZE_MODELS = llama mistral qwen2 qwen3 heads_of_32 drafts weights_of_e4m3 cache_of_e4m3 weights_of_four_bits mixture
SANITIZE_TESTS ?= $(SANITIZE_MODELS:%=TestEveryKernelRuns/^%$$) \
  TestAttnDecode$$/./kv=(1|2|5)/./././././ctx=.(63|700) TestAttnPrefill/./kv=(1|2|5)/./././././(short|cached) TestDraftAttention/./kv=(1|2|5)/./././././pos=47/run=7 \
  ^(TestAdvance|TestEmbed|TestRMSNorm|TestSiLUMul|TestTargetLogprob|TestFP8Dequant|TestFP8Quantize)$$ TestSample TestGEMV$$/n=(48|80|176) \
  TestGEMM$$ TestFP8GEMV/n=(48|80|176) TestFP8GEMM$$ TestW4Kernels TestW4GEMM TestMixture$$
sanitize: cuda-build ## run kernels' tests and small models under compute-sanitizer; needs a GPU
	cd engine/cuda && printf '%s\n' $(foreach t,$(SANITIZE_TESTS),'$t') | SANITIZER='$(SANITIZER)' sh ../../.make/sanitize.sh ../../.gpu/cuda.test ../../.cache/sanitize $(SANITIZE)
