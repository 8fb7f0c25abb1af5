package engine

import (
	"context"
	"errors"
	"math"
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

// TestFP8KeepsPerplexity holds the real model with its layers quantised to E4M3 at load to at most 2 % more perplexity than as it is stored. E4M3
// has four significant bits: a weight is off by 2.6 % (rms), which a model of 135M parameters, stored in four bits before, pays for with 1.2 %
// (11,000 tokens of prose and documents, standard error 0.2 %).
func TestFP8KeepsPerplexity(t *testing.T) {
	path, err := fetch.Path()
	if errors.Is(err, fetch.ErrNotReady) {
		t.Skip(err)
	}
	require.NoError(t, err)
	perplexity := func(quantization string) float64 {
		o := DefaultOptions()
		o.Device, o.MaxTotalTokens, o.Quantization = "cpu", 4096, quantization
		e, err := Open(context.Background(), path, WithOptions(o))
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		out, err := e.Generate(context.Background(), Request{Prompt: strings.ReplaceAll(prose, "\n", " "), PromptLogProbs: true, Sampling: DefaultSampling(1)})
		require.NoError(t, err)
		require.Greater(t, len(out.PromptLogProbs), 350)
		var sum float64
		for _, p := range out.PromptLogProbs {
			sum -= float64(p.LogProb)
		}
		return math.Exp(sum / float64(len(out.PromptLogProbs)))
	}
	plain, fp8 := perplexity(""), perplexity("fp8")
	t.Logf("perplexity %.3f as stored, %.3f in fp8: %+.2f %%", plain, fp8, 100*(fp8/plain-1))
	require.Less(t, fp8, 1.02*plain)
	require.NotEqual(t, plain, fp8, "nothing was quantised")
}
