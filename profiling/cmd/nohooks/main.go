// Nohooks prepares a build without profiling hooks, to measure what they cost while they are off: it writes copies of the packages that
// mark things (engine/trace, profiling/nvtx) whose functions do nothing, and an overlay that puts them in place of the real ones.
//
//	go run ./profiling/cmd/nohooks DIR && go build -overlay DIR/overlay.json ./engine/cmd/launch_server
package main

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// hooks are the files that make marks. Their callers stay as they are: an empty function is inlined, and nothing is left of the call.
var hooks = []string{"engine/trace/trace.go", "engine/trace/device.go", "profiling/nvtx/nvtx.go"}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: nohooks DIR (in the root of the repository)")
		os.Exit(2)
	}
	if err := write(".", os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "nohooks:", err)
		os.Exit(1)
	}
}

// write puts the copies of the files below root and the overlay into dir.
func write(root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	replace := map[string]string{}
	for _, name := range hooks {
		from, err := filepath.Abs(filepath.Join(root, name))
		if err != nil {
			return err
		}
		to, err := filepath.Abs(filepath.Join(dir, strings.ReplaceAll(name, "/", "_")+".txt"))
		if err != nil {
			return err
		}
		text, err := empty(from)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o644); err != nil {
			return err
		}
		replace[from] = to
	}
	text, err := json.MarshalIndent(map[string]any{"Replace": replace}, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "overlay.json"), append(text, '\n'), 0o644)
}

// empty is the file with every function's body gone: it returns zeros. Names of values (String) stay, since they are no hooks.
func empty(path string) ([]byte, error) {
	files := token.NewFileSet()
	f, err := parser.ParseFile(files, path, nil, 0)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name != "String" {
			nothing(fn)
		}
		ast.Inspect(d, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if pkg, ok := s.X.(*ast.Ident); ok {
					used[pkg.Name] = true
				}
			}
			return true
		})
	}
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.IMPORT {
			for _, s := range g.Specs {
				s := s.(*ast.ImportSpec)
				path, _ := strconv.Unquote(s.Path.Value)
				if !used[path[strings.LastIndexByte(path, '/')+1:]] {
					s.Name = ast.NewIdent("_")
				}
			}
		}
	}
	var b strings.Builder
	if err := format.Node(&b, files, f); err != nil {
		return nil, err
	}
	return []byte(b.String()), nil
}

// nothing gives a function results with names, so that a bare return gives zeros.
func nothing(fn *ast.FuncDecl) {
	fn.Body = &ast.BlockStmt{}
	if fn.Type.Results == nil {
		return
	}
	for _, r := range fn.Type.Results.List {
		if len(r.Names) == 0 {
			r.Names = []*ast.Ident{ast.NewIdent("_")}
		}
	}
	fn.Body.List = []ast.Stmt{&ast.ReturnStmt{}}
}
