package weights

import (
	"bytes"
	"encoding/binary"
)

// Value types of GGUF metadata.
const (
	metaU8 uint32 = iota
	metaI8
	metaU16
	metaI16
	metaU32
	metaI32
	metaF32
	metaBool
	metaString
	metaArray
	metaU64
	metaI64
	metaF64
)

// value reads one metadata value; depth is the number of arrays it lies in.
func (r *ggufCursor) value(typ, depth uint32) any {
	switch typ {
	case metaU8:
		return scalar[uint8](r)
	case metaI8:
		return scalar[int8](r)
	case metaU16:
		return scalar[uint16](r)
	case metaI16:
		return scalar[int16](r)
	case metaU32:
		return scalar[uint32](r)
	case metaI32:
		return scalar[int32](r)
	case metaF32:
		return scalar[float32](r)
	case metaBool:
		return scalar[uint8](r) != 0
	case metaString:
		return r.text()
	case metaArray:
		return r.array(depth)
	case metaU64:
		return scalar[uint64](r)
	case metaI64:
		return scalar[int64](r)
	case metaF64:
		return scalar[float64](r)
	}
	r.fail("value type %d is unknown", typ)
	return nil
}

// fixed are the types of one size, which arrays hold back to back.
type fixed interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64
}

func scalar[T fixed](r *ggufCursor) T {
	list := numbers[T](r, 1)
	if len(list) == 0 {
		return 0
	}
	return list[0]
}

// numbers reads n values. The bytes are taken, and so found to be there, before anything is allocated for them.
func numbers[T fixed](r *ggufCursor, n uint64) []T {
	var zero T
	size := uint64(binary.Size(zero))
	if n > uint64(len(r.data))/size {
		r.fail("truncated: an array of %d elements in a file of %d bytes", n, len(r.data))
	}
	b := r.take(n * size)
	if r.err != nil {
		return nil
	}
	out := make([]T, n)
	if err := binary.Read(bytes.NewReader(b), binary.LittleEndian, out); err != nil {
		r.fail("%v", err)
	}
	return out
}

func (r *ggufCursor) array(depth uint32) any {
	const maxDepth = 4
	typ, n := r.u32(), r.u64()
	switch typ {
	case metaU8:
		return numbers[uint8](r, n)
	case metaI8:
		return numbers[int8](r, n)
	case metaU16:
		return numbers[uint16](r, n)
	case metaI16:
		return numbers[int16](r, n)
	case metaU32:
		return numbers[uint32](r, n)
	case metaI32:
		return numbers[int32](r, n)
	case metaF32:
		return numbers[float32](r, n)
	case metaU64:
		return numbers[uint64](r, n)
	case metaI64:
		return numbers[int64](r, n)
	case metaF64:
		return numbers[float64](r, n)
	case metaBool:
		raw := numbers[uint8](r, n)
		out := make([]bool, len(raw))
		for i, b := range raw {
			out[i] = b != 0
		}
		return out
	case metaString:
		return elements(r, n, 8, (*ggufCursor).text)
	case metaArray:
		if depth+1 >= maxDepth {
			r.fail("arrays nested more than %d deep", maxDepth)
			return nil
		}
		return elements(r, n, 12, func(r *ggufCursor) any { return r.array(depth + 1) })
	}
	r.fail("array of unknown type %d", typ)
	return nil
}

// elements reads n values of at least so many bytes each; it stops at the first error.
func elements[T any](r *ggufCursor, n, least uint64, read func(*ggufCursor) T) []T {
	if n > uint64(len(r.data)-r.at)/least {
		r.fail("truncated: an array of %d elements in a file of %d bytes", n, len(r.data))
		return nil
	}
	out := make([]T, 0, n)
	for range n {
		if r.err != nil {
			return nil
		}
		out = append(out, read(r))
	}
	return out
}
