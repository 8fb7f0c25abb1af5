package weights

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// GGUF is an opened GGUF file of version 2 or 3.
type GGUF struct {
	// Meta is the file's metadata: uint8..uint64, int8..int64, float32, float64, bool, string, and slices of these
	// ([]string, []float32, []int32, ...; []any for arrays of arrays). It also holds what [model.FromGGUF] must know of the
	// tensors: model.GGUFTensorNames and, if there is one, model.GGUFRopeFreqs. It outlives Close.
	Meta map[string]any

	path    string
	file    *file
	tensors map[string]ggufTensor
}

// ggufTensor is a tensor as the file describes it, its shape in row-major order.
type ggufTensor struct {
	typ   uint32
	shape []int
	data  []byte // nil if typ is not in ggufTypes
}

// ggufTypes are the tensor types by their number in the file.
var ggufTypes = map[uint32]DType{0: F32, 1: F16, 2: Q4_0, 3: Q4_1, 8: Q8_0, 12: Q4_K, 13: Q5_K, 14: Q6_K, 30: BF16}

// ggufOtherTypes are named in the error for a tensor that needs one.
var ggufOtherTypes = map[uint32]string{
	6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
	19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
	29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}

// OpenGGUF maps a file and reads its header; every length in it is checked against the file before it is used.
func OpenGGUF(path string) (*GGUF, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	g := &GGUF{path: path, file: f, Meta: map[string]any{}, tensors: map[string]ggufTensor{}}
	if err := g.parse(f.data); err != nil {
		_ = f.release() // the parse error is the one to tell
		return nil, err
	}
	return g, nil
}

// Close lets go of the file, unless a Store of it is still open. It may be called twice.
func (g *GGUF) Close() error {
	if g.file == nil {
		return nil
	}
	f := g.file
	g.file, g.tensors = nil, nil
	return f.release()
}

// ErrClosed is returned by Store on a closed file.
var ErrClosed = errors.New("GGUF file is closed")

// Store returns the tensors cfg needs under their Hugging Face names, shapes verified. The rows of query and key, which llama
// files hold in the order of adjacent-pair rotation, are copied into the order of Hugging Face's.
func (g *GGUF) Store(cfg *model.Config) (*Store, error) {
	if g.file == nil {
		return nil, ErrClosed
	}
	s := &Store{tensors: map[string]*Tensor{}}
	arch, _ := g.Meta["general.architecture"].(string)
	for _, want := range cfg.Tensors() {
		t, err := g.tensor(want)
		if err != nil {
			return nil, err
		}
		if heads := pairedHeads(arch, want.Name, cfg); heads > 0 {
			t.Data = unpairRows(t.Data, t.Shape[0], heads)
		}
		s.tensors[want.Name] = t
	}
	s.files = []*file{g.file.retain()}
	return s, nil
}

func (g *GGUF) tensor(want model.Tensor) (*Tensor, error) {
	name, ok := ggufName(want.Name)
	if !ok {
		return nil, errorf(g.path, want.Name, "GGUF files have no name for it: want a Hugging Face directory")
	}
	found, ok := g.tensors[name]
	if !ok {
		return nil, errorf(g.path, name, "missing, the model's config asks for it with shape %v", want.Shape)
	}
	if err := checkShape(g.path, name, found.shape, want.Shape); err != nil {
		return nil, err
	}
	dtype, ok := ggufTypes[found.typ]
	if !ok {
		return nil, errorf(g.path, name, "type %s is not supported: want F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K or Q6_K", ggufTypeName(found.typ))
	}
	return &Tensor{Name: want.Name, DType: dtype, Shape: want.Shape, Data: found.data}, nil
}

func ggufTypeName(typ uint32) string {
	if name, ok := ggufOtherTypes[typ]; ok {
		return name
	}
	return fmt.Sprintf("number %d", typ)
}

// parse reads the whole header: magic, version, counts, metadata, tensor descriptions.
func (g *GGUF) parse(data []byte) error {
	r := &ggufCursor{path: g.path, data: data}
	tensorCount, metaCount, err := r.preamble()
	if err != nil {
		return err
	}
	for range metaCount {
		key := r.text()
		value := r.value(r.u32(), 0)
		if r.err != nil {
			return r.errorIn("metadata", key)
		}
		if _, twice := g.Meta[key]; twice {
			return errorf(g.path, "", "metadata key %q appears twice", key)
		}
		g.Meta[key] = value
	}
	if parts, ok := g.Meta["split.count"].(uint16); ok && parts > 1 {
		return errorf(g.path, "", "one of %d parts: join them first (llama-gguf-split --merge)", parts)
	}
	alignment := uint64(32)
	if a, ok := g.Meta["general.alignment"].(uint32); ok {
		alignment = uint64(a)
	}
	if bits.OnesCount64(alignment) != 1 || alignment > 1<<20 {
		return errorf(g.path, "", "general.alignment is %d: want a power of two", alignment)
	}
	infos := make([]ggufInfo, 0, min(tensorCount, 1<<16))
	for range tensorCount {
		info := r.tensorInfo()
		if r.err != nil {
			return r.errorIn("tensor", info.name)
		}
		infos = append(infos, info)
	}
	begin := (uint64(r.at) + alignment - 1) / alignment * alignment
	return g.place(infos, data[min(begin, uint64(len(data))):], alignment)
}

