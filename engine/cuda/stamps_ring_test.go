//go:build cuda

package cuda

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// ringRecording is what kernels noted of decode steps on a card.
type ringRecording struct {
	plan   []plannedOp
	steps  [][]stamp       // what was new in the ring when each step had been awaited: a part of the step behind it, too
	layers []time.Duration // told by the backend then: the time of each layer, of what is outside of them at 0, summed over all steps but the first
}

const recordedRing = "testdata/stamps-h200.txt"

// TestTimesOfARecordedRing reads the layers' times from what the kernels of a real card noted, as live serving does: they are what was told
// on the card, and they are the distances of the notes.
func TestTimesOfARecordedRing(t *testing.T) {
	text, err := os.ReadFile(recordedRing)
	require.NoError(t, err)
	r := readRing(t, string(text))
	require.Len(t, r.layers, 1+16)
	r.check(t)
	for _, layer := range r.layers[1:] { // of one shape each, and nothing else ran
		assert.InEpsilon(t, r.layers[1], layer, 0.1)
	}
}

// TestRingOfARealCard makes such a recording. KEEP names a file to keep it in.
func TestRingOfARealCard(t *testing.T) {
	cfg := benchModels()["llama-1b"]
	be := openTest(t, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 1, MaxTokens: 1024, MaxContext: 2048, NumPages: 256}, settings{stamps: true})
	decode, _ := staticBatch(t, be, 1, 512, 64)
	const warm, kept = 20, 4
	var r ringRecording
	var last uint64
	told := new(noted).during(t, func() {
		launch := func() backend.StepID {
			id, err := be.Launch(&decode)
			require.NoError(t, err)
			decode.Rows[0].Position++
			return id
		}
		var out backend.Result
		running := launch()
		for i := range warm + kept {
			next := launch() // one ahead, as the engine does
			require.NoError(t, be.Wait(running, &out))
			running = next
			fresh := newer(be.stamps.ring, last)
			if len(fresh) > 0 {
				last = fresh[len(fresh)-1].At
			}
			if i >= warm {
				r.steps = append(r.steps, fresh)
			}
		}
		require.NoError(t, be.Wait(running, &out))
	})
	r.plan = be.graphOps[stepShape{rows: 1, decode: 1, tokens: 1, samples: 1}.padded()]
	require.NotEmpty(t, r.plan)
	require.Len(t, told, warm+kept+1)
	r.layers = layerSums(told[warm+1 : warm+kept])
	r.check(t)
	if keep := os.Getenv("KEEP"); keep != "" {
		require.NoError(t, os.WriteFile(keep, []byte(r.text(be.Info().Device)), 0o644))
	}
}

// newer are the ring's notes after last, in order: those of the 8 ms that follow it, as all of the ring could not be read before kernels have
// gone on by steps; the whole ring where last is 0.
func newer(ring []stamp, last uint64) (notes []stamp) {
	first, count := 0, len(ring)
	if last > 0 {
		first, count = int(last>>stampShift), 1<<13
	}
	for i := range count {
		n := &ring[(first+i)%len(ring)]
		if at := atomic.LoadUint64(&n.At); at > last {
			notes = append(notes, stamp{at, n.Unit})
		}
	}
	slices.SortFunc(notes, func(a, b stamp) int { return cmp.Compare(a.At, b.At) })
	return notes
}

// layerSums adds the times of each layer, those outside of the layers at 0.
func layerSums(steps [][]trace.Time) (sums []time.Duration) {
	for _, times := range steps {
		for _, at := range times {
			for at.Layer+1 >= len(sums) {
				sums = append(sums, 0)
			}
			sums[at.Layer+1] += at.Length
		}
	}
	return sums
}

