//go:build race

package server

// raceDetector: goroutines that could run at once are run in random order.
const raceDetector = true