// place checks each tensor's place in the data and keeps it.
func (g *GGUF) place(infos []ggufInfo, data []byte, alignment uint64) error {
	var spans []span
	names := make([]string, 0, len(infos))
	for _, info := range infos {
		if _, twice := g.tensors[info.name]; twice {
			return errorf(g.path, info.name, "described twice")
		}
		t := ggufTensor{typ: info.typ}
		dtype, known := ggufTypes[info.typ]
		block, blockBytes := 1, 1
		if known {
			block, blockBytes = dtype.BlockElements(), dtype.BlockBytes()
		}
		shape, elements, ok := shapeBytes(info.dims, 1)
		if !ok || elements > (1<<62)/int64(blockBytes) {
			return errorf(g.path, info.name, "shape %v is impossible", info.dims)
		}
		if slices.Reverse(shape); shape[len(shape)-1]%block != 0 {
			return errorf(g.path, info.name, "rows of %d elements in blocks of %d (%s)", shape[len(shape)-1], block, dtype)
		}
		t.shape = shape
		if info.offset%alignment != 0 {
			return errorf(g.path, info.name, "offset %d is not a multiple of the alignment %d", info.offset, alignment)
		}
		if known {
			size := uint64(elements) / uint64(block) * uint64(blockBytes)
			if info.offset > uint64(len(data)) || size > uint64(len(data))-info.offset {
				return errorf(g.path, info.name, "bytes %d to %d are outside the file's %d bytes of data: it is truncated or damaged", info.offset, info.offset+size, len(data))
			}
			t.data = data[info.offset : info.offset+size]
			spans = append(spans, span{info.name, int64(info.offset), int64(info.offset + size)})
		}
		g.tensors[info.name] = t
		names = append(names, info.name)
	}
	if err := checkOverlap(g.path, spans); err != nil {
		return err
	}
	g.Meta[model.GGUFTensorNames] = names
	return g.addRopeFreqs()
}

// addRopeFreqs hands the factors of llama3's rope scaling, which these files keep as a tensor, to the metadata.
func (g *GGUF) addRopeFreqs() error {
	t, ok := g.tensors["rope_freqs.weight"]
	if !ok {
		return nil
	}
	if t.typ != 0 || len(t.shape) != 1 {
		return errorf(g.path, "rope_freqs.weight", "shape %v of type %d: want a vector of F32", t.shape, t.typ)
	}
	freqs := make([]float32, t.shape[0])
	decodeF32(freqs, t.data)
	g.Meta[model.GGUFRopeFreqs] = freqs
	return nil
}

// ggufInfo is a tensor's description as read.
type ggufInfo struct {
	name   string
	dims   []int64 // fastest first
	typ    uint32
	offset uint64
}

func (r *ggufCursor) tensorInfo() ggufInfo {
	const maxDims = 4
	info := ggufInfo{name: r.text()}
	n := r.u32()
	if r.err == nil && (n < 1 || n > maxDims) {
		r.fail("%d dimensions: want 1 to %d", n, maxDims)
	}
	for i := uint32(0); i < n && r.err == nil; i++ {
		d := r.u64()
		if d < 1 || d > maxDim {
			r.fail("a dimension of %d: want 1 to %d", d, maxDim)
		}
		info.dims = append(info.dims, int64(d))
	}
	info.typ, info.offset = r.u32(), r.u64()
	return info
}

// preamble reads what stands before the metadata, and refuses counts that the file is too short for.
func (r *ggufCursor) preamble() (tensors, metadata uint64, err error) {
	if len(r.data) < 24 || string(r.data[:4]) != "GGUF" {
		return 0, 0, errorf(r.path, "", `not a GGUF file: it does not begin with "GGUF" and a header`)
	}
	r.at = 4
	switch version := r.u32(); {
	case version == 2 || version == 3:
	case version > 1<<16 && bits.ReverseBytes32(version) <= 3:
		return 0, 0, errorf(r.path, "", "big-endian GGUF is not supported")
	default:
		return 0, 0, errorf(r.path, "", "GGUF version %d is not supported: want 2 or 3", version)
	}
	tensors, metadata = r.u64(), r.u64()
	const leastMeta, leastTensor = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8 // bytes of the shortest of each
	if tensors > uint64(len(r.data)/leastTensor) {
		return 0, 0, errorf(r.path, "", "%d tensors in a file of %d bytes: it is truncated or damaged", tensors, len(r.data))
	}
	if metadata > uint64(len(r.data)/leastMeta) {
		return 0, 0, errorf(r.path, "", "%d metadata keys in a file of %d bytes: it is truncated or damaged", metadata, len(r.data))
	}
	return tensors, metadata, nil
}

// ggufCursor reads numbers and strings one after the other; after the first error it reads zeros.
type ggufCursor struct {
	path string
	data []byte
	at   int
	err  error
}

func (r *ggufCursor) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
}

// errorIn says where in the header the cursor failed.
func (r *ggufCursor) errorIn(what, name string) error {
	return errorf(r.path, "", "%s %q: %v", what, name, r.err)
}

func (r *ggufCursor) take(n uint64) []byte {
	if r.err == nil && n > uint64(len(r.data)-r.at) {
		r.fail("truncated: the header goes on past the file's %d bytes", len(r.data))
	}
	if r.err != nil {
		return nil
	}
	b := r.data[r.at : r.at+int(n)]
	r.at += int(n)
	return b
}

func (r *ggufCursor) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *ggufCursor) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *ggufCursor) text() string { return string(r.take(r.u64())) }
