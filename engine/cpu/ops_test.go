package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func TestRMSNorm(t *testing.T) {
	for _, n := range []int{1, 3, 64, 577} {
		x, w := randomFloats(n), randomFloats(n + 1)[:n]
		var squares float64
		for _, v := range x {
			squares += float64(v) * float64(v)
		}
		got := make([]float32, n)
		RMSNorm(got, x, w, 1e-5)
		for i := range got {
			want := float64(x[i]) / math.Sqrt(squares/float64(n)+1e-5) * float64(w[i])
			require.InDelta(t, want, got[i], math.Abs(want)*3e-7)
		}
		RMSNorm(x, x, w, 1e-5)
		require.Equal(t, got, x, "in place")
	}
}

func TestRotate(t *testing.T) {
	for _, dim := range []int{2, 6, 64, 80} {
		cfg := model.Config{HeadDim: dim, RoPE: model.RoPE{Theta: 10000, Factor: 1}}
		freq := cfg.InvFreq()
		for _, position := range []int{0, 1, 77, 4095} {
			head := randomFloats(dim)
			got := append([]float32(nil), head...)
			cos, sin := make([]float32, dim/2), make([]float32, dim/2)
			CosSin(cos, sin, freq, position, 1.25)
			Rotate(got, cos, sin)
			for i := range dim / 2 {
				angle := float64(position) * math.Pow(10000, -2*float64(i)/float64(dim))
				a, b := float64(head[i]), float64(head[i+dim/2])
				// The angle is a float32: at position p it is off by up to p/2^23.
				limit := 1e-5 + 5*float64(position)/(1<<23)
				require.InDelta(t, 1.25*(a*math.Cos(angle)-b*math.Sin(angle)), got[i], limit)
				require.InDelta(t, 1.25*(b*math.Cos(angle)+a*math.Sin(angle)), got[i+dim/2], limit)
			}
		}
	}
}

func TestMatMulBF16(t *testing.T) {
	const m, n, k = 3, 5, 37
	x, w := make([]uint16, m*k), make([]uint16, n*k)
	wide := func(bits []uint16, values []float32) {
		for i, v := range values {
			bits[i] = weights.BF16FromFloat32(v)
			values[i] = weights.BF16ToFloat32(bits[i])
		}
	}
	xf, wf := randomFloats(m*k), randomFloats(n*k)
	wide(x, xf)
	wide(w, wf)
	y := make([]float32, m*n)
	MatMulBF16(y, x, w, m, n, k)
	for i := range m {
		for j := range n {
			want, magnitude := dot64(xf[i*k:(i+1)*k], wf[j*k:(j+1)*k])
			require.InDelta(t, want, y[i*n+j], rounding(k, magnitude))
		}
	}
}

// attend64 is attention in float64 over contiguous keys and values, as Attend's.
func attend64(q, k, v []float32, n, ctx, heads, kvHeads, dim, window int) []float64 {
	out := make([]float64, n*heads*dim)
	for t := range n {
		for h := range heads {
			own := ctx - n + t
			scores, total, largest := make([]float64, ctx), 0.0, math.Inf(-1)
			visible := func(p int) bool { return p <= own && (window == 0 || own-p < window) }
			at := func(p int) int { return (p*kvHeads + h*kvHeads/heads) * dim }
			for p := range ctx {
				if visible(p) {
					s, _ := dot64(q[(t*heads+h)*dim:][:dim], k[at(p):][:dim])
					scores[p] = s / math.Sqrt(float64(dim))
					largest = max(largest, scores[p])
				}
			}
			for p := range ctx {
				if visible(p) {
					scores[p] = math.Exp(scores[p] - largest)
					total += scores[p]
				}
			}
			for p := range ctx {
				for d := range dim {
					out[(t*heads+h)*dim+d] += scores[p] / total * float64(v[at(p)+d])
				}
			}
		}
	}
	return out
}

