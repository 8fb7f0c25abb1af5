package weights

import (
	"math"
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// quantised makes a tensor of the quantised form that the files hold for a matrix. It returns nil where they hold none: in a
// quantised checkpoint some matrices, norms and biases stay plain.
func (d *directory) quantised(want model.Tensor) (*Tensor, error) {
	stem, isWeight := strings.CutSuffix(want.Name, ".weight")
	if d.quant == nil || !isWeight || len(want.Shape) != 2 {
		return nil, nil
	}
	m := &matrix{d, stem, want, want.Shape[0], want.Shape[1]}
	switch {
	case d.quant.Scheme == "fp8":
		return m.fp8()
	case d.quant.Method == "compressed-tensors":
		return m.packed()
	case d.quant.Method == "awq":
		return m.awq()
	}
	return m.gptq()
}

// matrix is one quantised matrix [out, in] of a directory, stored as several tensors of the same stem.
type matrix struct {
	*directory
	stem    string
	want    model.Tensor
	out, in int
}

// part finds the tensor with that suffix and checks its type and number of elements; ok is false if there is none.
func (m *matrix) part(suffix string, dtypes []string, shape ...int) (entry safetensorsEntry, ok bool, err error) {
	name := m.stem + suffix
	shard, entry, ok, err := m.entry(name)
	if err != nil || !ok {
		return entry, false, err
	}
	if !slices.Contains(dtypes, entry.dtype) {
		return entry, false, errorf(shard.path, name, "type %s is not supported: want %s", entry.dtype, strings.Join(dtypes, " or "))
	}
	return entry, true, checkShape(shard.path, name, entry.shape, shape)
}

// need is part where the tensor must be there.
func (m *matrix) need(suffix string, dtypes []string, shape ...int) (safetensorsEntry, error) {
	entry, ok, err := m.part(suffix, dtypes, shape...)
	if err == nil && !ok {
		err = errorf(m.path, m.stem+suffix, "missing, the quantised matrix needs it with shape %v", shape)
	}
	return entry, err
}

var (
	floatTypes = []string{"F32", "F16", "BF16"}
	wordTypes  = []string{"I32"}
)

// floats decodes all elements.
func (e *safetensorsEntry) floats() []float32 {
	layout := layouts[plainTypes[e.dtype]]
	out := make([]float32, len(e.data)/layout.bytes)
	layout.decodeBlocks(out, e.data)
	return out
}

// scalar reads a tensor of one element of whatever shape; ok is false if there is none.
func (m *matrix) scalar(suffix string) (value float32, ok bool, err error) {
	shard, entry, ok, err := m.entry(m.stem + suffix)
	if err != nil || !ok {
		return 0, false, err
	}
	if _, isFloat := plainTypes[entry.dtype]; !isFloat {
		return 0, false, errorf(shard.path, m.stem+suffix, "type %s is not supported: want F32, F16 or BF16", entry.dtype)
	}
	values := entry.floats()
	if len(values) != 1 {
		return 0, false, errorf(shard.path, m.stem+suffix, "shape %v: want one element", entry.shape)
	}
	return values[0], true, nil
}

// cacheScale reads the scale of K or V in an F8E4M3 cache, which lies beside the projection or beside attention, if there is one.
func (d *directory) cacheScale(t *Tensor) error {
	for _, part := range []string{"k", "v"} {
		layer, ok := strings.CutSuffix(t.Name, ".self_attn."+part+"_proj.weight")
		if !ok {
			continue
		}
		for _, stem := range []string{layer + ".self_attn." + part + "_proj", layer + ".self_attn", layer + ".self_attn.attn"} {
			m := &matrix{directory: d, stem: stem}
			scale, ok, err := m.scalar("." + part + "_scale")
			if err != nil {
				return err
			}
			if ok && !(scale > 0 && scale <= math.MaxFloat32) {
				return errorf(d.path, stem+"."+part+"_scale", "%v: want a positive number", scale)
			}
			if ok {
				t.CacheScale = scale
				return nil
			}
		}
	}
	return nil
}

// fp8 reads a matrix of E4M3 with weight_scale, of the matrix or of each row, and perhaps input_scale.
func (m *matrix) fp8() (*Tensor, error) {
	_, entry, ok, err := m.entry(m.want.Name)
	if err != nil || !ok || entry.dtype != "F8_E4M3" {
		return nil, err
	}
	if entry, _, err = m.part(".weight", []string{"F8_E4M3"}, m.want.Shape...); err != nil {
		return nil, err
	}
	q := &Quant{GroupSize: m.in}
	switch m.quant.Granularity {
	case "block":
		if q.Scales, err = m.blockScales(); err != nil {
			return nil, err
		}
		q.GroupSize = m.quant.GroupSize
	case "channel":
		scales, err := m.need(".weight_scale", floatTypes, m.out, 1)
		if err != nil {
			return nil, err
		}
		q.Scales = scales.floats()
	default:
		scale, ok, err := m.scalar(".weight_scale")
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errorf(m.path, m.stem+".weight_scale", "missing, the quantised matrix needs it with one element")
		}
		q.Scales = []float32{scale}
	}
	if q.InputScale, ok, err = m.scalar(".input_scale"); err != nil {
		return nil, err
	}
	if m.quant.Activations == "static" && !ok {
		return nil, errorf(m.path, m.stem+".input_scale", "missing, the config says that activations have static scales")
	}
	return &Tensor{Name: m.want.Name, DType: F8E4M3, Shape: m.want.Shape, Data: entry.data, Quant: q}, nil
}

