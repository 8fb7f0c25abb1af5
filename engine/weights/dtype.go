package weights

// layout is how a type's elements lie in memory: blocks of so many elements in so many bytes.
type layout struct {
	name         string
	elements     int
	bytes        int
	decodeBlocks func(dst []float32, src []byte) // whole blocks; nil where there is nothing to decode to
}

var layouts = [...]layout{
	F32:    {"F32", 1, 4, decodeF32},
	F16:    {"F16", 1, 2, decodeF16},
	BF16:   {"BF16", 1, 2, decodeBF16},
	Q8_0:   {"Q8_0", 32, 34, decodeQ8_0},
	Q4_0:   {"Q4_0", 32, 18, decodeQ4_0},
	Q4_1:   {"Q4_1", 32, 20, decodeQ4_1},
	Q4_K:   {"Q4_K", 256, 144, decodeQ4_K},
	Q5_K:   {"Q5_K", 256, 176, decodeQ5_K},
	Q6_K:   {"Q6_K", 256, 210, decodeQ6_K},
	F8E4M3: {"F8_E4M3", 1, 1, decodeF8E4M3},
	I32:    {"I32", 1, 4, nil},
	I64:    {"I64", 1, 8, nil},
	I4:     {"I4", 2, 1, nil},
}

// String is the type's name in files.
func (d DType) String() string { return layouts[d].name }

// BlockElements is the number of elements of a block; 1 for a plain type.
func (d DType) BlockElements() int { return layouts[d].elements }

// BlockBytes is the size of a block.
func (d DType) BlockBytes() int { return layouts[d].bytes }

// bytes is the size of n elements, a whole number of blocks.
func (d DType) bytes(n int) int { return n / layouts[d].elements * layouts[d].bytes }
