package server

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
)

// TestOpenAIGoClient drives the server with OpenAI's own client for Go: what it cannot read, others cannot either.
func TestOpenAIGoClient(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, f, func(o *Options) { o.APIKey = "sk-test" })
	base := listen(t, s)
	client := openai.NewClient(option.WithBaseURL(base+"/v1"), option.WithAPIKey("sk-test"), option.WithMaxRetries(0))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()

	models, err := client.Models.List(ctx)
	require.NoError(t, err)
	require.Len(t, models.Data, 1)
	model := models.Data[0].ID
	one, err := client.Models.Get(ctx, model)
	require.NoError(t, err)
	assert.Equal(t, model, one.ID)

	messages := []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("be brief"), openai.UserMessage("hi")}
	chat, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
		Model: model, Messages: messages, MaxTokens: openai.Int(5), N: openai.Int(2), Seed: openai.Int(1),
		Logprobs: openai.Bool(true), TopLogprobs: openai.Int(2), Temperature: openai.Float(0.5),
	})
	require.NoError(t, err)
	require.Len(t, chat.Choices, 2)
	assert.Equal(t, "hello", chat.Choices[1].Message.Content)
	assert.Equal(t, "length", chat.Choices[0].FinishReason)
	assert.EqualValues(t, 10, chat.Usage.CompletionTokens)
	require.Len(t, chat.Choices[0].Logprobs.Content, 5)
	assert.Equal(t, -0.5, chat.Choices[0].Logprobs.Content[0].Logprob)
	assert.Len(t, chat.Choices[0].Logprobs.Content[0].TopLogprobs, 2)

	stream := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
		Model: model, Messages: messages, MaxCompletionTokens: openai.Int(11),
		StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	})
	var sum openai.ChatCompletionAccumulator
	for stream.Next() {
		require.True(t, sum.AddChunk(stream.Current()))
	}
	require.NoError(t, stream.Err())
	assert.Equal(t, "hello world", sum.Choices[0].Message.Content)
	assert.EqualValues(t, "assistant", sum.Choices[0].Message.Role)
	assert.EqualValues(t, 11, sum.Usage.CompletionTokens)

	text, err := client.Completions.New(ctx, openai.CompletionNewParams{
		Model: openai.CompletionNewParamsModel(model), Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"a", "b"}},
		MaxTokens: openai.Int(3), Logprobs: openai.Int(1), Echo: openai.Bool(true),
	})
	require.NoError(t, err)
	require.Len(t, text.Choices, 2)
	assert.Equal(t, "bhel", text.Choices[1].Text)
	assert.Len(t, text.Choices[0].Logprobs.Tokens, 5)

	_, err = client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{Model: "gpt-4", Messages: messages})
	var refused *openai.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusNotFound, refused.StatusCode)
	assert.Equal(t, "model_not_found", refused.Code)
	assert.Equal(t, "model", refused.Param)

	f.step = func(_ context.Context, _ engine.Request, i int) error {
		if i == 3 {
			return engine.ErrClosed
		}
		time.Sleep(5 * time.Millisecond) // until the tokens before are on their way
		return nil
	}
	stream = client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{Model: model, Messages: messages, MaxTokens: openai.Int(9)})
	for stream.Next() {
	}
	require.Error(t, stream.Err(), "a stream that broke must not look whole")

	wrong := openai.NewClient(option.WithBaseURL(base+"/v1"), option.WithAPIKey("sk-wrong"), option.WithMaxRetries(0))
	_, err = wrong.Models.List(ctx)
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, http.StatusUnauthorized, refused.StatusCode)
}
