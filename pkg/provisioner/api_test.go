package provisioner

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	testingclock "k8s.io/utils/clock/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/controller"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// outcome is the outcome of one request.
type outcome int

const (
	served outcome = iota
	// lost: the request is served, and the response does not arrive.
	lost
	// failed: the request is not served, and the response does not say so.
	failed
	forbidden
	busy
)

// api is the part of an API server that the controllers use. Objects are JSON, by their path. A patch names the version
// that it changes.
type api struct {
	t *testing.T

	mu       sync.Mutex
	revision int
	objects  map[string]map[string]any
	requests []string
	// outcomes of the next requests, by method. Other requests are served.
	outcomes map[string][]outcome
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	a.requests = append(a.requests, r.Method+" "+path)
	what := served
	if outcomes := a.outcomes[r.Method]; len(outcomes) > 0 {
		what, a.outcomes[r.Method] = outcomes[0], outcomes[1:]
	}
	switch what {
	case failed:
		reject(w, http.StatusGatewayTimeout, metav1.StatusReasonTimeout)
		return
	case forbidden:
		reject(w, http.StatusForbidden, metav1.StatusReasonForbidden)
		return
	case busy:
		reject(w, http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests)
		return
	case lost:
		a.serve(httptest.NewRecorder(), r, path)
		reject(w, http.StatusGatewayTimeout, metav1.StatusReasonTimeout)
		return
	}
	a.serve(w, r, path)
}

func (a *api) serve(w http.ResponseWriter, r *http.Request, path string) {
	var body map[string]any
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			a.t.Errorf("%s %s: %v", r.Method, path, err)
		}
	}
	switch have := a.objects[path]; {
	case r.Method == http.MethodPost:
		path += "/" + body["metadata"].(map[string]any)["name"].(string)
		if a.objects[path] != nil {
			reject(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
			return
		}
		a.revision++
		body["metadata"].(map[string]any)["uid"] = fmt.Sprint("uid-", a.revision)
		a.put(w, path, body)
	case have == nil:
		reject(w, http.StatusNotFound, metav1.StatusReasonNotFound)
	case r.Method == http.MethodGet:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(have)
	case r.Method == http.MethodPatch:
		meta := have["metadata"].(map[string]any)
		if wanted, ok := body["metadata"].(map[string]any)["resourceVersion"]; ok && wanted != meta["resourceVersion"] {
			reject(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		a.revision++
		merge(have, body)
		a.put(w, path, have)
	default:
		a.t.Errorf("unexpected %s %s", r.Method, path)
	}
}

func (a *api) put(w http.ResponseWriter, path string, object map[string]any) {
	object["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(a.revision)
	a.objects[path] = object
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object)
}

func merge(into, patch map[string]any) {
	for k, v := range patch {
		deeper, ok := v.(map[string]any)
		if below, has := into[k].(map[string]any); ok && has {
			merge(below, deeper)
			continue
		}
		if v == nil {
			delete(into, k)
			continue
		}
		into[k] = v
	}
}

func reject(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: fmt.Sprint(code, " ", reason),
	})
}

// bench are controllers, their API server, and 10 GiB of class ssd on each of two nodes.
type bench struct {
	*Controllers
	api     *api
	factory informers.SharedInformerFactory
	events  *events.FakeRecorder
	time    *testingclock.FakePassiveClock
	class   *storagev1.StorageClass
	pvc     *corev1.PersistentVolumeClaim
	// unfit are the reasons of UnfitReason, by node.
	unfit map[string]string
	// maxPieces is that of all classes. hasMapper is whether publishAt says that the node has the device mapper, and
	// mapped the partition of the volume that is attached by it.
	maxPieces int
	hasMapper bool
	mapped    string
	// releases is that of the classes that release volumes of nodes that are gone.
	releases map[string]time.Duration
}

func (b *bench) ApplyClass(*placement.Request) error { return nil }
func (b *bench) MaxPieces(string) int                { return b.maxPieces }
func (b *bench) UnfitReason(nodeName string) string  { return b.unfit[nodeName] }

func (b *bench) ReleasesAfter(class string) (time.Duration, bool) {
	after, ok := b.releases[class]
	return after, ok
}

