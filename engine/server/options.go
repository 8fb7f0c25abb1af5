package server

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// Options configures a server. The zero value is not usable: start from [DefaultOptions].
type Options struct {
	Host            string
	Port            int // 0 takes a free one
	APIKey          string
	ServedModelName string // "": the model path's last element
	MetricsAliases  string
	SkipWarmup      bool

	LogLevel    string
	LogFormat   string
	LogRequests bool
	LogInterval time.Duration // of the load line while requests run; 0 is off

	RequestTimeout  time.Duration // longest a request may run; 0 is no limit. Clients may ask for less
	ShutdownTimeout time.Duration // running requests may finish in this time
	HeaderTimeout   time.Duration
	BodyTimeout     time.Duration
	WriteTimeout    time.Duration // one write to a client's socket
	MaxStreamLag    time.Duration // how old a token may be when a slow client gets it
	MaxBodyBytes    int
	MaxConnections  int
}

// DefaultOptions returns the options a server has when nothing is set.
func DefaultOptions() Options {
	return Options{
		Host: "127.0.0.1", Port: 30000, LogLevel: "info", LogFormat: "text", LogInterval: 10 * time.Second,
		RequestTimeout: time.Hour, ShutdownTimeout: 30 * time.Second, HeaderTimeout: 10 * time.Second, BodyTimeout: 30 * time.Second,
		WriteTimeout: 30 * time.Second, MaxStreamLag: 60 * time.Second, MaxBodyBytes: 32 << 20, MaxConnections: 4096,
	}
}

// Table lists o's options as rows beside the engine's.
func (o *Options) Table() []engine.Option {
	return []engine.Option{
		{Name: "host", Value: &o.Host, Help: "address to listen on; 0.0.0.0 opens the server to the network: set --api-key then"},
		{Name: "port", Value: &o.Port, Help: "port to listen on; 0 takes a free one"},
		{Name: "api-key", Value: &secret{&o.APIKey}, Help: "key that every route but health asks for; better set by its variable than on a command line that others can list"},
		{Name: "served-model-name", Value: &o.ServedModelName, Help: "model name that clients use; default: the last element of the model's path"},
		{Name: "metrics-aliases", Value: &o.MetricsAliases, Choices: metrics.AliasChoices(), Help: "give /metrics another engine's names besides tokamak_*"},
		{Name: "skip-server-warmup", Value: &o.SkipWarmup, Help: "report ready without having generated a few tokens"},
		{Name: "log-level", Value: &o.LogLevel, Choices: []string{"debug", "info", "warn", "warning", "error"}, Help: "least level of log lines"},
		{Name: "log-format", Value: &o.LogFormat, Choices: []string{"text", "json"}, Help: "form of log lines"},
		{Name: "log-requests", Value: &o.LogRequests, Help: "log a line for each request: route, status, sizes, times; never its text"},
		{Name: "log-interval", Value: (*seconds)(&o.LogInterval), Help: "time between load lines while requests run; 0 logs none"},
		{Name: "request-timeout", Value: (*seconds)(&o.RequestTimeout), Help: "longest a request may run; 0 is no limit; clients may ask for less (X-Request-Timeout, request_timeout)"},
		{Name: "shutdown-timeout", Value: (*seconds)(&o.ShutdownTimeout), Help: "time that running requests have to finish after SIGTERM"},
		{Name: "header-timeout", Value: (*seconds)(&o.HeaderTimeout), Help: "time for a request's header to arrive"},
		{Name: "body-timeout", Value: (*seconds)(&o.BodyTimeout), Help: "time for a request's body to arrive"},
		{Name: "write-timeout", Value: (*seconds)(&o.WriteTimeout), Help: "time a client may leave a write unread before it is cut off"},
		{Name: "max-stream-lag", Value: (*seconds)(&o.MaxStreamLag), Help: "how far a client may fall behind its stream before it is cut off"},
		{Name: "max-body-bytes", Value: &o.MaxBodyBytes, Help: "size of a request's body"},
		{Name: "max-connections", Value: &o.MaxConnections, Help: "open connections; more are answered 503"},
	}
}

// Validate tells what is wrong with o, as an *engine.OptionError.
func (o *Options) Validate() error {
	if o.Port < 0 || o.Port > 65535 {
		return &engine.OptionError{Name: "port", Value: strconv.Itoa(o.Port), Want: "0 to 65535"}
	}
	if o.MaxBodyBytes < 1<<10 {
		return &engine.OptionError{Name: "max-body-bytes", Value: strconv.Itoa(o.MaxBodyBytes), Want: "at least 1024"}
	}
	if o.MaxConnections < 1 {
		return &engine.OptionError{Name: "max-connections", Value: strconv.Itoa(o.MaxConnections), Want: "at least 1"}
	}
	for _, row := range o.Table() {
		if v, ok := row.Value.(*seconds); ok && mustBePositive[row.Name] && *v <= 0 {
			return &engine.OptionError{Name: row.Name, Value: v.String(), Want: "more than 0"}
		}
	}
	return nil
}

var mustBePositive = map[string]bool{"header-timeout": true, "body-timeout": true, "write-timeout": true, "max-stream-lag": true}

// Address is what to listen on.
func (o *Options) Address() string { return net.JoinHostPort(o.Host, strconv.Itoa(o.Port)) }

// seconds is a duration that is written as 30, 1.5 or 1m30s.
type seconds time.Duration

// String implements [flag.Value].
func (d *seconds) String() string {
	if d == nil {
		return ""
	}
	return time.Duration(*d).String()
}

// Set implements [flag.Value].
func (d *seconds) Set(s string) error {
	v, err := parseSeconds(s)
	if err != nil {
		return err
	}
	*d = seconds(v)
	return nil
}

func parseSeconds(s string) (time.Duration, error) {
	v, err := time.ParseDuration(s)
	if f, ferr := strconv.ParseFloat(s, 64); ferr == nil {
		if !(f >= 0 && f < 1e9) {
			return 0, fmt.Errorf("want seconds from 0 to 1e9")
		}
		v, err = time.Duration(f*float64(time.Second)), nil
	}
	if err != nil || v < 0 {
		return 0, fmt.Errorf("want seconds (30, 1.5) or a duration (1m30s)")
	}
	return v, nil
}

// secret is a string that help texts and dumps do not show.
type secret struct{ value *string }

// String implements [flag.Value].
func (s *secret) String() string { return "" }

// Set implements [flag.Value].
func (s *secret) Set(v string) error {
	*s.value = v
	return nil
}
