// Command launch_server serves a model over HTTP: SGLang's native API, OpenAI's, Anthropic's and Ollama's.
//
//	launch_server --model-path MODEL --port 30000
//
// Exit codes: 0 stopped by a signal with every request finished, or help; 1 could not start; 2 wrong flags; 3 the backend failed
// while serving; 4 stopped by a signal, and requests had to be cancelled; 128+N ended by a second signal N.
package main

import "os"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}