// blockScales reads weight_scale_inv, a scale for each block, and gives each row its own copy. Despite the name it multiplies.
func (m *matrix) blockScales() ([]float32, error) {
	rows, size := m.quant.BlockRows, m.quant.GroupSize
	if m.in%size != 0 {
		return nil, errorf(m.path, m.want.Name, "shape %v cannot be stored in blocks of %d elements of a row", m.want.Shape, size)
	}
	groups := m.in / size
	stored, err := m.need(".weight_scale_inv", floatTypes, (m.out+rows-1)/rows, groups)
	if err != nil {
		return nil, err
	}
	blocks := stored.floats()
	out := make([]float32, 0, m.out*groups)
	for i := range m.out {
		out = append(out, blocks[i/rows*groups:][:groups]...)
	}
	return out, nil
}

// group checks that groups fill a row, and returns their size.
func (m *matrix) group() (int, error) {
	size := m.quant.GroupSize
	if size == 0 {
		size = m.in
	}
	if m.in%size != 0 || size%8 != 0 || m.out%8 != 0 {
		return 0, errorf(m.path, m.want.Name, "shape %v cannot be stored in words of 8 elements and groups of %d", m.want.Shape, size)
	}
	return size, nil
}

// packed reads compressed-tensors' form, which is ours: words of eight neighbours of a row, 8 above their value.
func (m *matrix) packed() (*Tensor, error) {
	if _, _, ok, err := m.entry(m.stem + ".weight_packed"); err != nil || !ok {
		return nil, err
	}
	size, err := m.group()
	if err != nil {
		return nil, err
	}
	words, err := m.need(".weight_packed", wordTypes, m.out, m.in/8)
	if err != nil {
		return nil, err
	}
	scales, err := m.need(".weight_scale", floatTypes, m.out, m.in/size)
	if err != nil {
		return nil, err
	}
	return m.int4(words.data, &Quant{Scales: scales.floats(), GroupSize: size}), nil
}

func (m *matrix) int4(data []byte, q *Quant) *Tensor {
	return &Tensor{Name: m.want.Name, DType: I4, Shape: m.want.Shape, Data: data, Quant: q}
}

// awq reads AWQ's form: [in, out/8] words of eight neighbouring outputs, in an order of their own.
func (m *matrix) awq() (*Tensor, error) {
	words, q, err := m.grouped(m.in, m.out/8, awqOrder)
	if words == nil || err != nil {
		return nil, err
	}
	t := m.int4(nil, q)
	m.repack = append(m.repack, func() { t.Data = unpackOutputs(words, m.out, m.in, awqOrder) })
	return t, nil
}

// gptq reads GPTQ's form: [in/8, out] words of eight neighbouring inputs of one output.
func (m *matrix) gptq() (*Tensor, error) {
	words, q, err := m.grouped(m.in/8, m.out, plainOrder)
	if words == nil || err != nil {
		return nil, err
	}
	if err := m.checkGroupIndex(q.GroupSize); err != nil {
		return nil, err
	}
	t := m.int4(nil, q)
	m.repack = append(m.repack, func() { t.Data = transposeWords(words, m.in/8, m.out) })
	return t, nil
}

// grouped reads qweight of that shape, and scales and qzeros of [groups, outputs], which both forms share.
func (m *matrix) grouped(rows, columns int, zeroOrder [8]int) ([]byte, *Quant, error) {
	if _, _, ok, err := m.entry(m.stem + ".qweight"); err != nil || !ok {
		return nil, nil, err
	}
	size, err := m.group()
	if err != nil {
		return nil, nil, err
	}
	words, err := m.need(".qweight", wordTypes, rows, columns)
	if err != nil {
		return nil, nil, err
	}
	groups := m.in / size
	stored, err := m.need(".scales", floatTypes, groups, m.out)
	if err != nil {
		return nil, nil, err
	}
	q := &Quant{GroupSize: size, Scales: transpose(stored.floats(), groups, m.out)}
	if m.quant.Method == "awq" && m.quant.Symmetric {
		return words.data, q, nil
	}
	zeros, err := m.need(".qzeros", wordTypes, groups, m.out/8)
	if err != nil {
		return nil, nil, err
	}
	q.Zeros = transpose(unpackWords(zeros.data, zeroOrder), groups, m.out)
	for i := range q.Zeros {
		q.Zeros[i] += uint8(m.quant.ZeroOffset)
	}
	return words.data, q, nil
}

// checkGroupIndex refuses groups that are not neighbours, whatever the config says.
func (m *matrix) checkGroupIndex(size int) error {
	entry, ok, err := m.part(".g_idx", wordTypes, m.in)
	if err != nil || !ok {
		return err
	}
	for i := range m.in {
		if group := int(word(entry.data, i)); group != i/size {
			return errorf(m.path, m.stem+".g_idx", "input %d is in group %d, want %d: activation order is not supported", i, group, i/size)
		}
	}
	return nil
}
