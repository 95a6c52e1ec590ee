package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentLife: a volume goes where the scheduler put it, holds data over container
// restarts and agent restarts, and its space comes back wiped.
func TestAgentLife(t *testing.T) {
	for i, fsType := range []string{"ext4", "xfs"} {
		t.Run(fsType, func(t *testing.T) {
			n := newNode(t, 2*units.GiB, 2*units.GiB)
			n.start()
			status := n.ready()
			// Sectors of 512 bytes for one file system, of 4096 for the other.
			disk := n.disks[i]
			free := of(&status, disk).Free[0]
			start := free.Start + 256*units.MiB

			pod := n.pod("life", record(t, at("data", of(&status, disk).ID, start, 512*units.MiB)), nil, n.volumeOf("data", "512Mi", fsType))
			published, a := n.formatted(pod, "data")
			if published.Device != disk.name() || a.Start != start || a.Length != 512*units.MiB {
				t.Errorf("volume is at %+v of %s, want %d of %s", a, published.Device, start, disk.name())
			}
			if want := pod.Namespace + "/" + pod.Name; a.Owner != want || a.Volume != diskv1alpha1.InlineVolumeID(pod.UID, "data") {
				t.Errorf("volume is %q of %q, want the one of %q", a.Volume, a.Owner, want)
			}
			if err := n.publish(pod, "data"); err != nil {
				t.Fatal(err)
			}
			n.holdsData(pod, fsType, 512*units.MiB)

			// A container restart: the kubelet may publish again.
			if err := n.publish(pod, "data"); err != nil {
				t.Errorf("publish again: %v", err)
			}
			// An agent restart: the mount stays, and the volume is where it was.
			n.stop()
			if _, err := os.ReadFile(filepath.Join(n.target(pod, "data"), "file")); err != nil {
				t.Errorf("without an agent: %v", err)
			}
			n.start()
			n.ready()
			if _, again := n.formatted(pod, "data"); again != a {
				t.Errorf("after a restart the volume is %+v, was %+v", again, a)
			}
			if err := n.publish(pod, "data"); err != nil {
				t.Errorf("publish after a restart: %v", err)
			}

			// The pod is gone, but still mounted: not a byte is touched.
			n.delete(pod)
			n.never("a mounted volume is wiped", 500e6, func() error {
				ndc, err := n.ndc()
				if err != nil {
					return err
				}
				if _, a, ok := allocation(&ndc.Status, pod, "data"); ok && a.Phase == diskv1alpha1.PhaseFormatted {
					return errors.New("it is not")
				}
				return nil
			})
			if data, err := os.ReadFile(filepath.Join(n.target(pod, "data"), "file")); err != nil || string(data) != "kept" {
				t.Errorf("a mounted volume of a deleted pod reads %q, %v", data, err)
			}
			n.unpublish(pod, "data")
			n.released()
			if !disk.zero(t, start, 512*units.MiB) {
				t.Error("the extent is published as free and does not read as zeros")
			}
			if _, err := os.Stat(n.target(pod, "data")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the mount point is left: %v", err)
			}
		})
	}
}

