package volumebinding

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// api is the part of an API server that the binder uses. It has two of its rules: names are unique, and an update names
// the present version.
type api struct {
	t testing.TB

	mu       sync.Mutex
	revision int
	volumes  map[string]*corev1.PersistentVolume
	claims   map[string]*corev1.PersistentVolumeClaim
	// requests are "POST persistentvolumes" and so on, in their order.
	requests []string
	// before is called for each request, under the lock. If it returns a code, that is the response.
	before func(request string) (code int, reason metav1.StatusReason)
}

func newAPI(t testing.TB) (*api, kubernetes.Interface) {
	t.Helper()
	a := &api{t: t, volumes: map[string]*corev1.PersistentVolume{}, claims: map[string]*corev1.PersistentVolumeClaim{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, ContentConfig: rest.ContentConfig{ContentType: "application/json"}})
	if err != nil {
		t.Fatal(err)
	}
	return a, client
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/api/v1/"), "/")
	resource, name := parts[0], ""
	if resource == "namespaces" {
		parts = parts[2:]
		resource = parts[0]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	if len(parts) > 2 {
		resource += "/" + parts[2]
	}
	request := r.Method + " " + resource
	a.requests = append(a.requests, request)
	if a.before != nil {
		if code, reason := a.before(request); code != 0 {
			fail(w, code, reason)
			return
		}
	}
	a.revision++
	switch request {
	case "POST persistentvolumes":
		var pv corev1.PersistentVolume
		a.decode(r, &pv)
		if a.volumes[pv.Name] != nil {
			fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists)
			return
		}
		pv.UID, pv.ResourceVersion = types.UID(fmt.Sprint("pv-", a.revision)), strconv.Itoa(a.revision)
		a.volumes[pv.Name] = &pv
		reply(w, &pv)
	case "GET persistentvolumes":
		found(w, a.volumes[name], a.volumes[name] != nil)
	case "PUT persistentvolumes":
		var pv corev1.PersistentVolume
		a.decode(r, &pv)
		pv.ResourceVersion = strconv.Itoa(a.revision)
		a.volumes[name] = &pv
		reply(w, &pv)
	case "DELETE persistentvolumes":
		var options metav1.DeleteOptions
		a.decode(r, &options)
		pv := a.volumes[name]
		if options.Preconditions == nil || *options.Preconditions.UID != pv.UID || *options.Preconditions.ResourceVersion != pv.ResourceVersion {
			fail(w, http.StatusConflict, metav1.StatusReasonConflict)
			return
		}
		delete(a.volumes, name)
		reply(w, pv)
	case "GET persistentvolumeclaims":
		found(w, a.claims[name], a.claims[name] != nil)
	case "PUT persistentvolumeclaims", "PUT persistentvolumeclaims/status":
		var pvc corev1.PersistentVolumeClaim
		a.decode(r, &pvc)
		switch old := a.claims[name]; {
		case old == nil:
			fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		case old.ResourceVersion != pvc.ResourceVersion || old.UID != pvc.UID:
			fail(w, http.StatusConflict, metav1.StatusReasonConflict)
		default:
			pvc.ResourceVersion = strconv.Itoa(a.revision)
			a.claims[name] = &pvc
			reply(w, &pvc)
		}
	default:
		a.t.Errorf("unexpected %s", request)
		fail(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed)
	}
}

func (a *api) decode(r *http.Request, into any) {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		a.t.Error(err)
	}
}

func reply(w http.ResponseWriter, obj any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(obj)
}

func found(w http.ResponseWriter, obj any, ok bool) {
	if !ok {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound)
		return
	}
	reply(w, obj)
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(&metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: fmt.Sprint(code, " ", reason),
	})
}

// locked changes the objects under the lock.
func (a *api) locked(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revision++
	change()
}

func (a *api) volume(name string) *corev1.PersistentVolume {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.volumes[name].DeepCopy()
}
