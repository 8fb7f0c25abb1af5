package tokenizer

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldens are made by fixtures/goldens/tokenizer/make.py with the Hugging Face library; its head describes them.
const goldens = "../../fixtures/goldens/tokenizer"

func gunzip(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join(goldens, name))
	require.NoError(tb, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(tb, err)
	data, err := io.ReadAll(z)
	require.NoError(tb, err)
	return data
}

func goldenStrings(tb testing.TB) []string {
	tb.Helper()
	var all []string
	for data := gunzip(tb, "strings.bin.gz"); len(data) > 0; {
		n, size := binary.Uvarint(data)
		require.Positive(tb, size)
		data = data[size:]
		all = append(all, string(data[:n]))
		data = data[n:]
	}
	require.Greater(tb, len(all), 10_000)
	return all
}

// small loads one of the committed tokenizers.
func small(tb testing.TB, name string) *Tokenizer {
	tb.Helper()
	t, err := parse(name, gunzip(tb, name+".json.gz"))
	require.NoError(tb, err)
	return t
}

var smallNames = []string{"gpt2", "smollm2", "llama3", "qwen2", "qwen35", "tekken", "o200k", "deepseek", "flags", "behaviors", "llama2",
	"metaspace", "gemma"}

func TestEqualToHuggingFace(t *testing.T) {
	texts := goldenStrings(t)
	for _, name := range smallNames {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkSums(t, small(t, name), name, texts)
		})
	}
}

// TestEqualToHuggingFaceReal needs tokenizers that are not committed: fetch them with make tokenizers.
func TestEqualToHuggingFaceReal(t *testing.T) {
	texts := goldenStrings(t)
	for _, name := range []string{"llama3_1", "qwen3"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkSums(t, realTokenizer(t, name), name, texts)
		})
	}
}

func realTokenizer(tb testing.TB, name string) *Tokenizer {
	tb.Helper()
	dir := filepath.Join("../../fixtures/models/tokenizers", name)
	if _, err := os.Stat(dir); err != nil {
		tb.Skipf("%s is not there: make tokenizers fetches it", dir)
	}
	t, err := Load(dir)
	require.NoError(tb, err)
	return t
}

func checkSums(t *testing.T, tk *Tokenizer, name string, texts []string) {
	sums, err := os.ReadFile(filepath.Join(goldens, name+".sums"))
	require.NoError(t, err)
	bad := 0
	check := func(i int, got uint16, show func()) {
		if got != binary.LittleEndian.Uint16(sums[2*i:]) {
			if bad++; bad <= 2 {
				show()
			}
		}
	}
	for i, text := range texts {
		ids := tk.Encode(text, false)
		pieces := piecesOf(tk, tk.normalize(validUTF8(text)))
		lengths := make([]int32, len(pieces))
		for j, p := range pieces {
			lengths[j] = int32(len(p))
		}
		check(i, sum16(ids, lengths, tk.Decode(ids, false)), func() {
			t.Errorf("text %d %q:\nids    %v\npieces %q\ntext   %q", i, text, ids, pieces, tk.Decode(ids, false))
		})
	}
	lists := randomIDs(tk.VocabSize(), len(sums)/2-len(texts))
	require.NotEmpty(t, lists)
	for i, ids := range lists {
		check(len(texts)+i, sum16(nil, nil, tk.Decode(ids, true)), func() {
			t.Errorf("ids %v decode to %q", ids, tk.Decode(ids, true))
		})
	}
	require.Zero(t, bad, "sums that differ of %d", len(sums)/2)
}

// piecesOf is what the pre-tokenizers make of a whole text.
func piecesOf(tk *Tokenizer, text string) (all []string) {
	if text == "" {
		return nil
	}
	p := pieces{text: text, first: true, sc: &scratch{spans: []span{{0, len(text)}}}}
	for _, step := range tk.pre {
		step(&p)
	}
	for _, sp := range p.sc.spans {
		all = append(all, p.text[sp.start:sp.end])
	}
	return all
}

func sum16(ids, lengths []int32, text string) uint16 {
	var b bytes.Buffer
	for _, list := range [][]int32{ids, lengths} {
		for _, v := range list {
			b.Write(binary.LittleEndian.AppendUint32(nil, uint32(v)))
		}
	}
	b.WriteString(text)
	return uint16(crc32.ChecksumIEEE(b.Bytes()))
}

// randomIDs makes the lists that make.py decodes.
func randomIDs(size, lists int) [][]int32 {
	x := uint64(1)
	all := make([][]int32, lists)
	for n := range all {
		for range 1 + n%16 {
			x = x*6364136223846793005 + 1442695040888963407
			all[n] = append(all[n], int32((x>>33)%uint64(size)))
		}
	}
	return all
}