// check replays the recording and compares the layers' times with those that were told when it was made, and with what the notes say by
// themselves: a layer lasts from its first note to the next layer's.
func (r *ringRecording) check(t *testing.T) {
	t.Helper()
	s := testStamps()
	base := r.steps[0][0].At - 1
	told := new(noted).during(t, func() {
		for i, notes := range r.steps {
			for _, n := range notes {
				s.note(stamp{origin + n.At - base, n.Unit})
			}
			s.plans[uint64(i)] = r.plan
			s.reach(origin + notes[len(notes)-1].At - base)
			s.tell(uint64(i))
		}
	})
	steps := len(r.steps) - 1 // the first one's beginning may have been read with the step before it
	require.GreaterOrEqual(t, len(told), steps)
	told = told[len(told)-steps:]
	sums := layerSums(told)
	require.Equal(t, r.layers, sums, "not what was told when it was recorded")

	var whole time.Duration
	for _, sum := range sums {
		whole += sum
	}
	for layer, sum := range sums[1:] {
		t.Logf("layer %2d: %6.2f us a step", layer, sum.Seconds()*1e6/float64(steps))
	}
	t.Logf("outside of the layers: %6.2f us, of %6.2f us in all", sums[0].Seconds()*1e6/float64(steps), whole.Seconds()*1e6/float64(steps))

	var notes []stamp
	for _, fresh := range r.steps {
		notes = append(notes, fresh...)
	}
	var byNotes time.Duration // first to last note of a step
	begin, ends := uint64(0), r.ends()
	for i, seen := len(notes)-1, 0; i >= 0 && seen < steps; i-- {
		switch notes[i].Unit {
		case ends[1]:
			begin = notes[i].At
		case ends[0]:
			if begin != 0 {
				byNotes += time.Duration(begin - notes[i].At)
				begin, seen = 0, seen+1
			}
		}
	}
	assert.Equal(t, byNotes, whole, "operations follow each other from a step's first note to its last")
}

// ends are the units that note first and last in a step.
func (r *ringRecording) ends() (ends [2]uint64) {
	for _, o := range r.plan {
		if o.unit != 0 && ends[0] == 0 {
			ends[0] = o.unit
		}
		if o.unit != 0 {
			ends[1] = o.unit
		}
	}
	return ends
}

// text is the recording as it is kept: readRing reads it.
func (r *ringRecording) text(device string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %d decode steps of Llama-3.2-1B (dummy weights, bfloat16, batch 1 in 512 tokens) as kernels noted them on an %s: TestRingOfARealCard.\n", len(r.steps)-1, device)
	fmt.Fprintln(&b, "# op NAME LAYER UNIT; step, then its notes NS UNIT; layer NS as told on the card, those outside of the layers first")
	for _, o := range r.plan {
		fmt.Fprintf(&b, "op %s %d %d\n", o.op.Name, o.op.Layer, o.unit)
	}
	for _, notes := range r.steps {
		fmt.Fprintln(&b, "step")
		for _, n := range notes {
			fmt.Fprintf(&b, "%d %d\n", n.At-r.steps[0][0].At, n.Unit)
		}
	}
	for _, sum := range r.layers {
		fmt.Fprintf(&b, "layer %d\n", sum.Nanoseconds())
	}
	return b.String()
}

func readRing(t *testing.T, text string) (r ringRecording) {
	t.Helper()
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		switch word, _, _ := strings.Cut(line, " "); word {
		case "#":
		case "op":
			var o plannedOp
			_, err := fmt.Sscanf(line, "op %s %d %d", &o.op.Name, &o.op.Layer, &o.unit)
			require.NoError(t, err, line)
			r.plan = append(r.plan, o)
		case "step":
			r.steps = append(r.steps, nil)
		case "layer":
			var ns int64
			_, err := fmt.Sscanf(line, "layer %d", &ns)
			require.NoError(t, err, line)
			r.layers = append(r.layers, time.Duration(ns))
		default:
			var n stamp
			_, err := fmt.Sscanf(line, "%d %d", &n.At, &n.Unit)
			require.NoError(t, err, line)
			n.At++ // 0 would be no note
			r.steps[len(r.steps)-1] = append(r.steps[len(r.steps)-1], n)
		}
	}
	return r
}
