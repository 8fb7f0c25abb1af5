// Package load offers a workload to a server over HTTP and times every request and token of it.
//
// Requests arrive on a schedule that is fixed before the run ([Arrivals]); a request's latency counts from the moment it was
// scheduled for, not from when a busy client got round to sending it. [Client] speaks each server's own wire form ([Kinds]).
// [Run] gives one [Result] a request; [Summarize] turns them into figures, [WriteJSONL] and [Plot] into files. The client
// watches itself: [Report.Valid] refuses a run that it could not keep up with.
package load
