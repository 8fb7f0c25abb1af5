package kvcache

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// sequence is what a scheduler would keep of one.
type sequence struct {
	salt   Salt
	tokens []int32
	pages  []int32
	shared int
}

// world is a cache with the sequences that hold its pages.
type world struct {
	*Cache
	seqs map[string]*sequence
}

func (w *world) check() error {
	var tables [][]int32
	for _, s := range w.seqs {
		tables = append(tables, s.pages)
	}
	return w.Check(tables)
}

// grow allocates pages for all of s's tokens.
func (w *world) grow(s *sequence) bool {
	for len(s.pages)*w.PageSize() < len(s.tokens) {
		page, ok := w.Alloc()
		if !ok {
			return false
		}
		s.pages = append(s.pages, page)
	}
	return true
}

// TestScripts runs the scripts in testdata; -rewrite renews their expectations. Tokens are letters. Commands:
//
//	new pages=N size=N [prefix=false]
//	start NAME TOKENS [salt=N]: match, then allocate the rest
//	append NAME TOKENS: allocate for more tokens
//	share NAME, release NAME, flush
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, paths)
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) { runScript(t, path) })
	}
}

func runScript(t *testing.T, path string) {
	var w *world
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		var out strings.Builder
		switch d.Cmd {
		case "new":
			var pages, size int
			prefix := true
			d.ScanArgs(t, "pages", &pages)
			d.ScanArgs(t, "size", &size)
			d.MaybeScanArgs(t, "prefix", &prefix)
			w = &world{New(pages, size, prefix, 1), map[string]*sequence{}}
		case "start":
			s := &sequence{tokens: []int32(d.CmdArgs[1].Key)}
			var salt uint64
			d.MaybeScanArgs(t, "salt", &salt)
			s.salt[0] = salt
			s.pages = w.Match(s.salt, s.tokens, nil)
			s.shared = len(s.pages)
			w.seqs[d.CmdArgs[0].Key] = s
			fmt.Fprintf(&out, "found %v\n", s.pages)
			if !w.grow(s) {
				out.WriteString("out of pages\n")
			}
		case "append":
			s := w.seqs[d.CmdArgs[0].Key]
			s.tokens = append(s.tokens, []int32(d.CmdArgs[1].Key)...)
			if !w.grow(s) {
				out.WriteString("out of pages\n")
			}
		case "share":
			s := w.seqs[d.CmdArgs[0].Key]
			s.shared = w.Share(s.salt, s.tokens, s.pages, s.shared)
			fmt.Fprintf(&out, "shared %d\n", s.shared)
		case "release":
			s := w.seqs[d.CmdArgs[0].Key]
			delete(w.seqs, d.CmdArgs[0].Key)
			w.Release(s.salt, s.tokens[:min(len(s.tokens), len(s.pages)*w.PageSize())], s.pages)
		case "flush":
			w.Flush()
		default:
			t.Fatalf("unknown command %q", d.Cmd)
		}
		require.NoError(t, w.check())
		w.print(&out)
		return out.String()
	})
}

func (w *world) print(out *strings.Builder) {
	names := make([]string, 0, len(w.seqs))
	for name := range w.seqs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(out, "%s %v\n", name, w.seqs[name].pages)
	}
	fmt.Fprintf(out, "free %d cached %d\n", len(w.free), w.Cached())
	w.printBelow(out, none, " ")
}

func (w *world) printBelow(out *strings.Builder, parent int32, indent string) {
	for page := range w.nodes {
		if n := &w.nodes[page]; n.inTree && n.parent == parent {
			fmt.Fprintf(out, "%s%s page %d holders %d\n", indent, string(w.tokensOf(int32(page))), page, w.refs[page])
			w.printBelow(out, int32(page), indent+" ")
		}
	}
}

