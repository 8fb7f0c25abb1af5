package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// apiError is what a client is told of a failed request. Its JSON is OpenAI's: {"error":{"message","type","param","code"}}.
// It holds nothing but what the client sent itself and the server's public limits.
type apiError struct {
	status     int
	kind       string // OpenAI's "type"
	code       string
	param      string // the field at fault, "" if none is
	message    string
	retryAfter time.Duration // 0: no Retry-After header
	outcome    string        // label of tokamak_requests_total
	cause      error         // for the log alone
}

// Error is what the log shows.
func (e *apiError) Error() string {
	if e.cause != nil {
		return e.message + ": " + e.cause.Error()
	}
	return e.message
}

// because returns e with a cause for the log.
func (e *apiError) because(cause error) *apiError {
	with := *e
	with.cause = cause
	return &with
}

func badRequest(param, code, format string, args ...any) *apiError {
	return &apiError{status: http.StatusBadRequest, kind: "invalid_request_error", code: code, param: param,
		message: fmt.Sprintf(format, args...), outcome: metrics.OutcomeInvalid}
}

var (
	errUnauthorized = &apiError{status: http.StatusUnauthorized, kind: "authentication_error", code: "invalid_api_key", outcome: metrics.OutcomeInvalid,
		message: "missing or wrong API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"}
	errCrossSite = &apiError{status: http.StatusForbidden, kind: "permission_error", code: "cross_site", outcome: metrics.OutcomeInvalid,
		message: "requests from another site's page in a browser are refused"}
	errStarting  = unavailable("starting", "the model is still loading: retry later", 5*time.Second)
	errDraining  = unavailable("shutting_down", "the server is shutting down: send the request elsewhere", time.Second)
	errUnhealthy = unavailable("unhealthy", "the backend has failed and the server must be restarted", 10*time.Second)
	errBodies    = unavailable("overloaded", "request bodies in flight exceed the server's memory for them: retry later", time.Second)

	errEncoding = &apiError{status: http.StatusUnsupportedMediaType, kind: "invalid_request_error", param: "Content-Encoding", code: "unsupported_encoding",
		outcome: metrics.OutcomeInvalid, message: "the body is compressed: send it as it is, without a Content-Encoding"}
	errBodyTimeout = &apiError{status: http.StatusRequestTimeout, kind: "invalid_request_error", code: "body_timeout", outcome: metrics.OutcomeInvalid,
		message: "the request's body did not arrive in time"}
	errSlowReader = &apiError{status: http.StatusInternalServerError, kind: "slow_reader", code: "slow_reader", outcome: metrics.OutcomeSlowReader,
		message: "the client reads its stream too slowly and was cut off"}
	errShutdown = unavailable("shutting_down", "the server shut down before the request was done", time.Second)

	// errDeadline is the cause of a request context that ran out of its own time.
	errDeadline = errors.New("request deadline exceeded")
)

func unavailable(code, message string, retry time.Duration) *apiError {
	return &apiError{status: http.StatusServiceUnavailable, kind: "server_error", code: code, message: message, retryAfter: retry, outcome: metrics.OutcomeUnavailable}
}

// apiErrorOf says what a client is told of err. What it does not know becomes a 500 without detail: the detail may hold paths or
// addresses, and belongs into the log.
func apiErrorOf(ctx context.Context, err error) *apiError {
	var known *apiError
	var request *engine.RequestError
	var tooLong *engine.ContextError
	var capacity *engine.CapacityError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &request):
		return badRequest(request.Field, "invalid_value", "%s", request.Error())
	case errors.As(err, &tooLong):
		return badRequest("prompt", "context_length_exceeded", "%s", tooLong.Error())
	case errors.As(err, &capacity):
		return badRequest("prompt", "capacity_exceeded", "%s", capacity.Error())
	case errors.Is(err, engine.ErrQueueFull):
		return &apiError{status: http.StatusTooManyRequests, kind: "rate_limit_error", code: "queue_full", retryAfter: time.Second,
			message: "the server's waiting queue is full: retry later", outcome: metrics.OutcomeRejected}
	case errors.Is(err, engine.ErrAborted):
		return &apiError{status: statusClientClosed, kind: "aborted", code: "aborted", message: "the request was aborted", outcome: metrics.OutcomeAborted}
	case errors.Is(err, engine.ErrClosed):
		return errShutdown
	}
	if ctx.Err() != nil {
		switch cause := context.Cause(ctx); {
		case errors.Is(cause, errDeadline):
			return &apiError{status: http.StatusGatewayTimeout, kind: "timeout_error", code: "deadline_exceeded", outcome: metrics.OutcomeTimeout,
				message: "the request's deadline passed before it was done: ask for fewer tokens or allow more time"}
		case errors.As(cause, &known):
			return known
		default:
			return &apiError{status: statusClientClosed, kind: "cancelled", code: "cancelled", message: "the client closed the request", outcome: metrics.OutcomeDisconnected}
		}
	}
	return &apiError{status: http.StatusInternalServerError, kind: "server_error", code: "internal_error", outcome: metrics.OutcomeFailed,
		message: "the server failed to run the request; its log says why"}
}

// statusClientClosed is nginx's code for a client that left before the answer: seen in logs, hardly ever by a client.
const statusClientClosed = 499

// append adds the error's JSON object to buf.
func (e *apiError) append(buf []byte) []byte {
	buf = append(buf, `{"error":{"message":`...)
	buf = appendString(buf, e.message)
	buf = append(buf, `,"type":`...)
	buf = appendString(buf, e.kind)
	buf = append(buf, `,"param":`...)
	if e.param == "" {
		buf = append(buf, "null"...)
	} else {
		buf = appendString(buf, e.param)
	}
	buf = append(buf, `,"code":`...)
	buf = appendString(buf, e.code)
	return append(buf, "}}"...)
}

// write answers with the error. It must be the first write of the response.
func (e *apiError) write(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if e.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((e.retryAfter+time.Second-1)/time.Second)))
	}
	if e.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	w.WriteHeader(e.status)
	w.Write(append(e.append(nil), '\n'))
}
