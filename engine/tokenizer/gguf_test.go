package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// asGGUF writes a committed tokenizer the way a converter to GGUF would.
func asGGUF(tb testing.TB, name, kind, pre string) map[string]any {
	tb.Helper()
	var f fileJSON
	require.NoError(tb, json.Unmarshal(gunzip(tb, name+".json.gz"), &f))
	var m modelJSON
	require.NoError(tb, json.Unmarshal(f.Model, &m))
	var vocab map[string]int
	require.NoError(tb, json.Unmarshal(m.Vocab, &vocab))
	size := len(vocab)
	for _, a := range f.AddedTokens {
		size = max(size, int(a.ID)+1)
	}
	tokens, types, scores := make([]string, size), make([]int32, size), make([]float32, size)
	for token, id := range vocab {
		tokens[id], types[id], scores[id] = token, ggufNormal, -float32(id)
		if _, ok := fallbackByte(token); ok {
			types[id], scores[id] = ggufByte, 0
		}
	}
	for _, a := range f.AddedTokens {
		tokens[a.ID], types[a.ID] = a.Content, ggufUserDefined
		if a.Special {
			types[a.ID] = ggufControl
		}
		if kind == "llama" && a.Content == "<unk>" {
			types[a.ID] = ggufUnknown
		}
	}
	pairs, err := parseMerges(m.Merges)
	require.NoError(tb, err)
	merges := make([]string, len(pairs))
	for i, pair := range pairs {
		merges[i] = strings.Join(pair[:], " ")
	}
	meta := map[string]any{
		"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": uint32(1),
	}
	if kind == "llama" {
		meta["tokenizer.ggml.scores"] = scores
	} else {
		meta["tokenizer.ggml.merges"], meta["tokenizer.ggml.pre"] = merges, pre
	}
	return meta
}

func TestGGUFEqualToHuggingFace(t *testing.T) {
	texts := goldenStrings(t)
	for _, test := range []struct{ name, kind, pre string }{
		{"gpt2", "gpt2", "gpt-2"}, {"smollm2", "gpt2", "smollm"}, {"llama3", "gpt2", "llama-bpe"}, {"qwen2", "gpt2", "qwen2"},
		{"tekken", "gpt2", "tekken"}, {"o200k", "gpt2", "gpt-4o"}, {"llama2", "llama", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			tk, err := FromGGUF(asGGUF(t, test.name, test.kind, test.pre))
			require.NoError(t, err)
			checkSums(t, tk, test.name, texts)
		})
	}
}

// TestSmolLM2 checks the real fixture model's tokenizer.
func TestSmolLM2(t *testing.T) {
	tk := smolLM2(t)
	checkSums(t, tk, "smollm2_gguf", goldenStrings(t))

	var golden struct {
		Cases []struct {
			Prompt string
			IDs    []int32 `json:"prompt_ids"`
		}
	}
	data, err := os.ReadFile(filepath.Join(goldens, "smollm2_prompts.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &golden))
	require.NotEmpty(t, golden.Cases)
	for _, c := range golden.Cases {
		assert.Equal(t, c.IDs, tk.Encode(c.Prompt, true))
		assert.Equal(t, c.Prompt, tk.Decode(c.IDs, false))
	}
	eos, ok := tk.EOS()
	assert.True(t, ok)
	assert.Equal(t, "<|im_end|>", tk.Token(eos))
	assert.True(t, tk.IsSpecial(eos))
	assert.Equal(t, 49152, tk.VocabSize())
	assert.NoError(t, tk.CheckVocab(49152))
}
