package request

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/objects"
)

func pod(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "4a2fd8e2-8c1b-4b0d-9f0e-0d5f3c5a9b11"},
		Spec:       corev1.PodSpec{Volumes: volumes},
	}
}

// inline makes a volume of 10Gi of class ssd; edit may spoil it.
func inline(name string, edit func(*corev1.CSIVolumeSource)) corev1.Volume {
	v := objects.InlineVolume(name, "ssd", "10Gi")
	if edit != nil {
		edit(v.CSI)
	}
	return v
}

func TestFromPod(t *testing.T) {
	foreign := inline("foreign", func(s *corev1.CSIVolumeSource) { s.Driver = "other.example.com"; s.VolumeAttributes = nil })
	scratch := corev1.Volume{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}

	p := pod(scratch,
		inline("b", func(s *corev1.CSIVolumeSource) { s.FSType = ptr.To("xfs"); s.ReadOnly = ptr.To(false) }),
		foreign,
		inline("a", func(s *corev1.CSIVolumeSource) {
			s.VolumeAttributes[diskv1alpha1.AttributeSpread] = diskv1alpha1.SpreadDisk
			s.VolumeAttributes[diskv1alpha1.AttributeSize] = "1"
		}))
	got, err := FromPod(p)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i, want := range []Volume{
		{Name: "b", FSType: "xfs", Request: placement.Request{Class: "ssd", Size: 10 << 30}},
		{Name: "a", Request: placement.Request{Class: "ssd", Size: 1 << 20, Apart: true}},
	} {
		want.ID = diskv1alpha1.InlineVolumeID(p.UID, want.Name)
		want.Partition = diskv1alpha1.PartitionID(want.ID)
		if got[i] != want {
			t.Errorf("volume %d: got  %+v\nwant %+v", i, got[i], want)
		}
		// placement accepts every request that FromPod returns.
		node := &placement.Node{}
		if _, err := placement.Plan(nil, node, []placement.Request{got[i].Request}); err == nil || !strings.Contains(err.Error(), "no disk of class ssd") {
			t.Errorf("placement says %v", err)
		}
	}
}

func TestFromPodWithoutOurVolumes(t *testing.T) {
	if got, err := FromPod(pod()); got != nil || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestFromPodRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		edit func(*corev1.CSIVolumeSource)
		want string
	}{
		{"no attributes", func(s *corev1.CSIVolumeSource) { s.VolumeAttributes = nil }, "disk.berth.dev/size is missing"},
		{"a bad size", func(s *corev1.CSIVolumeSource) { s.VolumeAttributes[diskv1alpha1.AttributeSize] = "10Gib" }, "10Gib"},
		{"a file system that is not there", func(s *corev1.CSIVolumeSource) { s.FSType = ptr.To("btrfs") }, `"btrfs" is not supported`},
		{"read-only", func(s *corev1.CSIVolumeSource) { s.ReadOnly = ptr.To(true) }, "readOnly is set"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := FromPod(pod(inline("good", nil), inline("bad", test.edit)))
			if got != nil || err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), `volume "bad"`) {
				t.Errorf("got %v, %v; want %q", got, err, test.want)
			}
		})
	}
}

// TestFromPodBoundsVolumes asserts that a pod has no more volumes than a record can hold.
func TestFromPodBoundsVolumes(t *testing.T) {
	var volumes []corev1.Volume
	for i := range diskv1alpha1.MaxVolumes {
		volumes = append(volumes, inline(fmt.Sprintf("v%d", i), nil))
	}
	if got, err := FromPod(pod(volumes...)); err != nil || len(got) != len(volumes) {
		t.Errorf("%d volumes: got %d, %v", len(volumes), len(got), err)
	}
	if got, err := FromPod(pod(append(volumes, inline("more", nil))...)); got != nil || err == nil || !strings.Contains(err.Error(), "at most 256") {
		t.Errorf("one more: got %d, %v", len(got), err)
	}
}
