//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func TestPrefixes(t *testing.T) {
	row := func(position int, pages ...int32) backend.Row { return backend.Row{Position: position, Pages: pages} }
	for _, c := range []struct {
		what  string
		rows  []backend.Row
		page  int
		order []int
		from  []int32
		saved int
	}{
		{"one page each of two", []backend.Row{row(100, 5, 2), row(100, 3, 4), row(70, 5, 6)}, 64, []int{1, 0, 2}, []int32{0, 64, 64}, 64},
		{"as much as all have behind them", []backend.Row{row(300, 5, 6, 7, 8, 9), row(200, 5, 6, 7, 1), row(190, 5, 6, 7)}, 64, []int{0, 1, 2}, []int32{128, 128, 128}, 256},
		{"whole tiles of small pages", []backend.Row{row(100, 1, 2, 3, 4, 5, 6, 7), row(100, 1, 2, 3, 4, 5, 6, 8)}, 16, []int{0, 1}, []int32{64, 64}, 64},
		{"less than a tile", []backend.Row{row(60, 1, 2, 3, 9), row(60, 1, 2, 3, 8)}, 16, []int{0, 1}, []int32{0, 0}, 0},
		{"prompts are left out", []backend.Row{row(64, 1, 2), {Position: 64, Tokens: []int32{1}, Pages: []int32{1, 4}}, row(64, 1, 3)}, 64, []int{0, 2}, []int32{64, 64}, 64},
		{"two blocks of four", []backend.Row{row(64, 1, 2), row(64, 1, 3), row(64, 1, 4), row(64, 1, 5), row(64, 1, 6), row(64, 7, 8)}, 64,
			[]int{0, 1, 2, 3, 4, 5}, []int32{64, 64, 64, 64, 0, 0}, 192},
	} {
		x := prefixes{pays: c.saved}
		assert.False(t, x.find([]backend.Row{row(100, 7, 2), row(100, 9, 4), row(100, 8, 4)}, 64, 4), "rows that begin differently")
		assert.True(t, x.find(c.rows, c.page, 4), c.what)
		assert.Equal(t, c.order, x.order, c.what)
		assert.Equal(t, c.from, x.from, c.what)
		x.pays++
		assert.False(t, x.find(c.rows, c.page, 4), c.what)
	}
}

// prefixShapes are those of attnShapes that rows may share pages with.
func prefixShapes() map[string]shape {
	out := map[string]shape{}
	for name, s := range attnShapes() {
		s.Prefixes, s.MaxVerify, s.MaxRows, s.MaxContext, s.MaxPages = true, 0, 64, 640, 640/s.Page
		if s.canShare() {
			out[name] = s
		}
	}
	return out
}

// TestAttnPrefix: rows of several blocks that share a beginning, and some that do not, give what each gives alone.
func TestAttnPrefix(t *testing.T) {
	for name, s := range prefixShapes() {
		for _, from := range []int{64, 320} {
			t.Run(fmt.Sprintf("%s/from=%d", strings.TrimSuffix(name, "/fp8=false"), from), func(t *testing.T) {
				const rows = 18
				c := attnCase{}
				for i := range rows {
					c.pos, c.len = append(c.pos, from+13*i*i%200), append(c.len, 1)
				}
				a := newAttnRig(t, s, c)
				shared := make([]int32, rows)
				table := get[int32](a.rig, a.b.PageTable, s.MaxRows*s.MaxPages)
				for i := range rows {
					if i%7 == 3 {
						continue
					}
					shared[i] = int32(from)
					n := from * s.kvDim()
					copy(a.k[i][:n], a.k[0])
					copy(a.kPlain[i][:n], a.kPlain[0])
					copy(a.v[i][:n], a.v[0])
					copy(a.pages[i][:from/s.Page], a.pages[0])
					copy(table[(i*3+1)%s.MaxRows*s.MaxPages:], a.pages[i])
				}
				a.b.PageTable, a.b.RowFrom = put(a.rig, table), put(a.rig, shared)
				a.run(attnPrefixOp(a.device, a.shape, &a.b, a.w, attnLayer, rows), behindPrefixOp(a.device, a.shape, &a.b, a.w, attnLayer, rows))
				a.check("attention")
			})
		}
	}
}

