package app

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/berthdev/berth/pkg/agent"
)

// serveHealth answers /healthz and /readyz until stop is called.
func serveHealth(address string, h *agent.Health) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", answer(h.Alive))
	mux.HandleFunc("/readyz", answer(h.Ready))
	return listenAndServe("--health-address", address, mux, nil)
}

// answer returns a handler that writes ok, or the error of the check with status 503.
func answer(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := check(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	}
}

// listenAndServe serves on the address that the flag names until stop is called, with TLS if there is a certificate.
func listenAndServe(flag, address string, handler http.Handler, certificate *tls.Config) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if certificate != nil {
		listener = tls.NewListener(listener, certificate)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return func() { _ = server.Close() }, nil
}
