// Package baseline keeps reference results in files, one directory a device and one file a benchmark, with their provenance, and
// refuses to hand out one that is stale or comes from elsewhere.
package baseline

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/perf/benchfmt"
)

// Version of the stored form. A file of another version is refused with a word.
const Version = 1

const mark = "# tokamak-baseline "

// Provenance heads a baseline file, as one line of JSON after mark: x/perf's reader passes it over.
type Provenance struct {
	Version   int               `json:"version"`
	Date      time.Time         `json:"date"`
	Device    string            `json:"device"`
	Benchmark string            `json:"benchmark"`
	Samples   int               `json:"samples"` // the fewest of any row
	Config    map[string]string `json:"config"`
}

// MinSamples a row must have to become a baseline: fewer give no 95 % interval.
const MinSamples = 6

// Command is `benchstat baseline DIR FILE`: it stores a result file as its device's baselines and prints their paths.
func Command(args []string, stdout io.Writer) error {
	if len(args) != 2 {
		return errors.New("usage: benchstat baseline DIR results.txt")
	}
	paths, err := Store(args[0], args[1], time.Now().UTC().Truncate(time.Second))
	for _, p := range paths {
		fmt.Fprintln(stdout, p)
	}
	return err
}

// group is one benchmark's part of a result file.
type group struct {
	device, benchmark string
	config            map[string]string
	rows              map[string]int
	units             []string
	results           []*benchfmt.Result
}

// read groups a file's results by benchmark; a file of several devices or with bad lines is refused.
func read(path string) ([]*group, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var groups []*group
	r := benchfmt.NewReader(f, path)
	var units []string
	for r.Scan() {
		switch rec := r.Result().(type) {
		case *benchfmt.SyntaxError:
			return nil, rec
		case *benchfmt.UnitMetadata:
			units = append(units, fmt.Sprintf("Unit %s %s=%s", rec.OrigUnit, rec.Key, rec.Value))
		case *benchfmt.Result:
			if v := rec.GetConfig("throttled"); v != "" && v != "false" {
				return nil, fmt.Errorf("%s: %s was measured while the device was throttled (%s)", path, rec.Name, v)
			}
			device, name := Device(rec), string(rec.Name.Base())
			i := slices.IndexFunc(groups, func(g *group) bool { return g.benchmark == name })
			if i < 0 {
				i = len(groups)
				groups = append(groups, &group{device: device, benchmark: name, config: map[string]string{}, rows: map[string]int{}})
			}
			g := groups[i]
			if g.device != device {
				return nil, fmt.Errorf("%s: results of two devices, %s and %s: store them apart", path, g.device, device)
			}
			for _, c := range rec.Config {
				if c.File {
					g.config[c.Key] = string(c.Value)
				}
			}
			g.rows[rec.Name.String()]++
			g.results = append(g.results, rec.Clone())
		}
	}
	if r.Err() != nil {
		return nil, r.Err()
	}
	if len(groups) == 0 {
		return nil, fmt.Errorf("%s: no benchmark results", path)
	}
	for _, g := range groups {
		g.units = units
	}
	return groups, nil
}

var unsafePath = regexp.MustCompile(`[^a-z0-9]+`)

// Device names the directory of a result's machine: its GPU if the line names one, else its processor.
func Device(r *benchfmt.Result) string {
	name := r.GetConfig("gpu")
	if name == "" || name == "none" {
		name = r.GetConfig("cpu")
	}
	slug := strings.Trim(unsafePath.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if slug == "" {
		return "unknown"
	}
	return slug
}

// Store writes the results of path as baselines below dir, replacing older ones whole, and returns the files written.
func Store(dir, path string, now time.Time) ([]string, error) {
	groups, err := read(path)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		for row, n := range g.rows {
			if n < MinSamples {
				return nil, fmt.Errorf("%s: %s has %d samples, a baseline needs %d: run with -count=10", path, row, n, MinSamples)
			}
		}
	}
	var written []string
	for _, g := range groups {
		to := filepath.Join(dir, g.device, g.benchmark+".txt")
		if err := g.write(to, now); err != nil {
			return written, err
		}
		written = append(written, to)
	}
	return written, nil
}

func (g *group) write(to string, now time.Time) error {
	head := Provenance{Version: Version, Date: now, Device: g.device, Benchmark: g.benchmark, Config: g.config}
	for _, n := range g.rows {
		if head.Samples == 0 || n < head.Samples {
			head.Samples = n
		}
	}
	line, err := json.Marshal(head)
	if err != nil {
		return err
	}
	var out strings.Builder
	out.WriteString(mark + string(line) + "\n")
	for _, u := range g.units {
		out.WriteString(u + "\n")
	}
	w := benchfmt.NewWriter(&out)
	for _, r := range g.results {
		if err := w.Write(r); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	tmp := to + ".tmp"
	if err := os.WriteFile(tmp, []byte(out.String()), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, to)
}

// Find returns the baselines below dir for every benchmark of the results at path. One that does not exist, is of another form, or is
// older than maxAge days is an error: comparing with it would say nothing.
func Find(dir, path string, maxAge int) ([]string, error) {
	groups, err := read(path)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, g := range groups {
		at := filepath.Join(dir, g.device, g.benchmark+".txt")
		head, err := ReadProvenance(at)
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("no baseline for %s on %s: make baseline", g.benchmark, g.device)
		}
		if err != nil {
			return nil, err
		}
		if age := int(time.Since(head.Date).Hours() / 24); age > maxAge {
			return nil, fmt.Errorf("%s is stale: %d days old, at most %d are taken: make baseline", at, age, maxAge)
		}
		for _, key := range []string{"goarch", "driver", "backend"} {
			if was, is := head.Config[key], g.config[key]; was != is {
				return nil, fmt.Errorf("%s is foreign: %s was %q, is %q now: make baseline", at, key, was, is)
			}
		}
		found = append(found, at)
	}
	return found, nil
}

// ReadProvenance reads the head of a baseline file.
func ReadProvenance(path string) (*Provenance, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	body, ok := strings.CutPrefix(line, mark)
	var p Provenance
	if !ok || json.Unmarshal([]byte(body), &p) != nil {
		return nil, fmt.Errorf("%s: no provenance in its first line: make baseline", path)
	}
	if p.Version != Version {
		return nil, fmt.Errorf("%s: form %d, this benchstat reads %d: make baseline", path, p.Version, Version)
	}
	return &p, nil
}
