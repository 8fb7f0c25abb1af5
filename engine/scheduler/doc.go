// Package scheduler decides what the next step of the model computes: which requests decode, which parts of which prompts are
// prefilled, who is admitted, who is preempted, and when a request has ended. It is pure logic over page numbers and token
// ids: no goroutine, no clock, no device.
//
//	Add -> waiting -> (admitted: slot, cached prefix) -> running -> ended
//	          ^---------- preempted -----------------------'
//
// The loop calls Next, launches the batch, and calls Commit with its result; Next may be called again before the Commit of the
// step ahead. So a request that ends is seen to have ended one step late. The token sampled for it meanwhile is dropped,
// and its slot and pages are not given to another before that step was committed.
package scheduler
