package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// writes counts what an agent writes to its NodeDiskCapacity, and can have the API
// server refuse it.
type writes struct {
	next    http.RoundTripper
	count   atomic.Int32
	refuses atomic.Bool
}

func (w *writes) into(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { w.next = next; return w })
	return config
}

func (w *writes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || !strings.Contains(r.URL.Path, "/nodediskcapacities") {
		return w.next.RoundTrip(r)
	}
	w.count.Add(1)
	if !w.refuses.Load() {
		return w.next.RoundTrip(r)
	}
	body := `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","message":"refused on purpose","code":422}`
	return &http.Response{
		StatusCode: http.StatusUnprocessableEntity, Request: r, Body: io.NopCloser(bytes.NewBufferString(body)),
		Header: http.Header{"Content-Type": []string{"application/json"}},
	}, nil
}

// TestAgentWrites: many changes are few writes, no change is none, and a server that
// refuses is not hammered.
func TestAgentWrites(t *testing.T) {
	n := newNode(t, 4*units.GiB)
	w := &writes{}
	n.options.Config = w.into(n.options.Config)
	n.start()
	n.ready()
	begin := time.Now()
	w.count.Store(0)
	var pods []*corev1.Pod
	for i := range 20 {
		pods = append(pods, n.pod(fmt.Sprint("p", i), "", nil, n.volumeOf("data", "20Mi", "")))
	}
	for _, p := range pods {
		n.formatted(p, "data")
	}
	// At most one for each window of 50 ms, and far fewer than the 40 changes of phase alone
	// if the machine is quick.
	if got, most := w.count.Load(), int32(time.Since(begin)/(50*time.Millisecond))+1; got > most {
		t.Errorf("%d writes for 20 volumes, want at most %d", got, most)
	}
	idle := w.count.Load()
	n.sys.hide(t, n.disks[0], false) // something happened, and nothing changed
	n.never("an agent writes without news", 2*time.Second, func() error {
		if w.count.Load() != idle {
			return nil
		}
		return errors.New("it does not")
	})

	w.refuses.Store(true)
	before := w.count.Load()
	n.delete(pods[0])
	n.never("a server that refuses is asked often", 3*time.Second, func() error {
		if w.count.Load()-before > 6 {
			return nil
		}
		return errors.New("it is not")
	})
	if w.count.Load() == before {
		t.Error("nothing was tried")
	}
	w.refuses.Store(false)
	for _, p := range pods[1:] {
		n.delete(p)
	}
	n.published("what was refused is published later", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 0 {
			return fmt.Errorf("%d volumes", s.Summary.Volumes)
		}
		return nil
	})
}
