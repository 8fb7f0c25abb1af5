package weights

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"io"
	"math/bits"
	"slices"
)

// maxHeaderBytes is the format's own limit.
const maxHeaderBytes = 100_000_000

// safetensors is one file of the format: eight bytes with the header's length, the header in JSON, the data.
type safetensors struct {
	path    string
	file    *file
	entries map[string]safetensorsEntry
}

type safetensorsEntry struct {
	dtype string
	shape []int
	data  []byte
}

// elementBytes of the format's types, also of those that no model here has: their place in the file is checked like others'.
var elementBytes = map[string]int{
	"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
	"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}

func openSafetensors(path string) (*safetensors, error) {
	f, err := openFile(path)
	if err != nil {
		return nil, err
	}
	entries, err := parseSafetensors(path, f.data)
	if err != nil {
		_ = f.release() // the parse error is the one to tell
		return nil, err
	}
	return &safetensors{path, f, entries}, nil
}

// parseSafetensors reads the header and checks that its tensors tile the data: in bounds, without overlaps or holes.
func parseSafetensors(path string, data []byte) (map[string]safetensorsEntry, error) {
	if len(data) < 8 {
		return nil, errorf(path, "", "%d bytes are too few for a safetensors file: it is truncated or something else", len(data))
	}
	headerBytes := binary.LittleEndian.Uint64(data)
	if headerBytes > maxHeaderBytes {
		return nil, errorf(path, "", "a header of %d bytes (limit %d): this is not a safetensors file, or it is damaged", headerBytes, maxHeaderBytes)
	}
	if headerBytes > uint64(len(data)-8) {
		return nil, errorf(path, "", "truncated: a header of %d bytes in a file of %d", headerBytes, len(data))
	}
	header, body := data[8:8+headerBytes], data[8+headerBytes:]
	entries, spans, err := parseHeader(path, header, body)
	if err != nil {
		return nil, err
	}
	return entries, checkSpans(path, spans, int64(len(body)))
}

// span is the place of a tensor in a file's data.
type span struct {
	name       string
	begin, end int64
}

func parseHeader(path string, header, body []byte) (map[string]safetensorsEntry, []span, error) {
	malformed := func(err error) error {
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return errorf(path, "", "malformed header: it ends too early")
		}
		return errorf(path, "", "malformed header: %v", err)
	}
	dec := json.NewDecoder(bytes.NewReader(header))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, nil, errorf(path, "", "malformed header: want a JSON object")
	}
	entries := map[string]safetensorsEntry{}
	var spans []span
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, nil, malformed(err)
		}
		name := key.(string) // a JSON object's keys are strings, or Token fails
		if name == "__metadata__" {
			var skip json.RawMessage
			if err := dec.Decode(&skip); err != nil {
				return nil, nil, malformed(err)
			}
			continue
		}
		var info struct {
			DType   string   `json:"dtype"`
			Shape   []int64  `json:"shape"`
			Offsets [2]int64 `json:"data_offsets"`
		}
		if err := dec.Decode(&info); err != nil {
			return nil, nil, errorf(path, name, "malformed header: %v", err)
		}
		if _, twice := entries[name]; twice {
			return nil, nil, errorf(path, name, "named twice in the header")
		}
		begin, end := info.Offsets[0], info.Offsets[1]
		if begin < 0 || end < begin || end > int64(len(body)) {
			return nil, nil, errorf(path, name, "bytes %d to %d are outside the file's %d bytes of data: it is truncated or damaged", begin, end, len(body))
		}
		shape, size, ok := shapeBytes(info.Shape, elementBytes[info.DType])
		if !ok {
			return nil, nil, errorf(path, name, "shape %v is impossible", info.Shape)
		}
		if size != end-begin && elementBytes[info.DType] != 0 {
			return nil, nil, errorf(path, name, "shape %v of %s takes %d bytes, the header gives it %d", info.Shape, info.DType, size, end-begin)
		}
		entries[name] = safetensorsEntry{info.DType, shape, body[begin:end]}
		spans = append(spans, span{name, begin, end})
	}
	if _, err := dec.Token(); err != nil {
		return nil, nil, malformed(err)
	}
	return entries, spans, nil
}

// shapeBytes multiplies without overflow; false if a size is negative or the product does not fit 63 bits.
func shapeBytes(dims []int64, element int) (shape []int, bytes int64, ok bool) {
	product := uint64(max(element, 1))
	shape = make([]int, len(dims))
	for i, d := range dims {
		hi, lo := bits.Mul64(product, uint64(d))
		if d < 0 || d > maxDim || hi != 0 || lo > 1<<62 {
			return nil, 0, false
		}
		product, shape[i] = lo, int(d)
	}
	return shape, int64(product), true
}

// maxDim keeps a size inside an int on every machine.
const maxDim = 1<<31 - 1

// checkSpans refuses tensors that overlap, and bytes that belong to none.
func checkSpans(path string, spans []span, total int64) error {
	if err := checkOverlap(path, spans); err != nil {
		return err
	}
	at := int64(0)
	for _, s := range spans {
		if s.begin > at {
			return errorf(path, s.name, "bytes %d to %d before it belong to no tensor", at, s.begin)
		}
		at = s.end
	}
	if at != total {
		return errorf(path, "", "%d bytes of data, but the header describes %d", total, at)
	}
	return nil
}

// checkOverlap sorts spans by their place and refuses two that share a byte.
func checkOverlap(path string, spans []span) error {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.begin, b.begin), cmp.Compare(a.end, b.end))
	})
	for i := 1; i < len(spans); i++ {
		if a, b := spans[i-1], spans[i]; b.begin < a.end {
			return errorf(path, b.name, "bytes %d to %d overlap tensor %s", b.begin, b.end, a.name)
		}
	}
	return nil
}
