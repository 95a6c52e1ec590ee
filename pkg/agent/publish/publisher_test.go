package publish

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/test/testenv"
)

// apiServer is an API server that has at most one NodeDiskCapacity.
type apiServer struct {
	mu      sync.Mutex
	object  *diskv1alpha1.NodeDiskCapacity
	version int
	// refuse has the codes for the answers to the next requests.
	refuse []int
	// requests are those that were answered.
	requests []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method)
	w.Header().Set("Content-Type", "application/json")
	if len(s.refuse) > 0 {
		code := s.refuse[0]
		s.refuse = s.refuse[1:]
		if code != 0 {
			s.fail(w, code)
			return
		}
	}
	if s.object == nil && r.Method != http.MethodPost {
		s.fail(w, http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodPost:
		if s.object != nil {
			s.fail(w, http.StatusConflict)
			return
		}
		s.object = &diskv1alpha1.NodeDiskCapacity{}
		s.decode(r, s.object)
		s.object.UID = types.UID("u" + strconv.Itoa(s.version))
	case http.MethodPatch, http.MethodPut:
		next := &diskv1alpha1.NodeDiskCapacity{}
		s.decode(r, next)
		if r.Method == http.MethodPut {
			s.object.Status = next.Status
		} else {
			s.merge(next)
		}
	}
	if r.Method != http.MethodGet {
		s.version++
		s.object.ResourceVersion = strconv.Itoa(s.version)
	}
	s.object.TypeMeta = metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"}
	if err := json.NewEncoder(w).Encode(s.object); err != nil {
		panic(err)
	}
}

// merge applies the parts of a merge patch that the publisher sends.
func (s *apiServer) merge(patch *diskv1alpha1.NodeDiskCapacity) {
	if patch.OwnerReferences != nil {
		s.object.OwnerReferences = patch.OwnerReferences
	}
	if len(patch.ManagedFields) == 1 && equality.Semantic.DeepEqual(patch.ManagedFields[0], metav1.ManagedFieldsEntry{}) {
		s.object.ManagedFields = nil
	}
}

func (s *apiServer) decode(r *http.Request, into any) {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		panic(err)
	}
}

func (s *apiServer) fail(w http.ResponseWriter, code int) {
	reason := map[int]metav1.StatusReason{404: metav1.StatusReasonNotFound, 409: metav1.StatusReasonConflict}[code]
	if code == http.StatusConflict && len(s.requests) > 0 && s.requests[len(s.requests)-1] == http.MethodPost {
		reason = metav1.StatusReasonAlreadyExists
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Reason: reason, Code: int32(code), Message: "no",
	})
}

// takeRequests returns the requests since the last call.
func (s *apiServer) takeRequests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := strings.Join(s.requests, " ")
	s.requests = nil
	return all
}

// testPublisher is a Publisher of a node, with the status that it must publish.
type testPublisher struct {
	*Publisher
	server *apiServer
	store  cache.Store
	node   types.UID
	status diskv1alpha1.NodeDiskCapacityStatus
}

