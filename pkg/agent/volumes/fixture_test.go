package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	clocktesting "k8s.io/utils/clock/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/client"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/placement"
)

// apiServer answers like an API server, from objects that tests put into it.
type apiServer struct {
	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	volumes map[string]*corev1.PersistentVolume
	// ndc is the node's NodeDiskCapacity, nil if there is none.
	ndc *diskv1alpha1.NodeDiskCapacity
	// node is the UID of the Node, empty if there is none.
	node types.UID
	// status, if not 0, is the status of every answer.
	status int
	// broken is a part of paths that are answered with an error.
	broken string
	// refuse is a method that is answered with a conflict.
	refuse string
	// requests are the methods and paths of the requests so far.
	requests []string
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.URL.Path)
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("Content-Type", "application/json")
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	if s.broken != "" && strings.Contains(r.URL.Path, s.broken) {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if r.Method == s.refuse {
		status := apierrors.NewConflict(schema.GroupResource{}, r.URL.Path, io.EOF).Status()
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		w.WriteHeader(http.StatusConflict)
		_ = json.NewEncoder(w).Encode(status)
		return
	}
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) == 6 && parts[4] == "pods":
		if pod := s.pods[parts[3]+"/"+parts[5]]; pod != nil {
			s.reply(w, pod)
			return
		}
		s.missing(w, "pods", parts[5])
	case parts[len(parts)-1] == "pods":
		s.list(w, r, parts)
	case len(parts) == 4 && parts[2] == "persistentvolumes":
		s.volume(w, r, parts[3], body)
	case strings.HasSuffix(r.URL.Path, "/nodes/n") && s.node != "":
		s.reply(w, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: s.node, ResourceVersion: "1"}})
	case strings.Contains(r.URL.Path, "nodediskcapacities") && s.ndc != nil:
		if r.Method == http.MethodPatch {
			delete(s.ndc.Annotations, diskv1alpha1.AnnotationReclaimOrphans)
		}
		s.reply(w, s.ndc)
	default:
		s.missing(w, "objects", r.URL.Path)
	}
}

func (s *apiServer) list(w http.ResponseWriter, r *http.Request, parts []string) {
	list := &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "9"}}
	node, byNode := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName=")
	for _, pod := range s.pods {
		if byNode && pod.Spec.NodeName != node || len(parts) == 5 && pod.Namespace != parts[3] {
			continue
		}
		list.Items = append(list.Items, *pod)
	}
	s.reply(w, list)
}

func (s *apiServer) volume(w http.ResponseWriter, r *http.Request, name string, body []byte) {
	pv := s.volumes[name]
	if pv == nil {
		s.missing(w, "persistentvolumes", name)
		return
	}
	switch r.Method {
	case http.MethodDelete:
		now := metav1.Now()
		pv.DeletionTimestamp = &now
		if len(pv.Finalizers) == 0 {
			delete(s.volumes, name)
		}
	case http.MethodPatch:
		var patch corev1.PersistentVolume
		_ = json.Unmarshal(body, &patch)
		if strings.Contains(string(body), "finalizers") {
			pv.Finalizers = patch.Finalizers
			if len(pv.Finalizers) == 0 && pv.DeletionTimestamp != nil {
				delete(s.volumes, name)
			}
		}
		for key, value := range patch.Annotations {
			metav1.SetMetaDataAnnotation(&pv.ObjectMeta, key, value)
		}
	}
	s.reply(w, pv)
}

func (s *apiServer) reply(w http.ResponseWriter, object any) {
	switch o := object.(type) {
	case *corev1.Pod:
		o.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
	case *corev1.Node:
		o.TypeMeta = metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}
	case *corev1.PersistentVolume:
		o.TypeMeta = metav1.TypeMeta{Kind: "PersistentVolume", APIVersion: "v1"}
	case *diskv1alpha1.NodeDiskCapacity:
		o.TypeMeta = metav1.TypeMeta{Kind: "NodeDiskCapacity", APIVersion: diskv1alpha1.SchemeGroupVersion.String()}
	}
	_ = json.NewEncoder(w).Encode(object)
}

