// Package history keeps every result ever added, in plain benchmark files by date and commit, and draws what became of each row.
package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/perf/benchfmt"

	"github.com/tokamak-engine/tokamak/benchstat/baseline"
)

// Version of the index. One of another version is rebuilt, never read.
const Version = 1

// Command is `benchstat history add|index|page`.
func Command(args []string, stdout io.Writer) error {
	switch {
	case len(args) >= 3 && args[0] == "add":
		for _, path := range args[2:] {
			to, err := Add(args[1], path, time.Now().UTC())
			if err != nil {
				return err
			}
			fmt.Fprintln(stdout, to)
		}
		_, err := Index(args[1])
		return err
	case len(args) == 2 && args[0] == "index":
		entries, err := rebuild(args[1])
		if err == nil {
			fmt.Fprintf(stdout, "%d results\n", len(entries))
		}
		return err
	case (len(args) == 2 || len(args) == 3) && args[0] == "page":
		entries, err := Index(args[1])
		if err != nil {
			return err
		}
		commitURL := ""
		if len(args) == 3 {
			commitURL = args[2]
		}
		return Page(stdout, args[1], entries, commitURL)
	}
	return errors.New("usage: benchstat history add DIR result.txt... | index DIR | page DIR [https://host/repository/commit/]")
}

// Entry is one stored file.
type Entry struct {
	Version int       `json:"version"`
	Path    string    `json:"path"` // below the store, with slashes
	Date    time.Time `json:"date"`
	Commit  string    `json:"commit"`
	Device  string    `json:"device"`
}

var commitForm = regexp.MustCompile(`^[0-9a-f]{7,40}(-dirty)?$`)

// Add copies a result file into the store under its date and commit and returns its new path. The store only grows: an equal file is
// kept once, and no file is ever replaced.
func Add(dir, path string, now time.Time) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	e, err := describe(path, text)
	if err != nil {
		return "", err
	}
	if e.Date.IsZero() {
		e.Date = now
		text = append([]byte("date: "+now.Format(time.RFC3339)+"\n"), text...)
	}
	stem := filepath.Join(dir, "results", e.Date.Format("2006"), e.Date.Format("01"), e.Date.Format("02T150405")+"-"+e.Commit+"-"+e.Device)
	if err := os.MkdirAll(filepath.Dir(stem), 0o755); err != nil {
		return "", err
	}
	for n := 0; ; n++ {
		to := stem + ".txt"
		if n > 0 {
			to = fmt.Sprintf("%s-%d.txt", stem, n)
		}
		old, err := os.ReadFile(to)
		if err == nil && bytes.Equal(old, text) {
			return to, nil
		}
		if err == nil {
			continue
		}
		tmp := to + ".tmp"
		if err := os.WriteFile(tmp, text, 0o644); err != nil {
			return "", err
		}
		return to, os.Rename(tmp, to)
	}
}

// describe reads what a result file says of itself.
func describe(path string, text []byte) (Entry, error) {
	r := benchfmt.NewReader(bytes.NewReader(text), path)
	for r.Scan() {
		rec, ok := r.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		e := Entry{Version: Version, Commit: rec.GetConfig("commit"), Device: baseline.Device(rec)}
		if !commitForm.MatchString(e.Commit) {
			return e, fmt.Errorf("%s: no usable `commit:` line (%q): results without one have no place in a history", path, e.Commit)
		}
		if d := rec.GetConfig("date"); d != "" {
			t, err := time.Parse(time.RFC3339, d)
			if err != nil {
				return e, fmt.Errorf("%s: date %q: want the form 2006-01-02T15:04:05Z", path, d)
			}
			e.Date = t.UTC()
		}
		return e, nil
	}
	return Entry{}, fmt.Errorf("%s: no benchmark results", path)
}

// Index returns the store's entries by date, from its index where that is whole, else from the files.
func Index(dir string) ([]Entry, error) {
	f, err := os.Open(filepath.Join(dir, "index.jsonl"))
	if err != nil {
		return rebuild(dir)
	}
	defer f.Close()
	var entries []Entry
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e Entry
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Version != Version {
			return rebuild(dir)
		}
		entries = append(entries, e)
	}
	files, err := stored(dir)
	if err != nil {
		return nil, err
	}
	indexed := make([]string, len(entries))
	for i, e := range entries {
		indexed[i] = e.Path
	}
	slices.Sort(indexed)
	if !slices.Equal(indexed, files) {
		return rebuild(dir)
	}
	return entries, nil
}

func stored(dir string) ([]string, error) {
	var files []string
	root := filepath.Join(dir, "results")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".txt") {
			rel, _ := filepath.Rel(dir, path)
			files = append(files, filepath.ToSlash(rel))
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	slices.Sort(files)
	return files, err
}

func rebuild(dir string) ([]Entry, error) {
	files, err := stored(dir)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s holds no results: benchstat history add %s result.txt", dir, dir)
	}
	var entries []Entry
	for _, path := range files {
		text, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(path)))
		if err != nil {
			return nil, err
		}
		e, err := describe(path, text)
		if err != nil {
			return nil, err
		}
		e.Path = path
		entries = append(entries, e)
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.Date.Compare(b.Date) })
	var out bytes.Buffer
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return nil, err
		}
		out.Write(append(line, '\n'))
	}
	tmp := filepath.Join(dir, "index.jsonl.tmp")
	if err := os.WriteFile(tmp, out.Bytes(), 0o644); err != nil {
		return nil, err
	}
	return entries, os.Rename(tmp, filepath.Join(dir, "index.jsonl"))
}
