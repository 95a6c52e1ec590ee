package uninstall

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// server is an API server with lists that a test gives it. It notes what is patched.
type server struct {
	volumes    []corev1.PersistentVolume
	capacities []diskv1alpha1.NodeDiskCapacity
	noCRD      bool
	pods       int
	patched    map[string]string
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var answer any
	switch {
	case r.Method == http.MethodPatch:
		body, _ := io.ReadAll(r.Body)
		s.patched[strings.TrimPrefix(r.URL.Path, "/api/v1/persistentvolumes/")] = string(body)
		answer = &corev1.PersistentVolume{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolume"}}
	case r.URL.Path == "/api/v1/persistentvolumes":
		answer = &corev1.PersistentVolumeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeList"}, Items: s.volumes}
	case r.URL.Path == "/api/v1/namespaces/storage/pods":
		list := &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: make([]corev1.Pod, s.pods)}
		// They end.
		s.pods = max(0, s.pods-1)
		answer = list
	case r.URL.Path == "/apis/disk.berth.dev/v1alpha1/nodediskcapacities" && !s.noCRD:
		answer = &diskv1alpha1.NodeDiskCapacityList{TypeMeta: metav1.TypeMeta{APIVersion: "disk.berth.dev/v1alpha1", Kind: "NodeDiskCapacityList"}, Items: s.capacities}
	default:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func connect(t *testing.T, s *server) *Client {
	t.Helper()
	s.patched = map[string]string{}
	web := httptest.NewServer(s)
	t.Cleanup(web.Close)
	c, err := New(&rest.Config{Host: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func persistentVolume(name, driver string) corev1.PersistentVolume {
	return corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, ResourceVersion: "7", Labels: map[string]string{diskv1alpha1.LabelNode: "node-1"},
			Finalizers: []string{"kubernetes.io/pv-protection", diskv1alpha1.FinalizerVolume},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			ClaimRef:               &corev1.ObjectReference{Namespace: "db", Name: "data"},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "id-" + name}},
		},
	}
}

func capacity(allocations ...diskv1alpha1.Allocation) diskv1alpha1.NodeDiskCapacity {
	return diskv1alpha1.NodeDiskCapacity{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
		Status:     diskv1alpha1.NodeDiskCapacityStatus{Disks: []diskv1alpha1.Disk{{Device: "nvme0n1", Allocations: allocations}}},
	}
}

func allocation(volume, owner string) diskv1alpha1.Allocation {
	return diskv1alpha1.Allocation{Volume: volume, Owner: owner, Extent: diskv1alpha1.Extent{Length: 2 << 30}, Phase: "Formatted"}
}

// TestCheck asserts that each volume is a reason not to remove Berth: one on a disk, and one that is only a
// PersistentVolume. Volumes of other drivers are none. Without volumes it says how to clear the disks.
func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		server  server
		refused bool
		want    []string
	}{
		"nothing":                {server{}, false, []string{"has no volumes"}},
		"no CRDs":                {server{noCRD: true}, false, []string{"has no volumes"}},
		"an empty disk":          {server{capacities: []diskv1alpha1.NodeDiskCapacity{capacity()}}, false, []string{"on node-1: wipefs --all /dev/nvme0n1"}},
		"an inline volume":       {server{capacities: []diskv1alpha1.NodeDiskCapacity{capacity(allocation("csi-1", "ci/build"))}}, true, []string{"ci/build", "2Gi", "Formatted"}},
		"a PersistentVolume":     {server{volumes: []corev1.PersistentVolume{persistentVolume("pv", diskv1alpha1.DriverName)}}, true, []string{"pv", "db/data", "1Gi"}},
		"a volume without owner": {server{capacities: []diskv1alpha1.NodeDiskCapacity{capacity(diskv1alpha1.Allocation{Partition: "guid", OrphanedSince: ptr.To(metav1.Now())})}}, true, []string{"guid", "orphan"}},
		"one of another driver":  {server{volumes: []corev1.PersistentVolume{persistentVolume("pv", "other.example.com")}}, false, []string{"has no volumes"}},
		"a PersistentVolume, twice": {server{
			volumes:    []corev1.PersistentVolume{persistentVolume("pv", diskv1alpha1.DriverName)},
			capacities: []diskv1alpha1.NodeDiskCapacity{capacity(allocation("id-pv", "db/data"))},
		}, true, []string{"id-pv"}},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := connect(t, &test.server).Check(t.Context(), &out)
			if errors.Is(err, ErrVolumes) != test.refused || err != nil && !test.refused {
				t.Errorf("got error %v, want refused %v", err, test.refused)
			}
			if test.refused && !strings.Contains(err.Error(), "(1 volumes)") {
				t.Errorf("got error %v, want one volume", err)
			}
			for _, want := range test.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not printed:\n%s", want, out.String())
				}
			}
		})
	}
}

// TestUnreadable asserts that what cannot be read is no reason to remove Berth.
func TestUnreadable(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "down", http.StatusServiceUnavailable)
	}))
	t.Cleanup(web.Close)
	c, err := New(&rest.Config{Host: web.URL})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context(), io.Discard); err == nil {
		t.Error("the check succeeds without an answer")
	}
}

// TestRelease asserts that Berth's finalizer goes from the PersistentVolumes of its driver, and that others stay. It
// waits for the agents: one that runs may be wiping a volume that its finalizer holds.
func TestRelease(t *testing.T) {
	s := &server{pods: 2, volumes: []corev1.PersistentVolume{
		persistentVolume("ours", diskv1alpha1.DriverName), persistentVolume("foreign", "other.example.com"),
	}, capacities: []diskv1alpha1.NodeDiskCapacity{capacity(allocation("id-ours", "db/data"))}}
	var out bytes.Buffer
	if err := connect(t, s).Release(t.Context(), "storage", &out); err != nil {
		t.Fatal(err)
	}
	if s.pods != 0 {
		t.Errorf("%d agents were left", s.pods)
	}
	if len(s.patched) != 1 {
		t.Fatalf("changed were %v, want the PersistentVolume ours", s.patched)
	}
	var patch struct{ Metadata metav1.ObjectMeta }
	if err := json.Unmarshal([]byte(s.patched["ours"]), &patch); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(patch.Metadata.Finalizers, []string{"kubernetes.io/pv-protection"}) || patch.Metadata.ResourceVersion != "7" {
		t.Errorf("the patch is %s", s.patched["ours"])
	}
	for _, want := range []string{"1 volumes stay", "off 1 PersistentVolumes", "wipefs --all /dev/nvme0n1"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not printed:\n%s", want, out.String())
		}
	}
}
