package benchmarks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
	"github.com/tokamak-engine/tokamak/fixtures/fetch"
)

// modelCache keeps the engine that was opened last: -count and the cases of a sweep use the same one. There is never more than
// one, for a second would not fit the device's memory beside it.
type modelCache struct {
	key    string
	engine *engine.Engine
	told   bool
}

// open gives an engine with options o, the cached one if it has the same.
func (c *modelCache) open(o engine.Options) (*engine.Engine, error) {
	if err := c.pick(&o); err != nil {
		return nil, err
	}
	key := fmt.Sprintf("%+v", o)
	if c.engine != nil && c.key == key {
		return c.engine, nil
	}
	if err := c.close(); err != nil {
		return nil, err
	}
	load := term.start("open the model", 1, "")
	e, err := engine.Open(context.Background(), o.ModelPath, engine.WithOptions(o), engine.WithProgress(load.phase))
	load.done()
	if err != nil {
		return nil, err
	}
	c.key, c.engine = key, e
	return e, nil
}

func (c *modelCache) close() error {
	if c.engine == nil {
		return nil
	}
	err := c.engine.Close()
	c.engine = nil
	return err
}

// pick chooses a model where none is named: the real fixture if it was fetched, else a tiny one of made-up weights.
func (c *modelCache) pick(o *engine.Options) error {
	if o.ModelPath == "" {
		path, err := fetch.Path()
		why := "no --model-path: taking the fixture model " + filepath.Base(path)
		if err != nil {
			if path, err = configs.Dir("tiny"); err != nil {
				return err
			}
			o.LoadFormat = "dummy"
			why = "no --model-path and no fixture model (`make fixtures` gets it): taking a tiny model with dummy weights"
		}
		o.ModelPath = path
		if !c.told {
			term.note("%s", why)
			c.told = true
		}
	}
	// Dummy weights go with token ids: a model that has no tokenizer file needs none.
	if o.LoadFormat == "dummy" && o.TokenizerPath == "" {
		dir := o.ModelPath
		if info, err := os.Stat(dir); err == nil && !info.IsDir() {
			dir = filepath.Dir(dir)
		}
		if _, err := os.Stat(filepath.Join(dir, "tokenizer.json")); errors.Is(err, os.ErrNotExist) && !strings.HasSuffix(o.ModelPath, ".gguf") {
			o.SkipTokenizerInit = true
		}
	}
	return nil
}

// modelName is what rows call the model: the last element of its path.
func modelName(path string) string {
	path, err := filepath.Abs(path)
	name := filepath.Base(path)
	if err != nil || name == "/" || name == "." {
		return "model"
	}
	return keyValue(strings.TrimSuffix(name, ".gguf"))
}

// keyValue makes text fit to stand behind a key in a benchmark's name.
func keyValue(text string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune(`/=#"`, r) {
			return '_'
		}
		return r
	}, text)
}
