//go:build cuda

package cuda

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
)

// compiler turns units into machine code for one device and model, through the cache.
type compiler struct {
	device  device
	defines []string
	headers map[string]string
	cache   *cubinCache
	edit    func(file, source string) string // for tests; nil: none

	compiled, cached, corrupt atomic.Int64
}

func newCompiler(d device, s shape, cache *cubinCache) *compiler {
	return &compiler{device: d, defines: s.defines(d), headers: kernels.Headers(), cache: cache}
}

// options are NVRTC's arguments for u, the same wherever a kernel is compiled.
func (c *compiler) options(u unit) []string {
	o := []string{"--std=c++17", "--gpu-architecture=" + c.device.arch(), "--define-macro=NDEBUG", "--device-as-default-execution-space"}
	for _, d := range append(slices.Clone(c.defines), strings.Fields(u.Defines)...) {
		o = append(o, "--define-macro="+d)
	}
	return o
}

// key names everything that a cubin depends on.
func (c *compiler) key(nvrtc *driver.Compiler, u unit, source string) string {
	h := sha256.New()
	fmt.Fprintf(h, "tokamak cubin 1\nnvrtc %d.%d\n%q\n%s\n%s\n", nvrtc.Major, nvrtc.Minor, c.options(u), u.Symbol, source)
	for _, name := range slices.Sorted(maps.Keys(c.headers)) {
		fmt.Fprintf(h, "%s\n%s\n", name, c.headers[name])
	}
	return u.Symbol + "-" + hex.EncodeToString(h.Sum(nil)[:16])
}

// cubin gives u's machine code, from the cache if it is there.
func (c *compiler) cubin(u unit) ([]byte, error) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		return nil, err
	}
	source, err := kernels.Source(u.File)
	if err != nil {
		return nil, err
	}
	if c.edit != nil {
		source = c.edit(u.File, source)
	}
	key := c.key(nvrtc, u, source)
	if c.cache != nil {
		code, err := c.cache.get(key)
		if err == nil {
			c.cached.Add(1)
			return code, nil
		}
		if errors.Is(err, errCorrupt) {
			c.corrupt.Add(1)
			slog.Warn("compiled kernel in the cache is damaged: compiling it again", "kernel", u.String(), "file", c.cache.path(key))
		}
	}
	code, _, err := nvrtc.Compile(u.File, source, c.headers, c.options(u))
	if err != nil {
		return nil, fmt.Errorf("kernel %s for %s: %w", u, c.device.arch(), err)
	}
	c.compiled.Add(1)
	if c.cache != nil {
		c.cache.put(key, code)
	}
	return code, nil
}

// all compiles units on every processor. done is told after each.
func (c *compiler) all(units []unit, done func(n int)) (map[unit][]byte, error) {
	code := make([][]byte, len(units))
	var finished atomic.Int64
	var group errgroup.Group
	group.SetLimit(max(1, runtime.GOMAXPROCS(0)))
	for i, u := range units {
		group.Go(func() (err error) {
			code[i], err = c.cubin(u)
			if err == nil && done != nil {
				done(int(finished.Add(1)))
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	out := make(map[unit][]byte, len(units))
	for i, u := range units {
		out[u] = code[i]
	}
	return out, nil
}

// cubinCache keeps compiled kernels in a folder. A file is the SHA-256 of the machine code, then the code: a torn or changed
// file is seen. Files appear whole or not at all, so processes may share the folder.
type cubinCache struct {
	dir    string
	warned atomic.Bool
}

var errCorrupt = errors.New("damaged cache entry")

// openCache uses dir, or TOKAMAK_CACHE_DIR, or the user's cache folder; nil where there is none to write to.
func openCache(dir string) *cubinCache {
	if dir == "" {
		dir = os.Getenv("TOKAMAK_CACHE_DIR")
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			slog.Warn("compiled kernels are not kept: no cache folder; set TOKAMAK_CACHE_DIR", "err", err)
			return nil
		}
		dir = filepath.Join(user, "tokamak")
	}
	return &cubinCache{dir: filepath.Join(dir, "cubin")}
}

func (c *cubinCache) path(key string) string { return filepath.Join(c.dir, key+".cubin") }

func (c *cubinCache) get(key string) ([]byte, error) {
	data, err := os.ReadFile(c.path(key))
	if err != nil {
		return nil, err
	}
	if len(data) < sha256.Size || sha256.Sum256(data[sha256.Size:]) != [sha256.Size]byte(data[:sha256.Size]) {
		return nil, errCorrupt
	}
	return data[sha256.Size:], nil
}

// put stores code. A folder that cannot be written costs a compilation at the next start, no more: it is said once.
func (c *cubinCache) put(key string, code []byte) {
	if err := c.write(key, code); err != nil && !c.warned.Swap(true) {
		slog.Warn("compiled kernels are not kept: every start will compile them again; set TOKAMAK_CACHE_DIR to a writable folder", "err", err)
	}
}

func (c *cubinCache) write(key string, code []byte) error {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(c.dir, key+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	sum := sha256.Sum256(code)
	_, err = f.Write(append(sum[:], code...))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), c.path(key))
}
