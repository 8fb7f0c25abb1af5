// Package nsys holds record.sh, which records the benchmark or the server with Nsight Systems, and its tests. See docs/profiling.md.
package nsys
