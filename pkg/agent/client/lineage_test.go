package client

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	clocktesting "k8s.io/utils/clock/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// fakeCluster is an API server with a NodeDiskCapacity and a Node.
type fakeCluster struct {
	t      *testing.T
	mu     sync.Mutex
	ndc    *diskv1alpha1.NodeDiskCapacity
	node   types.UID
	status int
	writes []string
	file   string
	clock  *clocktesting.FakeClock
	server *httptest.Server
}

func newFakeCluster(t *testing.T) *fakeCluster {
	t.Helper()
	c := &fakeCluster{
		t: t, node: "node-1", file: filepath.Join(t.TempDir(), "plugin", "seen.json"), clock: clocktesting.NewFakeClock(time.Unix(1e9, 0)),
	}
	c.setCapacity("ndc-1", 10)
	c.server = httptest.NewServer(c)
	t.Cleanup(c.server.Close)
	return c
}

// setCapacity sets the version of the NodeDiskCapacity. A version of 0 removes it.
func (c *fakeCluster) setCapacity(uid types.UID, version int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ndc = nil
	if version > 0 {
		c.ndc = &diskv1alpha1.NodeDiskCapacity{
			TypeMeta:   metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"},
			ObjectMeta: metav1.ObjectMeta{Name: "node", UID: uid, ResourceVersion: strconv.Itoa(version)},
		}
	}
}

func (c *fakeCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if c.status != 0 {
		w.WriteHeader(c.status)
		return
	}
	if strings.HasSuffix(r.URL.Path, "/nodes/node") {
		_ = json.NewEncoder(w).Encode(&corev1.Node{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}, ObjectMeta: metav1.ObjectMeta{Name: "node", UID: c.node},
		})
		return
	}
	c.writes = append(c.writes, r.Method)
	if r.Method == http.MethodPost {
		c.mu.Unlock()
		c.setCapacity("ndc-2", 1000)
		c.mu.Lock()
	}
	if c.ndc == nil {
		status := apierrors.NewNotFound(diskv1alpha1.SchemeGroupVersion.WithResource("nodediskcapacities").GroupResource(), "node").Status()
		status.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(status)
		return
	}
	if r.Method != http.MethodGet {
		// A restored API server may continue far above its former versions.
		c.ndc.ResourceVersion = "1000000"
	}
	_ = json.NewEncoder(w).Encode(c.ndc)
}

