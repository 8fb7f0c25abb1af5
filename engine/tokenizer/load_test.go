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

const tiny = `{"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2,"Ġ":3},"merges":["a b"]},"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},
"decoder":{"type":"ByteLevel"},"added_tokens":[{"id":4,"content":"<s>","special":true}]}`

func write(tb testing.TB, dir, name, content string) {
	tb.Helper()
	require.NoError(tb, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "tokenizer.json", tiny)
	write(t, dir, "tokenizer_config.json", `{"bos_token":{"content":"<s>"},"eos_token":"b","chat_template":[{"name":"default","template":"{{ bos_token }}"},
		{"name":"rag","template":"r"}]}`)
	for _, path := range []string{dir, filepath.Join(dir, "tokenizer.json")} {
		tk, err := Load(path)
		require.NoError(t, err)
		assert.Equal(t, []int32{4, 2, 3, 2, 0}, tk.Encode("<s>ab aba", true))
		bos, ok := tk.BOS()
		assert.True(t, ok)
		assert.EqualValues(t, 4, bos)
		eos, ok := tk.EOS()
		assert.True(t, ok)
		assert.EqualValues(t, 1, eos)
		assert.True(t, tk.HasChatTemplate())
		text, err := tk.ApplyChatTemplate(nil, ChatOptions{})
		require.NoError(t, err)
		assert.Equal(t, "<s>", text)
		var vocab *VocabError
		require.ErrorAs(t, tk.CheckVocab(4), &vocab)
		assert.Equal(t, `tokenizer has ids up to 4 ("<s>"), the model's vocab_size is 4: the tokenizer belongs to another model`, vocab.Error())
		assert.NoError(t, tk.CheckVocab(5))
	}
	write(t, dir, "chat_template.jinja", "from a file")
	tk, err := Load(dir)
	require.NoError(t, err)
	text, err := tk.ApplyChatTemplate(nil, ChatOptions{})
	require.NoError(t, err)
	assert.Equal(t, "from a file", text)
}

