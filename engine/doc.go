// Package engine is an LLM inference engine: it opens a model, batches requests continuously over a paged KV cache, and
// streams their tokens. It runs on the CPU in pure Go, or on a GPU with its own CUDA kernels (build tag cuda).
package engine