func newTestPublisher(t *testing.T) *testPublisher {
	t.Helper()
	s := &apiServer{version: 10}
	http := httptest.NewServer(s)
	t.Cleanup(http.Close)
	c, err := client.New(&rest.Config{Host: http.URL}, "n1")
	if err != nil {
		t.Fatal(err)
	}
	informer := cache.NewSharedIndexInformer(&cache.ListWatch{}, &diskv1alpha1.NodeDiskCapacity{}, 0, cache.Indexers{})
	p := &testPublisher{server: s, store: informer.GetStore(), node: "node-1"}
	p.status.Summary.Disks = 1
	p.status.Conditions = []metav1.Condition{{Type: "Ready", Status: "False"}}
	p.Publisher, err = New(Options{
		Client: c, Capacities: informer, NodeUID: func() types.UID { return p.node },
		Status: func() diskv1alpha1.NodeDiskCapacityStatus { return *p.status.DeepCopy() },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// publishes runs one pass and asserts which requests it made.
func (p *testPublisher) publishes(t *testing.T, requests string) {
	t.Helper()
	if err := p.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := p.server.takeRequests(); took != requests {
		t.Fatalf("requests are %q, want %q", took, requests)
	}
}

// TestPublish asserts that the object is made once, updated when it differs, and not written otherwise.
func TestPublish(t *testing.T) {
	p := newTestPublisher(t)
	p.node = ""
	if err := p.publish(t.Context()); err == nil || !strings.Contains(err.Error(), "there is no Node n1 yet") || p.server.takeRequests() != "" {
		t.Errorf("without a Node: %v", err)
	}
	p.node = "node-1"
	p.publishes(t, "POST PUT")
	p.publishes(t, "")
	if p.server.object.Status.Summary.Disks != 1 || len(p.server.object.OwnerReferences) != 0 {
		t.Errorf("published is %+v", p.server.object)
	}
	// If the Node is deleted, what is known of its disks stays.
	p.node = ""
	p.status.Devices = []diskv1alpha1.Device{{Name: "sda", State: diskv1alpha1.DeviceCandidate}}
	p.publishes(t, "PUT")
	p.status.Conditions = []metav1.Condition{{Type: "Ready", Status: "True"}}
	p.server.refuse = []int{http.StatusConflict, 0, http.StatusConflict}
	p.publishes(t, "PUT GET PUT GET PUT")
	if c := p.server.object.Status.Conditions; len(c) != 1 || c[0].LastTransitionTime.IsZero() {
		t.Errorf("conditions are %+v", c)
	}
}

// TestPublishFindsObject asserts that an existing object is used.
func TestPublishFindsObject(t *testing.T) {
	p := newTestPublisher(t)
	other := metav1.OwnerReference{Kind: "Fleet", Name: "f", UID: "f"}
	p.server.object = &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "5",
		OwnerReferences: []metav1.OwnerReference{{Kind: "Node", Name: "n1", UID: "node-1"}, other}}}
	p.publishes(t, "POST GET PATCH PUT")
	if o := p.server.object.OwnerReferences; len(o) != 1 || o[0].UID != other.UID {
		t.Errorf("owners are %+v", o)
	}
	p.publishes(t, "")
	// It is deleted, and made again.
	p.server.object = nil
	p.status.Summary.Disks, p.status.Conditions = 2, []metav1.Condition{{Type: "Ready", Status: "True"}}
	if err := p.publish(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot write NodeDiskCapacity n1") {
		t.Errorf("an object that is gone: %v", err)
	}
	p.server.takeRequests()
	p.publishes(t, "POST PUT")
}

// TestManagedFields asserts that managed fields are removed once, and not if a client applies the object.
func TestManagedFields(t *testing.T) {
	updated := metav1.ManagedFieldsEntry{Manager: "nodeagent", Operation: metav1.ManagedFieldsOperationUpdate, Subresource: "status"}
	applied := metav1.ManagedFieldsEntry{Manager: "kubectl", Operation: metav1.ManagedFieldsOperationApply}
	p := newTestPublisher(t)
	p.server.object = &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "5",
		ManagedFields: []metav1.ManagedFieldsEntry{updated}}}
	p.publishes(t, "POST GET PATCH PUT")
	p.publishes(t, "")
	if f := p.server.object.ManagedFields; len(f) != 0 {
		t.Errorf("managed fields are %+v", f)
	}
	p = newTestPublisher(t)
	p.server.object = &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "u", ResourceVersion: "5",
		ManagedFields: []metav1.ManagedFieldsEntry{updated, applied}}}
	p.publishes(t, "POST GET PUT")
	if f := p.server.object.ManagedFields; len(f) != 2 {
		t.Errorf("managed fields that a client needs are %+v", f)
	}
}

// TestPublishIsDelayed asserts that changes for which no pod waits are published later.
func TestPublishIsDelayed(t *testing.T) {
	p := newTestPublisher(t)
	p.publishes(t, "POST PUT")
	p.status.Summary.Volumes = 1
	p.publishes(t, "")
	p.changedSince = time.Now().Add(-calmDelay)
	p.publishes(t, "PUT")
}

// TestOnVersion asserts that the newest object that was shown counts, and that a deleted object is noticed.
func TestOnVersion(t *testing.T) {
	p := newTestPublisher(t)
	p.publishes(t, "POST PUT")
	edited := p.server.object.DeepCopy()
	edited.ResourceVersion, edited.Status = "100", diskv1alpha1.NodeDiskCapacityStatus{}
	p.onVersion(edited)
	p.status.Conditions = []metav1.Condition{{Type: "Ready", Status: "True"}}
	p.publishes(t, "PUT")
	old := edited.DeepCopy()
	old.ResourceVersion = "3"
	p.onVersion(old)
	if p.newestVersion().ResourceVersion == "3" {
		t.Error("an older object counts")
	}
	p.onDelete(&diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{UID: "other"}})
	if p.newestVersion() == nil {
		t.Error("another object's end counts")
	}
	p.onDelete("nothing")
	p.onDelete(cache.DeletedFinalStateUnknown{Obj: p.newestVersion()})
	if p.newestVersion() != nil {
		t.Error("the object's end does not count")
	}
}

