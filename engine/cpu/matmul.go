package cpu

// product is one matrix of a [stepper.multiply] and where its result goes, y [m, w.n].
type product struct {
	w *matrix
	y []float32
}

// A worker takes about a quarter of its share of the weight rows at once, so that a worker that is held up leaves the rest to
// others. In a matrix-vector product it is never fewer than minVectorRows, as the first rows of a task are not prefetched.
const (
	tasksPerWorker = 4
	minVectorRows  = 32
	maxTileRows    = 64
)

// tileBytes bounds a tile of decoded weight rows: it stays in half of a 512 KiB level-2 cache while the activations pass by.
const tileBytes = 256 << 10

// vectorTileBytes bounds the tile where one token alone passes by and there is no vecmat kernel: it stays in level 1.
const vectorTileBytes = 16 << 10

// tokensPerPass is how many tokens pass by a tile at once: their activations stay in the level-1 cache for four rows of the
// tile at a time.
const tokensPerPass = 4

// multiply computes each product's y = x wᵀ for x [m, k]; all matrices have the same k.
func (s *stepper) multiply(x []float32, m int, products ...product) {
	k := products[0].w.k
	stride := (k + lanes - 1) / lanes * lanes
	if stride != k {
		x = s.padRows(x, m, k, stride)
	}
	rows := 0
	for i := range products {
		rows += products[i].w.n
	}
	perTask := (rows/(tasksPerWorker*s.pool.threads()) + 3) / 4 * 4
	if m == 1 {
		perTask = max(perTask, minVectorRows)
	} else {
		perTask = min(max(perTask, 4), max(tileBytes/4/stride/4*4, 4), maxTileRows)
	}
	tasks := 0
	for i := range products {
		tasks += (products[i].w.n + perTask - 1) / perTask
	}
	// Where there are more workers than tiles, the tokens are split too, at the price of decoding a tile more than once.
	split := 1
	if most := m / 32; most > 1 {
		split = min(max(1, (4*s.pool.threads()+tasks-1)/tasks), most)
	}
	s.pool.run(tasks*split, func(worker, task int) {
		part := task % split
		task /= split
		var p product
		for i := range products {
			p = products[i]
			if n := (p.w.n + perTask - 1) / perTask; task >= n {
				task -= n
				continue
			}
			break
		}
		row := task * perTask
		rows := min(perTask, p.w.n-row)
		from, to := m*part/split, m*(part+1)/split
		s.multiplyTile(worker, x[from*stride:], p.y[from*p.w.n:], p.w, row, rows, to-from, stride)
	})
}

// multiplyTile computes rows [row, row+rows) of one product for m tokens.
func (s *stepper) multiplyTile(worker int, x, y []float32, w *matrix, row, rows, m, stride int) {
	ks := s.kernels
	if vecmat := ks.vecmat[w.tensor.DType]; m == 1 && vecmat != nil && w.k%decodeUnit == 0 {
		vecmat(y[row:row+rows], x, w.tensor.Data[row*w.rowBytes:(row+rows)*w.rowBytes], w.rowBytes)
		return
	}
	budget := tileBytes
	if m == 1 {
		budget = vectorTileBytes
	}
	perTile := max(budget/4/stride/4*4, 4)
	for ; rows > 0; row, rows = row+perTile, rows-perTile {
		n := min(perTile, rows)
		tile := s.decodeTile(worker, w, row, n, stride)
		for i := 0; i < m; i += tokensPerPass {
			ks.tile(y[i*w.n+row:], x[i*stride:], tile, w.n, stride, stride, min(tokensPerPass, m-i), n, stride)
		}
	}
}

// decodeTile returns rows [row, row+n) as float32, [n rounded up to 4, stride], zero beyond w's own.
func (s *stepper) decodeTile(worker int, w *matrix, row, n, stride int) []float32 {
	padded := (n + 3) / 4 * 4
	tile := grow(&s.scratch[worker].tile, padded*stride)
	for i := range padded {
		dst := tile[i*stride : (i+1)*stride]
		if i < n {
			s.kernels.decodeRow(dst[:w.k], w, row+i)
			dst = dst[w.k:]
		}
		clear(dst)
	}
	return tile
}

// padRows copies x [m, k] to rows of stride elements, zero beyond k.
func (s *stepper) padRows(x []float32, m, k, stride int) []float32 {
	out := grow(&s.padded, m*stride)
	for i := range m {
		row := out[i*stride : (i+1)*stride]
		clear(row[copy(row, x[i*k:(i+1)*k]):])
	}
	return out
}

// grow returns *buffer with n elements, whatever they hold, replacing it if it is too small.
func grow(buffer *[]float32, n int) []float32 {
	if cap(*buffer) < n {
		*buffer = make([]float32, n)
	}
	return (*buffer)[:n]
}
