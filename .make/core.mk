.PHONY: invariants simulation mutations

invariants: ## run scheduler and engine with an audit of every page, slot and count after each step
	$(GO) test -tags invariants ./engine/kvcache ./engine/scheduler ./engine

SIM_REQUESTS ?= 1000000
SIM_WORLDS ?= 2000
simulation: ## simulate a million requests on a fake device and clock, and 2,000 worlds of clients of the server; a failing seed is shrunk and printed
	$(GO) test ./engine -run TestSimulation -v -timeout 10m -sim.requests $(SIM_REQUESTS)
	$(GO) test ./engine/server -run TestSessionSimulation -v -timeout 10m -sim.worlds $(SIM_WORLDS)

mutations: ## put faults into scheduler, books and loop one by one; each must be seen by a test
	$(GO) test -tags mutations -run '^TestMutations$$' -v -timeout 60m ./engine
