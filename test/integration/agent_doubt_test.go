package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentStrayDisk: a disk that was put into another node keeps the volumes whose
// pods are alive on the node it came from.
func TestAgentStrayDisk(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	pod := n.pod("stays", "", nil, n.volumeOf("data", "300Mi", ""))
	goes := n.pod("goes", "", nil, n.volumeOf("data", "300Mi", ""))
	n.formatted(pod, "data")
	n.formatted(goes, "data")
	n.stop()
	n.disks[0].forget(t)

	// The same disk in another node.
	other := &node{t: t, name: n.name + "-other", plane: n.plane, client: n.client, dir: testenv.SharedKubeletDir(t), disks: n.disks, sys: n.sys, options: n.options}
	other.options.Config = other.agentConfig()
	other.options.NodeName, other.options.CSISocket, other.options.RegistrationDir = other.name, other.dir+"/csi.sock", other.dir+"/registration"
	other.options.KubeletDir = other.dir
	other.options.OrphanGrace = 300 * time.Millisecond
	other.create(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: other.name}})
	t.Cleanup(func() {
		if ndc, err := other.ndc(); err == nil {
			_ = n.client.Delete(t.Context(), ndc)
		}
	})
	n.delete(goes)
	t.Cleanup(other.stop)
	other.start()
	other.deviceIs(n.disks[0], diskv1alpha1.DeviceForeign, "belongs to node "+n.name)
	if err := n.client.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}); err != nil {
		t.Fatal(err)
	}
	// Whose pod is nowhere is reclaimed; this also shows that the sweep has been.
	other.published("the volume without a pod is reclaimed", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Disks != 1 || s.Summary.Volumes != 1 {
			return fmt.Errorf("%d disks, %d volumes", s.Summary.Disks, s.Summary.Volumes)
		}
		return nil
	})
	if message := n.event(pod, "VolumeOnOtherNode"); !strings.Contains(message, n.name) || !strings.Contains(message, other.name) {
		t.Errorf("event says %q", message)
	}
	n.never("a volume of a pod on another node is reclaimed", 2*time.Second, func() error {
		if n.onDisk(pod, "data") {
			return errors.New("it is not")
		}
		return nil
	})
	n.delete(pod)
	other.released()
}

// TestAgentAllOrNone: of a pod whose volumes do not all fit, none takes up room.
func TestAgentAllOrNone(t *testing.T) {
	n := newNode(t, 2*units.GiB, 2*units.GiB)
	n.start()
	status := n.ready()
	first, second := of(&status, n.disks[0]), of(&status, n.disks[1])
	// Half of it becomes a partition, as when the other disk fails meanwhile: the other
	// disk vanishes, and the pod's second volume must lie apart.
	spread := func(v corev1.Volume) corev1.Volume {
		v.CSI.VolumeAttributes[diskv1alpha1.AttributeSpread] = diskv1alpha1.SpreadDisk
		return v
	}
	n.stop()
	pod := n.pod("pair", record(t, at("a", first.ID, first.Free[0].Start, 300*units.MiB), at("b", second.ID, second.Free[0].Start, 300*units.MiB)), nil,
		spread(n.volumeOf("a", "300Mi", "")), spread(n.volumeOf("b", "300Mi", "")))
	n.reserve(pod, "a", n.disks[0], first.Free[0].Start, 300*units.MiB)
	n.sys.hide(t, n.disks[1], true)
	n.start()
	n.event(pod, "NoRoomForVolume")
	n.published("what was made of it is given back", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 0 {
			return fmt.Errorf("%d volumes", s.Summary.Volumes)
		}
		return nil
	})
	n.sys.hide(t, n.disks[1], false)
	for _, volume := range []string{"a", "b"} {
		n.formatted(pod, volume)
		if err := n.publish(pod, volume); err != nil {
			t.Error(err)
		}
		n.unpublish(pod, volume)
	}
}

