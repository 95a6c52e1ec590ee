package capacity

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// misplaced is a pod on node n whose eviction its agent may request.
func misplaced(name string) *corev1.Pod {
	isController := true
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: name, UID: types.UID("uid-of-" + name),
		OwnerReferences: []metav1.OwnerReference{{Kind: "ReplicaSet", Name: "x", UID: "x", Controller: &isController}},
	}}
	pod.Spec.NodeName = "n"
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: diskv1alpha1.DriverName}}}}
	return pod
}

func wanted(pod *corev1.Pod) diskv1alpha1.EvictionRequest {
	return diskv1alpha1.EvictionRequest{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}

// TestMayEvict asserts which pods an agent cannot have evicted.
func TestMayEvict(t *testing.T) {
	for why, change := range map[string]func(p *corev1.Pod){
		"":                                       func(*corev1.Pod) {},
		"it is another pod of that name":         func(p *corev1.Pod) { p.UID = "other" },
		"it is not on the node":                  func(p *corev1.Pod) { p.Spec.NodeName = "other" },
		"it is being deleted":                    func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} },
		"it has no inline volume of Berth":       func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.Driver = "other" },
		"no controller makes it again elsewhere": func(p *corev1.Pod) { p.OwnerReferences = nil },
	} {
		pod := misplaced("a")
		request := wanted(pod)
		change(pod)
		if got := mayEvictInline(pod, "n", request, false); got != why {
			t.Errorf("got %q, want %q", got, why)
		}
	}
	daemon := misplaced("a")
	daemon.OwnerReferences[0].Kind = "DaemonSet"
	if got := mayEvictInline(daemon, "n", wanted(daemon), false); got == "" {
		t.Error("a pod of a DaemonSet may be evicted")
	}
}

// TestEvictions asserts that a pod is evicted only while its node's agent requests it, by its UID,
// and that a refusal by a disruption budget is no failure and is tried again.
func TestEvictions(t *testing.T) {
	pod := misplaced("a")
	ndc := &diskv1alpha1.NodeDiskCapacity{
		TypeMeta:   metav1.TypeMeta{APIVersion: diskv1alpha1.SchemeGroupVersion.String(), Kind: "NodeDiskCapacity"},
		ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "now"},
	}
	var evicted []string
	refuse := 0
	reasons := map[int]metav1.StatusReason{
		http.StatusTooManyRequests: metav1.StatusReasonTooManyRequests, http.StatusConflict: metav1.StatusReasonConflict, http.StatusForbidden: metav1.StatusReasonForbidden,
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodGet {
			_ = json.NewEncoder(w).Encode(ndc)
			return
		}
		var eviction struct{ DeleteOptions metav1.DeleteOptions }
		_ = json.NewDecoder(r.Body).Decode(&eviction)
		if !strings.HasSuffix(r.URL.Path, "/eviction") || eviction.DeleteOptions.Preconditions == nil {
			t.Errorf("%s %s with %+v", r.Method, r.URL.Path, eviction)
			return
		}
		evicted = append(evicted, string(*eviction.DeleteOptions.Preconditions.UID))
		if refuse != 0 {
			w.WriteHeader(refuse)
		}
		status := metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Code: int32(refuse), Status: metav1.StatusSuccess}
		if reason, refused := reasons[refuse]; refused {
			status.Status, status.Reason = metav1.StatusFailure, reason
		}
		_ = json.NewEncoder(w).Encode(status)
	}))
	defer server.Close()
	config := &rest.Config{Host: server.URL, QPS: -1, ContentConfig: rest.ContentConfig{ContentType: "application/json"}}
	berth, err := diskcapacity.Client(config)
	if err != nil {
		t.Fatal(err)
	}
	pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := pods.Add(pod); err != nil {
		t.Fatal(err)
	}
	c := &Controllers{
		client: kubernetes.NewForConfigOrDie(config), objects: objects{client: berth, limiter: flowcontrol.NewFakeAlwaysRateLimiter()}, pods: corelisters.NewPodLister(pods),
	}
	report := &diskcapacity.Report{UID: "now", Evictions: []diskv1alpha1.EvictionRequest{wanted(pod)}}
	gone := misplaced("gone")
	for _, step := range []struct {
		name    string
		wanted  []diskv1alpha1.EvictionRequest
		before  bool
		refuse  int
		evicted []string
		again   bool
		fails   bool
	}{
		{name: "withdrawn since"},
		{name: "of a NodeDiskCapacity before", before: true, wanted: []diskv1alpha1.EvictionRequest{wanted(pod)}},
		{name: "gone", wanted: []diskv1alpha1.EvictionRequest{wanted(gone)}},
		{name: "requested", wanted: []diskv1alpha1.EvictionRequest{wanted(gone), wanted(pod)}, evicted: []string{string(pod.UID)}},
		{name: "refused", wanted: []diskv1alpha1.EvictionRequest{wanted(pod)}, refuse: http.StatusTooManyRequests, evicted: []string{string(pod.UID)}, again: true},
		{name: "another pod now", wanted: []diskv1alpha1.EvictionRequest{wanted(pod)}, refuse: http.StatusConflict, evicted: []string{string(pod.UID)}},
		{name: "failed", wanted: []diskv1alpha1.EvictionRequest{wanted(pod)}, refuse: http.StatusForbidden, evicted: []string{string(pod.UID)}, fails: true},
	} {
		evicted, refuse = nil, step.refuse
		ndc.Status.Evictions, report.UID = step.wanted, ndc.UID
		if step.before {
			report.UID = "before"
		}
		again, err := c.syncEvictions(t.Context(), "n", report)
		if (err != nil) != step.fails || (again > 0) != step.again || !slices.Equal(evicted, step.evicted) {
			t.Errorf("%s: evicted %q, again in %v, %v", step.name, evicted, again, err)
		}
	}
}

