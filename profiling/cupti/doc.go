// Package cupti records what a GPU does — kernels, copies, and the CUDA calls that asked for them, those inside graph replays
// included — through CUPTI's activity API. It is empty but for builds with -tags cuda; libcupti is opened when a recording starts.
package cupti
