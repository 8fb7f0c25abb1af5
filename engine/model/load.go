package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// maxConfigBytes bounds a config.json; real ones have a few KB, those with a list of unquantised modules some hundred.
const maxConfigBytes = 16 << 20

// Load reads dir/config.json and, if it is there, dir/generation_config.json. overridesJSON is a JSON object ("" is none) that
// is merged into config.json, objects key by key, before anything is derived from it. What is wrong with either is an *Error.
func Load(dir, overridesJSON string) (*Config, error) {
	path := filepath.Join(dir, "config.json")
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(path, "", "no such file: want a Hugging Face model directory with a config.json in it, or a GGUF file")
	}
	if err != nil {
		return nil, err
	}
	values, err := decodeObject(path, data)
	if err != nil {
		return nil, err
	}
	c, err := build(path, values, nil, overridesJSON)
	if err != nil {
		return nil, err
	}
	return c, addGenerationConfig(c, filepath.Join(dir, "generation_config.json"))
}

// addGenerationConfig adds the ids that end a generation by generation_config.json, which chat models use beside config.json.
func addGenerationConfig(c *Config, path string) error {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	values, err := decodeObject(path, data)
	if err != nil {
		return err
	}
	keys := []key{{name: "eos_token_id", kind: ids}, {name: "bos_token_id", kind: ids}}
	if err := check(values, keys, "", func(p string) (string, string) { return path, p }); err != nil {
		return err
	}
	eos, _ := values["eos_token_id"].([]int32)
	c.EOS = validIDs(append(c.EOS, eos...), c.VocabSize)
	if bos, _ := values["bos_token_id"].([]int32); len(c.BOS) == 0 {
		c.BOS = validIDs(bos, c.VocabSize)
	}
	return nil
}

// build makes a Config of a decoded config.json, or what stands for one, and overrides. names is where the values really have
// their names, by path; nil for a config.json.
func build(path string, values map[string]any, names spelling, overridesJSON string) (*Config, error) {
	overrides := map[string]any{}
	if overridesJSON != "" {
		var err error
		if overrides, err = decodeObject(overridesSource, []byte(overridesJSON)); err != nil {
			return nil, err
		}
	}
	s := &source{path: path, values: values, overridden: map[string]bool{}}
	fam, err := chooseFamily(s, overrides)
	if err != nil {
		return nil, err
	}
	keys := slices.Concat(commonKeys, fam.keys)
	if err := checkOverrides(overrides, values, keys, ""); err != nil {
		return nil, err
	}
	s.fileSpelling, s.overrideSpelling = canonical(values), canonical(overrides)
	maps.Copy(s.fileSpelling, names)
	paths(overrides, "", s.overridden)
	merge(values, overrides)
	if err := check(values, keys, "", s.where); err != nil {
		return nil, err
	}
	return fam.config(s)
}

// decodeObject decodes one JSON object and nothing after it. Numbers stay json.Number: an id or a size must not pass through
// a float64.
func decodeObject(source string, data []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errorf(source, "", "empty: want a JSON object")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var value any
	err := dec.Decode(&value)
	if err == nil {
		if _, more := dec.Token(); more != io.EOF {
			return nil, errorf(source, "", "malformed JSON: text after the object")
		}
	}
	if err != nil {
		return nil, errorf(source, "", "malformed JSON at line %d: %v", 1+bytes.Count(data[:errorOffset(err, data)], []byte("\n")), jsonProblem(err))
	}
	object, ok := value.(map[string]any)
	if !ok {
		return nil, errorf(source, "", "want a JSON object, found %s", show(value))
	}
	return object, nil
}

func errorOffset(err error, data []byte) int64 {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return min(syntax.Offset, int64(len(data)))
	}
	return int64(len(data))
}

func jsonProblem(err error) string {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return "the text ends too early"
	}
	return err.Error()
}

// readFile reads a small file and refuses a large one.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read model config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read model config: %w", err)
	}
	if len(data) > maxConfigBytes {
		return nil, errorf(path, "", "over %d MiB: this is not a model's config", maxConfigBytes>>20)
	}
	return data, nil
}
