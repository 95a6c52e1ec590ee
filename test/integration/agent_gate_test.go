package integration

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
)

// gate is a way to the API server that can be shut: to the agent it is down then.
type gate struct {
	address, server string

	mu          sync.Mutex
	isShut      bool
	listener    net.Listener
	connections []net.Conn
}

func newGate(t *testing.T, to *rest.Config) *gate {
	t.Helper()
	server, err := url.Parse(to.Host)
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{address: "127.0.0.1:0", server: server.Host}
	g.open(t)
	g.address = g.listener.Addr().String()
	t.Cleanup(func() { g.shut(t) })
	return g
}

// config leads over the gate, and still checks the API server's own name.
func (g *gate) config(t *testing.T, to *rest.Config) *rest.Config {
	t.Helper()
	config := rest.CopyConfig(to)
	host, _, err := net.SplitHostPort(g.server)
	if err != nil {
		t.Fatal(err)
	}
	config.Host = "https://" + g.address
	config.ServerName = host
	return config
}

func (g *gate) open(t *testing.T) {
	t.Helper()
	listener, err := net.Listen("tcp", g.address)
	if err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.listener, g.isShut = listener, false
	g.mu.Unlock()
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go g.pass(in)
		}
	}()
}

func (g *gate) pass(in net.Conn) {
	out, err := net.Dial("tcp", g.server)
	if err != nil {
		in.Close()
		return
	}
	g.mu.Lock()
	g.connections = append(g.connections, in, out)
	if g.isShut {
		in.Close()
		out.Close()
	}
	g.mu.Unlock()
	go func() { _, _ = io.Copy(out, in); out.Close() }()
	_, _ = io.Copy(in, out)
	in.Close()
}

func (g *gate) shut(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.isShut = true
	g.listener.Close()
	for _, c := range g.connections {
		c.Close()
	}
	g.connections = nil
}
