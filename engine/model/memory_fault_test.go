package model

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHostileConfigsMemory bounds what a config.json may make Load allocate by its size, whatever numbers it holds.
func TestHostileConfigsMemory(t *testing.T) {
	const head = `{"architectures":["LlamaForCausalLM"],"hidden_size":256,"intermediate_size":512,"num_attention_heads":8,"vocab_size":1000,`
	for name, text := range map[string]string{
		"deep arrays":      head + `"a":` + strings.Repeat("[", 200_000),
		"deep objects":     head + `"a":` + strings.Repeat(`{"a":`, 200_000),
		"many fields":      head + strings.Repeat(`"a":1,`, 100_000) + `"num_hidden_layers":2}`,
		"long list":        head + `"layer_types":[` + strings.Repeat(`"full_attention",`, 100_000) + `"x"],"num_hidden_layers":2}`,
		"2^62 layers":      head + `"num_hidden_layers":4611686018427387904}`,
		"2^31 positions":   head + `"num_hidden_layers":2,"max_position_embeddings":2147483648}`,
		"1e308 everywhere": head + `"num_hidden_layers":1e308,"rope_theta":1e308}`,
		"long number":      head + `"num_hidden_layers":` + strings.Repeat("9", 1<<20) + `}`,
	} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Load(dir, "")
		runtime.ReadMemStats(&after)
		spent := after.TotalAlloc - before.TotalAlloc
		assert.Less(t, spent, uint64(64*len(text)+1<<20), "%s: %d bytes allocated for %d", name, spent, len(text))
		if err != nil {
			assert.Less(t, len(err.Error()), 1000, name)
		}
	}
}
