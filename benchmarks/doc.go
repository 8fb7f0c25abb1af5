// Package benchmarks measures the engine through `go test -bench`: OneBatch times prefill and decode of a fixed batch,
// OfflineThroughput runs a whole dataset through the engine in this process, Serving offers a dataset to a server over HTTP,
// our own or anyone's. It holds test files only:
//
//	go test ./benchmarks -run '^$' -bench OneBatch --model-path DIR --batch 1,8,32 --input-len 256 --output-len 32
//	go test ./benchmarks -run '^$' -bench OfflineThroughput --model-path DIR --num-prompts 100
//	go test ./benchmarks -run '^$' -bench Serving --backend vllm --base-url http://127.0.0.1:8000 --request-rate 16
//	go test ./benchmarks --help-flags
//
// Every flag also reads an environment variable, TOKAMAK_ and its name. A benchmark checks what it times and prints no row of a
// run that went wrong. Rows and configuration lines are for benchstat; every other line begins with "#", which benchstat
// passes over.
package benchmarks
