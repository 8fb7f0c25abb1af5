package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkMatmul multiplies a [1536, 576] matrix, a feed-forward one of the fixture model, on one thread: decode is tokens=1.
func BenchmarkMatmul(b *testing.B) {
	const n, k = 1536, 576
	for _, ks := range levels {
		for _, dtype := range []weights.DType{weights.F32, weights.BF16, weights.Q8_0, weights.Q4_0, weights.Q4_1, weights.Q4_K, weights.Q6_K} {
			for _, m := range []int{1, 8, 128} {
				b.Run(fmt.Sprintf("level=%s/dtype=%s/tokens=%d", ks.name, dtypeNames[dtype], m), func(b *testing.B) {
					k := (k + dtype.BlockElements() - 1) / dtype.BlockElements() * dtype.BlockElements()
					w := randomMatrix(b, dtype, n, k)
					s := &stepper{pool: newPool(1), kernels: ks, scratch: make([]scratch, 1)}
					defer s.pool.close()
					x, y := randomFloats(m*k), make([]float32, m*n)
					for b.Loop() {
						s.multiply(x, m, product{w, y})
					}
					b.ReportMetric(2*float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
				})
			}
		}
	}
}

// BenchmarkDecode decodes one sequence of the real fixture model at a context of 64 and more.
func BenchmarkDecode(b *testing.B) {
	back := openReal(b, backend.Options{MaxContext: 2048, MaxRows: 1})
	pages := make([]int32, 128)
	for i := range pages {
		pages[i] = int32(i)
	}
	var out backend.Result
	step := func(row backend.Row) {
		id, err := back.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(b, err)
		require.NoError(b, back.Wait(id, &out))
	}
	step(backend.Row{Start: &backend.Start{}, Tokens: randomTokens(64), Pages: pages, Sample: true})
	position := 64
	for b.Loop() {
		step(backend.Row{Position: position, Pages: pages, Sample: true})
		if position++; position == 512 {
			position = 64
		}
	}
	require.False(b, out.Rows[0].NonFinite)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tok/s")
}

// BenchmarkPrefill prefills 512 tokens of the real fixture model in one chunk.
func BenchmarkPrefill(b *testing.B) {
	back := openReal(b, backend.Options{MaxContext: 512, MaxRows: 1})
	pages := make([]int32, 32)
	for i := range pages {
		pages[i] = int32(i)
	}
	tokens := randomTokens(512)
	var out backend.Result
	for b.Loop() {
		id, err := back.Launch(&backend.Batch{Rows: []backend.Row{{Start: &backend.Start{}, Tokens: tokens, Pages: pages, Sample: true}}})
		require.NoError(b, err)
		require.NoError(b, back.Wait(id, &out))
	}
	require.False(b, out.Rows[0].NonFinite)
	b.ReportMetric(512*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
}

func randomTokens(n int) []int32 { return randomTokensOf(49152, n) }

func randomTokensOf(vocabulary, n int) []int32 {
	r := rand.New(rand.NewPCG(1, 2))
	tokens := make([]int32, n)
	for i := range tokens {
		tokens[i] = r.Int32N(int32(vocabulary))
	}
	return tokens
}

func randomFloats(n int) []float32 {
	r := rand.New(rand.NewPCG(3, uint64(n)))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// randomMatrix fills a matrix of any stored type with random bits, its scales with small numbers.
func randomMatrix(tb testing.TB, dtype weights.DType, n, k int) *matrix {
	t := &weights.Tensor{Name: "random", DType: dtype, Shape: []int{n, k}}
	r := rand.New(rand.NewPCG(5, uint64(n*k)))
	t.Data = make([]byte, t.Bytes())
	for i := range t.Data {
		t.Data[i] = byte(r.Uint32())
	}
	half := func(b []byte) { // a float16 of either sign, 2^-7 to 2^-5
		b[0], b[1] = byte(r.Uint32()), byte(0x20|r.Uint32()&0x87)
	}
	for block := t.Data; len(block) > 0; block = block[dtype.BlockBytes():] {
		switch dtype {
		case weights.F32:
			block[3] = block[3]&0x80 | 0x3C
		case weights.BF16:
			block[1] = block[1]&0x80 | 0x3C
		case weights.F16, weights.Q8_0, weights.Q4_0:
			half(block)
		case weights.Q4_1, weights.Q4_K, weights.Q5_K:
			half(block)
			half(block[2:])
		case weights.Q6_K:
			half(block[208:])
		}
	}
	m, err := newMatrix(t)
	require.NoError(tb, err)
	return m
}