// TestBooksBalance drives a small cache with random sequences over few tokens, so that prefixes meet often, and audits it after
// each move. A model of the contents (page -> its whole prefix) shows that a match never returns another prefix's page.
func TestBooksBalance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 3).Draw(t, "size")
		w := &world{New(rapid.IntRange(1, 12).Draw(t, "pages"), size, rapid.Bool().Draw(t, "prefix"), 1), map[string]*sequence{}}
		contents := map[int32]string{} // page -> salt and all tokens up to the page's end
		prefixOf := func(s *sequence, page int) string { return fmt.Sprint(s.salt, s.tokens[:(page+1)*size]) }
		token := rapid.Int32Range(0, 1)
		names := 0
		pick := func(t *rapid.T) *sequence {
			if len(w.seqs) == 0 {
				t.Skip("no sequence")
			}
			keys := make([]string, 0, len(w.seqs))
			for k := range w.seqs {
				keys = append(keys, k)
			}
			slices.Sort(keys)
			return w.seqs[rapid.SampledFrom(keys).Draw(t, "sequence")]
		}
		fill := func(s *sequence) {
			for i := range len(s.tokens) / size {
				if i < len(s.pages) && i >= s.shared {
					contents[s.pages[i]] = prefixOf(s, i)
				}
			}
		}
		release := func(s *sequence) {
			for k, v := range w.seqs {
				if v == s {
					delete(w.seqs, k)
				}
			}
			w.Release(s.salt, s.tokens[:min(len(s.tokens), len(s.pages)*size)], s.pages)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				require.NoError(t, w.check())
				require.Equal(t, w.NumPages()-w.Available(), func() (held int) {
					for p := range w.refs {
						if w.refs[p] > 1 || w.refs[p] == 1 && !w.isNode(int32(p)) {
							held++
						}
					}
					return held
				}())
			},
			"start": func(t *rapid.T) {
				s := &sequence{
					salt:   Salt{uint64(rapid.IntRange(0, 1).Draw(t, "salt"))},
					tokens: rapid.SliceOfN(token, 1, 12).Draw(t, "tokens"),
				}
				wantLen := w.MatchLen(s.salt, s.tokens)
				s.pages = w.Match(s.salt, s.tokens, nil)
				s.shared = len(s.pages)
				require.Equal(t, wantLen, s.shared*size)
				for i, page := range s.pages {
					require.Equal(t, prefixOf(s, i), contents[page])
				}
				names++
				w.seqs[fmt.Sprint(names)] = s
				grown := w.grow(s)
				fill(s)
				if !grown {
					require.Zero(t, w.Available())
					release(s)
				}
			},
			"append": func(t *rapid.T) {
				s := pick(t)
				before := len(s.tokens)
				s.tokens = append(s.tokens, token.Draw(t, "token"))
				if !w.grow(s) {
					s.tokens = s.tokens[:before]
				}
				fill(s)
			},
			"share":   func(t *rapid.T) { s := pick(t); s.shared = w.Share(s.salt, s.tokens, s.pages, s.shared) },
			"release": func(t *rapid.T) { release(pick(t)) },
			"flush":   func(*rapid.T) { w.Flush() },
		})
		for len(w.seqs) > 0 {
			for _, s := range w.seqs {
				release(s)
				break
			}
		}
		require.Equal(t, w.NumPages(), w.Available())
		w.Flush()
		require.Len(t, w.free, w.NumPages())
		require.NoError(t, w.check())
	})
}

// TestCheckSeesDamage shows that the audit, which the other tests rest on, is not blind.
func TestCheckSeesDamage(t *testing.T) {
	damage := map[string]func(c *Cache, s *sequence){
		"count too high":     func(c *Cache, s *sequence) { c.refs[s.pages[0]]++ },
		"count too low":      func(c *Cache, s *sequence) { c.refs[s.pages[2]]-- },
		"freed while held":   func(c *Cache, s *sequence) { c.free = append(c.free, s.pages[2]) },
		"lost page":          func(c *Cache, s *sequence) { c.free = c.free[1:] },
		"free twice":         func(c *Cache, s *sequence) { c.free = append(c.free[1:], c.free[1]) },
		"child not counted":  func(c *Cache, s *sequence) { c.nodes[s.pages[0]].children = 0 },
		"tokens overwritten": func(c *Cache, s *sequence) { c.tokensOf(s.pages[1])[0]++ },
		"idle miscounted":    func(c *Cache, s *sequence) { c.idle++ },
		"leaf not listed":    func(c *Cache, s *sequence) { page, _ := c.leaves.oldest(); c.leaves.remove(page) },
		"pages swapped":      func(c *Cache, s *sequence) { s.pages[0], s.pages[1] = s.pages[1], s.pages[0] },
		"private page twice": func(c *Cache, s *sequence) { s.pages = append(s.pages, s.pages[2]); c.refs[s.pages[2]]++ },
		"page out of range":  func(c *Cache, s *sequence) { s.pages[2] = 99 },
	}
	for name, break_ := range damage {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			w := &world{New(8, 2, true, 1), map[string]*sequence{}}
			gone := &sequence{tokens: []int32("xy")}
			require.True(t, w.grow(gone))
			w.Release(gone.salt, gone.tokens, gone.pages)
			s := &sequence{tokens: []int32("abcde")}
			require.True(t, w.grow(s))
			s.shared = w.Share(s.salt, s.tokens, s.pages, 0)
			w.seqs["s"] = s
			require.NoError(t, w.check())
			break_(w.Cache, s)
			require.Error(t, w.check())
		})
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	c := New(64, 4, true, 1)
	tokens := make([]int32, 64)
	pages := make([]int32, 0, 16)
	n := int32(0)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		n++
		tokens[8] = n // a shared beginning of two pages, then a new branch each time: evicts
		pages = c.Match(Salt{}, tokens, pages[:0])
		shared := len(pages)
		for len(pages) < 16 {
			page, ok := c.Alloc()
			require.True(t, ok)
			pages = append(pages, page)
		}
		c.Share(Salt{}, tokens, pages, shared)
		c.Release(Salt{}, tokens, pages)
	}))
	require.NotZero(t, c.Evictions())
	require.NoError(t, c.Check(nil))
}

// BenchmarkMatch shows the price of an admission on a warm tree.
//
//	go test ./engine/kvcache -run '^$' -bench Match
func BenchmarkMatch(b *testing.B) {
	const size = 16
	c := New(8192, size, true, 1)
	tokens := make([]int32, 4096)
	for i := range tokens {
		tokens[i] = int32(i * 7919)
	}
	var pages []int32
	for range len(tokens) / size {
		page, _ := c.Alloc()
		pages = append(pages, page)
	}
	c.Release(Salt{}, tokens, pages)
	b.Run("tokens=4096", func(b *testing.B) {
		for b.Loop() {
			pages = c.Match(Salt{}, tokens, pages[:0])
			for _, page := range pages {
				c.drop(page)
			}
		}
		require.Len(b, pages, len(tokens)/size)
	})
}
