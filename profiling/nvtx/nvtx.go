// Package nvtx marks ranges for NVIDIA's tools (Nsight Systems, Nsight Compute) through NVTX version 3.
//
//	defer nvtx.Annotate("load weights", nvtx.Color("blue")).End()
//
// Marks are made when the program was built with -tags cuda, TOKAMAK_NVTX=1 is set (or [Enable] called), and a tool is attached.
// Otherwise a mark costs a test of a variable. Ranges may end on another goroutine or thread than they began on.
package nvtx

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"sync/atomic"
)

// enabled is the only thing a mark looks at while marks are off.
var enabled atomic.Bool

func init() {
	if v := os.Getenv("TOKAMAK_NVTX"); v != "" {
		if on, err := strconv.ParseBool(v); err != nil {
			fmt.Fprintf(os.Stderr, "TOKAMAK_NVTX=%q: want 1 or 0; no ranges are marked\n", v)
		} else if on {
			if err := Enable(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}

// Enabled tells whether marks are made.
func Enabled() bool { return enabled.Load() }

// Enable turns marks on for the whole process. It returns an error in a build that has none.
func Enable() error {
	if err := available(); err != nil {
		return err
	}
	enabled.Store(true)
	return nil
}

// Disable turns marks off. Ranges that are open still end.
func Disable() { enabled.Store(false) }

// Option is a property of a mark: a Color, RGB, Int, Float, Category or In. Options are types rather than functions, so that a constant
// one costs nothing while marks are off.
type Option interface{ option() }

// Color gives a mark one of the named colours: blue, green, red, yellow, orange, purple, cyan, magenta, white, gray, black. Any other name
// is drawn as the tool likes.
type Color string

// RGB gives a mark a colour 0xRRGGBB.
type RGB uint32

// Int attaches a number.
type Int int64

// Float attaches a number.
type Float float64

// Category groups marks of a domain under a name.
type Category string

func (Color) option()    {}
func (RGB) option()      {}
func (Int) option()      {}
func (Float) option()    {}
func (Category) option() {}
func (*Domain) option()  {}

// In puts a mark into a domain other than the default one.
func In(d *Domain) Option { return d }

var colors = map[string]uint32{
	"blue": 0xFF1F77B4, "green": 0xFF2CA02C, "red": 0xFFD62728, "yellow": 0xFFE7C000, "orange": 0xFFFF7F0E, "purple": 0xFF9467BD,
	"cyan": 0xFF17BECF, "magenta": 0xFFE377C2, "white": 0xFFFFFFFF, "gray": 0xFF7F7F7F, "grey": 0xFF7F7F7F, "black": 0xFF000000,
}

// attributes is what the options of a mark come to.
type attributes struct {
	domain   *Domain
	category string
	color    uint32 // 0: none
	payload  uint64
	kind     payloadKind
}

type payloadKind uint8

const (
	noPayload payloadKind = iota
	intPayload
	floatPayload
)

func resolve(opts []Option) attributes {
	var a attributes
	for _, o := range opts {
		switch o := o.(type) {
		case RGB:
			a.color = uint32(o)&0xFFFFFF | 0xFF000000
		case Color:
			a.color = colors[string(o)]
		case Int:
			a.payload, a.kind = uint64(o), intPayload
		case Float:
			a.payload, a.kind = math.Float64bits(float64(o)), floatPayload
		case Category:
			a.category = string(o)
		case *Domain:
			a.domain = o
		}
	}
	return a
}

// Range is an open range. The zero Range ends nothing. It is a single pointer, so that one that was not marked costs nothing.
type Range struct{ open *openRange }

type openRange struct {
	domain *Domain
	id     uint64
}

// Annotate opens a range. End it once.
func Annotate(message string, opts ...Option) Range {
	if !enabled.Load() {
		return Range{}
	}
	return start(message, opts)
}

// start is apart so that Annotate is inlined where marks are off.
//
//go:noinline
func start(message string, opts []Option) Range {
	a := resolve(opts)
	return Range{&openRange{a.domain, rangeStart(message, &a)}}
}

// End closes the range.
func (r Range) End() {
	if r.open != nil {
		rangeEnd(r.open.domain, r.open.id)
	}
}

// Close ends the range; it makes a Range an io.Closer.
func (r Range) Close() error { r.End(); return nil }

// Mark notes a moment.
func Mark(message string, opts ...Option) {
	if enabled.Load() {
		markAt(message, opts)
	}
}

//go:noinline
func markAt(message string, opts []Option) {
	a := resolve(opts)
	mark(message, &a)
}
