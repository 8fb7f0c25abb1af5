package benchmarks

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// loadSamples makes the workload that the flags name, for a model of the given vocabulary and context.
func (s *settings) loadSamples(vocab, context int, t *tokenizer.Tokenizer) ([]datasets.Sample, error) {
	o := s.data
	o.Path, o.Seed, o.VocabSize, o.NumPrompts = s.datasetPath, uint64(s.datasetSeed), vocab, s.numPrompts
	if !s.given["num-prompts"] {
		o.FewerWillDo = true
		if s.fileSays() {
			o.NumPrompts = 0
		}
	}
	if o.ContextLen == 0 && s.datasetName != "random" && s.datasetName != "random-ids" {
		o.ContextLen = context
	}
	if t != nil && o.Encode == nil {
		o.Encode = func(text string) []int32 { return t.Encode(text, false) }
	}
	return datasets.Load(s.datasetName, o)
}

// fileSays tells that the dataset itself has a number of prompts, which holds if the flags give none.
func (s *settings) fileSays() bool {
	switch s.datasetName {
	case "generated-shared-prefix", "lengths", "mooncake", "openai":
		return true
	}
	return false
}

// caseName is the workload's part of a row's name. Serving may run for a time rather than for a number of prompts.
func (s *settings) caseName(samples []datasets.Sample, serving bool) string {
	name := "dataset=" + s.datasetName
	switch s.datasetName {
	case "random", "random-ids":
		name += fmt.Sprintf("/in=%d/out=%d", s.data.RandomInputLen, s.data.RandomOutputLen)
		if s.data.RandomRangeRatio != 0 {
			name += fmt.Sprintf("/ratio=%g", s.data.RandomRangeRatio)
		}
	case "generated-shared-prefix":
		name += fmt.Sprintf("/in=%d/out=%d", s.data.SystemPromptLen+s.data.QuestionLen, s.data.GroupOutputLen)
	}
	if s.data.NumTurns > 1 {
		name += fmt.Sprintf("/turns=%d", s.data.NumTurns)
	}
	if d := s.serving.duration; serving && d > 0 {
		return name + "/duration=" + d.String()
	}
	return name + fmt.Sprintf("/prompts=%d", len(samples))
}

// longest is the most tokens, prompt and output together, that a first turn of samples takes, with the sample's number.
func longest(samples []datasets.Sample) (tokens, index int) {
	for i := range samples {
		if n := samples[i].InputLen() + samples[i].OutputLen; n > tokens {
			tokens, index = n, i
		}
	}
	return tokens, index
}

// sampleIDs tokenizes a sample's text or chat.
func sampleIDs(e *engine.Engine, s *datasets.Sample) ([]int32, error) {
	t := e.Tokenizer()
	if t == nil {
		return nil, fmt.Errorf("text needs the model's tokenizer: leave --skip-tokenizer-init out, or set --tokenizer-path")
	}
	if s.Messages == nil {
		return t.Encode(s.Text, true), nil
	}
	messages := make([]tokenizer.Message, len(s.Messages))
	for i, m := range s.Messages {
		messages[i] = tokenizer.Message{Role: m.Role, Content: m.Content}
	}
	text, err := t.ApplyChatTemplate(messages, tokenizer.ChatOptions{AddGenerationPrompt: true})
	if err != nil {
		return nil, err
	}
	return t.Encode(text, false), nil
}
