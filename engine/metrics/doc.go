// Package metrics holds the run-time counters, gauges and histograms of a server and exposes them in Prometheus' form.
//
// Names begin with tokamak_ and use base units. Gauges and token counters are read from the engine when they are scraped;
// latencies and outcomes are told by the server as requests go. Gateways that know other engines' names get them as aliases
// from the table in aliases.go.
package metrics
