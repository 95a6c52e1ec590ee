package app

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/agent/client"
)

// metricsOptions say where and to whom the metrics are served.
type metricsOptions struct {
	address string
	// secure serves with TLS, and only to clients that may get /metrics.
	secure bool
	// certFile and keyFile are the certificate. Without them one is made.
	certFile, keyFile string
}

// Limits of scrapes, so that a slow disk or a client that asks all the time costs little.
const (
	scrapeTimeout = 8 * time.Second
	maxScrapes    = 4
)

// validate checks the flags.
func (o metricsOptions) validate() error {
	switch {
	case (o.certFile == "") != (o.keyFile == ""):
		return errors.New("--metrics-tls-cert-file and --metrics-tls-private-key-file belong together: give both, or none")
	case o.certFile != "" && !o.secure:
		return errors.New("--metrics-tls-cert-file has no use without --metrics-secure")
	}
	return nil
}

// serve answers /metrics until stop is called, with the metrics of the process and those of the registry. config is
// the API server that says who may read them.
func (o metricsOptions) serve(config *rest.Config, registry metrics.Gatherer) (stop func(), err error) {
	handler := promhttp.HandlerFor(prometheus.Gatherers{legacyregistry.DefaultGatherer, registry},
		promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, Timeout: scrapeTimeout})
	var certificate *tls.Config
	if o.secure {
		reviewer, err := client.NewReviewer(config)
		if err != nil {
			return nil, err
		}
		handler = authorized(reviewer, handler)
		if certificate, err = o.certificate(); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", handler)
	return listenAndServe("--metrics-address", o.address, mux, certificate)
}

// authorized serves only clients whose token the API server knows and that it permits to get the path.
func authorized(reviewer *client.Reviewer, handler http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		access, err := reviewer.MayGet(r.Context(), token, r.URL.Path)
		switch {
		case err != nil:
			klog.FromContext(r.Context()).Error(err, "A request for the metrics was refused")
			http.Error(w, "the API server does not say who may read the metrics", http.StatusServiceUnavailable)
		case access == client.Unauthenticated:
			http.Error(w, "send a token that the API server knows", http.StatusUnauthorized)
		case access == client.Forbidden:
			http.Error(w, "the user of this token may not get "+r.URL.Path, http.StatusForbidden)
		default:
			handler.ServeHTTP(w, r)
		}
	})
}

// certificate is the one of the flags, or one that the agent signs itself.
func (o metricsOptions) certificate() (*tls.Config, error) {
	// Without HTTP/2, whose requests a client can cancel faster than they are served.
	settings := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if o.certFile != "" {
		// Read for each connection, of which Prometheus makes few: so a renewed certificate needs no restart.
		settings.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(o.certFile, o.keyFile)
			return &pair, err
		}
		_, err := settings.GetCertificate(nil)
		if err != nil {
			return nil, fmt.Errorf("--metrics-tls-cert-file: %w", err)
		}
		return settings, nil
	}
	certPEM, keyPEM, err := cert.GenerateSelfSignedCertKey("berth-nodeagent", nil, nil)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate for the metrics: %w", err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate for the metrics: %w", err)
	}
	settings.Certificates = []tls.Certificate{pair}
	return settings, nil
}
