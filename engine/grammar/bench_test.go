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

// benchModel is a tokenizer, of which the first size tokens count.
type benchModel struct {
	name string
	tok  *tokenizer.Tokenizer
	size int
}

// benchModels are the small vocabulary, and those real ones that are there: make tokenizers fetches them.
func benchModels(b *testing.B) (models []benchModel) {
	tk, err := testTokenizer()
	require.NoError(b, err)
	models = append(models, benchModel{"vocab=1k", tk, tk.VocabSize()})
	for _, m := range []benchModel{{name: "llama3_1"}, {name: "qwen3"}} {
		path := filepath.Join("../../fixtures/models/tokenizers", m.name)
		if _, err := os.Stat(path); err != nil {
			b.Logf("%s is not there: make tokenizers fetches it", path)
			continue
		}
		tk, err := tokenizer.Load(path)
		require.NoError(b, err)
		if m.name == "qwen3" {
			models = append(models, benchModel{"vocab=49k", tk, 49_152}, benchModel{"vocab=152k", tk, tk.VocabSize()})
		} else {
			models = append(models, benchModel{"vocab=128k", tk, tk.VocabSize()})
		}
	}
	return models
}

func (m benchModel) vocabulary() *Vocabulary {
	eos, _ := m.tok.EOS()
	return FromTokenizer(m.tok, m.size, []int32{eos})
}

// longest cuts text into the longest tokens that v has.
func (v *Vocabulary) longest(text string) (ids []int32) {
	byText := map[string]int32{}
	for id, b := range v.texts {
		byText[string(b)] = int32(id)
	}
	for text != "" {
		n := min(len(text), 20)
		for n > 1 && byText[text[:n]] == 0 {
			n--
		}
		ids = append(ids, byText[text[:n]])
		text = text[n:]
	}
	return ids
}

// BenchmarkMask times Mask and Accept a token along a text. first: nobody asked for these places before; again: kept masks.
func BenchmarkMask(b *testing.B) {
	for _, model := range benchModels(b) {
		v := model.vocabulary()
		mask := make([]uint32, v.MaskWords())
		for _, test := range []struct{ name, schema, text string }{{"person", person, benchText}, {"any", "{}", benchAny}} {
			ids := v.longest(test.text)
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
