package tokenizer

import (
	"fmt"
	"strings"
)

// FormatError tells that a tokenizer file, or the tokenizer part of a GGUF file, is malformed. Where names the file or the
// metadata key.
type FormatError struct {
	Where, Problem string
	Err            error // the cause, if another package reported one
}

func (e *FormatError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Where, e.Problem, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Where, e.Problem)
}

func (e *FormatError) Unwrap() error { return e.Err }

// UnsupportedError tells that a tokenizer is well formed but asks for something this package does not do.
type UnsupportedError struct {
	What      string   // "model", "normalizer", "pre-tokenizer", "decoder", ...
	Value     string   // what the file asks for
	Supported []string // what it could ask for
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("tokenizer %s %q is not supported: want one of %s, or run with --skip-tokenizer-init and token ids",
		e.What, e.Value, strings.Join(e.Supported, ", "))
}

// VocabError tells that a tokenizer makes ids that the model does not have.
type VocabError struct {
	Tokenizer, Model int    // vocabulary sizes
	Token            string // the token with the highest id
}

func (e *VocabError) Error() string {
	return fmt.Sprintf("tokenizer has ids up to %d (%q), the model's vocab_size is %d: the tokenizer belongs to another model",
		e.Tokenizer-1, e.Token, e.Model)
}

// TemplateError tells that a chat template cannot be compiled, or refuses or fails to render a conversation.
type TemplateError struct {
	Problem string
	Err     error
}

func (e *TemplateError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("chat template: %s: %v", e.Problem, e.Err)
	}
	return "chat template: " + e.Problem
}

func (e *TemplateError) Unwrap() error { return e.Err }
