package grammar

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

const benchText = `{"name":"Grace Hopper","age":85,"email":"grace.hopper@navy.example.com","tags":["compiler","cobol","admiral"]}`

const benchAny = `{"id": 12345, "items": [{"sku": "A-17", "note": "the quick brown fox jumps over the lazy dog", "price": 12.5e0}, {"ok": true, "none": null}]}`

// benchModel is a vocabulary with the tokenizer that goes with it.
type benchModel struct {
	name string
	tok  *tokenizer.Tokenizer
}

// benchModels are the small vocabulary, and those real ones that are there: make tokenizers fetches them.
func benchModels(b *testing.B) (models []benchModel) {
	tk, err := testTokenizer()
	require.NoError(b, err)
	models = append(models, benchModel{"vocab=1k", tk})
	for name, dir := range map[string]string{"vocab=128k": "llama3_1", "vocab=152k": "qwen3"} {
		path := filepath.Join("../../fixtures/models/tokenizers", dir)
		if _, err := os.Stat(path); err != nil {
			b.Logf("%s is not there: make tokenizers fetches it", path)
			continue
		}
		tk, err := tokenizer.Load(path)
		require.NoError(b, err)
		models = append(models, benchModel{name, tk})
	}
	return models
}

func (m benchModel) vocabulary() *Vocabulary {
	eos, _ := m.tok.EOS()
	return FromTokenizer(m.tok, m.tok.VocabSize(), []int32{eos})
}

// BenchmarkMask times Mask and Accept a token along a text. first: nobody asked for these places before; again: kept masks.
func BenchmarkMask(b *testing.B) {
	for _, model := range benchModels(b) {
		v := model.vocabulary()
		mask := make([]uint32, v.MaskWords())
		for _, test := range []struct{ name, schema, text string }{{"person", person, benchText}, {"any", "{}", benchAny}} {
			ids := model.tok.Encode(test.text, false)
			follow := func(g *Grammar) {
				m := g.NewMatcher()
				for _, id := range ids {
					if !m.Mask(mask) {
						b.Fatal("no token is allowed")
					}
					if err := m.Accept(id); err != nil {
						b.Fatal(err)
					}
				}
				if !m.Done() {
					b.Fatal("the text is not complete")
				}
			}
			report := func(b *testing.B, total time.Duration) {
				b.ReportMetric(float64(total.Microseconds())/float64(b.N*len(ids)), "us/token")
				b.ReportMetric(0, "ns/op")
			}
			b.Run(model.name+"/schema="+test.name+"/masks=first", func(b *testing.B) {
				var total time.Duration
				for range b.N {
					clear(v.compiled)
					v.order = nil
					g, err := Compile(Spec{JSONSchema: test.schema}, v)
					if err != nil {
						b.Fatal(err)
					}
					start := time.Now()
					follow(g)
					total += time.Since(start)
				}
				report(b, total)
			})
			b.Run(model.name+"/schema="+test.name+"/masks=again", func(b *testing.B) {
				g, err := Compile(Spec{JSONSchema: test.schema}, v)
				if err != nil {
					b.Fatal(err)
				}
				follow(g)
				start := time.Now()
				for range b.N {
					follow(g)
				}
				report(b, time.Since(start))
			})
			b.Run(model.name+"/schema="+test.name+"/compile", func(b *testing.B) {
				for range b.N {
					clear(v.compiled)
					v.order = nil
					if _, err := Compile(Spec{JSONSchema: test.schema}, v); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkVocabulary(b *testing.B) {
	for _, model := range benchModels(b) {
		b.Run(model.name, func(b *testing.B) {
			for range b.N {
				model.vocabulary()
			}
		})
	}
}
