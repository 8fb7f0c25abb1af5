package engine_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/tokamak-engine/tokamak/"

// arrows is who may import whom inside the module, tests left out but for benchmarks, which are nothing else. A name that ends in /... stands for all below it, itself
// included. What is not listed must not be there.
var arrows = map[string][]string{
	"engine": {
		"engine/backend", "engine/cpu", "engine/cuda", "engine/grammar", "engine/kvcache", "engine/model", "engine/scheduler",
		"engine/speculate", "engine/tokenizer", "engine/trace", "engine/weights",
	},
	"engine/backend":               {},
	"engine/backend/backendtest":   {"engine/backend", "engine/model", "engine/weights"},
	"engine/cpu":                   {"engine/backend", "engine/model", "engine/trace", "engine/weights"},
	"engine/cuda":                  {"engine/backend", "engine/cuda/driver", "engine/kernels", "engine/model", "engine/trace", "engine/weights"},
	"engine/cuda/driver":           {},
	"engine/grammar":               {"engine/tokenizer"},
	"engine/kernels":               {},
	"engine/kvcache":               {},
	"engine/metrics":               {},
	"engine/model":                 {},
	"engine/scheduler":             {"engine/backend", "engine/kvcache", "engine/speculate"},
	"engine/scheduler/fakebackend": {"engine/backend"},
	"engine/server":                {"engine", "engine/metrics", "engine/tokenizer"},
	"engine/cmd/launch_server":     {"engine", "engine/server", "profiling/..."},
	"engine/speculate":             {},
	"engine/tokenizer":             {"engine/tokenizer/jinja"},
	"engine/tokenizer/jinja":       {},
	"engine/trace":                 {},
	"engine/weights":               {"engine/model"},
	"benchmarks/...":               {"engine", "engine/server", "engine/tokenizer", "engine/trace", "benchmarks/...", "fixtures/...", "profiling/..."},
	"benchstat/...":                {"benchstat/..."},
	"fixtures/...":                 {"fixtures/..."},
	"profiling/...":                {"engine/trace", "profiling/..."},
}

// allowed finds the row of a package; the longest pattern wins.
func allowed(pkg string) ([]string, bool) {
	if row, ok := arrows[pkg]; ok {
		return row, true
	}
	best := ""
	for pattern := range arrows {
		if matches(pattern, pkg) && len(pattern) > len(best) {
			best = pattern
		}
	}
	return arrows[best], best != ""
}

func matches(pattern, pkg string) bool {
	root, all := strings.CutSuffix(pattern, "/...")
	return pkg == root || all && strings.HasPrefix(pkg, root+"/")
}

// TestArrows holds the module's import table, with and without the GPU.
func TestArrows(t *testing.T) {
	for name, tags := range map[string]string{"no tags": "", "cuda": "cuda", "purego": "purego", "invariants": "invariants"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("go", "list", "-e", "-tags", tags, "-json=ImportPath,Imports,TestImports,XTestImports", module+"...")
			cmd.Env = append(os.Environ(), "CGO_ENABLED=1") // cgo files have imports too; nothing is built
			out, err := cmd.Output()
			require.NoError(t, err)
			seen := 0
			for decoder := json.NewDecoder(strings.NewReader(string(out))); ; seen++ {
				var pkg struct {
					ImportPath                         string
					Imports, TestImports, XTestImports []string
				}
				if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				from := strings.TrimPrefix(pkg.ImportPath, module)
				row, ok := allowed(from)
				if !ok {
					t.Errorf("%s is in no row of the table: say what it may import", from)
				}
				if from == "benchmarks" {
					pkg.Imports = slices.Concat(pkg.Imports, pkg.TestImports, pkg.XTestImports)
				}
				for _, path := range pkg.Imports {
					to, ours := strings.CutPrefix(path, module)
					if ours && !slices.ContainsFunc(row, func(pattern string) bool { return matches(pattern, to) }) {
						t.Errorf("%s must not import %s", from, to)
					}
					if strings.HasPrefix(path, "gorgonia.org/cu") && from != "engine/cuda/driver" {
						t.Errorf("%s imports %s: only engine/cuda/driver may", from, path)
					}
				}
			}
			require.Greater(t, seen, 10)
		})
	}
}