// holdsData writes to the mounted volume and looks at its size from inside.
func (n *node) holdsData(pod *corev1.Pod, fsType string, size int64) {
	n.t.Helper()
	target := n.target(pod, "data")
	if err := os.WriteFile(filepath.Join(target, "file"), []byte("kept"), 0o600); err != nil {
		n.t.Fatal(err)
	}
	if got := strings.TrimSpace(testenv.Run(n.t, "findmnt", "-n", "-o", "FSTYPE", target)); got != fsType {
		n.t.Errorf("file system is %s, want %s", got, fsType)
	}
	stats, err := n.csi().NodeGetVolumeStats(n.t.Context(), &csispec.NodeGetVolumeStatsRequest{
		VolumeId: diskv1alpha1.InlineVolumeID(pod.UID, "data"), VolumePath: target,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	bytes := stats.Usage[0]
	if bytes.Unit != csispec.VolumeUsage_BYTES || bytes.Total > size || bytes.Total < size*3/4 || bytes.Used+bytes.Available > bytes.Total {
		n.t.Errorf("stats are %v for a volume of %d bytes", stats.Usage, size)
	}
	if inodes := stats.Usage[1]; inodes.Unit != csispec.VolumeUsage_INODES || inodes.Used < 1 || inodes.Total < inodes.Used {
		n.t.Errorf("stats are %v", stats.Usage)
	}
}

// TestAgentPublishesDisks: what the NDC says of fresh disks.
func TestAgentPublishesDisks(t *testing.T) {
	n := newNode(t, 6*units.GiB, 20*units.GiB)
	n.start()
	status := n.ready()
	for i, d := range n.disks {
		p := of(&status, d)
		if p.Size != d.size || p.Class != n.name || len(p.Free) != 1 || p.Overhead > 4*units.MiB || p.SectorSize != []int32{512, 4096}[i] {
			t.Errorf("disk %s is published as %+v", d.path, p)
		}
	}
	want := diskv1alpha1.Summary{Disks: 2, Size: n.name + "=26Gi", Free: n.name + "=25.9Gi", Largest: n.name + "=19.9Gi"}
	if status.Summary != want {
		t.Errorf("summary is %+v, want %+v", status.Summary, want)
	}
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	// What is known of a disk must not go with the Node.
	if len(ndc.OwnerReferences) != 0 {
		t.Errorf("owners are %v", ndc.OwnerReferences)
	}
	if len(ndc.ManagedFields) != 0 {
		t.Errorf("managed fields are %v", ndc.ManagedFields)
	}
	// Nothing is written when nothing changed, not even by a new agent.
	n.stop()
	n.start()
	n.never("an agent without news writes", 700e6, func() error {
		again, err := n.ndc()
		if err == nil && again.ResourceVersion == ndc.ResourceVersion {
			return errors.New("it does not")
		}
		return err
	})
}

// TestAgentManagedFields asserts that the NodeDiskCapacity keeps its managed fields once an operator applies it: the
// next apply must find what the operator owns.
func TestAgentManagedFields(t *testing.T) {
	n := newNode(t, 4*units.GiB)
	n.start()
	n.ready()
	const note = "example.com/rack"
	apply := func(annotations map[string]any) {
		t.Helper()
		object := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": diskv1alpha1.SchemeGroupVersion.String(), "kind": "NodeDiskCapacity",
			"metadata": map[string]any{"name": n.name, "annotations": annotations},
		}}
		configuration := client.ApplyConfigurationFromUnstructured(object)
		if err := n.client.Apply(t.Context(), configuration, client.FieldOwner("operator"), client.ForceOwnership); err != nil {
			t.Fatal(err)
		}
	}
	apply(map[string]any{note: "r1"})
	pod := n.pod("after", "", nil, n.volumeOf("data", "300Mi", ""))
	n.formatted(pod, "data")
	n.published("the volume", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 1 {
			return fmt.Errorf("%d volumes", s.Summary.Volumes)
		}
		return nil
	})
	apply(nil)
	if ndc, err := n.ndc(); err != nil || ndc.Annotations[note] != "" {
		t.Errorf("the annotation that was applied and is applied no more: %v, %v", ndc.Annotations, err)
	}
}

// TestAgentPlacesItself: without a usable record the node puts the volume where it fits.
func TestAgentPlacesItself(t *testing.T) {
	n := newNode(t, 2*units.GiB, 3*units.GiB)
	n.start()
	status := n.ready()
	small, large := of(&status, n.disks[0]), of(&status, n.disks[1])
	first := n.pod("first", "", nil, n.volumeOf("data", "300Mi", ""))
	if d, _ := n.formatted(first, "data"); d.Device != small.Device {
		t.Errorf("the volume is on %s, the tighter fit is %s", d.Device, small.Device)
	}
	if message := n.event(first, "VolumePlaced"); !strings.Contains(message, "no record") || !strings.Contains(message, "set schedulerName: berth") {
		t.Errorf("event says %q", message)
	}
	_, taken := n.formatted(first, "data")

	forged := []struct{ name, record, why string }{
		{"garbage", `{"v":1,"volumes":`, "not a record"},
		{"overlapping", record(t, at("data", small.ID, taken.Start, 300*units.MiB)), "is not free"},
		{"halfway", record(t, at("data", small.ID, taken.Start+100*units.MiB, 300*units.MiB)), "is not free"},
		{"outside", record(t, at("data", large.ID, 100*units.GiB, 300*units.MiB)), "is not free"},
		{"at-the-end", record(t, at("data", large.ID, large.Size-300*units.MiB, 300*units.MiB)), "is not free"},
		{"other-disk", record(t, at("data", "11111111-2222-4333-8444-555555555555", units.MiB, 300*units.MiB)), "not in service on this node"},
		{"wrong-size", record(t, at("data", large.ID, large.Free[0].Start, 200*units.MiB)), "asks for"},
		{"too-large", record(t, at("data", large.ID, large.Free[0].Start, 2*units.GiB)), "asks for"},
		{"other-name", record(t, at("other", large.ID, large.Free[0].Start, 300*units.MiB)), "does not name"},
		{"huge", record(t, at("data", large.ID, 1<<60, 1<<59)), "asks for"},
	}
	for _, f := range forged {
		pod := n.pod(f.name, f.record, nil, n.volumeOf("data", "300Mi", ""))
		if _, a := n.formatted(pod, "data"); a.Length != 300*units.MiB {
			t.Errorf("%s: volume has %d bytes", f.name, a.Length)
		}
		if message := n.event(pod, "VolumeReplaced"); !strings.Contains(message, f.why) {
			t.Errorf("%s: event says %q, want %q", f.name, message, f.why)
		}
		if err := n.publish(pod, "data"); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
		n.unpublish(pod, "data")
		n.delete(pod)
	}
	if _, a := n.formatted(first, "data"); a != taken {
		t.Errorf("the volume moved from %+v to %+v", taken, a)
	}
}

