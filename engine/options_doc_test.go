package engine_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/server"
)

var update = flag.Bool("update", false, "write docs/options.md anew")

// TestOptionsPage holds docs/options.md to the tables that the programs read.
//
//	go test ./engine -run TestOptionsPage -update
func TestOptionsPage(t *testing.T) {
	for _, o := range append(new(engine.Options).Table(), new(server.Options).Table()...) {
		t.Setenv(o.Env(), "") // what is set here must not show
		require.NoError(t, os.Unsetenv(o.Env()))
	}
	e, s := engine.DefaultOptions(), server.DefaultOptions()
	page := strings.Join([]string{
		"# Options",
		"",
		"Made by `go test ./engine -run TestOptionsPage -update` from the tables in the code. `--name` and `-name` are the same, as are",
		"`--name value` and `--name=value`; a name may be cut short as long as it stays unambiguous. Each option also reads its environment",
		"variable; a flag wins. Benchmarks have more: `go test ./benchmarks -args -help`.",
		"",
		"## Engine",
		"",
		"Of the server, the benchmarks and `engine.Options`.",
		"",
		engine.MarkdownTable(e.Table()),
		"## Server",
		"",
		engine.MarkdownTable(s.Table()),
	}, "\n")
	const path = "../docs/options.md"
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(page), 0o644))
	}
	have, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, page, string(have), "run: go test ./engine -run TestOptionsPage -update")
}
