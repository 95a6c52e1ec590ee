package faultyproxy

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/berthdev/berth/test/testenv"
)

// patience is for what should take milliseconds.
const patience = time.Minute

// server is an API server that counts what it is asked for.
type server struct {
	writes, watches atomic.Int64
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.URL.Query().Get("watch") != "" {
		s.watches.Add(1)
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	if r.Method == http.MethodPost {
		s.writes.Add(1)
	}
	_, _ = w.Write([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}`))
}

// before starts a proxy before a server, and returns a client of it.
func before(t *testing.T, s *server, decide func(Request) Fault) (*Proxy, kubernetes.Interface) {
	t.Helper()
	backend := httptest.NewServer(s)
	t.Cleanup(func() {
		backend.CloseClientConnections()
		backend.Close()
	})
	p, err := Start(&rest.Config{Host: backend.URL}, decide)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(&rest.Config{Host: p.URL})
	if err != nil {
		t.Fatal(err)
	}
	return p, client
}

func create(ctx context.Context, client kubernetes.Interface) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
	return err
}

// TestFaults asserts of each fault what the client gets to know, and whether the server has done the request.
func TestFaults(t *testing.T) {
	// limit is for a client that gives up.
	const limit = 100 * time.Millisecond
	code := func(code int32) func(error) bool {
		return func(err error) bool {
			status, ok := err.(apierrors.APIStatus)
			return ok && status.Status().Code == code
		}
	}
	broken := func(err error) bool {
		_, answered := err.(apierrors.APIStatus)
		return err != nil && !answered
	}
	tests := map[Fault]struct {
		is    func(error) bool
		done  int64
		limit time.Duration
	}{
		None:           {func(err error) bool { return err == nil }, 1, patience},
		RequestLost:    {broken, 0, patience},
		AnswerLost:     {broken, 1, patience},
		Held:           {broken, 0, limit},
		Late:           {broken, 1, limit},
		BusyForNow:     {code(429), 0, patience},
		Conflict:       {code(409), 0, patience},
		Refused:        {code(403), 0, patience},
		Internal:       {code(500), 0, patience},
		InternalAfter:  {code(500), 1, patience},
		Unavailable:    {code(503), 0, patience},
		GatewayTimeout: {code(504), 1, patience},
		// The client tries again by itself.
		Busy: {func(err error) bool { return err == nil }, 1, patience},
	}
	for _, fault := range append(Faults, None) {
		test, ok := tests[fault]
		if !ok {
			t.Errorf("%s is not tested", fault)
			continue
		}
		t.Run(fault.String(), func(t *testing.T) {
			s := &server{}
			p, client := before(t, s, func(r Request) Fault {
				if r.Verb != "create" || r.Resource != "pods" {
					t.Errorf("the request is %+v", r)
				}
				if r.Count > 0 {
					return None
				}
				return fault
			})
			ctx, cancel := context.WithTimeout(t.Context(), test.limit)
			defer cancel()
			if err := create(ctx, client); !test.is(err) {
				t.Errorf("the client gets %v", err)
			}
			p.Heal()
			if have := s.writes.Load(); have != test.done {
				t.Errorf("the server has done it %d times, want %d", have, test.done)
			}
			want := 1
			if fault == None {
				want = 0
			}
			if have := p.Failures()[Failure{"create", "pods", fault}]; have != want {
				t.Errorf("%d requests failed so, want %d", have, want)
			}
			if err := create(t.Context(), client); err != nil {
				t.Errorf("after faults ended: %v", err)
			}
		})
	}
}

// TestHealDoesNotWaitForClients asserts that a request that is held fails when faults end, though its client has time.
func TestHealDoesNotWaitForClients(t *testing.T) {
	held := make(chan struct{}, 1)
	p, client := before(t, &server{}, func(Request) Fault {
		held <- struct{}{}
		return Held
	})
	failed := make(chan error, 1)
	go func() { failed <- create(t.Context(), client) }()
	testenv.Receive(t, "the request", held)
	p.Heal()
	if err := testenv.Receive(t, "the end of the request", failed); err == nil {
		t.Error("the request was done")
	}
}

// TestBreak asserts that watches end, that none is served until they are mended, and that the first one then makes its
// client list, if relist is set.
func TestBreak(t *testing.T) {
	for name, relist := range map[string]bool{"go on": false, "relist": true} {
		t.Run(name, func(t *testing.T) {
			s := &server{}
			p, client := before(t, s, func(Request) Fault { return None })
			watch := func() (<-chan struct{}, error) {
				w, err := client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "7"})
				if err != nil {
					return nil, err
				}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for range w.ResultChan() {
						// It only ends.
					}
				}()
				return ended, nil
			}
			ended, err := watch()
			if err != nil {
				t.Fatal(err)
			}
			p.Break("pods", relist)
			testenv.Receive(t, "the end of the watch", ended)
			again := make(chan error, 1)
			go func() {
				_, err := watch()
				again <- err
			}()
			// Another resource is served meanwhile.
			other, err := client.CoreV1().Nodes().Watch(t.Context(), metav1.ListOptions{ResourceVersion: "7"})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Stop()
			if have := s.watches.Load(); have != 2 {
				t.Errorf("the server has served %d watches, want 2", have)
			}
			p.Mend("pods")
			if err := testenv.Receive(t, "the next watch", again); apierrors.IsResourceExpired(err) != relist {
				t.Errorf("the next watch gets %v", err)
			}
			if _, err := watch(); err != nil {
				t.Errorf("the one after that gets %v", err)
			}
		})
	}
}