// TestAgentRefusesEarly: pods whose volumes can never be made say so, and get no
// partition.
func TestAgentRefusesEarly(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	class := n.class(n.name+"-xfs", n.disks...)
	class.Name = "0" + class.Name // the first by name selects the disk
	class.Spec.FSType = diskv1alpha1.FSTypeXFS
	n.create(class)
	n.options.Devices = nil
	n.start()
	n.ready()
	ofXFS := n.volumeOf("data", "299Mi", "")
	ofXFS.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class.Name
	static := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "hash"} }
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		volume corev1.Volume
		says   string
	}{
		"asks-for-xfs":     {nil, n.volumeOf("data", "299Mi", "xfs"), "at least 300Mi"},
		"xfs-by-its-class": {nil, ofXFS, "at least 300Mi"},
		"static":           {static, n.volumeOf("data", "300Mi", ""), "static pod"},
	} {
		pod := n.pod(name, "", tc.change, tc.volume)
		if message := n.event(pod, "InvalidVolume"); !strings.Contains(message, tc.says) {
			t.Errorf("%s: event says %q", name, message)
		}
		if err := n.publish(pod, "data"); err == nil || !strings.Contains(err.Error(), "InvalidArgument") || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: publish says %v", name, err)
		}
		if n.onDisk(pod, "data") {
			t.Errorf("%s: there is a partition", name)
		}
	}
	// The least there is, of both.
	for fsType, size := range map[string]string{"xfs": "300Mi", "ext4": "1Mi"} {
		volume := n.volumeOf("data", size, fsType)
		volume.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class.Name
		pod := n.pod("least-"+fsType, "", nil, volume)
		n.formatted(pod, "data")
		if err := n.publish(pod, "data"); err != nil {
			t.Error(err)
		}
		n.unpublish(pod, "data")
	}
	// A DaemonSet would recreate its pod on this node only.
	daemon := n.pod("daemon", "", func(p *corev1.Pod) {
		p.OwnerReferences = controller()
		p.OwnerReferences[0].Kind = "DaemonSet"
	}, n.volumeOf("data", "10Gi", ""))
	n.event(daemon, "NoRoomForVolume")
	n.never("the eviction of a pod of a DaemonSet is requested", 2*time.Second, func() error {
		ndc, err := n.ndc()
		if err == nil && len(ndc.Status.Evictions) == 0 {
			err = errors.New("it is not")
		}
		return err
	})
}

// TestAgentForgetsDisk: a disk that is gone for good is forgotten when the annotation says so,
// and not because the NodeDiskCapacity was deleted.
func TestAgentForgetsDisk(t *testing.T) {
	n := newNode(t, 2*units.GiB, 2*units.GiB)
	n.start()
	n.ready()
	n.sys.hide(t, n.disks[1], true)
	n.published("the disk is Failed", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if of(s, n.disks[1]).State != diskv1alpha1.DiskFailed {
			return errors.New("it is not")
		}
		return nil
	})
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	gone := of(&ndc.Status, n.disks[1]).ID
	if err := n.client.Delete(t.Context(), ndc); err != nil {
		t.Fatal(err)
	}
	n.published("the disk is still known", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 2 {
			return fmt.Errorf("%d disks", len(s.Disks))
		}
		return nil
	})
	n.edit(ndc, func() {
		ndc.Annotations = map[string]string{diskv1alpha1.AnnotationForgetDisks: gone + ", " + of(&ndc.Status, n.disks[0]).ID}
	})
	n.published("the disk is forgotten", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 1 || s.Disks[0].State != diskv1alpha1.DiskReady {
			return fmt.Errorf("%d disks", len(s.Disks))
		}
		return nil
	})
	n.eventually("the annotation is removed", func() error {
		if ndc, err := n.ndc(); err != nil || ndc.Annotations[diskv1alpha1.AnnotationForgetDisks] != "" {
			return fmt.Errorf("it is not: %w", err)
		}
		return nil
	})
	n.sys.hide(t, n.disks[1], false)
	n.ready()
}

// TestAgentReopensDisk asserts that a disk that failed is opened again, although nothing announces that it may serve
// again.
func TestAgentReopensDisk(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	stays := n.pod("stays", "", nil, n.volumeOf("data", "300Mi", ""))
	_, before := n.formatted(stays, "data")
	// A tool wipes the first header; the next change finds out.
	testenv.Run(t, "dd", "status=none", "if=/dev/zero", "of="+n.disks[0].path, "bs=512", "seek=1", "count=1", "oflag=direct")
	late := n.pod("late", "", nil, n.volumeOf("data", "300Mi", ""))
	// If devices are rescanned at that moment for another reason, the disk serves again before anything is published.
	n.published("the disk is Failed and says why, or serves again", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		d := of(s, n.disks[0])
		if len(d.Allocations) == 2 || d.State == diskv1alpha1.DiskFailed && strings.Contains(d.Message, "not what it was") {
			return nil
		}
		return errors.New("it is not")
	})
	n.formatted(late, "data")
	if _, after := n.formatted(stays, "data"); after != before {
		t.Errorf("the volume was %+v and is %+v", before, after)
	}
	if err := n.publish(late, "data"); err != nil {
		t.Error(err)
	}
	n.unpublish(late, "data")
}

// reserve makes the partition of a volume without an agent.
func (n *node) reserve(pod *corev1.Pod, volume string, d *testDisk, start, length int64) {
	n.t.Helper()
	engine, err := disk.Open(n.t.Context(), d.path, disk.Options{})
	if err != nil {
		n.t.Fatal(err)
	}
	partition := diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(pod.UID, volume))
	_, err = engine.Create(n.t.Context(), disk.CreateOptions{
		Partition: partition, Name: pod.Namespace + "/" + volume, Extent: extent.New(start, length), Ephemeral: true,
	})
	if err := errors.Join(err, engine.Close()); err != nil {
		n.t.Fatal(err)
	}
}
