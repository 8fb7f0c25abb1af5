// Package engine is an LLM inference engine: it opens a model, batches requests continuously over a paged KV cache, and
// streams their tokens. It runs on the CPU in pure Go, or on a GPU with its own CUDA kernels (build tag cuda).
//
//	e, err := engine.Open(ctx, "models/SmolLM2-135M-Instruct.Q4_1.gguf")
//	...
//	defer e.Close()
//	out, err := e.Generate(ctx, engine.Request{Prompt: "The capital of France is", Sampling: engine.DefaultSampling(32)})
//
// Any number of goroutines may call [Engine.Generate] and [Engine.Stream] at once: that is how requests come to share the steps
// of the model. Each request is tokenised, and its text assembled, in its caller's goroutine; one goroutine of the engine owns
// scheduler and device.
//
// Requests that begin alike share the pages of what they have in common. [Request.CacheSalt] keeps them apart.
//
// Errors that a caller may want to tell apart are values ([ErrQueueFull], [ErrClosed], [ErrAborted], [ErrNoDevice], [ErrBusy],
// [ErrNonFinite]) or types (*[RequestError], *[ContextError], *[OptionError], *[CapacityError], *[DeviceError]). An error of the
// device while it runs is final: running requests get it, and so does every later one; open a new engine.
package engine
