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
