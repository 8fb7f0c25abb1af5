package weights

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Every E4M3 value stays, and what lies between two goes to the nearest, a tie to the even one.
func TestF8E4M3FromFloat32(t *testing.T) {
	for b := range 0x7F {
		for _, sign := range []byte{0, 0x80} {
			require.Equal(t, byte(b)|sign, F8E4M3FromFloat32(F8E4M3ToFloat32(byte(b)|sign)))
		}
	}
	for b := range 0x7E {
		low, high := F8E4M3ToFloat32(byte(b)), F8E4M3ToFloat32(byte(b+1))
		tie := (low + high) / 2
		require.Equal(t, byte(b), F8E4M3FromFloat32(math.Nextafter32(tie, 0)), "below %v", tie)
		require.Equal(t, byte(b+b%2), F8E4M3FromFloat32(tie), "tie %v", tie)
		require.Equal(t, byte(b+1), F8E4M3FromFloat32(math.Nextafter32(tie, 1e9)), "above %v", tie)
	}
	for _, c := range []struct {
		in   float32
		want byte
	}{{449, 0x7E}, {1e30, 0x7E}, {float32(math.Inf(-1)), 0xFE}, {float32(math.NaN()), 0x7F}, {0x1p-11, 0}, {float32(math.Copysign(0, -1)), 0x80}} {
		assert.Equal(t, c.want, F8E4M3FromFloat32(c.in), "%v", c.in)
	}
}

// A quantised row is at most half a step of E4M3 away: 1/16 of a value, or half of 2^-9 of the scale.
func TestQuantizeF8E4M3(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const rows, n = 5, 96
	data := make([]byte, 0, rows*n*2)
	for i := range rows * n {
		v := float32(r.NormFloat64())
		if i/n == 3 {
			v = 0
		}
		b := BF16FromFloat32(v)
		data = append(data, byte(b), byte(b>>8))
	}
	plain := &Tensor{Name: "w", DType: BF16, Shape: []int{rows, n}, Data: data}
	q := plain.F8E4M3()
	require.Equal(t, F8E4M3, q.DType)
	require.Same(t, q, q.F8E4M3(), "quantised once")
	want, got := make([]float32, n), make([]float32, n)
	for i := range rows {
		plain.Row(i, want)
		q.Row(i, got)
		for j := range want {
			w := math.Abs(float64(want[j]))
			assert.InDelta(t, want[j], got[j], max(w/16, float64(q.Quant.Scales[i])*0x1p-10)*1.0001, "row %d", i)
		}
	}
}

// The scale of a row brings no value past 448, is at most twice the least such scale, and no other in between is noticeably better.
func TestF8E4M3Scale(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	errorAt := func(row []float32, scale float32) (sum float64) {
		for _, v := range row {
			d := float64(F8E4M3ToFloat32(F8E4M3FromFloat32(v/scale))*scale - v)
			sum += d * d
		}
		return sum
	}
	const trials = 40
	var gained float64
	for trial := range trials {
		row := make([]float32, 576)
		var most float32
		for i := range row {
			row[i] = float32(r.NormFloat64() * math.Exp(float64(trial-20)))
			most = max(most, row[i], -row[i])
		}
		scale := F8E4M3Scale(row)
		require.LessOrEqual(t, most/scale, float32(448*(1+1e-6)))
		require.Less(t, scale, 2*most/448*(1+1e-6))
		got, best := errorAt(row, scale), math.Inf(1)
		for i := range 2 * scaleSteps {
			if s := scale * float32(math.Exp2(float64(i-scaleSteps)/scaleSteps)); most/s <= 448 && 2*most/s > 448 {
				best = min(best, errorAt(row, s))
			}
		}
		assert.Less(t, got, 1.02*best, "row %d: mantissas are known to 2^-8, a thirty-second of a step", trial)
		gained += got / errorAt(row, most/448) / trials
	}
	t.Logf("square error %.3f of that of the least scale", gained)
	assert.Less(t, gained, 0.9, "square error against that of the least scale")
	assert.Equal(t, float32(1), F8E4M3Scale(make([]float32, 16)))
	assert.Equal(t, float32(1), F8E4M3Scale(nil))
}

func BenchmarkF8E4M3Scale(b *testing.B) {
	r := rand.New(rand.NewPCG(3, 4))
	row := make([]float32, 4096)
	for i := range row {
		row[i] = float32(r.NormFloat64())
	}
	b.SetBytes(int64(4 * len(row)))
	for b.Loop() {
		F8E4M3Scale(row)
	}
}

// A dummy of eight bits has the values that E4M3 and its scale hold, and bfloat16 holds them too.
func TestDummyF8E4M3(t *testing.T) {
	d := newDummy("model.layers.0.mlp.down_proj.weight", []int{32, 200}).F8E4M3()
	require.Equal(t, 8, d.Dummy.Bits)
	scale := d.Quant.Scales[0]
	assert.LessOrEqual(t, d.Dummy.Scale, 448*scale)
	assert.Greater(t, d.Dummy.Scale, 223*scale)
	row := make([]float32, 200)
	distinct := map[float32]bool{}
	for i := range 32 {
		d.Row(i, row)
		for _, v := range row {
			require.Equal(t, v, F8E4M3ToFloat32(F8E4M3FromFloat32(v/scale))*scale)
			distinct[v] = true
		}
	}
	assert.Greater(t, len(distinct), 80)
}
