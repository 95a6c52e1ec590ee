package app

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/component-base/metrics"
)

// serveTest serves metrics at a free address, and returns it. The API server fails each request.
func serveTest(t *testing.T, o metricsOptions) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.address = listener.Addr().String()
	listener.Close()
	api := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(api.Close)
	stop, err := o.serve(&rest.Config{Host: api.URL}, metrics.NewKubeRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return o.address
}

// get is the status of a request for the metrics; 0 if there is none.
func get(t *testing.T, url, token string) int {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

// TestMetricsServed asserts that metrics are served to all without --metrics-secure. With it they are served with TLS,
// and to none whom the API server does not permit.
func TestMetricsServed(t *testing.T) {
	open, secure := serveTest(t, metricsOptions{}), serveTest(t, metricsOptions{secure: true})
	for _, tc := range []struct {
		url, token string
		want       int
	}{
		{"http://" + open, "", http.StatusOK},
		{"http://" + secure, "", http.StatusBadRequest},
		{"https://" + secure, "", http.StatusUnauthorized},
		{"https://" + secure, "any", http.StatusServiceUnavailable},
	} {
		if have := get(t, tc.url, tc.token); have != tc.want && (have != 0 || tc.want != http.StatusBadRequest) {
			t.Errorf("%s with token %q: %d, want %d", tc.url, tc.token, have, tc.want)
		}
	}
}

// TestMetricsFlags asserts that flags which do not belong together are refused, and files that are no certificate.
func TestMetricsFlags(t *testing.T) {
	for _, arguments := range [][]string{
		{"--metrics-tls-cert-file=a", "--metrics-secure"}, {"--metrics-tls-private-key-file=b", "--metrics-secure"},
		{"--metrics-tls-cert-file=a", "--metrics-tls-private-key-file=b"}, {"--volume-metrics-limit=-1"},
	} {
		if err := parse(t, arguments...).validate(); err == nil {
			t.Errorf("%v are accepted", arguments)
		}
	}
	if _, err := (metricsOptions{secure: true, certFile: "missing", keyFile: "missing"}).certificate(); err == nil {
		t.Error("a certificate that is missing is accepted")
	}
}
