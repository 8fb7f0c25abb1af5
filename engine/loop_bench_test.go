package engine

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// idleDevice takes no time: what is left is the engine's own work.
type idleDevice struct {
	info backend.Info
	rows [backend.MaxInFlight]int
	next backend.StepID
}

func (d *idleDevice) Info() backend.Info { return d.info }
func (d *idleDevice) Launch(b *backend.Batch) (backend.StepID, error) {
	d.next++
	d.rows[d.next%backend.MaxInFlight] = len(b.Rows)
	return d.next, nil
}

func (d *idleDevice) Wait(id backend.StepID, out *backend.Result) error {
	n := d.rows[id%backend.MaxInFlight]
	if cap(out.Rows) < n {
		out.Rows = make([]backend.RowResult, d.info.MaxRows)
	}
	out.Rows = out.Rows[:n]
	for i := range out.Rows {
		out.Rows[i].Token = int32(1 + i%30)
	}
	return nil
}
func (d *idleDevice) Close() error { return nil }

// BenchmarkHostStep shows the time that the engine itself takes for a decode step, from the scheduler to the readers, on a device
// that takes none. A GPU hides it as long as its own step is longer.
//
//	go test ./engine -run '^$' -bench HostStep -benchtime 1x
func BenchmarkHostStep(b *testing.B) {
	const tokens = 2000
	for _, rows := range []int{1, 32, 256} {
		for _, streams := range []bool{false, true} {
			b.Run(fmt.Sprintf("rows=%d/stream=%t", rows, streams), func(b *testing.B) {
				info := backend.Info{
					Name: "idle", VocabSize: 32, MaxContext: 1 << 14, MaxRows: rows, MaxTokens: 8192, PageSize: 16,
					NumPages: rows * (tokens/16 + 2),
				}
				e := &Engine{live: map[string]*stream{}}
				require.NoError(b, e.start(DefaultOptions(), func() (backend.Backend, error) { return &idleDevice{info: info}, nil }))
				defer e.Close()
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				steps := e.Stats().StepsTotal
				b.ResetTimer()
				for b.Loop() {
					var wg sync.WaitGroup
					for row := range rows {
						wg.Go(func() {
							r := Request{InputIDs: []int32{int32(row % 30), int32(row / 30)}, Sampling: DefaultSampling(tokens)}
							if !streams {
								out, err := e.Generate(context.Background(), r)
								if err != nil || len(out.TokenIDs) != tokens {
									b.Errorf("%v, %v", out, err)
								}
								return
							}
							n := 0
							for ev, err := range e.Stream(context.Background(), r) {
								if err != nil {
									b.Error(err)
								}
								n += len(ev.TokenIDs)
							}
							if n != tokens {
								b.Errorf("%d tokens", n)
							}
						})
					}
					wg.Wait()
				}
				b.StopTimer()
				runtime.ReadMemStats(&after)
				s := e.Stats()
				steps = s.StepsTotal - steps
				b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(steps), "µs/step")
				b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(steps*uint64(rows)), "allocs/tok")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// rightDevice is an idleDevice that accepts every draft.
type rightDevice struct {
	idleDevice
	drafts [backend.MaxInFlight][]int
}

func (d *rightDevice) Launch(b *backend.Batch) (backend.StepID, error) {
	id, err := d.idleDevice.Launch(b)
	n := &d.drafts[id%backend.MaxInFlight]
	*n = (*n)[:0]
	for i := range b.Rows {
		*n = append(*n, len(b.Rows[i].Drafts))
	}
	return id, err
}

func (d *rightDevice) Wait(id backend.StepID, out *backend.Result) error {
	if err := d.idleDevice.Wait(id, out); err != nil {
		return err
	}
	for i, n := range d.drafts[id%backend.MaxInFlight] {
		r := &out.Rows[i]
		r.More = r.More[:0]
		for range n {
			r.More = append(r.More, backend.Sampled{Token: r.Token})
		}
	}
	return nil
}

// BenchmarkHostGap shows the engine's own time from the end of a step with drafts to the launch of the next, in which the device waits:
// nothing hides it.
//
//	go test ./engine -run '^$' -bench HostGap -benchtime 1x
func BenchmarkHostGap(b *testing.B) {
	const tokens = 8000
	for _, rows := range []int{1, 3} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			info := backend.Info{
				Name: "idle", VocabSize: 32, MaxContext: 1 << 14, MaxRows: rows, MaxTokens: 8192, PageSize: 16, NumPages: rows * (tokens/16 + 2), MaxVerify: 48,
			}
			o := DefaultOptions()
			o.SpeculativeAlgorithm, o.SpeculativeEager = "NGRAM", true
			e := &Engine{live: map[string]*stream{}}
			require.NoError(b, e.start(o, func() (backend.Backend, error) { return &rightDevice{idleDevice: idleDevice{info: info}}, nil }))
			defer e.Close()
			for b.Loop() {
				var wg sync.WaitGroup
				for row := range rows {
					wg.Go(func() {
						n := 0
						for ev, err := range e.Stream(context.Background(), Request{InputIDs: []int32{int32(row)}, Sampling: DefaultSampling(tokens)}) {
							if err != nil {
								b.Error(err)
							}
							n += len(ev.TokenIDs)
						}
						if n != tokens {
							b.Errorf("%d tokens", n)
						}
					})
				}
				wg.Wait()
			}
			s := e.Stats()
			length, _ := s.AcceptLength()
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(s.StepsTotal), "µs/step")
			b.ReportMetric(length, "accept-len")
			b.ReportMetric(0, "ns/op")
		})
	}
}
