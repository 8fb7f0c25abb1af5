package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxFile bounds the files read: the largest tokenizer.json in use is below 40 MB.
const maxFile = 256 << 20

// Load reads a tokenizer from path, a tokenizer.json or a directory with one. From the files beside it, if they are there, it
// takes the chat template (chat_template.jinja, or tokenizer_config.json) and the names of special tokens
// (tokenizer_config.json). Errors are *FormatError, *UnsupportedError or *fs.PathError.
func Load(path string) (*Tokenizer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	dir, file := filepath.Dir(path), path
	if info.IsDir() {
		dir, file = path, filepath.Join(path, "tokenizer.json")
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("tokenizer: %s has no tokenizer.json: give --tokenizer-path, or run with --skip-tokenizer-init: %w", path, err)
		}
	}
	data, err := readFile(file)
	if err != nil {
		return nil, err
	}
	t, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	if err := t.loadConfig(dir); err != nil {
		return nil, err
	}
	return t, nil
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	if info.Size() > maxFile {
		return nil, &FormatError{Where: name, Problem: fmt.Sprintf("is %d MiB large, more than any tokenizer", info.Size()>>20)}
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	return data, nil
}

// specialNames are the names under which chat templates find special tokens.
var specialNames = []string{"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"}

// loadConfig reads what stands beside tokenizer.json.
func (t *Tokenizer) loadConfig(dir string) error {
	t.specialTexts = map[string]string{}
	var template json.RawMessage
	for _, name := range []string{"special_tokens_map.json", "tokenizer_config.json"} {
		file := filepath.Join(dir, name)
		fields, err := readObject(file)
		if err != nil {
			return err
		}
		for _, special := range specialNames {
			text, ok, err := tokenText(fields[special])
			if err != nil {
				return &FormatError{Where: file, Problem: special, Err: err}
			}
			if ok {
				t.specialTexts[special] = text
			}
		}
		if raw, ok := fields["chat_template"]; ok {
			template = raw
		}
	}
	t.bos, t.eos = t.specialID("bos_token"), t.specialID("eos_token")

	file := filepath.Join(dir, "chat_template.jinja")
	if _, err := os.Stat(file); err == nil {
		data, err := readFile(file)
		if err != nil {
			return err
		}
		t.chat = newChatTemplates(map[string]string{defaultTemplate: string(data)})
		return nil
	}
	sources, err := templateSources(template)
	if err != nil {
		return &FormatError{Where: filepath.Join(dir, "tokenizer_config.json"), Problem: "chat_template", Err: err}
	}
	t.chat = newChatTemplates(sources)
	return nil
}

func (t *Tokenizer) specialID(name string) *int32 {
	text, ok := t.specialTexts[name]
	if !ok {
		return nil
	}
	if id, ok := t.ids[text]; ok {
		return &id
	}
	return nil
}

// readObject reads a JSON object; a file that does not exist has no fields.
func readObject(file string) (map[string]json.RawMessage, error) {
	data, err := readFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, &FormatError{Where: file, Problem: "is not a JSON object", Err: err}
	}
	return fields, nil
}

// tokenText reads a special token: a string, an object with its content, or null.
func tokenText(raw json.RawMessage) (text string, ok bool, err error) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", false, nil
	}
	if raw[0] == '{' {
		var object struct{ Content string }
		err = json.Unmarshal(raw, &object)
		return object.Content, err == nil, err
	}
	err = json.Unmarshal(raw, &text)
	return text, err == nil, err
}

// templateSources reads a chat_template: one source, or a list of them with names.
func templateSources(raw json.RawMessage) (map[string]string, error) {
	trimmed := strings.TrimSpace(string(raw))
	if trimmed == "" || trimmed == "null" {
		return nil, nil
	}
	if trimmed[0] != '[' {
		var source string
		if err := json.Unmarshal(raw, &source); err != nil {
			return nil, err
		}
		return map[string]string{defaultTemplate: source}, nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &named); err != nil {
		return nil, err
	}
	sources := map[string]string{}
	for _, n := range named {
		sources[n.Name] = n.Template
	}
	return sources, nil
}
