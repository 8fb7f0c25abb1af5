package render

import (
	"cmp"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

type align int

const (
	left align = iota
	center
	right
)

// gridCell is a piece of text over one or more columns, with a margin before it that lines up in its column.
type gridCell struct {
	row, col, span int
	text, margin   string
	align          align
}

// grid lays out text cells that may span columns. Fixed columns are as wide as their own cells need; the others also share what
// spanning cells need beyond that.
type grid struct {
	cells []gridCell
	fixed map[int]bool
	row   int
}

func (g *grid) put(col, span int, text, margin string, a align) {
	g.cells = append(g.cells, gridCell{g.row, col, span, text, margin, a})
}

// text puts a one-column cell with the usual margin: a blank before all but the first column and empty cells.
func (g *grid) text(col int, text string, a align) {
	margin := " "
	if col == 0 || text == "" {
		margin = ""
	}
	g.put(col, 1, text, margin, a)
}

func runes(s string) int { return utf8.RuneCountInString(s) }

// write lays the grid out and writes it without blanks at the ends of lines.
func (g *grid) write(w io.Writer) error {
	columns := 0
	for _, c := range g.cells {
		columns = max(columns, c.col+c.span)
	}
	margins := make([]int, columns)
	for _, c := range g.cells {
		margins[c.col] = max(margins[c.col], runes(c.margin))
	}
	starts := make([]int, columns+1)
	for i, width := range g.widths(columns, margins) {
		starts[i+1] = starts[i] + width
	}

	var out strings.Builder
	row, at := 0, 0
	for _, c := range g.cells { // put row by row, left to right
		if strings.TrimSpace(c.text) == "" && strings.TrimSpace(c.margin) == "" {
			continue
		}
		for ; row < c.row; row++ {
			out.WriteByte('\n')
			at = 0
		}
		text := c.margin
		if pad := margins[c.col] - runes(text); pad > 0 {
			text = strings.Repeat(" ", pad) + text
		}
		room := starts[c.col+c.span] - starts[c.col] - margins[c.col] - runes(c.text)
		switch {
		case room <= 0:
		case c.align == right:
			text += strings.Repeat(" ", room)
		case c.align == center:
			text += strings.Repeat(" ", room/2)
		}
		text += c.text
		out.WriteString(strings.Repeat(" ", max(0, starts[c.col]-at)) + text)
		at = max(at, starts[c.col]) + runes(text)
	}
	if len(g.cells) > 0 {
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (g *grid) widths(columns int, margins []int) []int {
	widths := make([]int, columns)
	bySpan := slices.Clone(g.cells)
	slices.SortStableFunc(bySpan, func(a, b gridCell) int { return cmp.Compare(a.span, b.span) })
	for _, c := range bySpan {
		need := runes(c.text) + margins[c.col]
		if c.span == 1 {
			widths[c.col] = max(widths[c.col], need)
			continue
		}
		have := 0
		var grow []int
		for col := c.col; col < c.col+c.span; col++ {
			have += widths[col]
			if g.fixed[col] {
				need -= widths[col]
				have -= widths[col]
			} else {
				grow = append(grow, col)
			}
		}
		if have >= need {
			continue
		}
		// Widest first: a column that has more than its share leaves less for the others to make up.
		slices.SortStableFunc(grow, func(a, b int) int { return cmp.Compare(widths[b], widths[a]) })
		for i, col := range grow {
			share := (need + len(grow) - i - 1) / (len(grow) - i)
			widths[col] = max(widths[col], share)
			need -= widths[col]
		}
	}
	return widths
}
