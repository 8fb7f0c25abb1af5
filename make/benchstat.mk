# Comparing results: see benchstat/main.go and docs/benchstat.md.
OLD ?= old.txt
NEW ?= new.txt
BASELINES ?= benchstat/baselines

.PHONY: gate baseline
gate: ## judge NEW against OLD: exit 0 no regression, 1 regression, 2 cannot judge
	@$(GO) run ./benchstat $(GATEFLAGS) $(OLD) $(NEW)

baseline: ## store RESULTS (at least 6 samples a row) as this machine's baseline
	@$(GO) run ./benchstat baseline $(BASELINES) $(RESULTS)
