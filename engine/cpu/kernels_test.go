package cpu

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

var matrixDTypes = []weights.DType{weights.F32, weights.F16, weights.BF16, weights.Q8_0, weights.Q4_0, weights.Q4_1, weights.Q4_K, weights.Q5_K, weights.Q6_K}

// eachLevel runs f for every level of instructions that this processor has.
func eachLevel(t *testing.T, f func(t *testing.T, ks *kernels)) {
	for _, ks := range levels {
		t.Run("level="+ks.name, func(t *testing.T) { f(t, ks) })
	}
}

// disableLevel makes the next Open do without a level and those above it, and returns what undoes that.
func disableLevel(name string) (undo func()) {
	before := levels
	for i, ks := range levels {
		if ks.name == name {
			levels = levels[i+1:]
			break
		}
	}
	return func() { levels = before }
}

// dot64 is the plain dot product in float64 and the sum of its terms' magnitudes, which bounds the rounding.
func dot64(a, b []float32) (sum, magnitude float64) {
	for i := range a {
		p := float64(a[i]) * float64(b[i])
		sum += p
		magnitude += math.Abs(p)
	}
	return sum, magnitude
}

// rounding is the error that n float32 operations may make of a sum with terms of that magnitude: each lane adds n/16 terms,
// each within half a unit in the last place, and the tree four more.
func rounding(n int, magnitude float64) float64 { return float64(n/lanes+6) * magnitude / (1 << 24) }

func TestDecodeEqualsWeights(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		for _, dtype := range matrixDTypes {
			for _, k := range []int{256, 512, 1536} {
				w := randomMatrix(t, dtype, 3, k)
				want, got := make([]float32, k), make([]float32, k)
				for i := range 3 {
					w.tensor.Row(i, want)
					ks.decodeRow(got, w, i)
					require.Equal(t, want, got, "%v row %d", dtype, i)
				}
			}
		}
	})
}

// TestMatmul: every stored type against float64, at shapes that leave remainders everywhere, and each result the same bits
// whatever the number of tokens and threads.
func TestMatmul(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		s := &stepper{pool: newPool(3), kernels: ks, scratch: make([]scratch, 3)}
		defer s.pool.close()
		for _, dtype := range matrixDTypes {
			for _, shape := range [][2]int{{1, 256}, {3, 512}, {37, 256}, {70, 768}, {130, 256}} {
				n, k := shape[0], shape[1]
				checkMatmul(t, s, randomMatrix(t, dtype, n, k))
			}
		}
		for _, k := range []int{1, 15, 16, 24, 33, 40, 100} { // only plain types have such rows
			checkMatmul(t, s, randomMatrix(t, weights.F32, 11, k))
			checkMatmul(t, s, randomMatrix(t, weights.BF16, 6, k))
		}
	})
}

func checkMatmul(t *testing.T, s *stepper, w *matrix) {
	t.Helper()
	const most = 70
	x := randomFloats(most * w.k)
	all := make([]float32, most*w.n)
	other := randomMatrix(t, w.tensor.DType, 5, w.k)
	s.multiply(x, most, product{w, all}, product{other, make([]float32, most*5)})
	row := make([]float32, w.k)
	for j := range w.n {
		w.tensor.Row(j, row)
		for i := range most {
			want, magnitude := dot64(x[i*w.k:(i+1)*w.k], row)
			require.InDelta(t, want, all[i*w.n+j], rounding(w.k, magnitude), "%v [%d,%d] token %d row %d", w.tensor.DType, w.n, w.k, i, j)
		}
	}
	for _, m := range []int{1, 2, 3, 4, 5, 7, 33} {
		got := make([]float32, m*w.n)
		from := most - m
		s.multiply(x[from*w.k:], m, product{w, got})
		require.Equal(t, all[from*w.n:], got, "%v [%d,%d] %d tokens", w.tensor.DType, w.n, w.k, m)
	}
}

func TestAccumulate(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		for _, dim := range []int{16, 48, 64, 80, 128, 144} {
			for _, n := range []int{1, 5, 16} {
				for m := 1; m <= 4; m++ {
					const ldp = 19
					p, v, start := randomFloats(m*ldp), randomFloats(n*dim), randomFloats(m*dim)
					out := append([]float32(nil), start...)
					ks.accumulate(out, p, v, ldp, m, n, dim)
					for i := range m {
						alone := append([]float32(nil), start[i*dim:(i+1)*dim]...)
						ks.accumulate(alone, p[i*ldp:], v, ldp, 1, n, dim)
						require.Equal(t, alone, out[i*dim:(i+1)*dim])
						for d := range dim {
							want, magnitude := float64(start[i*dim+d]), math.Abs(float64(start[i*dim+d]))
							for j := range n {
								term := float64(p[i*ldp+j]) * float64(v[j*dim+d])
								want += term
								magnitude += math.Abs(term)
							}
							require.InDelta(t, want, out[i*dim+d], float64(n+1)*magnitude/(1<<23))
						}
					}
				}
			}
		}
	})
}

