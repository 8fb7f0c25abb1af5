package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// summary is what a trace comes to. Times are microseconds.
type summary struct {
	kinds   map[string]int // steps by name
	steps   map[int]*step
	kernels int
	timed   bool // by the backend itself: the trace has no kernels

	noOp, noLayer, noStack, noLaunch int
	ops                              map[string]*part
	layers                           map[int]*part
	nodes                            map[string]string // of a graph: layer and operation
	moved                            int               // nodes that were another operation in another replay
}

type step struct {
	first, end float64 // of its kernels
	adds       float64
}

type part struct {
	calls int
	us    float64
}

func summarize(events []chrometrace.Event, only string) *summary {
	s := &summary{kinds: map[string]int{}, steps: map[int]*step{}, ops: map[string]*part{}, layers: map[int]*part{}, nodes: map[string]string{}}
	for _, e := range events {
		if e.Category == "step" && strings.HasPrefix(e.Name+" ", only+" ") || e.Category == "step" && only == "" {
			s.kinds[e.Name]++
			if id, ok := number(e.Args["step"]); ok {
				s.steps[id] = &step{}
			}
		}
	}
	category := "kernel"
	if !slices.ContainsFunc(events, func(e chrometrace.Event) bool { return e.Category == category }) {
		category, s.timed = "timed", true
	}
	slices.SortStableFunc(events, func(a, b chrometrace.Event) int { return cmp.Compare(a.Start, b.Start) })
	for _, e := range events {
		if e.Category == category {
			s.kernel(&e)
		}
	}
	return s
}

// kernel adds a kernel. What runs beside an earlier kernel is the earlier one's.
func (s *summary) kernel(e *chrometrace.Event) {
	id, ok := number(e.Args["step"])
	st := s.steps[id]
	if st == nil {
		if !ok {
			s.noLaunch++
		}
		return
	}
	s.kernels++
	if st.end == 0 {
		st.first, st.end = e.Start, e.Start
	}
	adds := max(0, e.Start+e.Length-max(st.end, e.Start))
	st.end = max(st.end, e.Start+e.Length)
	st.adds += adds
	op, _ := e.Args["op"].(string)
	if op == "" || op == "not planned" {
		s.noOp++
		op = e.Name
	}
	add(s.ops, op, adds)
	layer, inLayer := number(e.Args["layer"])
	if inLayer {
		add(s.layers, layer, adds)
	} else if e.Args["layer"] != "outside" {
		s.noLayer++
	}
	if stack, _ := e.Args["go stack"].(string); stack == "" {
		s.noStack++
	}
	if node := e.Args["graph node"]; node != nil {
		key, is := fmt.Sprint(node), fmt.Sprintf("%s of layer %v", op, e.Args["layer"])
		if before, ok := s.nodes[key]; ok && before != is {
			s.moved++
		}
		s.nodes[key] = is
	}
}

func add[K comparable](m map[K]*part, key K, us float64) {
	if m[key] == nil {
		m[key] = &part{}
	}
	m[key].calls++
	m[key].us += us
}

func number(v any) (int, bool) {
	f, ok := v.(float64)
	return int(f), ok
}

// spanMs is the mean of the steps' time from the first kernel's start to the last one's end.
func (s *summary) spanMs() float64 {
	var sum float64
	for _, st := range s.steps {
		sum += st.end - st.first
	}
	return sum / 1e3 / float64(max(1, len(s.steps)))
}

func (s *summary) print(w io.Writer, layers bool) {
	for _, kind := range slices.Sorted(maps.Keys(s.kinds)) {
		fmt.Fprintf(w, "%4d steps  %s\n", s.kinds[kind], kind)
	}
	n := float64(max(1, len(s.steps)))
	what := "kernels"
	if s.timed {
		what = "operations timed by the backend itself"
	}
	var busy float64
	for _, st := range s.steps {
		busy += st.adds
	}
	fmt.Fprintf(w, "%.4g %s a step: %.4f ms from the first's start to the last's end, busy %.4f ms\n", float64(s.kernels)/n, what, s.spanMs(), busy/1e3/n)
	fmt.Fprintf(w, "without an operation %d, a layer %d, a Go stack %d, a launch %d; %d graph nodes, %d of them not always the same operation\n",
		s.noOp, s.noLayer, s.noStack, s.noLaunch, len(s.nodes), s.moved)
	ops := slices.SortedFunc(maps.Keys(s.ops), func(a, b string) int { return cmp.Or(cmp.Compare(s.ops[b].us, s.ops[a].us), cmp.Compare(a, b)) })
	for _, op := range ops {
		p := s.ops[op]
		fmt.Fprintf(w, "%24s  %6.4g a step  %9.2f us each  %8.4f ms a step\n", op, float64(p.calls)/n, p.us/float64(p.calls), p.us/1e3/n)
	}
	if len(s.layers) == 0 {
		return
	}
	all := slices.Sorted(maps.Keys(s.layers))
	slowest := all[0]
	var sum float64
	for _, l := range all {
		if layers {
			fmt.Fprintf(w, "%24s  %9.2f us a step\n", fmt.Sprintf("layer %d", l), s.layers[l].us/n)
		}
		if s.layers[l].us > s.layers[slowest].us {
			slowest = l
		}
		sum += s.layers[l].us
	}
	fmt.Fprintf(w, "%d layers: %.2f us each, the slowest is %d with %.2f us\n", len(all), sum/n/float64(len(all)), slowest, s.layers[slowest].us/n)
}

// problems are what a whole trace does not have.
func (s *summary) problems(stacks bool) (list []string) {
	for _, p := range []struct {
		bad  bool
		text string
	}{
		{len(s.steps) == 0, "no such steps"}, {len(s.steps) > 0 && s.kernels == 0, "no kernels"}, {s.noOp > 0, fmt.Sprintf("%d kernels without an operation", s.noOp)},
		{s.noLayer > 0, fmt.Sprintf("%d kernels without a layer", s.noLayer)}, {s.noLaunch > 0, fmt.Sprintf("%d kernels of no step", s.noLaunch)},
		{stacks && s.noStack > 0, fmt.Sprintf("%d kernels without a Go stack", s.noStack)}, {s.moved > 0, fmt.Sprintf("%d graph nodes changed their operation", s.moved)},
	} {
		if p.bad {
			list = append(list, p.text)
		}
	}
	return list
}
