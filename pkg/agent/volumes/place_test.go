package volumes

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

const diskID = "11111111-2222-4333-8444-555555555555"

// boundPod requests 10 MiB of class ssd, and has a record of the given extent.
func boundPod(t *testing.T, start, length int64) *corev1.Pod {
	t.Helper()
	record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{
		Name: "data", Disk: diskID, Extent: diskv1alpha1.Extent{Start: start * units.MiB, Length: length * units.MiB},
	}})
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "ns", Name: "other", UID: "1", Annotations: map[string]string{diskv1alpha1.AnnotationAllocation: record, "else": "x"},
		Labels: map[string]string{"a": "b"},
	}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}},
		objects.InlineVolume("data", "ssd", "10Mi"),
	}
	return pod
}

// TestRemoveRecorded asserts that extents reserved for other pods are not free to a volume that the node places itself.
// A record can reserve no more than its pod requests.
func TestRemoveRecorded(t *testing.T) {
	now := metav1.Now()
	partition := diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID("1", "data"))
	realized := []discovery.Disk{{Snapshot: disk.Snapshot{ID: diskID, Volumes: []disk.Volume{{Partition: partition}}}}}
	for name, tc := range map[string]struct {
		pod   *corev1.Pod
		disks []discovery.Disk
		left  int64
	}{
		"promised":                            {boundPod(t, 20, 10), nil, 90},
		"of a deleted pod":                    {func() *corev1.Pod { p := boundPod(t, 20, 10); p.DeletionTimestamp = &now; return p }(), nil, 100},
		"of an ended pod":                     {func() *corev1.Pod { p := boundPod(t, 20, 10); p.Status.Phase = corev1.PodFailed; return p }(), nil, 100},
		"a partition by now, maybe elsewhere": {boundPod(t, 20, 10), realized, 100},
		"forged: more than asked for":         {boundPod(t, 20, 50), nil, 100},
		"forged: not free":                    {boundPod(t, 95, 10), nil, 100},
	} {
		spaces := []diskSpace{{id: diskID, class: "ssd", free: extent.NewSet(extentMiB(1, 100))}}
		removeRecorded(spaces, tc.pod, tc.disks)
		if got := spaces[0].free.Total() / units.MiB; got != tc.left {
			t.Errorf("%s: %d MiB are left, want %d", name, got, tc.left)
		}
	}
}

// TestStripPod asserts that a stripped pod has the fields that identify it, and no more.
func TestStripPod(t *testing.T) {
	pod := boundPod(t, 20, 10)
	object, err := stripPod(pod)
	if err != nil {
		t.Fatal(err)
	}
	slim := object.(*corev1.Pod)
	if len(slim.Spec.Volumes) != 1 || slim.Spec.Volumes[0].Name != "data" || len(slim.Annotations) != 1 || slim.Labels != nil {
		t.Errorf("kept is %+v", slim)
	}
	if !slices.Equal(keys(partitionsOf(pod)), keys(partitionsOf(slim))) {
		t.Error("the partitions are not the same")
	}
	pod.Spec.Volumes = pod.Spec.Volumes[:1]
	if object, err = stripPod(pod); err != nil || len(object.(*corev1.Pod).Spec.Volumes) != 0 || len(object.(*corev1.Pod).Annotations) != 0 {
		t.Errorf("kept of a pod without our volumes is %+v, %v", object, err)
	}
}

func keys(m map[string]string) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// TestNewPartitionIsNotTheEarlierOne asserts that a volume that was given back and placed again counts as not
// formatted. Its partition has the same GUID, but other bytes.
func TestNewPartitionIsNotTheEarlierOne(t *testing.T) {
	m := newFormatter(nil, nil, nil)
	for _, prezeroed := range []bool{true, false, true} {
		m.recordNew("p", prezeroed)
		if zeroed, ok := m.neverFormatted["p"]; !ok || zeroed != prezeroed {
			t.Errorf("the partition counts as new: %v, and as zeroed: %v, want %v", ok, zeroed, prezeroed)
		}
		if fsType, ok := m.unmarkedFileSystems["p"]; ok {
			t.Errorf("a new partition counts as having a file system, %s", fsType)
		}
		m.unmarkedFileSystems["p"] = "ext4"
	}
}