func newBench(t *testing.T) *bench {
	t.Helper()
	a := &api{t: t, objects: map[string]map[string]any{}, outcomes: map[string][]outcome{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		api: a, factory: informers.NewSharedInformerFactory(client, 0), events: events.NewFakeRecorder(100),
		time: testingclock.NewFakePassiveClock(time.Unix(1000000, 0)), unfit: map[string]string{}, maxPieces: diskv1alpha1.MaxPieces,
	}
	b.Controllers = New(Options{
		Client: client, Factory: b.factory, Shared: &diskcapacity.Shared{Ledger: ledger.New()}, Recorder: b.events, Clock: b.time,
	})
	b.cluster = b
	b.claimQueue = controller.NewQueue("test", firstRetry)
	t.Cleanup(b.claimQueue.ShutDown)
	for i, node := range []string{"n1", "n2"} {
		b.ledger.SetCapacity(node, &ledger.Capacity{Revision: uint64(i + 1), Disks: []ledger.Disk{{
			ID: diskv1alpha1.PartitionID("disk of " + node), Class: "ssd", Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{extent.New(diskv1alpha1.Alignment, 10*units.GiB)},
		}}})
		b.store(t, b.nodeInformer.GetIndexer().Add, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	}
	b.class = objects.StorageClass("ssd", "ssd")
	b.store(t, b.classInformer.GetIndexer().Add, b.class)
	b.pvc = objects.Claim("default", "data", "ssd", "4Gi")
	b.pvc.UID, b.pvc.Annotations = "3b6d1e0c-9f52-4b6a-9d5d-111111111111", map[string]string{}
	return b
}

func (b *bench) store(t *testing.T, put func(any) error, obj any) {
	t.Helper()
	if err := put(obj); err != nil {
		t.Fatal(err)
	}
}

// sync syncs the claim as the informer has it. The claim is that of the bench, with a change.
func (b *bench) sync(t *testing.T, change func(pvc *corev1.PersistentVolumeClaim)) error {
	t.Helper()
	if change != nil {
		b.pvc = b.pvc.DeepCopy()
		change(b.pvc)
	}
	b.store(t, b.claimInformer.GetIndexer().Update, b.pvc)
	return b.syncClaim(t.Context(), keyOf(b.pvc))
}

// notifyVolumes has the informer and the ledger see the present PersistentVolumes.
func (b *bench) notifyVolumes(t *testing.T) {
	t.Helper()
	for _, pv := range b.api.volumes(t) {
		b.store(t, b.volumeInformer.GetIndexer().Update, pv)
		b.setVolume(t, pv)
	}
}

func (a *api) volumes(t *testing.T) (out []*corev1.PersistentVolume) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for path, object := range a.objects {
		if !strings.HasPrefix(path, "persistentvolumes/") {
			continue
		}
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		pv := &corev1.PersistentVolume{}
		if err := json.Unmarshal(text, pv); err != nil {
			t.Fatal(err)
		}
		out = append(out, pv)
	}
	slices.SortFunc(out, func(x, y *corev1.PersistentVolume) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// answerNext sets the outcomes of the next requests of the method.
func (a *api) answerNext(method string, outcomes ...outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.outcomes[method] = outcomes
}

// free is how many GiB are free on the node.
func (b *bench) free(node string) int64 {
	return b.ledger.Snapshot(node).Node.Disks[0].Free.Total() / units.GiB
}

// said returns the events since the last call.
func (b *bench) said() string {
	var out []string
	for len(b.events.Events) > 0 {
		out = append(out, <-b.events.Events)
	}
	return strings.Join(out, "\n")
}

func onNode(node string) func(*corev1.PersistentVolumeClaim) {
	return func(pvc *corev1.PersistentVolumeClaim) {
		pvc.Annotations = map[string]string{annotationSelectedNode: node}
	}
}

func (b *bench) setVolume(t *testing.T, pv *corev1.PersistentVolume) {
	t.Helper()
	v, err := claim.ReadVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	version, err := diskcapacity.RevisionOf(pv.ResourceVersion)
	if err != nil {
		t.Fatal(err)
	}
	b.ledger.SetVolume(string(pv.UID), v.Node, ledger.Version{
		Number: version, First: diskcapacity.RecordOf(v), Pieces: diskcapacity.PiecesOf(v), Move: diskcapacity.MoveOf(v),
	})
}
