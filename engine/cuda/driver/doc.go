// Package driver is what the CUDA engine needs of the NVIDIA driver: gorgonia.org/cu for device, context, module, memory, stream
// and event, and a thin cgo layer for what that lacks: launches with programmatic dependency and clusters, graphs, pinned host
// memory, tensor maps. NVRTC and cuBLASLt are opened at run time; nothing here is needed to build without -tags cuda.
//
// A context is current to one OS thread. All functions but the compiler's are called from a thread bound by [Context.Bind].
package driver
