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
	var square [8]uint32
	for strip := 0; strip < columns; strip += lineWords {
		for k := 0; k < in; k += 8 {
			for c := strip; c < min(strip+lineWords, columns); c++ {
				for j := range square {
					square[j] = word(data, (k+j)*columns+c)
				}
				transposeNibbles(&square)
				for nibble, place := range order {
					binary.LittleEndian.PutUint32(result[(8*c+place)*rowBytes+k/2:], square[nibble])
				}
			}
		}
	}
	return result
}

// transposeNibbles turns a square of eight words of eight nibbles: first pairs of nibbles into bytes, then bytes.
func transposeNibbles(w *[8]uint32) {
	const low = 0x0F0F0F0F
	var even, odd [4]uint32
	for q := range even {
		a, b := w[2*q], w[2*q+1]
		even[q] = a&low | b&low<<4
		odd[q] = a>>4&low | b&^low
	}
	for q := range even {
		shift := 8 * uint(q)
		w[2*q] = even[0]>>shift&255 | even[1]>>shift&255<<8 | even[2]>>shift&255<<16 | even[3]>>shift<<24
		w[2*q+1] = odd[0]>>shift&255 | odd[1]>>shift&255<<8 | odd[2]>>shift&255<<16 | odd[3]>>shift<<24
	}
}
