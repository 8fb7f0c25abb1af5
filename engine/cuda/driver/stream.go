//go:build cuda

package driver

import (
	"gorgonia.org/cu"
)

// Stream is a queue of work in order.
type Stream struct{ s cu.Stream }

// NewStream makes a stream that does not wait for the legacy default stream.
func NewStream() (Stream, error) {
	s, err := cu.MakeStream(cu.NonBlocking)
	return Stream{s}, wrap("cuStreamCreate", err)
}

// Destroy frees the stream once its work is done.
func (s Stream) Destroy() error { return wrap("cuStreamDestroy", s.s.Destroy()) }

// Synchronize blocks until the stream is empty.
func (s Stream) Synchronize() error { return wrap("cuStreamSynchronize", s.s.Synchronize()) }

// Event marks a place in a stream.
type Event struct{ e cu.Event }

// NewEvent makes an event that takes the time.
func NewEvent() (Event, error) {
	e, err := cu.MakeEvent(cu.DefaultEvent)
	return Event{e}, wrap("cuEventCreate", err)
}

// Record puts the event behind what s holds now.
func (e Event) Record(s Stream) error { return wrap("cuEventRecord", e.e.Record(s.s)) }

// Synchronize blocks until the event has passed.
func (e Event) Synchronize() error { return wrap("cuEventSynchronize", e.e.Synchronize()) }

// Milliseconds is the time from e to later, both passed.
func (e Event) Milliseconds(later Event) (float64, error) {
	ms, err := e.e.Elapsed(later.e)
	return ms, wrap("cuEventElapsedTime", err)
}

// Destroy frees the event.
func (e Event) Destroy() error { return wrap("cuEventDestroy", cu.DestroyEvent(&e.e)) }
