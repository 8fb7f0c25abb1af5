// Package cpu runs a model on the processor: the reference that other backends are held against, and the default where there
// is no GPU. It is plain Go with Go assembly beside it; there is no cgo.
//
// Data in: a [model.Config], a [weights.Store] and steps ([backend.Batch]). Data out: tokens, log probabilities, logits.
//
// # Arithmetic
//
// Activations, accumulation and (unless asked otherwise) the KV cache are float32. Weights stay as stored, in the mapped file:
// a few rows at a time are decoded to float32 in a worker's cache and multiplied there, so a quantised model needs no more
// memory than its file.
//
// Every number of a row is computed in an order that depends on the row's own tokens and positions only, never on its batch
// mates, on how its prompt was cut into chunks, or on the number of threads. So results are the same bit for bit however a
// sequence is scheduled. The rules behind it: a dot product is 16 lane sums over ascending k, added in one fixed tree, in the
// matrix-vector and in the matrix-matrix kernels alike; attention sums over blocks of 512 positions at fixed places, each by
// ascending position, and merges them in that order. The AVX2 and AVX-512 kernels share that order and agree bit for bit; the
// portable Go code (also under the tag purego) has no fused multiply-add and agrees within rounding.
//
// # Threads
//
// Launch hands a step to one goroutine, which shares each loop of the step with persistent workers ([backend.Options].Threads
// in all). Workers spin for some microseconds between loops and then park.
//
// # Oracles
//
// [RMSNorm], [CosSin], [Rotate], [SwiGLU], [MatMul], [MatMulBF16], [Attend], [ApplyBias], [ApplyPenalties], [ApplyMask],
// [Truncate], [Gumbel], [Draw], [LogSumExp] and [TopLogProbs] are plain functions on slices, to hold kernels of other devices
// against.
package cpu
