package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/server"
)

// flags is the parsed command line.
type flags struct {
	engine  engine.Options
	server  server.Options
	version bool
	table   []engine.Option
}

// parse reads args over the environment over the defaults. A model's path may stand first without its flag.
func parse(args []string) (*flags, error) {
	f := &flags{engine: engine.DefaultOptions(), server: server.DefaultOptions()}
	f.table = append(f.engine.Table(), f.server.Table()...)
	fs := flag.NewFlagSet("launch_server", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.BoolVar(&f.version, "version", false, "")
	if err := engine.Register(fs, f.table); err != nil {
		return f, err
	}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		f.engine.ModelPath, args = args[0], args[1:]
	}
	if err := fs.Parse(engine.ExpandPrefixes(fs, args)); err != nil {
		if name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -"); ok {
			err = fmt.Errorf("there is no flag --%s", name)
		}
		return f, err
	}
	if f.version {
		return f, nil
	}
	if fs.NArg() > 0 {
		return f, fmt.Errorf("unexpected argument %q: flags begin with --", fs.Arg(0))
	}
	if f.engine.ModelPath == "" {
		return f, errors.New("no model: give --model-path DIRECTORY or FILE.gguf")
	}
	if err := f.server.Validate(); err != nil {
		return f, err
	}
	f.server.ServedModelName = server.ServedName(f.server, f.engine.ModelPath)
	return f, nil
}

const helpHead = `launch_server serves a model over HTTP.

  launch_server --model-path MODEL                     a Hugging Face directory or a GGUF file
  launch_server --model-path DIR --load-format dummy   weights from a seed; DIR needs only a config.json
  launch_server --model-path MODEL --port 0            takes a free port and prints it

Then, from another terminal:

  curl http://127.0.0.1:30000/generate -d '{"text":"Once upon a time","sampling_params":{"max_new_tokens":16,"temperature":0}}'
  curl http://127.0.0.1:30000/v1/chat/completions -d '{"messages":[{"role":"user","content":"Hello"}],"stream":true}'

Flags may be shortened as long as they stay unambiguous. Each has an environment variable, which the flag overrules.

`

const helpTail = `
Signals: SIGTERM or SIGINT stops accepting and lets requests finish within --shutdown-timeout; a second one exits at once.
Exit codes: 0 stopped, all requests finished; 1 could not start; 2 wrong flags; 3 the backend failed while serving;
4 stopped, requests were cancelled; 128+N ended by a second signal N.
`

// help prints every option with its default.
func help(w io.Writer, table []engine.Option) {
	fmt.Fprint(w, helpHead)
	for _, o := range table {
		name := "--" + o.Name
		for _, alias := range o.Aliases {
			name += ", --" + alias
		}
		fmt.Fprintf(w, "  %s\n        %s", name, o.Help)
		if len(o.Choices) > 0 {
			fmt.Fprintf(w, " {%s}", strings.Join(o.Choices, ", "))
		}
		if value := shown(o.Value); value != "" {
			fmt.Fprintf(w, " (default %s)", value)
		}
		fmt.Fprintf(w, " [$%s]\n", o.Env())
	}
	fmt.Fprint(w, "  --version\n        print the version and exit\n", helpTail)
}

// shown is an option's value as help prints it. A secret's is empty.
func shown(v any) string {
	switch v := v.(type) {
	case *string:
		return *v
	case *bool:
		return fmt.Sprint(*v)
	case *int:
		return fmt.Sprint(*v)
	case *int64:
		return fmt.Sprint(*v)
	case *float64:
		return fmt.Sprint(*v)
	case flag.Value:
		return v.String()
	}
	return ""
}