func TestSoftmax(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		for _, n := range []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100} {
			const scale = 0.7
			x := randomFloats(n + 1)
			for i := range x {
				x[i] *= 20
			}
			largest := math.Inf(-1)
			for _, v := range x[:n] {
				largest = max(largest, float64(v))
			}
			got := append([]float32(nil), x...)
			top, sum := ks.softmax(got[:n], scale)
			require.Equal(t, x[n], got[n], "wrote past the end")
			require.InDelta(t, largest, top, 0)
			var want float64
			for i, v := range x[:n] {
				e := math.Exp((float64(v) - largest) * scale)
				// The argument is rounded to float32 before the exponential.
				require.InDelta(t, e, got[i], e*(2e-7+math.Abs(float64(v)-largest)*1e-7)+1e-36, "element %d of %d", i, n)
				want += e
			}
			require.InEpsilon(t, want, float64(sum), 1e-5)
		}
		_, sum := ks.softmax([]float32{1, float32(math.NaN()), 2}, 1)
		require.True(t, math.IsNaN(float64(sum)))
	})
}

func TestSwiGLU(t *testing.T) {
	eachLevel(t, func(t *testing.T, ks *kernels) {
		for _, n := range []int{1, 15, 16, 33, 96} {
			gate, up, got := randomFloats(n), randomFloats(n+1), make([]float32, n)
			for i := range gate {
				gate[i] *= float32(math.Pow(10, float64(i%5)-2))
			}
			gate[0] = -200
			ks.swiglu(got, gate, up)
			for i := range n {
				g := float64(gate[i])
				want := g / (1 + math.Exp(-g)) * float64(up[i])
				require.InDelta(t, want, got[i], math.Abs(want)*1e-6+1e-30, "silu(%v)*%v", gate[i], up[i])
			}
			in := append([]float32(nil), gate...)
			ks.swiglu(in, in, up) // in place
			require.Equal(t, got, in)
		}
		one := []float32{float32(math.NaN())}
		ks.swiglu(one, one, []float32{1})
		require.True(t, math.IsNaN(float64(one[0])))
	})
}

func TestExp(t *testing.T) {
	for x := -87.0; x < 88.7; x += 0.0137 {
		want := math.Exp(float64(float32(x)))
		require.InEpsilon(t, want, float64(exp32(float32(x))), 2.5e-7, "exp(%v)", x)
	}
	require.Equal(t, float32(0), exp32(float32(math.Inf(-1))))
	require.True(t, math.IsInf(float64(exp32(89)), 1))
	require.True(t, math.IsNaN(float64(exp32(float32(math.NaN())))))
}

// TestLevelsAgree: vector levels give the same bits as each other; the portable one differs by rounding alone (TestMatmul and
// the others hold every level to that).
func TestLevelsAgree(t *testing.T) {
	if len(levels) < 3 {
		t.Skipf("this processor and build have only %d level(s)", len(levels))
	}
	a, b := levels[0], levels[1]
	x := randomFloats(9 * 768)
	w := randomFloats(12 * 768)
	ya, yb := make([]float32, 9*11), make([]float32, 9*11)
	a.tile(ya, x, w, 11, 768, 768, 9, 11, 768)
	b.tile(yb, x, w, 11, 768, 768, 9, 11, 768)
	require.Equal(t, ya, yb)
	for _, dtype := range matrixDTypes {
		if a.vecmat[dtype] == nil {
			continue
		}
		m := randomMatrix(t, dtype, 7, 768)
		ya, yb := make([]float32, 7), make([]float32, 7)
		a.vecmat[dtype](ya, x[:768], m.tensor.Data, m.rowBytes)
		b.vecmat[dtype](yb, x[:768], m.tensor.Data, m.rowBytes)
		require.Equal(t, ya, yb, fmt.Sprint(dtype))
	}
	for _, n := range []int{1, 16, 77} {
		sa, sb := randomFloats(n), randomFloats(n)
		topA, sumA := a.softmax(sa, 3)
		topB, sumB := b.softmax(sb, 3)
		require.Equal(t, []float32{topA, sumA}, []float32{topB, sumB})
		require.Equal(t, sa, sb)
	}
	ga, gb := randomFloats(64), randomFloats(64)
	a.swiglu(ga, ga, x)
	b.swiglu(gb, gb, x)
	require.Equal(t, ga, gb)
	oa, ob := randomFloats(4*80), randomFloats(4*80)
	a.accumulate(oa, w, x, 16, 4, 16, 80)
	b.accumulate(ob, w, x, 16, 4, 16, 80)
	require.Equal(t, oa, ob)
}