func (s *apiServer) missing(w http.ResponseWriter, resource, name string) {
	status := apierrors.NewNotFound(schema.GroupResource{Resource: resource}, name).Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	w.WriteHeader(http.StatusNotFound)
	_ = json.NewEncoder(w).Encode(status)
}

// set changes the server's objects and settings.
func (s *apiServer) set(change func(s *apiServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *apiServer) put(pods ...*corev1.Pod) {
	s.set(func(s *apiServer) {
		for _, pod := range pods {
			s.pods[pod.Namespace+"/"+pod.Name] = pod.DeepCopy()
		}
	})
}

// putVolumes gives the server copies: the watch keeps what it was given.
func (s *apiServer) putVolumes(pvs ...*corev1.PersistentVolume) {
	s.set(func(s *apiServer) {
		for _, pv := range pvs {
			s.volumes[pv.Name] = pv.DeepCopy()
		}
	})
}

// asked counts the requests that contain the text.
func (s *apiServer) asked(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, r := range s.requests {
		if strings.Contains(r, text) {
			count++
		}
	}
	return count
}

// events collects events as "Kind reason: message".
type events struct {
	mu   sync.Mutex
	list []string
}

func (e *events) add(kind, reason, message string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, kind+" "+reason+": "+message)
}

func (e *events) Event(_ *corev1.Pod, _, reason, message string) { e.add("Pod", reason, message) }

func (e *events) About(object corev1.ObjectReference, _, reason, message string) {
	e.add(object.Kind, reason, message)
}

func (e *events) OfNode(_ types.UID, _, reason, message string) {
	e.add("NodeDiskCapacity", reason, message)
}

// with returns the events that contain all of the texts.
func (e *events) with(texts ...string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, event := range e.list {
		if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(event, text) }) {
			out = append(out, event)
		}
	}
	return out
}

// testInventory is an inventory of the disks that a test puts into it.
type testInventory struct {
	mu    sync.Mutex
	disks []discovery.Disk
}

func (d *testInventory) Disks() []discovery.Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	disks := slices.Clone(d.disks)
	for i := range disks {
		// As Inventory does, unless the test made the disk up.
		if disks[i].Engine != nil && disks[i].Device.Path != "" {
			disks[i].Snapshot = disks[i].Engine.Snapshot()
		}
	}
	return disks
}

func (d *testInventory) set(disks ...discovery.Disk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.disks = disks
}

// fixture is a manager of node n, with an API server and a clock of its own. Nothing runs except what the test calls.
type fixture struct {
	*Manager
	t      *testing.T
	api    *apiServer
	clock  *clocktesting.FakeClock
	events *events
	disks  *testInventory
	// changes counts the calls of OwnersChanged, policy is how all classes are wiped.
	changes atomic.Int32
	policy  disk.WipeSettings
	// moveRate is that of all classes.
	moveRate int64
	// attachment is that of all classes; empty is Partition.
	attachment disk.Attachment
	// classless means that the class of the disks is deleted.
	classless bool
	options   Options
	config    *rest.Config
	// lineage is the file with what the node knows of the API server.
	lineage string
}

// newFixture has a manager whose watch shows the PersistentVolumes.
func newFixture(t *testing.T, pvs ...*corev1.PersistentVolume) *fixture {
	t.Helper()
	f := &fixture{
		t: t, api: &apiServer{pods: map[string]*corev1.Pod{}, volumes: map[string]*corev1.PersistentVolume{}},
		clock: clocktesting.NewFakeClock(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), events: &events{}, disks: &testInventory{},
		lineage: filepath.Join(t.TempDir(), "lineage.json"),
	}
	server := httptest.NewServer(f.api)
	t.Cleanup(server.Close)
	f.config = &rest.Config{Host: server.URL, QPS: -1}
	f.options = Options{
		Inventory: f.disks, Recorder: f.events, Clock: f.clock,
		Wiping:        func(class string) (disk.WipeSettings, bool) { return f.policy, class == "ssd" && !f.classless },
		MoveRate:      func(string) int64 { return f.moveRate },
		Attachment:    func(string) disk.Attachment { return cmp.Or(f.attachment, disk.Partition) },
		Placement:     func(string) placement.Policy { return placement.BestFit },
		DefaultFSType: func(string) string { return diskv1alpha1.FSTypeExt4 }, FileSystems: f,
		OrphanGrace: time.Minute, OrphanLimit: 2, EvictionGrace: time.Minute,
		OwnersChanged: func() { f.changes.Add(1) },
	}
	f.restart()
	for _, pv := range pvs {
		f.addVolume(pv)
	}
	return f
}

