package load

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/tidwall/gjson"
)

// call does one request that is not part of the load.
func (c *Client) call(ctx context.Context, method, path string, body []byte) ([]byte, int, error) {
	c.setup()
	req, err := http.NewRequestWithContext(ctx, method, c.BaseURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	for key, values := range c.Header {
		req.Header[key] = values
	}
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	return data, resp.StatusCode, err
}

// WaitReady polls until the server answers, whatever it says to /health: some kinds have no such route.
func (c *Client) WaitReady(ctx context.Context) error {
	for {
		_, status, err := c.call(ctx, http.MethodGet, "/health", nil)
		if err == nil && status != http.StatusServiceUnavailable {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("status %d", status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no server at %s: %w", c.BaseURL, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// FindModel asks the server for its first model's id.
func (c *Client) FindModel(ctx context.Context) (string, error) {
	path, field := "/v1/models", "data.0.id"
	data, status, err := c.call(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	id := gjson.GetBytes(data, field).String()
	if status != http.StatusOK || id == "" {
		return "", fmt.Errorf("%s%s names no model (status %d): set --model", c.BaseURL, path, status)
	}
	return id, nil
}

// Flush empties the server's prefix cache.
func (c *Client) Flush(ctx context.Context) error {
	if c.Kind.flushPath == "" {
		return fmt.Errorf("backend %s has no route that empties its prefix cache: leave --flush-cache out", c.Kind.Name)
	}
	// Requests that were cut short may still be ending: the server refuses while any runs.
	var status int
	var data []byte
	var err error
	for range 50 {
		data, status, err = c.call(ctx, http.MethodPost, c.Kind.flushPath, nil)
		if err != nil {
			return err
		}
		if status == http.StatusOK {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s: status %d: %.200s", c.Kind.flushPath, status, data)
}

// Post sends a control request, such as /start_profile, and returns the reply's body.
func (c *Client) Post(ctx context.Context, path string, body []byte) ([]byte, error) {
	data, status, err := c.call(ctx, http.MethodPost, path, body)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: status %d: %.200s", path, status, bytes.TrimSpace(data))
	}
	return data, err
}

// Get reads a page of the server, such as /get_server_info.
func (c *Client) Get(ctx context.Context, path string) ([]byte, error) {
	data, status, err := c.call(ctx, http.MethodGet, path, nil)
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s: status %d", path, status)
	}
	return data, err
}
