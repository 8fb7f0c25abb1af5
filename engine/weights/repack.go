package weights

import "encoding/binary"

// Which of its eight neighbours each nibble of a word is, from the lowest bits up.
var (
	plainOrder = [8]int{0, 1, 2, 3, 4, 5, 6, 7}
	awqOrder   = [8]int{0, 2, 4, 6, 1, 3, 5, 7}
)

func word(data []byte, i int) uint32 { return binary.LittleEndian.Uint32(data[4*i:]) }

// unpackWords gives each nibble a byte.
func unpackWords(data []byte, order [8]int) []uint8 {
	out := make([]uint8, 2*len(data))
	for i := range len(data) / 4 {
		w := word(data, i)
		for nibble, place := range order {
			out[8*i+place] = uint8(w >> (4 * uint(nibble)) & 15)
		}
	}
	return out
}

// transpose turns [rows, columns] into [columns, rows].
func transpose[T any](in []T, rows, columns int) []T {
	out := make([]T, len(in))
	for r := range rows {
		for c, v := range in[r*columns : (r+1)*columns] {
			out[c*rows+r] = v
		}
	}
	return out
}

// A cache line holds this many words: the loops below walk down strips of one line's width, so that each line is read once.
const lineWords = 16

// transposeWords turns [rows, columns] words into [columns, rows].
func transposeWords(data []byte, rows, columns int) []byte {
	out := make([]byte, len(data))
	for strip := 0; strip < columns; strip += lineWords {
		for r := range rows {
			for c := strip; c < min(strip+lineWords, columns); c++ {
				copy(out[4*(c*rows+r):][:4], data[4*(r*columns+c):])
			}
		}
	}
	return out
}

// unpackOutputs turns words [in, out/8] of eight outputs each into rows of nibbles [out, in].
func unpackOutputs(data []byte, out, in int, order [8]int) []byte {
	result := make([]byte, out*in/2)
	columns, rowBytes := out/8, in/2
	for strip := 0; strip < columns; strip += lineWords {
		for k := 0; k < in; k += 2 {
			for c := strip; c < min(strip+lineWords, columns); c++ {
				first, second := word(data, k*columns+c), word(data, (k+1)*columns+c)
				for nibble, place := range order {
					shift := 4 * uint(nibble)
					result[(8*c+place)*rowBytes+k/2] = uint8(first>>shift&15 | second>>shift&15<<4)
				}
			}
		}
	}
	return result
}
