package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// httpServer is the listening side.
func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: s.options.HeaderTimeout,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ConnContext:       func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// Serve answers on ln until Shutdown. It returns nil after one.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(&boundedListener{Listener: ln, most: int64(s.options.MaxConnections)})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown makes the server not ready, stops accepting, and lets running requests finish until ctx ends; then it cancels them and
// closes their connections. It tells whether every request could finish. It does not close the engine.
func (s *Server) Shutdown(ctx context.Context) (drained bool) {
	s.draining.Store(true)
	err := s.http.Shutdown(ctx)
	s.cancel(errShutdown)
	if err != nil {
		// Cancelled requests answer with what they have; those who still cannot write are cut off.
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.http.Shutdown(grace)
		s.http.Close()
	}
	s.watch.Wait()
	return err == nil
}

type health int

const (
	healthy health = iota
	starting
	draining
	failed
)

// health is the server's state, the worst first.
func (s *Server) health() health {
	switch {
	case s.unhealthy():
		return failed
	case s.draining.Load():
		return draining
	case s.live.Load() == nil:
		return starting
	}
	return healthy
}

// err is what requests are told in that state.
func (h health) err() *apiError {
	switch h {
	case starting:
		return errStarting
	case draining:
		return errDraining
	case failed:
		return errUnhealthy
	}
	return nil
}