// Make makes an ext4 file system.
func (f *fixture) Make(ctx context.Context, _, _ string, v disk.Volume) error {
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-U", v.Partition, v.Device).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w: %s", v.Device, err, out)
	}
	return nil
}

// restart replaces the manager by a new one with f.options. The watches of the new one show what those of the old one
// did.
func (f *fixture) restart() {
	f.t.Helper()
	for object, informer := range map[runtime.Object]*cache.SharedIndexInformer{
		&corev1.Pod{}: &f.options.Pods, &corev1.PersistentVolume{}: &f.options.Volumes, &diskv1alpha1.NodeDiskCapacity{}: &f.options.Capacities,
	} {
		before := *informer
		*informer = cache.NewSharedIndexInformer(nil, object, 0, cache.Indexers{})
		if before == nil {
			continue
		}
		for _, object := range before.GetStore().List() {
			if err := (*informer).GetStore().Add(object); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	lineage, err := client.OpenLineage(f.lineage, f.clock)
	if err != nil {
		f.t.Fatal(err)
	}
	if f.options.Client, err = client.NewWithLineage(f.config, "n", lineage); err != nil {
		f.t.Fatal(err)
	}
	m, err := New(f.options)
	if err != nil {
		f.t.Fatal(err)
	}
	f.Manager = m
	for _, object := range f.options.Pods.GetStore().List() {
		m.inlineController.onPod(object)
	}
	f.t.Cleanup(m.inlineController.queue.ShutDown)
	f.t.Cleanup(m.reclaim.queue.ShutDown)
	f.t.Cleanup(m.persistent.queue.ShutDown)
}

// addVolume puts a PersistentVolume into the watch's store.
func (f *fixture) addVolume(pv *corev1.PersistentVolume) {
	f.t.Helper()
	if err := f.options.Volumes.GetStore().Add(pv); err != nil {
		f.t.Fatal(err)
	}
}

// addPod puts a pod into the watch's store, and calls the manager's handler.
func (f *fixture) addPod(pod *corev1.Pod) {
	f.t.Helper()
	if err := f.options.Pods.GetStore().Add(pod); err != nil {
		f.t.Fatal(err)
	}
	f.inlineController.onPod(pod)
}

// deletePod removes the pod from the store, and calls the manager's handler.
func (f *fixture) deletePod(pod *corev1.Pod, missed bool) {
	f.t.Helper()
	if err := f.options.Pods.GetStore().Delete(pod); err != nil {
		f.t.Fatal(err)
	}
	if missed {
		f.inlineController.onPodDelete(cache.DeletedFinalStateUnknown{Key: pod.Namespace + "/" + pod.Name, Obj: pod})
		return
	}
	f.inlineController.onPodDelete(pod)
}

// queued takes the keys that are in the queue of reclaim now.
func (f *fixture) queued() []string {
	f.t.Helper()
	var keys []string
	q := f.reclaim.queue
	for q.Len() > 0 {
		key, _ := q.Get()
		q.Done(key)
		keys = append(keys, key)
	}
	return keys
}

// waitIdle processes the queue of reclaim until it is empty and no wipe runs.
func (f *fixture) waitIdle() {
	f.t.Helper()
	for range 100 {
		keys := f.queued()
		for _, key := range keys {
			if err := f.reclaim.release(f.t.Context(), key); err != nil {
				f.t.Logf("release of %q: %v", key, err)
			}
		}
		f.reclaim.wiper.running.Wait()
		if len(keys) == 0 && f.reclaim.queue.Len() == 0 {
			return
		}
	}
	f.t.Fatal("reclaim does not come to rest")
}
