package engine

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/fetch"
)

// prose is text that no model has learnt by heart.
const prose = `The ferry had been late since spring. Nobody on the island minded much, because the mail came with it and the mail was
seldom good news. On the morning when the schoolhouse roof finally gave way, the mayor, who was also the baker, walked down to the pier in his
apron and asked the captain whether there was any timber on board. There was not. There were eleven crates of oranges, a piano that had been
promised to the church, and a veterinarian with a broken suitcase who had meant to go somewhere else entirely. The mayor looked at the piano for
a while. Then he asked the veterinarian if she knew anything about roofs. She said that she knew about horses, and that in her experience most
problems looked different once they had been fed and allowed to stand quietly for an hour. So they carried the oranges up the hill, and the
children ate them on the wall across from the broken roof, and by the time the tide had turned there were twenty people with ladders who had
come to see why it was so quiet. Two of them had built boats. One had a brother with a sawmill on the mainland. The beams were measured with a
fishing line and the numbers were written on the back of a receipt for flour. In the evening the veterinarian played the piano on the pier, since
no one had found a way to get it up the hill, and the captain decided that the ferry could just as well leave in the morning. Years later people
would argue about what had been repaired first, the roof or the habit of talking to each other, but they agreed that the school smelled faintly of
oranges every time it rained, and that the piano, which the salt had ruined within a month, had never sounded better than on that first night.`

// TestFP8KeepsPerplexity holds the real model with its layers quantised to E4M3 at load against what is stored, on prose and on documents of this
// repository. E4M3 has four significant bits: with the scale of least error a weight is off by 2.2 % (rms), which a model of 135M parameters, stored in
// four bits before, pays for with 1.27 % of perplexity (12,144 tokens of prose and documents, standard error 0.16 %; with scales of largest magnitude
// 1.91 %). The 3,900 tokens here have a standard error of 0.28 %: 2 % is the least bound that chance does not break. How far log probabilities move
// is known better: by 0.176 with these scales, 0.214 with those (rms, the same 12,144 tokens), and 0.195 lies between.
func TestFP8KeepsPerplexity(t *testing.T) {
	path, err := fetch.Path()
	if errors.Is(err, fetch.ErrNotReady) {
		t.Skip(err)
	}
	require.NoError(t, err)
	if testing.Short() {
		t.Skip("8,000 tokens of a real model take half a minute")
	}
	texts := []string{strings.ReplaceAll(prose, "\n", " ")}
	for _, name := range []string{"README.md", "docs/security.md"} {
		text, err := os.ReadFile(filepath.Join("..", name))
		require.NoError(t, err)
		const size = 2200 // bytes of a prompt
		for ; len(text) > size; text = text[size:] {
			texts = append(texts, strings.ToValidUTF8(string(text[:size]), ""))
		}
	}
	logProbs := func(quantization string) (all []float64) {
		o := DefaultOptions()
		o.Device, o.MaxTotalTokens, o.Quantization = "cpu", 4096, quantization
		e, err := Open(context.Background(), path, WithOptions(o))
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		for _, text := range texts {
			out, err := e.Generate(context.Background(), Request{Prompt: text, PromptLogProbs: true, Sampling: DefaultSampling(1)})
			require.NoError(t, err)
			for _, p := range out.PromptLogProbs {
				all = append(all, float64(p.LogProb))
			}
		}
		return all
	}
	plain, fp8 := logProbs(""), logProbs("fp8")
	require.Greater(t, len(plain), 3000)
	var change, moved float64
	for i := range plain {
		change += (plain[i] - fp8[i]) / float64(len(plain))
		moved += (plain[i] - fp8[i]) * (plain[i] - fp8[i]) / float64(len(plain))
	}
	moved = math.Sqrt(moved)
	t.Logf("fp8: perplexity %+.2f %%, log probabilities move by %.3f (rms), %d tokens", 100*math.Expm1(change), moved, len(plain))
	require.Less(t, math.Expm1(change), 0.02)
	require.Less(t, moved, 0.195)
	require.NotZero(t, moved, "nothing was quantised")
}
