package grammar

import (
	"fmt"
	"math/big"
	"strings"
)

// numberRule adds a JSON number, integerRule one without point and exponent. Both have at most maxDigits digits a part and two
// in the exponent, so that any reader can hold them.
func numberRule(n *nfa, from int32) int32 {
	at := integerRule(n, from)
	point := n.bytes(at, '.', '.')
	fraction := digits(n, point, 1, maxDigits)
	end := n.state()
	n.link(at, end)
	n.link(fraction, end)
	e := n.state()
	n.edge(end, 'e', 'e', e)
	n.edge(end, 'E', 'E', e)
	sign := n.state()
	n.link(e, sign)
	n.edge(e, '+', '+', sign)
	n.edge(e, '-', '-', sign)
	out := n.state()
	n.link(end, out)
	n.link(digits(n, sign, 1, 2), out)
	return out
}

func integerRule(n *nfa, from int32) int32 {
	at := n.state()
	n.link(from, at)
	n.edge(from, '-', '-', at)
	end := n.state()
	n.edge(at, '0', '0', end)
	n.link(digits(n, n.bytes(at, '1', '9'), 0, maxDigits-1), end)
	return end
}

// digits adds least to most digits.
func digits(n *nfa, from int32, least, most int) int32 {
	end := n.state()
	for i := range most + 1 {
		if i >= least {
			n.link(from, end)
		}
		if i < most {
			from = n.bytes(from, '0', '9')
		}
	}
	return end
}

// bounds are those of a number; nil where there is none.
type bounds struct {
	min, max         *big.Rat
	minOpen, maxOpen bool // the bound itself is not allowed
	integer          bool
	where            string
}

// maxScale is how many digits behind the point a bound may have.
const maxScale = 9

// rangeRule adds the numbers within b, written without exponent.
func rangeRule(n *nfa, from int32, b bounds) (int32, error) {
	scale := 0
	for _, bound := range []*big.Rat{b.min, b.max} {
		for bound != nil && scale < maxScale && !new(big.Rat).Mul(bound, powerOfTen(scale)).IsInt() {
			scale++
		}
	}
	if b.integer {
		scale = 0
	}
	// Both bounds as whole numbers of 10^-scale, inclusive.
	limit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(maxDigits)), nil)
	limit.Sub(limit, big.NewInt(1))
	lo, hi := new(big.Int).Neg(limit), new(big.Int).Set(limit)
	loOpen, hiOpen := false, false
	if b.min != nil {
		lo, loOpen = scaled(b.min, scale, true, b.minOpen, b.integer)
	}
	if b.max != nil {
		hi, hiOpen = scaled(b.max, scale, false, b.maxOpen, b.integer)
	}
	if lo.CmpAbs(limit) > 0 || hi.CmpAbs(limit) > 0 {
		return 0, &Error{b.where, fmt.Sprintf("bounds of a number may have at most %d digits", maxDigits)}
	}
	end := n.state()
	r := numberRange{n: n, to: end, scale: scale, integer: b.integer}
	zero := new(big.Int)
	if hi.Sign() >= 0 {
		r.magnitude(from, maxInt(lo, zero), hi, loOpen && lo.Sign() >= 0, hiOpen)
	}
	if lo.Sign() < 0 {
		// The magnitudes of negative numbers, from -hi to -lo.
		least, leastOpen := new(big.Int).Neg(hi), hiOpen
		if least.Sign() < 0 {
			least, leastOpen = zero, true // -0 is left to the positive half
		}
		r.magnitude(n.bytes(from, '-', '-'), least, new(big.Int).Neg(lo), leastOpen, loOpen)
	}
	return end, nil
}

func powerOfTen(n int) *big.Rat {
	return new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(n)), nil))
}

func maxInt(a, b *big.Int) *big.Int {
	if a.Cmp(b) > 0 {
		return a
	}
	return b
}

// scaled returns bound in units of 10^-scale, rounded to the inside of the range, and if it is itself left out.
func scaled(bound *big.Rat, scale int, lower, open, integer bool) (*big.Int, bool) {
	r := new(big.Rat).Mul(bound, powerOfTen(scale))
	v := new(big.Int).Div(r.Num(), r.Denom()) // rounds down
	if !r.IsInt() {
		open = false
		if lower {
			v.Add(v, big.NewInt(1))
		}
	}
	if open && integer {
		if lower {
			v.Add(v, big.NewInt(1))
		} else {
			v.Sub(v, big.NewInt(1))
		}
		open = false
	}
	return v, open
}