// TestSharedPrefixes: requests that begin alike, page by page the same, answer as they do where each reads its pages alone.
func TestSharedPrefixes(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["llama"]
	w := weights.NewDummy(cfg)
	const rows, steps = 6, 8
	var all [2][]backend.RowResult
	for i, set := range []settings{{}, {prefixes: true}} {
		b := openTest(t, cfg, w, testOptions, set)
		b.prefixes.pays = 1
		page := b.Info().PageSize
		var out backend.Result
		step := func(rows ...backend.Row) {
			id, err := b.Launch(&backend.Batch{Rows: rows})
			require.NoError(t, err)
			require.NoError(t, b.Wait(id, &out))
		}
		start := &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}}
		begin := randomPrompt(1, 2*page, cfg.VocabSize)
		step(backend.Row{Slot: 0, Start: start, Tokens: begin[:page], Pages: []int32{0, 1}})
		step(backend.Row{Slot: 0, Position: page, Tokens: begin[page:], Pages: []int32{0, 1}})
		var batch []backend.Row
		for slot := range rows {
			r := backend.Row{Slot: slot, Start: start, Position: 2 * page, Tokens: randomPrompt(uint64(2+slot), 1+3*slot, cfg.VocabSize), Pages: []int32{0, 1, int32(2 + slot)}, Sample: true}
			step(r)
			batch = append(batch, backend.Row{Slot: slot, Position: r.Position + len(r.Tokens), Pages: r.Pages, Sample: true, Logits: true})
		}
		for range steps {
			step(batch...)
			assert.Equal(t, set.prefixes, b.prefixes.from != nil && b.prefixes.from[0] > 0)
			for j := range out.Rows {
				r := out.Rows[j]
				r.Logits = slices.Clone(r.Logits)
				all[i] = append(all[i], r)
				batch[j].Position++
			}
		}
	}
	for i := range all[0] {
		if i >= rows && all[0][i-rows].Token != all[1][i-rows].Token {
			break // a tie fell the other way: what follows is another text
		}
		compareLogits(t, fmt.Sprintf("row %d of step %d", i%rows, i/rows), all[0][i].Logits, all[1][i].Logits)
	}
}

// BenchmarkPrefixes times decode steps of rows that share a beginning, each reading it alone and all together.
func BenchmarkPrefixes(b *testing.B) {
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 128, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.6}, settings{prefixes: true})
	page := be.Info().PageSize
	var out backend.Result
	step := func(rows ...backend.Row) time.Duration {
		began := time.Now()
		id, err := be.Launch(&backend.Batch{Rows: rows})
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		return time.Since(began)
	}
	start := &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}}
	const most = 4096
	begin := make([]int32, most/page)
	for i := range begin {
		begin[i] = int32(i)
	}
	step(backend.Row{Slot: 0, Start: start, Tokens: randomPrompt(1, most, cfg.VocabSize), Pages: begin, Sample: true})
	for _, rows := range []int{16, 32, 128} {
		for _, from := range []int{1024, most} {
			var batch []backend.Row
			for slot := range rows {
				r := backend.Row{Slot: slot, Start: start, Position: from, Tokens: randomPrompt(uint64(slot), 32, cfg.VocabSize),
					Pages: append(slices.Clone(begin[:from/page]), int32(most/page+slot)), Sample: true}
				step(r)
				batch = append(batch, backend.Row{Slot: slot, Position: from + 32, Pages: r.Pages, Sample: true})
			}
			fmt.Printf("prefix rows=%d from=%d:", rows, from)
			for _, be.prefixes.pays = range []int{1 << 30, 1} {
				var times []time.Duration
				for range 12 {
					times = append(times, step(batch...))
				}
				how := "together"
				if be.prefixes.pays > 1 {
					how = "alone"
				}
				fmt.Printf(" %s %v;", how, median(times[2:]))
			}
			fmt.Println()
		}
	}
}
