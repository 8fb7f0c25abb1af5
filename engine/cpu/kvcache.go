package cpu

import (
	"fmt"
	"math"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// kvCache holds keys and values by page. A page is allocated when it is first written, so an idle cache costs nothing. Inside
// a page, [layers, 2, kvHeads, pageSize, headDim]: the positions of one head lie together.
type kvCache struct {
	layers, heads, dim, pageSize int
	dtype                        kvType
	scales                       []float32 // of an E4M3 cache [layers, 2]: what K and V are divided by

	pages []kvPage
}

// kvType is the type of the cache's elements.
type kvType int

const (
	kvFloat32 kvType = iota
	kvBF16
	kvE4M3
)

// kvTypes are the names in the options; "auto" is float32.
var kvTypes = map[string]kvType{"": kvFloat32, "auto": kvFloat32, "float32": kvFloat32, "bfloat16": kvBF16, "fp8_e4m3": kvE4M3}

func (t kvType) bytes() int { return [...]int{4, 2, 1}[t] }

// kvPage has one of its fields set, by the cache's element type.
type kvPage struct {
	f32  []float32
	bf16 []uint16
	e4m3 []byte
}

// e4m3Values are the values of all E4M3 numbers.
var e4m3Values = func() (v [256]float32) {
	for i := range v {
		v[i] = weights.F8E4M3ToFloat32(byte(i))
	}
	return v
}()

func (c *kvCache) pageElements() int { return c.layers * 2 * c.heads * c.pageSize * c.dim }

// touch allocates the pages of table that hold positions [begin, end).
func (c *kvCache) touch(table []int32, begin, end int) {
	for i := begin / c.pageSize; i <= (end-1)/c.pageSize; i++ {
		p := &c.pages[table[i]]
		switch {
		case p.f32 != nil || p.bf16 != nil || p.e4m3 != nil:
		case c.dtype == kvBF16:
			p.bf16 = make([]uint16, c.pageElements())
		case c.dtype == kvE4M3:
			p.e4m3 = make([]byte, c.pageElements())
		default:
			// The tile kernels read rows in fours: three rows more than the last page of a head may hold.
			p.f32 = make([]float32, c.pageElements()+3*c.dim)
		}
	}
}

// offset is where head's rows of a layer begin inside a page. value is 0 for keys, 1 for values.
func (c *kvCache) offset(layer, value, head int) int {
	return ((layer*2+value)*c.heads + head) * c.pageSize * c.dim
}

// put stores one token's keys or values, x [kvHeads*headDim], at slot inside the page.
func (c *kvCache) put(page int32, slot, layer, value int, x []float32) {
	p := &c.pages[page]
	for h := range c.heads {
		at := c.offset(layer, value, h) + slot*c.dim
		head := x[h*c.dim : (h+1)*c.dim]
		switch c.dtype {
		case kvFloat32:
			copy(p.f32[at:], head)
		case kvBF16:
			for i, v := range head {
				p.bf16[at+i] = weights.BF16FromFloat32(v)
			}
		case kvE4M3:
			inverse := 1 / c.scales[2*layer+value]
			for i, v := range head {
				p.e4m3[at+i] = weights.F8E4M3FromFloat32(v * inverse)
			}
		}
	}
}

// rows returns a head's first n rows of a page, [n rounded up to 4, headDim]; scratch holds them where they are not stored as
// float32.
func (c *kvCache) rows(page int32, layer, value, head, n int, scratch *[]float32) []float32 {
	p, at := &c.pages[page], c.offset(layer, value, head)
	padded := (n + 3) / 4 * 4 * c.dim
	if p.f32 != nil {
		return p.f32[at : at+padded]
	}
	out := grow(scratch, padded)
	if p.bf16 != nil {
		for i, b := range p.bf16[at : at+n*c.dim] {
			out[i] = math.Float32frombits(uint32(b) << 16)
		}
	} else {
		scale := c.scales[2*layer+value]
		for i, b := range p.e4m3[at : at+n*c.dim] {
			out[i] = e4m3Values[b] * scale
		}
	}
	clear(out[n*c.dim:])
	return out
}

// cacheScales are the scales that a checkpoint gives, 1 where it gives none.
func cacheScales(w *weights.Store, layers int) []float32 {
	scales := make([]float32, 2*layers)
	for i := range scales {
		scales[i] = 1
		t, ok := w.Tensor(fmt.Sprintf("model.layers.%d.self_attn.%s_proj.weight", i/2, [...]string{"k", "v"}[i%2]))
		if ok && t.CacheScale > 0 {
			scales[i] = t.CacheScale
		}
	}
	return scales
}