// TestDeletedBehindWrite asserts that an answer which comes after the object's deletion does not bring the object back.
// A restored object counts, and an object which the watch has never shown is read.
func TestDeletedBehindWrite(t *testing.T) {
	p := newTestPublisher(t)
	p.publishes(t, "POST PUT")
	late := p.newestVersion().DeepCopy()
	p.server.object = nil
	p.onDelete(late)
	if err := p.recordAnswer(late, nil); err != nil {
		t.Fatal(err)
	}
	p.publishes(t, "POST PUT")
	if p.newestVersion().UID == late.UID {
		t.Error("the object that is gone counts")
	}
	restored := late.DeepCopy()
	restored.ResourceVersion = "1000"
	p.onAdd(restored)
	if p.newestVersion() != restored {
		t.Error("the restored object does not count")
	}
	p.server.object = nil
	p.wroteAt = time.Now().Add(-maxWatchLag)
	p.publishes(t, "GET POST PUT")
}

// TestRestoredServer asserts that an API server whose data was restored from a backup is noticed.
func TestRestoredServer(t *testing.T) {
	p := newTestPublisher(t)
	p.publishes(t, "POST PUT")
	restored := p.newestVersion().DeepCopy()
	restored.ResourceVersion, restored.Status.Summary.Disks = "2", 7
	p.server.object, p.server.version = restored, 2
	if err := p.store.Add(restored); err != nil {
		t.Fatal(err)
	}
	// The watch may only be behind.
	p.publishes(t, "")
	p.wroteAt = time.Now().Add(-maxWatchLag)
	p.status.Conditions = []metav1.Condition{{Type: "Ready", Status: "True"}}
	p.publishes(t, "GET PUT")
	p.server.object.ResourceVersion = "1"
	p.server.refuse = []int{http.StatusInternalServerError}
	older := restored.DeepCopy()
	older.ResourceVersion = "1"
	if err := p.store.Update(older); err != nil {
		t.Fatal(err)
	}
	p.wroteAt = time.Now().Add(-maxWatchLag)
	if err := p.publish(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read NodeDiskCapacity n1") {
		t.Errorf("a server that fails: %v", err)
	}
}

// progress receives the results of passes.
type progress chan error

func (p progress) Pass() func(error) { return func(err error) { p <- err } }

// TestRun asserts that a pass that fails is tried again without a Trigger.
func TestRun(t *testing.T) {
	p := newTestPublisher(t)
	passes := make(progress, 16)
	p.options.Progress = passes
	p.server.refuse = []int{http.StatusInternalServerError}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { p.Run(ctx); close(ended) }()
	for i, failed := range []bool{true, false} {
		if err := testenv.Receive(t, "a pass", passes); (err != nil) != failed {
			t.Errorf("pass %d: %v", i, err)
		}
	}
	cancel()
	testenv.Receive(t, "the end of Run", ended)
}

// TestConditionsOfOthers asserts that the agent neither drops nor changes the condition that the scheduler's leader
// writes. It writes none of its own of that type.
func TestConditionsOfOthers(t *testing.T) {
	shared := metav1.Condition{Type: diskv1alpha1.ConditionDisksShared, Status: metav1.ConditionTrue, Message: "the leader's"}
	ready := metav1.Condition{Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionTrue}
	old := metav1.Condition{Type: "Forgotten", Status: metav1.ConditionTrue}
	got := withOthersConditions([]metav1.Condition{ready, {Type: diskv1alpha1.ConditionDisksShared, Message: "the agent's"}}, []metav1.Condition{old, shared, {Type: diskv1alpha1.ConditionReady}})
	if want := []metav1.Condition{ready, shared}; !slices.Equal(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := withOthersConditions([]metav1.Condition{ready}, nil); !slices.Equal(got, []metav1.Condition{ready}) {
		t.Errorf("without others: %+v", got)
	}
}
