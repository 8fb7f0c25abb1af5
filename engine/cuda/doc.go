// Package cuda is the GPU backend: it plans a step as a straight line of kernels, compiles them for the model's exact sizes,
// captures the line as a CUDA graph for each batch size, and replays it with one call a step. It is built with -tags cuda;
// docs/design/cuda.md is the contract between this package and the kernels in engine/kernels.
package cuda
