// Package faultyproxy is a reverse proxy before an API server that makes requests fail: requests and answers that are
// lost, requests that are done after their client has given up, errors that the server or a proxy before it returns,
// and watches that are interrupted until the server no longer knows where they were.
//
// What becomes of a request is decided by a function of the test, so that a seed makes the same requests fail again.
package faultyproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"
)

// Fault is what becomes of a request.
type Fault int

const (
	// None: it is served.
	None Fault = iota
	// RequestLost: the connection breaks before the server has the request.
	RequestLost
	// AnswerLost: the server does it, and the connection breaks before its answer.
	AnswerLost
	// Held: nothing happens until the client gives up, and nothing then.
	Held
	// Late: nothing happens until the client gives up, and the server does it a while after.
	Late
	// Busy: 429 with Retry-After, which client-go obeys by itself.
	Busy
	// BusyForNow: 429 without.
	BusyForNow
	// Conflict: 409.
	Conflict
	// Refused: 403.
	Refused
	// Internal: 500. The server did nothing.
	Internal
	// InternalAfter: 500. The server did it.
	InternalAfter
	// Unavailable: 503.
	Unavailable
	// GatewayTimeout: 504. The server did it.
	GatewayTimeout
)

// Faults are all but None.
var Faults = []Fault{
	RequestLost, AnswerLost, Held, Late, Busy, BusyForNow, Conflict, Refused,
	Internal, InternalAfter, Unavailable, GatewayTimeout,
}

var names = [...]string{
	None: "none", RequestLost: "request lost", AnswerLost: "answer lost", Held: "held", Late: "late",
	Busy: "429 with Retry-After", BusyForNow: "429", Conflict: "409", Refused: "403", Internal: "500",
	InternalAfter: "500 after it was done", Unavailable: "503",
	GatewayTimeout: "504 after it was done",
}

// String is for logs.
func (f Fault) String() string { return names[f] }

// answers are the errors that the proxy makes.
var answers = map[Fault]struct {
	code   int
	reason metav1.StatusReason
}{
	Busy:           {http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests},
	BusyForNow:     {http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests},
	Conflict:       {http.StatusConflict, metav1.StatusReasonConflict},
	Refused:        {http.StatusForbidden, metav1.StatusReasonForbidden},
	Internal:       {http.StatusInternalServerError, metav1.StatusReasonInternalError},
	InternalAfter:  {http.StatusInternalServerError, metav1.StatusReasonInternalError},
	Unavailable:    {http.StatusServiceUnavailable, metav1.StatusReasonServiceUnavailable},
	GatewayTimeout: {http.StatusGatewayTimeout, metav1.StatusReasonTimeout},
}

// done reports whether the server does the request all the same.
func (f Fault) done() bool {
	return f == AnswerLost || f == Late || f == InternalAfter || f == GatewayTimeout
}

// Request is what is known of a request that may fail. Watches are not among them: see Break.
type Request struct {
	// Verb is that of authorization: get, list, create, update, patch, delete.
	Verb string
	// Resource has the subresource behind a slash, as in pods/binding.
	Resource string
	// Count is how many requests with this verb and resource there were before.
	Count uint64
}

// maxHeld is how long a request is held for a client that does not give up: as a load balancer would.
const maxHeld = 10 * time.Second

// lateBy is how long after its client has given up a late request is done.
const lateBy = 500 * time.Millisecond

// Proxy is started with Start.
type Proxy struct {
	// URL is where clients connect, without TLS and without credentials.
	URL string

	decide  func(Request) Fault
	server  *http.Server
	forward *httputil.ReverseProxy
	info    request.RequestInfoFactory
	// healed is closed by Heal.
	healed chan struct{}
	heal   sync.Once

	mu sync.Mutex
	// counts of requests, by verb and resource.
	counts map[[2]string]uint64
	// failures that there were.
	failures map[Failure]int
	// delayed are requests that the server is still to do, without a client.
	delayed sync.WaitGroup
	watches map[string]*watches
}

// watches are those of one resource.
type watches struct {
	// cut ends those that run.
	cut map[*http.Request]context.CancelFunc
	// broken is closed when watches are served again; nil if they are.
	broken chan struct{}
	// expired is true when the next watch that begins at a resourceVersion gets the answer that this is too old.
	expired bool
}

// Start starts a proxy before the API server that the configuration is for, with its credentials.
func Start(config *rest.Config, decide func(Request) Fault) (*Proxy, error) {
	transport, err := rest.TransportFor(config)
	if err != nil {
		return nil, fmt.Errorf("making a transport for %s: %w", config.Host, err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	silent := log.New(io.Discard, "", 0)
	p := &Proxy{
		URL: "http://" + listener.Addr().String(), decide: decide, healed: make(chan struct{}),
		info: request.RequestInfoFactory{
			APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api"),
		},
		counts: map[[2]string]uint64{}, failures: map[Failure]int{}, watches: map[string]*watches{},
		forward: &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: transport, FlushInterval: -1,
			ErrorLog: silent,
			// To the client it is a connection that broke.
			ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		},
	}
	p.server = &http.Server{Handler: p, ErrorLog: silent}
	go func() { _ = p.server.Serve(listener) }()
	return p, nil
}

// Close breaks all connections.
func (p *Proxy) Close() error { return p.server.Close() }

// Heal ends all faults, serves all watches, and returns when the server has done the requests that were delayed.
func (p *Proxy) Heal() {
	p.heal.Do(func() { close(p.healed) })
	p.mu.Lock()
	for resource := range p.watches {
		p.mend(resource)
	}
	p.mu.Unlock()
	p.delayed.Wait()
}

// Failure is a fault of a kind of request.
type Failure struct {
	Verb, Resource string
	Fault          Fault
}

// Failures counts those that there were so far.
func (p *Proxy) Failures() map[Failure]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.failures)
}

