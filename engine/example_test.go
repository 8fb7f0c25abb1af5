package engine_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"sync"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// openTiny opens the built-in model of two layers with weights from a seed: it needs no files, and says nothing of sense.
func openTiny() *engine.Engine {
	dir, err := configs.Dir("tiny")
	if err != nil {
		log.Fatal(err)
	}
	o := engine.DefaultOptions()
	o.LoadFormat, o.Device, o.MaxTotalTokens = "dummy", "cpu", 4096
	e, err := engine.Open(context.Background(), dir, engine.WithOptions(o))
	if err != nil {
		log.Fatal(err)
	}
	return e
}

// A request in, its output out. With a real model, set Prompt instead of InputIDs and read Text.
func ExampleEngine_Generate() {
	e := openTiny()
	defer e.Close()

	out, err := e.Generate(context.Background(), engine.Request{
		InputIDs: []int32{11, 12, 13},
		Sampling: engine.DefaultSampling(16),
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(out.PromptTokens, "prompt tokens,", len(out.TokenIDs), "new ones, finished by", out.Finish)
	// Output: 3 prompt tokens, 16 new ones, finished by length
}

// Tokens as they are sampled. Leaving the loop aborts the request.
func ExampleEngine_Stream() {
	e := openTiny()
	defer e.Close()

	tokens := 0
	for event, err := range e.Stream(context.Background(), engine.Request{
		InputIDs: []int32{11, 12, 13},
		Sampling: engine.DefaultSampling(5),
	}) {
		if err != nil {
			log.Fatal(err)
		}
		tokens += len(event.TokenIDs)
		if event.Done != nil {
			fmt.Println(tokens, "tokens,", event.Done.Finish)
		}
	}
	// Output: 5 tokens, length
}

// Requests of many goroutines share the steps of the model; those with a common beginning also share its computation.
func ExampleEngine_Generate_concurrent() {
	e := openTiny()
	defer e.Close()

	system := make([]int32, 64)
	for i := range system {
		system[i] = int32(i + 100)
	}
	generate := func(question int32) int {
		out, err := e.Generate(context.Background(), engine.Request{
			InputIDs: append(system[:64:64], question),
			Sampling: engine.DefaultSampling(8),
		})
		if err != nil {
			log.Fatal(err)
		}
		return out.CachedTokens
	}
	generate(1)
	var wg sync.WaitGroup
	cached := make([]int, 4)
	for i := range cached {
		wg.Go(func() { cached[i] = generate(int32(2 + i)) })
	}
	wg.Wait()
	fmt.Println("tokens taken from the prefix cache:", cached)
	// Output: tokens taken from the prefix cache: [64 64 64 64]
}

// Errors say what to do, and are typed.
func ExampleRequestError() {
	e := openTiny()
	defer e.Close()

	sampling := engine.DefaultSampling(8)
	sampling.TopP = 1.5
	_, err := e.Generate(context.Background(), engine.Request{InputIDs: []int32{1}, Sampling: sampling})
	var bad *engine.RequestError
	if errors.As(err, &bad) {
		fmt.Println(bad.Field)
	}
	fmt.Println(err)
	// Output:
	// top_p
	// top_p: 1.5: want a number above 0 and at most 1
}

// A fixed batch without the scheduler, for measurements: what it needs is known before it runs.
func ExampleEngine_StaticBatch() {
	e := openTiny()
	defer e.Close()

	need := e.StaticNeed(4, 100, 20)
	fmt.Println("pages:", need.NeedPages, "of", need.HavePages, "error:", need.Err())
	prompts := make([][]int32, 4)
	for i := range prompts {
		for k := range int32(100) {
			prompts[i] = append(prompts[i], int32(i)*100+k)
		}
	}
	run, err := e.StaticBatch(prompts, 20, 0)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(run.Tokens), "rows of", len(run.Tokens[0]), "tokens in", len(run.Decode), "decode steps")
	// Output:
	// pages: 32 of 256 error: <nil>
	// 4 rows of 20 tokens in 19 decode steps
}