// TestMayEvictForDrain asserts that pods with claims of Berth, and those of DaemonSets, may be evicted only while an
// operator wants a disk of their node drained with evictions.
func TestMayEvictForDrain(t *testing.T) {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Labels: map[string]string{diskv1alpha1.LabelNode: "n"}}}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: diskv1alpha1.DriverName}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: "data"}
	volumes := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	if err := volumes.Add(pv); err != nil {
		t.Fatal(err)
	}
	c := &Controllers{volumes: corelisters.NewPersistentVolumeLister(volumes)}
	claimed := func(claim string) *corev1.Pod {
		pod := misplaced("a")
		pod.Spec.Volumes = []corev1.Volume{{Name: "x", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
		return pod
	}
	daemon, bare, elsewhere := misplaced("a"), claimed("data"), claimed("data")
	daemon.OwnerReferences[0].Kind, bare.OwnerReferences, elsewhere.Spec.NodeName = "DaemonSet", nil, "other"
	for _, test := range []struct {
		name string
		pod  *corev1.Pod
		may  map[diskv1alpha1.DrainMode]bool
	}{
		{"a claim of Berth", claimed("data"), map[diskv1alpha1.DrainMode]bool{diskv1alpha1.DrainEvict: true}},
		{"another claim", claimed("other"), nil},
		{"a claim without controller", bare, nil},
		{"a claim on another node", elsewhere, nil},
		{"a DaemonSet with an inline volume", daemon, map[diskv1alpha1.DrainMode]bool{diskv1alpha1.DrainEvict: true}},
		{"an inline volume", misplaced("a"), map[diskv1alpha1.DrainMode]bool{"": true, diskv1alpha1.DrainMove: true, diskv1alpha1.DrainEvict: true}},
	} {
		for _, mode := range []diskv1alpha1.DrainMode{"", diskv1alpha1.DrainMove, diskv1alpha1.DrainEvict} {
			ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
			if mode != "" {
				ndc.Spec.Disks = []diskv1alpha1.DiskDecision{{ID: "d", Drain: &diskv1alpha1.DiskDrain{Mode: mode}}}
			}
			if why := c.mayEvict(test.pod, ndc, wanted(test.pod)); (why == "") != test.may[mode] {
				t.Errorf("%s, mode %q: %q", test.name, mode, why)
			}
		}
	}
}
