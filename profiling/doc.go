// Package profiling turns the engine's marks into files: a [Capture] records a chosen number of steps and writes a Chrome trace off
// the engine's thread. At most one capture runs at a time in a process.
//
//	c, err := profiling.Start(profiling.Options{Dir: dir, NumSteps: 10, Stage: "decode", MinBatch: 8})
//	...
//	files, err := c.Stop() // or wait on c.Done()
//
// Without a capture the engine's marks cost an atomic load each.
package profiling