// newClient returns the client of an agent that has just started.
func (c *fakeCluster) newClient() *Client {
	c.t.Helper()
	lineage, err := OpenLineage(c.file, c.clock)
	if err != nil {
		c.t.Fatal(err)
	}
	client, err := NewWithLineage(&rest.Config{Host: c.server.URL, QPS: -1}, "node", lineage)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// newTrustedClient returns the client of an agent that has known the API server for long.
func (c *fakeCluster) newTrustedClient() *Client {
	c.t.Helper()
	client := c.newClient()
	c.checkDoubt(client, doubtNoRecord)
	c.clock.Step(minDoubtTime)
	if left := client.EndDoubt(c.t.Context()); left != 0 {
		c.t.Fatalf("the doubt lasts for %v", left)
	}
	c.checkDoubt(client, "")
	return client
}

func (c *fakeCluster) checkDoubt(client *Client, want string) {
	c.t.Helper()
	got, err := client.Doubt(c.t.Context())
	if err != nil || want == "" && got != "" || !strings.Contains(got, want) {
		c.t.Errorf("doubt is %q, %v, want %q", got, err, want)
	}
}

// TestOutage asserts that an API server that was away, or that a restarted agent finds, is not doubted.
func TestOutage(t *testing.T) {
	c := newFakeCluster(t)
	client := c.newTrustedClient()
	c.status = http.StatusServiceUnavailable
	if _, err := client.Doubt(t.Context()); err == nil {
		t.Error("an API server that does not answer leaves no doubt")
	}
	c.status = 0
	c.checkDoubt(client, "")
	c.checkDoubt(c.newClient(), "")
	c.setCapacity("ndc-1", 11)
	c.checkDoubt(client, "")
	c.checkDoubt(c.newClient(), "")
}

// TestLostData asserts that an API server without the node's objects, with others or with older ones is doubted until
// an hour has passed. An agent that was down doubts it, too.
func TestLostData(t *testing.T) {
	for want, change := range map[string]func(c *fakeCluster){
		"has no NodeDiskCapacity":  func(c *fakeCluster) { c.setCapacity("", 0) },
		"is another object":        func(c *fakeCluster) { c.setCapacity("ndc-2", 11) },
		"is older":                 func(c *fakeCluster) { c.setCapacity("ndc-1", 9) },
		"the Node is another":      func(c *fakeCluster) { c.node = "node-2" },
		"NodeDiskCapacity of this": func(c *fakeCluster) { c.ndc.ResourceVersion = "not a number" },
	} {
		for _, restarted := range []bool{false, true} {
			c := newFakeCluster(t)
			client := c.newTrustedClient()
			change(c)
			if restarted {
				client = c.newClient()
			}
			c.checkDoubt(client, want)
			// Later answers are consistent with each other, and prove nothing.
			if c.ndc != nil {
				c.setCapacity(c.ndc.UID, 12)
			}
			c.checkDoubt(client, want)
			c.clock.Step(minDoubtTime - time.Second)
			if left := client.EndDoubt(t.Context()); left != time.Second {
				t.Errorf("%s: the doubt lasts for %v", want, left)
			}
			client = c.newClient()
			c.checkDoubt(client, want)
			if left := client.EndDoubt(t.Context()); left == 0 {
				t.Errorf("%s: a restart ends the doubt", want)
			}
		}
	}
}

// TestWriteHidesNothing asserts that the first write of an agent does not hide that an object is older, or that it is
// another object.
func TestWriteHidesNothing(t *testing.T) {
	for want, write := range map[string]func(c *fakeCluster) error{
		"is older": func(c *fakeCluster) error {
			c.setCapacity("ndc-1", 9)
			_, err := c.newClient().UpdateCapacityStatus(c.t.Context(), c.ndc)
			return err
		},
		"older than it was": func(c *fakeCluster) error {
			c.setCapacity("ndc-1", 9)
			_, err := c.newClient().PatchCapacity(c.t.Context(), []byte("{}"))
			return err
		},
		"has no NodeDiskCapacity": func(c *fakeCluster) error {
			c.setCapacity("", 0)
			client := c.newClient()
			_, err := client.CreateCapacity(c.t.Context(), &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "node"}})
			return err
		},
	} {
		c := newFakeCluster(t)
		c.newTrustedClient()
		if err := write(c); err != nil {
			t.Error(err)
		}
		lineage, err := OpenLineage(c.file, c.clock)
		if err != nil {
			t.Fatal(err)
		}
		if got := lineage.state.Doubt; want != "has no NodeDiskCapacity" && !strings.Contains(got, want) || got == "" {
			t.Errorf("doubt is %q, want %q", got, want)
		}
	}
}

// TestConcurrentAnswers asserts that answers in another order than their requests cause no doubt.
func TestConcurrentAnswers(t *testing.T) {
	c := newFakeCluster(t)
	client := c.newTrustedClient()
	early := client.lineage.currentState()
	c.setCapacity("ndc-1", 20)
	c.checkDoubt(client, "")
	late := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{UID: "ndc-1", ResourceVersion: "15"}}
	client.lineage.compareCapacity(t.Context(), early, late, nil)
	if got := client.lineage.currentState(); got.Doubt != "" || got.ResourceVersion != "20" {
		t.Errorf("known is %+v", got)
	}
}

// TestLineageFile asserts that a file which cannot be read counts as none, and that one which cannot be written is
// removed.
func TestLineageFile(t *testing.T) {
	c := newFakeCluster(t)
	c.newTrustedClient()
	for _, content := range []string{"", "{", "[]", "{}", `{"resourceVersion":"10"}`} {
		if err := os.WriteFile(c.file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		c.checkDoubt(c.newClient(), doubtNoRecord)
	}
	c.newTrustedClient()
	client := c.newClient()
	// The new file cannot be written where a folder is.
	if err := os.MkdirAll(c.file+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	c.setCapacity("ndc-1", 30)
	c.checkDoubt(client, "")
	c.checkDoubt(c.newClient(), doubtNoRecord)
	if err := os.RemoveAll(c.file); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(c.file, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLineage(c.file, c.clock); err == nil {
		t.Error("a folder is read")
	}
}
