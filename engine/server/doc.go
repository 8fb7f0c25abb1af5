// Package server puts an engine behind HTTP: SGLang's native API, OpenAI's, and small ones for Anthropic's and Ollama's clients.
//
// A request is decoded and checked field by field (decode.go, sampling.go), becomes one engine.Request for each prompt and
// choice, and runs (run.go) with its tokens fanned in to one writer that flushes once a step (sse.go). Each API is a decoder and an
// encoder in a file of its own; the table in routes.go is the list of them all.
//
// The engine's loop never waits for a client: a reader that stalls is cut off when its write deadline or the bound on its
// lag is over, and a client that leaves frees its pages at the next step.
package server
