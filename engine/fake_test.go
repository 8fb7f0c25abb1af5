package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// pieces are the tokens of the fake model's tokenizer, in GPT-2's byte alphabet: letters, and the bytes of é and of an emoji,
// so that characters are spread over tokens. Token 0 is the end of sequence.
var pieces = append([]string{"<eos>"}, append(strings.Split("a b c d e f g h i j k l m n o p q r s t u v w x y z", " "),
	"Ġ", "ab", "cd", "the", "Ġin", "Ã", "©", "ð", "Ł", "ĺ", "Ģ", "Ċ")...)

func fakeTokenizer(t testing.TB) *tokenizer.Tokenizer {
	vocab := map[string]int{}
	for id, piece := range pieces {
		vocab[piece] = id
	}
	data, err := json.Marshal(map[string]any{
		"version":       "1.0",
		"added_tokens":  []any{map[string]any{"id": 0, "content": "<eos>", "special": true, "normalized": false}},
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
		"decoder":       map[string]any{"type": "ByteLevel"},
		"model":         map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{}},
	})
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "tokenizer.json")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	tok, err := tokenizer.Load(path)
	require.NoError(t, err)
	return tok
}

func fakeInfo() backend.Info {
	return backend.Info{
		Name: "fake", VocabSize: len(pieces), MaxContext: 200, MaxRows: 4, MaxTokens: 32, PageSize: 4, NumPages: 120,
	}
}

// openFake starts an engine on a fake backend. It is closed, and its goroutines are gone, when the test ends.
func openFake(t testing.TB, o Options, info backend.Info, configure func(*fakebackend.Backend)) *Engine {
	before := runtime.NumGoroutine()
	device := fakebackend.New(info)
	if configure != nil {
		configure(device)
	}
	e := &Engine{live: map[string]*stream{}, tokenizer: fakeTokenizer(t)}
	require.NoError(t, e.start(o, func() (backend.Backend, error) { return device, nil }))
	e.eos = []int32{0}
	t.Cleanup(func() {
		require.NoError(t, e.Close())
		eventually(t, func() bool { return runtime.NumGoroutine() <= before }, "goroutines are left")
	})
	return e
}

// eventually polls: what it waits for is asynchronous and soon.
func eventually(t testing.TB, ok func() bool, what string) {
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s after 5 s", what)
		}
	}
}

// settled waits until no request holds pages.
func settled(t testing.TB, e *Engine) {
	eventually(t, func() bool {
		s := e.Stats()
		return s.Running == 0 && s.Waiting == 0 && s.UsedPages == 0 && s.StepsInFlight == 0
	}, "requests still hold pages")
}
