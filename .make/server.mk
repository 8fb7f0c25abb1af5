.PHONY: serve clients

# What `make serve` serves, and with which further flags: make serve SERVE_MODEL=DIR SERVE_FLAGS="--port 8000"
SERVE_MODEL ?= fixtures/models/SmolLM2-135M-Instruct.Q4_1.gguf
SERVE_FLAGS ?=

serve: ## serve SERVE_MODEL over HTTP
	$(GO) run $(TAGFLAG) ./engine/cmd/launch_server --model-path $(SERVE_MODEL) $(SERVE_FLAGS)

clients: ## run other people's clients against the server (installs them: needs a network)
	engine/server/clients/run.sh