// TestAgentNoRoom: what does not fit says so, and does no harm.
func TestAgentNoRoom(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	bare := n.pod("bare", "", nil, n.volumeOf("data", "10Gi", ""))
	if message := n.event(bare, "NoRoomForVolume"); !strings.Contains(message, "wants 10Gi") {
		t.Errorf("event says %q", message)
	}
	if err := n.publish(bare, "data"); err == nil || !strings.Contains(err.Error(), "ResourceExhausted") || !strings.Contains(err.Error(), "wants 10Gi") {
		t.Errorf("publish says %v", err)
	}
	controlled := n.pod("controlled", "", func(p *corev1.Pod) { p.OwnerReferences = controller() }, n.volumeOf("data", "10Gi", ""))
	n.event(controlled, "EvictingForVolume")
	evictions := func(want ...diskv1alpha1.EvictionRequest) {
		t.Helper()
		n.published("evictions are requested", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
			if !slices.Equal(s.Evictions, want) {
				return fmt.Errorf("want %v", want)
			}
			return nil
		})
	}
	// The scheduler's leader does that: see TestCapacityControllers.
	evictions(diskv1alpha1.EvictionRequest{Namespace: controlled.Namespace, Name: controlled.Name, UID: controlled.UID})
	n.delete(controlled)
	evictions()
	if n.going(bare) {
		t.Error("a pod without a controller was evicted")
	}

	// Two that fit one after the other.
	one := n.pod("one", "", nil, n.volumeOf("data", "1500Mi", ""))
	n.formatted(one, "data")
	two := n.pod("two", "", nil, n.volumeOf("data", "1500Mi", ""))
	n.event(two, "NoRoomForVolume")
	n.delete(one)
	n.formatted(two, "data")

	for name, change := range map[string]func(map[string]string){
		"no-size":       func(a map[string]string) { delete(a, diskv1alpha1.AttributeSize) },
		"zero":          func(a map[string]string) { a[diskv1alpha1.AttributeSize] = "0" },
		"negative":      func(a map[string]string) { a[diskv1alpha1.AttributeSize] = "-1Gi" },
		"not-a-size":    func(a map[string]string) { a[diskv1alpha1.AttributeSize] = "10Gib" },
		"2to63":         func(a map[string]string) { a[diskv1alpha1.AttributeSize] = "9223372036854775808" },
		"unknown":       func(a map[string]string) { a["disk.berth.dev/sise"] = "1Gi" },
		"unknown-class": func(a map[string]string) { a[diskv1alpha1.AttributeClass] = "no-such-class" },
	} {
		volume := n.volumeOf("data", "300Mi", "")
		change(volume.CSI.VolumeAttributes)
		pod := n.pod(name, "", nil, volume)
		reason, code := "InvalidVolume", "InvalidArgument"
		if name == "unknown-class" {
			reason, code = "NoRoomForVolume", "ResourceExhausted"
		}
		n.event(pod, reason)
		if err := n.publish(pod, "data"); err == nil || !strings.Contains(err.Error(), code) {
			t.Errorf("%s: publish says %v, want %s", name, err, code)
		}
		if n.onDisk(pod, "data") {
			t.Errorf("%s: there is a partition", name)
		}
	}
}

// going reports whether the pod is gone or being deleted.
func (n *node) going(pod *corev1.Pod) bool {
	n.t.Helper()
	pods := &corev1.PodList{}
	if err := n.client.List(n.t.Context(), pods); err != nil {
		n.t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.UID == pod.UID {
			return p.DeletionTimestamp != nil
		}
	}
	return true
}

// onDisk looks for the volume's partition on the disks themselves.
func (n *node) onDisk(pod *corev1.Pod, volume string) bool {
	n.t.Helper()
	partition := diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, volume))
	for _, d := range n.disks {
		if strings.Contains(strings.ToLower(testenv.Run(n.t, "sfdisk", "-d", d.path)), fmt.Sprintf("uuid=%s", partition)) {
			return true
		}
	}
	return false
}
