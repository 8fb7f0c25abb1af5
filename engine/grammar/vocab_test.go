package grammar

import (
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// testTokenizer is a committed byte-level tokenizer of 1,200 tokens; its first 256 are the single bytes.
var testTokenizer = sync.OnceValues(func() (*tokenizer.Tokenizer, error) {
	f, err := os.Open("../../fixtures/goldens/tokenizer/llama3.json.gz")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "grammar")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out, err := os.Create(filepath.Join(dir, "tokenizer.json"))
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(out, z); err != nil {
		return nil, err
	}
	if err := out.Close(); err != nil {
		return nil, err
	}
	return tokenizer.Load(dir)
})

// jsonTokens are tokens that large vocabularies have and the small one lacks: they reach over several parts of a value.
var jsonTokens = []string{`{"`, `":`, `": "`, `":"`, `",`, `","`, `", "`, `"}`, `"]`, `"},`, `"}}`, `]]`, `}]`, `},{`, `}, {"`, `:[`, `: [`, `[{"`, `[[`, `[]`, `{}`, `null`,
	`true`, `false`, ` true`, `123`, `12,`, `0.`, `.5`, `1}`, `e-`, "\n  ", "\n    \"", ",\n", "\\\"", "\\u00", "\\n", `"a"`, `a":`, `."`, `.",`, `\\`, "    ", `-1`, `00`,
	"a\"b", `","b":`, "\xe4\xb8", "\xad", "\xf0\x9f\x98\x80", `é"`, `"é`, `.com`}

func smallVocabulary(tb testing.TB) *Vocabulary {
	tb.Helper()
	tk, err := testTokenizer()
	require.NoError(tb, err)
	size := tk.VocabSize()
	return NewVocabulary(size+len(jsonTokens)+1, func(id int32) []byte {
		switch {
		case int(id) >= size && int(id) < size+len(jsonTokens):
			return []byte(jsonTokens[int(id)-size])
		case int(id) >= size || tk.IsSpecial(id):
			return nil
		}
		return tk.TokenBytes(id)
	}, []int32{int32(size + len(jsonTokens))})
}

// allowed lists the tokens of a mask.
func allowed(mask []uint32) (ids []int32) {
	for i, w := range mask {
		for b := range 32 {
			if w&(1<<b) != 0 {
				ids = append(ids, int32(32*i+b))
			}
		}
	}
	return ids
}
