package cpu

import (
	"math"
	"math/bits"
)

// Philox4x32 is the counter-based generator Philox4x32-10: ten rounds over a 128-bit counter with a 64-bit key, the same as
// Random123's and cuRAND's. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
func Philox4x32(counter [4]uint32, key [2]uint32) [4]uint32 {
	const (
		multiplier0, multiplier1 = 0xD2511F53, 0xCD9E8D57
		weyl0, weyl1             = 0x9E3779B9, 0xBB67AE85
	)
	for range 10 {
		hi0, lo0 := bits.Mul32(multiplier0, counter[0])
		hi1, lo1 := bits.Mul32(multiplier1, counter[2])
		counter = [4]uint32{hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0}
		key[0] += weyl0
		key[1] += weyl1
	}
	return counter
}

// maxGumbelSpread is above the largest value that [Gumbel] returns, -log(2^-33) = 22.874, less the smallest, -log(16.64) =
// -2.812. A token whose logit lies further than that below another's cannot be drawn.
const maxGumbelSpread = 25.7

// Gumbel is the noise that a draw adds to a token's tempered logit. The scheme, which every backend follows so that the same
// logits give the same token up to rounding:
//
//	r = Philox4x32-10(counter = (token, position, 0, 0), key = (seed & 0xFFFFFFFF, seed >> 32))[0]
//	v = min((float32(r) + 0.5) * 2^-32, 1 - 2^-24)     in float32, so v is in [2^-33, 1)
//	noise = -log(-log1p(-v))
//
// The token drawn is the one with the largest logit/Temperature + noise among those kept, the lowest id on a tie: a draw
// from their softmax (Gumbel-max). position is that of the drawn token in its sequence: the number of tokens before it.
//
// Small v give the large noise that wins, and are exact; a plain -log(-log(v)) would lose them to rounding near v = 1.
func Gumbel(seed uint64, position int, token int32) float32 {
	r := Philox4x32([4]uint32{uint32(token), uint32(position), 0, 0}, [2]uint32{uint32(seed), uint32(seed >> 32)})[0]
	v := min((float32(r)+0.5)*(1.0/(1<<32)), 1-1.0/(1<<24))
	return float32(-math.Log(-math.Log1p(-float64(v))))
}