type numberRange struct {
	n       *nfa
	to      int32
	scale   int
	integer bool
}

// magnitude adds the numbers from lo to hi, both at least 0 and in units of 10^-scale.
func (r *numberRange) magnitude(from int32, lo, hi *big.Int, loOpen, hiOpen bool) {
	one, ten := big.NewInt(1), big.NewInt(10)
	if lo.Cmp(hi) > 0 {
		return
	}
	// With up to scale digits behind the point: whole multiples of a unit.
	for places := range r.scale + 1 {
		unit := new(big.Int).Exp(ten, big.NewInt(int64(r.scale-places)), nil)
		least := new(big.Int).Sub(new(big.Int).Add(lo, unit), one)
		least.Div(least, unit)
		most := new(big.Int).Div(hi, unit)
		if loOpen && new(big.Int).Mul(least, unit).Cmp(lo) == 0 {
			least.Add(least, one)
		}
		if hiOpen && new(big.Int).Mul(most, unit).Cmp(hi) == 0 {
			most.Sub(most, one)
		}
		r.between(from, r.to, least, most, places)
	}
	if r.integer {
		return
	}
	// With more digits: any may follow, as long as the part before is at least lo and less than hi.
	more := r.n.state()
	r.n.link(digits(r.n, more, 1, maxDigits-r.scale), r.to)
	least := lo
	if loOpen {
		least = new(big.Int).Add(lo, one)
		// The open bound itself with a further digit that is not 0.
		if lo.Cmp(hi) < 0 {
			at := r.n.state()
			r.between(from, at, lo, lo, r.scale)
			if r.scale == 0 {
				at = r.n.bytes(at, '.', '.')
			}
			r.n.link(digits(r.n, r.n.bytes(at, '1', '9'), 0, maxDigits-r.scale-1), r.to)
		}
	}
	before := more
	if r.scale == 0 {
		before = r.n.state()
		r.n.edge(before, '.', '.', more)
	}
	r.between(from, before, least, new(big.Int).Sub(hi, one), r.scale)
}

// between adds the whole numbers lo to hi, with a point before their last places digits.
func (r *numberRange) between(from, to int32, lo, hi *big.Int, places int) {
	if lo.Cmp(hi) > 0 {
		return
	}
	last := max(len(hi.String()), places+1)
	for length := places + 1; length <= last; length++ {
		a, b := strings.Repeat("0", length), strings.Repeat("9", length)
		if length > places+1 {
			a = "1" + a[1:]
		}
		if s := padded(lo, length); len(s) > length {
			continue
		} else if s > a {
			a = s
		}
		if s := padded(hi, length); len(s) == length && s < b {
			b = s
		}
		if a <= b {
			r.digitRange(from, to, a, b, places)
		}
	}
}

func padded(v *big.Int, length int) string {
	s := v.String()
	return strings.Repeat("0", max(0, length-len(s))) + s
}

// digitRange adds all texts between a and b, of one length, with a point before the last places digits.
func (r *numberRange) digitRange(from, to int32, a, b string, places int) {
	if len(a) == places && places > 0 {
		from = r.n.bytes(from, '.', '.')
	}
	r.digitsAfterPoint(from, to, a, b, places)
}

func (r *numberRange) digitsAfterPoint(from, to int32, a, b string, places int) {
	if len(a) == 1 {
		r.n.edge(from, a[0], b[0], to)
		return
	}
	if a[0] == b[0] {
		r.digitRange(r.n.bytes(from, a[0], a[0]), to, a[1:], b[1:], places)
		return
	}
	low, high := strings.Repeat("0", len(a)-1), strings.Repeat("9", len(a)-1)
	first, last := a[0], b[0]
	if a[1:] != low {
		r.digitRange(r.n.bytes(from, first, first), to, a[1:], high, places)
		first++
	}
	if b[1:] != high {
		r.digitRange(r.n.bytes(from, last, last), to, low, b[1:], places)
		last--
	}
	if first <= last {
		r.digitRange(r.n.bytes(from, first, last), to, low, high, places)
	}
}