// TestAttend: the oracle and the paged kernels against float64, over head shapes, windows, page sizes and chunk places.
func TestAttend(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		for _, c := range []struct{ n, ctx, heads, kvHeads, dim, window, pageSize int }{
			{1, 1, 1, 1, 16, 0, 16},
			{1, 37, 3, 1, 64, 0, 16},
			{5, 5, 4, 2, 32, 0, 16},
			{19, 60, 9, 3, 64, 0, 16},
			{19, 60, 6, 2, 24, 0, 7},
			{33, 33, 2, 2, 128, 5, 4},
			{9, 50, 4, 1, 80, 16, 16},
			{1, 70, 5, 5, 16, 1, 3},
			{10, 300, 4, 2, 64, 100, 32},
			{1, 1300, 6, 2, 16, 0, 16}, // three blocks, shared between workers
			{11, 1100, 3, 1, 16, 0, 100},
			{9, 1030, 2, 1, 32, 8, 16}, // some tokens see two blocks, some one
			{1, 1030, 2, 1, 32, 600, 16},
		} {
			t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
				q := randomFloats(c.n * c.heads * c.dim)
				k, v := randomFloats(c.ctx*c.kvHeads*c.dim), randomFloats(c.ctx*c.kvHeads*c.dim+1)
				want := attend64(q, k, v, c.n, c.ctx, c.heads, c.kvHeads, c.dim, c.window)
				check := func(got []float32, limit float64) {
					for i := range want {
						require.InDelta(t, want[i], got[i], limit, "element %d", i)
					}
				}
				got := make([]float32, len(q))
				Attend(got, q, k, v, c.n, c.ctx, c.heads, c.kvHeads, c.dim, c.window)
				check(got, 1e-5)

				pages := (c.ctx + c.pageSize - 1) / c.pageSize
				table := make([]int32, pages)
				for i, p := range rand.New(rand.NewPCG(1, 1)).Perm(pages + 3)[:pages] {
					table[i] = int32(p)
				}
				for dtype, limit := range map[kvType]float64{kvFloat32: 1e-5, kvBF16: 0.05, kvE4M3: 0.5} { // keys and values of 24, 8 and 4 bits
					s := &stepper{
						cfg:  &model.Config{NumHeads: c.heads, NumKVHeads: c.kvHeads, HeadDim: c.dim, SlidingWindow: c.window},
						pool: newPool(2), kernels: ks, scratch: make([]scratch, 2),
						cache: kvCache{layers: 2, heads: c.kvHeads, dim: c.dim, pageSize: c.pageSize, dtype: dtype, scales: []float32{1, 1, 0.5, 2}, pages: make([]kvPage, pages+3)},
						q:     q, attended: make([]float32, len(q)),
						rows: []backend.Row{{Tokens: make([]int32, c.n), Position: c.ctx - c.n, Pages: table}},
					}
					s.cache.touch(table, 0, c.ctx)
					width := c.kvHeads * c.dim
					for p := range c.ctx {
						s.cache.put(table[p/c.pageSize], p%c.pageSize, 1, 0, k[p*width:(p+1)*width])
						s.cache.put(table[p/c.pageSize], p%c.pageSize, 1, 1, v[p*width:(p+1)*width])
					}
					s.attend(1)
					s.pool.close()
					check(s.attended, limit)
				}
			})
		}
	})
}

func TestRoute(t *testing.T) {
	logits := []float32{1, 3, 3, -2, 2}
	e := func(x float64) float64 { return math.Exp(x) }
	total := e(1) + 2*e(3) + e(-2) + e(2)
	got := route(append([]float32(nil), logits...), 7, 3, false)
	require.Equal(t, []int{1, 2, 4}, []int{got[0].expert, got[1].expert, got[2].expert})
	require.InDelta(t, e(3)/total, got[0].weight, 1e-6)
	require.InDelta(t, e(2)/total, got[2].weight, 1e-6)
	require.Equal(t, 7, got[1].token)
	got = route(append([]float32(nil), logits...), 0, 2, true)
	require.InDelta(t, 0.5, got[0].weight, 1e-6)
	require.InDelta(t, 0.5, got[1].weight, 1e-6)
}
