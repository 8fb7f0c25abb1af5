package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// network carries connections to a server, until it is cut.
type network struct {
	net.Listener
	mu    sync.Mutex
	conns []*net.TCPConn // of clients and, behind each, to the server
	dark  chan struct{}  // closed: nothing is carried any more
}

func newNetwork(t testing.TB, server string) *network {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &network{Listener: ln, dark: make(chan struct{})}
	t.Cleanup(func() { ln.Close(); n.reset() })
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", strings.TrimPrefix(server, "http://"))
			if err != nil {
				client.Close()
				return
			}
			n.mu.Lock()
			n.conns = append(n.conns, client.(*net.TCPConn), server.(*net.TCPConn))
			n.mu.Unlock()
			go n.carry(server, client)
			go n.carry(client, server)
		}
	}()
	return n
}

func (n *network) carry(to, from net.Conn) {
	buf := make([]byte, 512)
	for {
		select {
		case <-n.dark:
			return
		default:
		}
		k, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:k]); err != nil {
			return
		}
	}
}

// reset tears every connection down without a farewell: both ends see a reset.
func (n *network) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		_ = c.SetLinger(0)
		c.Close()
	}
	n.conns = nil
}

// TestNetworkIsReset cuts 20 streams of the real engine with a reset: their generations end and their pages come back.
func TestNetworkIsReset(t *testing.T) {
	e := openTiny(t, nil)
	defer e.Close()
	s, _ := testServer(t, nil, nil)
	s.Start(e)
	n := newNetwork(t, listen(t, s))
	const clients = 20
	ends := make(chan error, clients)
	for i := range clients {
		go func() {
			resp, err := http.Post("http://"+n.Addr().String()+"/generate", "application/json", strings.NewReader(
				fmt.Sprintf(`{"input_ids":[%d,5],"stream":true,"sampling_params":{"max_new_tokens":3000,"ignore_eos":true}}`, i)))
			if err == nil {
				_, err = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			ends <- err
		}()
	}
	eventually(t, "all running", func() bool { return e.Stats().Running == clients })
	n.reset()
	for range clients {
		assert.Error(t, <-ends, "a cut stream must not look whole to its client")
	}
	eventually(t, "requests gone, pages free", func() bool {
		st := e.Stats()
		return st.Running == 0 && st.UsedPages == 0
	})
	assert.Less(t, e.Stats().OutputTokensTotal, uint64(clients*3000), "the generations went on to their end")
	eventually(t, "counted as disconnected", func() bool {
		return strings.Contains(scrape(s), fmt.Sprintf(`tokamak_requests_total{model_name="tiny",outcome="disconnected"} %d`, clients))
	})
}

// TestNetworkGoesDark lets a stream's packets vanish, as when a cable is pulled: nobody says goodbye. The server finds out by the
// time its writes take, and takes the pages back.
func TestNetworkGoesDark(t *testing.T) {
	e := openTiny(t, nil)
	defer e.Close()
	s, _ := testServer(t, nil, func(o *Options) {
		o.WriteTimeout, o.MaxStreamLag = 300*time.Millisecond, 600*time.Millisecond
	})
	s.Start(e)
	n := newNetwork(t, listen(t, s))
	// Each event carries the whole output so far and its log probabilities, so that sockets' buffers fill soon.
	resp, err := http.Post("http://"+n.Addr().String()+"/generate", "application/json", strings.NewReader(
		`{"input_ids":[1,5],"stream":true,"return_logprob":true,"top_logprobs_num":20,"sampling_params":{"max_new_tokens":4000,"ignore_eos":true}}`))
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	close(n.dark)
	eventually(t, "the request to be cut off", func() bool {
		st := e.Stats()
		return st.Running == 0 && st.UsedPages == 0
	})
	assert.Less(t, e.Stats().OutputTokensTotal, uint64(4000), "the generation went on to its end")
}
