package load

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// chart is a diagram as the report's template draws it: everything is placed, in SVG's units.
type chart struct {
	Title, XLabel, YLabel    string
	Width, Height            int
	Left, Right, Top, Bottom float64 // edges of the plotting area
	XTicks, YTicks           []tick
	Lines                    []line
	XMiddle, YMiddle         float64
	TitleX, LegendY, XLabelY float64
}

type tick struct {
	At    float64
	Label string
}

type line struct {
	Name, Color, Dash string
	Points            string // "x,y x,y"; empty if Dots is set
	Dots              []dot
	LegendX           float64
}

type dot struct{ X, Y float64 }

// series is one line of a chart in the data's own units. A step keeps its value until the next point.
type series struct {
	Name   string
	Color  int // of the palette
	Dashed bool
	Dots   bool
	Steps  bool
	X, Y   []float64
}

// palette is Okabe and Ito's, which people with any colour vision can tell apart.
var palette = []string{"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"}

// maxPoints bounds the points of one line: a screen shows no more, and a report of a million requests must open.
const maxPoints = 600

func newChart(title, xLabel, yLabel string, all []series) *chart {
	c := &chart{
		Title: title, XLabel: xLabel, YLabel: yLabel, Width: 560, Height: 330, Left: 62, Right: 532, Top: 52, Bottom: 282, LegendY: 40, XLabelY: 318,
	}
	c.XMiddle, c.YMiddle = (c.Left+c.Right)/2, (c.Top+c.Bottom)/2
	xMin, xMax, yMax := math.Inf(1), math.Inf(-1), 0.0
	for _, s := range all {
		for i := range s.X {
			xMin, xMax, yMax = min(xMin, s.X[i]), max(xMax, s.X[i]), max(yMax, s.Y[i])
		}
	}
	if xMin > xMax {
		return nil // nothing to show
	}
	xTicks := niceTicks(min(xMin, 0), xMax)
	yTicks := niceTicks(0, yMax)
	xLow, xHigh := xTicks[0], xTicks[len(xTicks)-1]
	yHigh := yTicks[len(yTicks)-1]
	placeX := func(x float64) float64 { return c.Left + (x-xLow)/(xHigh-xLow)*(c.Right-c.Left) }
	placeY := func(y float64) float64 { return c.Bottom - y/yHigh*(c.Bottom-c.Top) }
	for _, x := range xTicks {
		c.XTicks = append(c.XTicks, tick{placeX(x), number(x)})
	}
	for _, y := range yTicks {
		c.YTicks = append(c.YTicks, tick{placeY(y), number(y)})
	}
	legend := c.Left
	for _, s := range all {
		l := line{Name: s.Name, Color: palette[s.Color%len(palette)], LegendX: legend}
		legend += 30 + 6.5*float64(len(s.Name))
		if s.Dashed {
			l.Dash = "5 4"
		}
		var points strings.Builder
		every := (len(s.X) + maxPoints - 1) / maxPoints
		for i := range s.X {
			if i%max(every, 1) != 0 && i != len(s.X)-1 {
				continue
			}
			x, y := placeX(s.X[i]), placeY(s.Y[i])
			if s.Dots {
				l.Dots = append(l.Dots, dot{x, y})
				continue
			}
			if s.Steps && points.Len() > 0 {
				fmt.Fprintf(&points, "%.1f,%s ", x, lastY(points.String()))
			}
			fmt.Fprintf(&points, "%.1f,%.1f ", x, y)
		}
		l.Points = strings.TrimSpace(points.String())
		c.Lines = append(c.Lines, l)
	}
	return c
}

func lastY(points string) string {
	points = strings.TrimSpace(points)
	return points[strings.LastIndexByte(points, ',')+1:]
}

// niceTicks gives about six round numbers from low or below to high or above.
func niceTicks(low, high float64) []float64 {
	if !(high > low) {
		high = low + 1
	}
	raw := (high - low) / 6
	step := math.Pow(10, math.Floor(math.Log10(raw)))
	for _, m := range []float64{1, 2, 5, 10} {
		if step*m >= raw {
			step *= m
			break
		}
	}
	var ticks []float64
	for i := math.Floor(low / step); ; i++ {
		ticks = append(ticks, i*step)
		if i*step >= high {
			return ticks
		}
	}
}

// number writes a tick's value shortly.
func number(x float64) string {
	if math.Abs(x) < 1e-12 {
		return "0"
	}
	return strconv.FormatFloat(x, 'g', 6, 64)
}
