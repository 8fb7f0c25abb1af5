package engine

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed is returned by calls on a closed engine.
	ErrClosed = errors.New("engine is closed")
	// ErrQueueFull is returned when the waiting queue holds Options.MaxQueuedRequests: try again later.
	ErrQueueFull = errors.New("waiting queue is full: retry later or raise --max-queued-requests")
	// ErrNoDevice is returned when a GPU was asked for and none can be used.
	ErrNoDevice = errors.New("no usable GPU")
	// ErrBusy is returned by what needs the engine to itself while requests run or wait.
	ErrBusy = errors.New("requests are running or waiting: finish or abort them first")
	// ErrNonFinite is the cause of a request ended because the model gave NaN or infinite logits for it.
	ErrNonFinite = errors.New("the model's logits are not finite: weights or their type do not fit the model, try --dtype float32")
	// ErrAborted is the cause of a request ended by Abort.
	ErrAborted = errors.New("request was aborted")
)

// ContextError tells that a prompt does not fit the model's context.
type ContextError struct{ PromptTokens, Limit int }

func (e *ContextError) Error() string {
	return fmt.Sprintf("prompt has %d tokens, limit %d: shorten it or raise --context-length", e.PromptTokens, e.Limit)
}

// OptionError tells that an option's value cannot be used and what can.
type OptionError struct{ Name, Value, Want string }

func (e *OptionError) Error() string {
	return fmt.Sprintf("--%s %q: want %s", e.Name, e.Value, e.Want)
}

// RequestError tells that a request is not valid; Field is the name as the caller knows it.
type RequestError struct{ Field, Problem string }

func (e *RequestError) Error() string { return e.Field + ": " + e.Problem }

// DeviceError tells that a backend could not be opened: too little memory, an option that it does not have, a weight it cannot
// compute with.
type DeviceError struct {
	Device string // "cpu" or "cuda"
	Err    error
}

func (e *DeviceError) Error() string { return "open " + e.Device + " backend: " + e.Err.Error() }

func (e *DeviceError) Unwrap() error { return e.Err }