// Break interrupts the watches of a resource, and holds new ones until Mend. With relist the first one then gets
// the answer that it begins too far back, so that its client lists.
func (p *Proxy) Break(resource string, relist bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.watchesOf(resource)
	if w.broken == nil {
		w.broken = make(chan struct{})
	}
	w.expired = w.expired || relist
	for _, cut := range w.cut {
		cut()
	}
}

// Mend serves watches of the resource again.
func (p *Proxy) Mend(resource string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mend(resource)
}

// mend is Mend. The lock is held.
func (p *Proxy) mend(resource string) {
	if w := p.watchesOf(resource); w.broken != nil {
		close(w.broken)
		w.broken = nil
	}
}

// watchesOf are those of the resource. The lock is held.
func (p *Proxy) watchesOf(resource string) *watches {
	if p.watches[resource] == nil {
		p.watches[resource] = &watches{cut: map[*http.Request]context.CancelFunc{}}
	}
	return p.watches[resource]
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	info, err := p.info.NewRequestInfo(r)
	if err != nil || !info.IsResourceRequest {
		p.forward.ServeHTTP(w, r)
		return
	}
	resource := info.Resource
	if info.Subresource != "" {
		resource += "/" + info.Subresource
	}
	if info.Verb == "watch" {
		p.watch(w, r, resource)
		return
	}
	fault := p.faultOf(Request{Verb: info.Verb, Resource: resource})
	if fault == None {
		p.forward.ServeHTTP(w, r)
		return
	}
	p.fail(w, r, fault)
}

func (p *Proxy) faultOf(r Request) Fault {
	select {
	case <-p.healed:
		return None
	default:
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	key := [2]string{r.Verb, r.Resource}
	r.Count = p.counts[key]
	p.counts[key]++
	fault := p.decide(r)
	if fault != None {
		p.failures[Failure{r.Verb, r.Resource, fault}]++
	}
	if fault.done() {
		p.delayed.Add(1)
	}
	return fault
}

// fail makes a request fail.
func (p *Proxy) fail(w http.ResponseWriter, r *http.Request, fault Fault) {
	// The server notices that a client has gone when it has read everything from it.
	body, err := io.ReadAll(r.Body)
	if err != nil {
		body = nil
	}
	if fault == Held || fault == Late {
		p.hold(r.Context(), maxHeld)
	}
	if fault == Late {
		// The client is gone.
		p.hold(context.WithoutCancel(r.Context()), lateBy)
	}
	if fault.done() {
		later := r.Clone(context.WithoutCancel(r.Context()))
		later.Body, later.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		p.do(later)
	}
	answer, ok := answers[fault]
	if !ok {
		panic(http.ErrAbortHandler)
	}
	if fault == Busy {
		w.Header().Set("Retry-After", "1")
	}
	refuse(w, answer.code, answer.reason, "the proxy of the test says so")
}

// do sends a request to the server and drops the answer: the client has gone.
func (p *Proxy) do(r *http.Request) {
	defer p.delayed.Done()
	defer func() {
		// The server is not there.
		broken := recover()
		if err, is := broken.(error); broken != nil && (!is || !errors.Is(err, http.ErrAbortHandler)) {
			panic(broken)
		}
	}()
	p.forward.ServeHTTP(httptest.NewRecorder(), r)
}

// hold waits until the context ends, for so long at most, or until faults end.
func (p *Proxy) hold(ctx context.Context, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-p.healed:
	}
}

// watch serves a watch as long as those of its resource are served.
func (p *Proxy) watch(w http.ResponseWriter, r *http.Request, resource string) {
	query := r.URL.Query()
	// A watch that begins with what there is begins at no resourceVersion.
	initial, _ := strconv.ParseBool(query.Get("sendInitialEvents"))
	continues := !initial && query.Get("resourceVersion") != ""
	for {
		p.mu.Lock()
		of := p.watchesOf(resource)
		broken := of.broken
		if broken == nil {
			break
		}
		p.mu.Unlock()
		select {
		case <-broken:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	of := p.watchesOf(resource)
	expired := of.expired && continues
	if expired {
		of.expired = false
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	r = r.WithContext(ctx)
	of.cut[r] = cancel
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(of.cut, r)
	}()
	if expired {
		refuse(w, http.StatusGone, metav1.StatusReasonExpired, "too old resource version, says the proxy of the test")
		return
	}
	p.forward.ServeHTTP(w, r)
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message,
	})
}