func TestLoadErrors(t *testing.T) {
	with := func(old, new string) string {
		require.Contains(t, tiny, old)
		return strings.Replace(tiny, old, new, 1)
	}
	var format *FormatError
	var unsupported *UnsupportedError
	for name, test := range map[string]struct {
		content, want string
		as            any
	}{
		"empty":             {"", "is not valid JSON (line 1)", &format},
		"cut off":           {tiny[:200], "is not valid JSON (line 2)", &format},
		"a list":            {"[]", "is not a tokenizer.json", &format},
		"null":              {"null", `has no "model"`, &format},
		"no model":          {"{}", `has no "model"`, &format},
		"wordpiece":         {with("BPE", "WordPiece"), `model "WordPiece" is not supported: want one of BPE`, &unsupported},
		"unigram":           {`{"model":{"type":"Unigram","vocab":[["a",-1.5]]}}`, `model "Unigram"`, &unsupported},
		"vocab a list":      {with(`{"a":0,"b":1,"ab":2,"Ġ":3}`, "[]"), "vocab: want an object of ids", &format},
		"vocab missing":     {`{"model":{"type":"BPE","merges":[]}}`, "vocab: want an object", &format},
		"vocab empty":       {with(`{"a":0,"b":1,"ab":2,"Ġ":3}`, "{}"), "vocabulary is empty", &format},
		"negative id":       {with(`"b":1`, `"b":-1`), `token "b" has id -1`, &format},
		"huge id":           {with(`"b":1`, `"b":1000000000`), `ids go up to 1000000000 for 4 tokens`, &format},
		"huge added id":     {with(`"id":4`, `"id":4000000`), `added token "<s>" has id 4000000`, &format},
		"shared id":         {with(`"b":1`, `"b":0`), "share id 0", &format},
		"float id":          {with(`"b":1`, `"b":1.5`), `token "b": id 1.5: want a whole number`, &format},
		"merge unknown":     {with(`"a b"`, `"a c"`), `merge 1 needs token "c"`, &format},
		"merge makes":       {with(`"a b"`, `"b a"`), `merge 1 makes token "ba"`, &format},
		"merge one part":    {with(`"a b"`, `"ab"`), "want two tokens", &format},
		"merge three parts": {with(`"a b"`, `["a","b","c"]`), "merge 1 has more than 2 parts", &format},
		"merge of one":      {with(`"a b"`, `["a"]`), "merge 1 has 1 part", &format},
		"merge number":      {with(`"a b"`, `7`), "merges: merge 1: want a string", &format},
		"dropout":           {with(`"type":"BPE"`, `"type":"BPE","dropout":0.1`), "dropout", &unsupported},
		"suffix":            {with(`"type":"BPE"`, `"type":"BPE","end_of_word_suffix":"</w>"`), "end_of_word_suffix", &unsupported},
		"unk":               {with(`"type":"BPE"`, `"type":"BPE","unk_token":"?"`), `unk_token "?"`, &format},
		"normalizer":        {with(`"decoder"`, `"normalizer":{"type":"Precompiled"},"decoder"`), `normalizer "Precompiled"`, &unsupported},
		"pre-tokenizer":     {with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Sequence","pretokenizers":[{"type":"Bert"}]}`), `pre-tokenizer "Bert"`, &unsupported},
		"after byte level": {with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Sequence","pretokenizers":[{"type":"ByteLevel"},{"type":"Digits"}]}`),
			"after ByteLevel", &unsupported},
		"regex":         {with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Split","behavior":"Isolated","pattern":{"Regex":"(a"}}`), "regular expression", &format},
		"behavior":      {with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Split","behavior":"Odd","pattern":{"Regex":"a"}}`), `behavior "Odd"`, &format},
		"no pattern":    {with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Split","behavior":"Isolated"}`), "no pattern", &format},
		"decoder":       {with(`"decoder":{"type":"ByteLevel"}`, `"decoder":{"type":"CTC"}`), `decoder "CTC"`, &unsupported},
		"decoder order": {with(`"decoder":{"type":"ByteLevel"}`, `"decoder":{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}`), "after Fuse", &unsupported},
		"processor":     {with(`"decoder"`, `"post_processor":{"type":"Odd"},"decoder"`), `post-processor "Odd"`, &unsupported},
		"processor id": {with(`"decoder"`, `"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}],
			"special_tokens":{"x":{"ids":[77]}}},"decoder"`), "token 77", &format},
		"processor token": {with(`"decoder"`, `"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"x"}},{"Sequence":{"id":"A"}}]},"decoder"`),
			`uses token "x"`, &format},
		"added empty": {with(`"<s>"`, `""`), "added token 4 is empty", &format},
		"added taken": {with(`"id":4`, `"id":0`), "share id 0", &format},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "tokenizer.json", test.content)
			_, err := Load(dir)
			require.Error(t, err)
			require.ErrorAs(t, err, test.as)
			assert.Contains(t, err.Error(), test.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := Load(filepath.Join(t.TempDir(), "nothing"))
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Load(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
	assert.Contains(t, err.Error(), "has no tokenizer.json: give --tokenizer-path, or run with --skip-tokenizer-init")
	dir := t.TempDir()
	write(t, dir, "tokenizer.json", tiny)
	write(t, dir, "tokenizer_config.json", `{"chat_template": 3}`)
	_, err = Load(dir)
	require.ErrorAs(t, err, &format)
	assert.Contains(t, err.Error(), "chat_template")
}

func TestGGUFErrors(t *testing.T) {
	for name, test := range map[string]struct {
		change func(m map[string]any)
		want   string
	}{
		"no model":       {func(m map[string]any) { delete(m, "tokenizer.ggml.model") }, "tokenizer.ggml.model: is missing"},
		"other model":    {func(m map[string]any) { m["tokenizer.ggml.model"] = "bert" }, `model "bert" is not supported: want one of gpt2, llama`},
		"model type":     {func(m map[string]any) { m["tokenizer.ggml.model"] = 3 }, "want a string"},
		"no tokens":      {func(m map[string]any) { delete(m, "tokenizer.ggml.tokens") }, "tokenizer.ggml.tokens: is missing or empty"},
		"tokens type":    {func(m map[string]any) { m["tokenizer.ggml.tokens"] = []any{"a", 1} }, "entry 1 is not one of strings"},
		"types length":   {func(m map[string]any) { m["tokenizer.ggml.token_type"] = []int32{1} }, "has 1 entries for"},
		"unknown pre":    {func(m map[string]any) { m["tokenizer.ggml.pre"] = "odd" }, `"odd" is not supported: want one of command-r, falcon3`},
		"no merges":      {func(m map[string]any) { delete(m, "tokenizer.ggml.merges") }, "tokenizer.ggml.merges: is missing"},
		"bad merge":      {func(m map[string]any) { m["tokenizer.ggml.merges"] = []string{"ab"} }, "want two tokens"},
		"bad bos":        {func(m map[string]any) { m["tokenizer.ggml.bos_token_id"] = uint32(1 << 30) }, "bos_token_id: is 1073741824"},
		"bad flag":       {func(m map[string]any) { m["tokenizer.ggml.add_bos_token"] = "yes" }, "want a bool"},
		"scores missing": {func(m map[string]any) { m["tokenizer.ggml.model"] = "llama" }, "tokenizer.ggml.scores: has 0 entries"},
	} {
		t.Run(name, func(t *testing.T) {
			meta := asGGUF(t, "gpt2", "gpt2", "gpt-2")
			test.change(meta)
			_, err := FromGGUF(meta)
			require.ErrorContains(t, err, test.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := FromGGUF(nil)
	require.Error(t, err)
}

// FuzzParse: whatever the file, parse gives an error or a tokenizer that works.
func FuzzParse(f *testing.F) {
	f.Add([]byte(tiny))
	for _, name := range []string{"flags", "llama2"} { // their settings with a small vocabulary
		var all map[string]json.RawMessage
		require.NoError(f, json.Unmarshal(gunzip(f, name+".json.gz"), &all))
		all["model"] = json.RawMessage(`{"type":"BPE","vocab":{"a":0,"▁":1,"▁a":2,"<unk>":3,"<s>":4,"</s>":5},"merges":[["▁","a"]],"unk_token":"<unk>","byte_fallback":true}`)
		delete(all, "added_tokens")
		data, err := json.Marshal(all)
		require.NoError(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tk, err := parse("fuzz", data)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		for _, text := range []string{"a b<s>'s 12\n\n é \xff", "▁a"} {
			ids := tk.Encode(text, true)
			for _, id := range ids {
				require.True(t, id >= 0 && int(id) < tk.VocabSize())
			}
			d := tk.NewDecoder(false)
			var streamed string
			for _, id := range ids {
				streamed += d.Add(id)
			}
			require.Equal(t, tk.Decode(ids, false), streamed+d.Flush())
		}
	})
}

// FuzzRoundTrip: text in, text out, through byte-level and SentencePiece tokenizers.
func FuzzRoundTrip(f *testing.F) {
	for _, text := range []string{"Hello, world!", "it's 12345\r\n\r\n  x", "é\u0301😀\u200d👩", "\xff\xfe\xe2\x82", "<|im_start|>", "   ", "ſ'ſ"} {
		f.Add(text)
	}
	byteLevel, sentencePiece := small(f, "llama3"), small(f, "gemma")
	f.Fuzz(func(t *testing.T, text string) {
		want := validUTF8(text)
		require.Equal(t, want, byteLevel.Decode(byteLevel.Encode(text, false), false))
		if !strings.Contains(want, "▁") && !strings.Contains(want, "<0x") {
			require.Equal(t, want, sentencePiece.Decode(sentencePiece.Encode(text, false), false))
		}
	})
}

// FuzzChatTemplate: whatever the template, an error of one line or a text, and no more memory than it may have.
func FuzzChatTemplate(f *testing.F) {
	files, err := filepath.Glob(filepath.Join(goldens, "templates", "*.jinja"))
	require.NoError(f, err)
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(string(data))
	}
	var golden struct{ Cases []struct{ Template string } }
	data, err := os.ReadFile(filepath.Join(goldens, "jinja.json"))
	require.NoError(f, err)
	require.NoError(f, json.Unmarshal(data, &golden))
	for _, c := range golden.Cases {
		f.Add(c.Template)
	}
	for _, source := range hostileTemplates() {
		if len(source) < 1000 {
			f.Add(source)
		}
	}
	f.Fuzz(func(t *testing.T, source string) {
		tk := &Tokenizer{}
		spent := allocated(func() {
			err := tk.SetChatTemplate(source)
			if err == nil {
				_, err = tk.ApplyChatTemplate([]Message{{Role: "user", Content: "hi"}, {Role: "assistant", Content: "ho"}}, ChatOptions{Tools: []json.RawMessage{[]byte(`{"a":[1,2.5,null]}`)}})
			}
			if err != nil && strings.Contains(err.Error(), "\n") && !strings.Contains(source, "raise_exception") {
				t.Errorf("%q is more than a line", err)
			}
		})
		if most := uint64(4*renderBytes + 200*len(source)); spent > most {
			t.Errorf("%d bytes allocated, want at most %d", spent, most)
		}
	})
}
