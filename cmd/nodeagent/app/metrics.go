package app

import (
	"net/http"

	"k8s.io/component-base/metrics/legacyregistry"
)

// serveMetrics answers /metrics until stop is called.
func serveMetrics(address string) (stop func(), err error) {
	mux := http.NewServeMux()
	mux.Handle("/metrics", legacyregistry.Handler())
	return listenAndServe("--metrics-address", address, mux)
}
