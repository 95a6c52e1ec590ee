package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// link gives a disk a name that stays, and returns it.
func (n *node) link(d *testDisk) string {
	n.t.Helper()
	const folder = "/dev/disk/by-id"
	if err := os.MkdirAll(folder, 0o755); err != nil {
		n.t.Fatal(err)
	}
	link := filepath.Join(folder, fmt.Sprintf("berth-test-%d-%s", os.Getpid(), d.name()))
	if err := os.Symlink("../../"+d.name(), link); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := os.Remove(link); err != nil {
			n.t.Error(err)
		}
	})
	return link
}

func (n *node) listed(s *diskv1alpha1.NodeDiskCapacityStatus, d *testDisk) diskv1alpha1.Device {
	at := slices.IndexFunc(s.Devices, func(p diskv1alpha1.Device) bool { return p.Name == d.name() })
	if at < 0 {
		return diskv1alpha1.Device{}
	}
	return s.Devices[at]
}

// deviceIs waits until a device is published in a state, for a reason.
func (n *node) deviceIs(d *testDisk, state diskv1alpha1.DeviceState, reason string) (device diskv1alpha1.Device) {
	n.t.Helper()
	n.published(fmt.Sprintf("%s is %s", d.path, state), func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		device = n.listed(s, d)
		if device.State != state || !strings.Contains(strings.Join(device.Reasons, "; "), reason) {
			return fmt.Errorf("it is %+v", device)
		}
		return nil
	})
	return device
}

// TestAgentApproval: a blank device is listed and not written to, until an approval names it with
// the fingerprint that was shown.
func TestAgentApproval(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(class, func() { class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptApprove, nil })
	links := []string{n.link(n.disks[0]), n.link(n.disks[1])}
	before := sums(t, n.disks...)
	n.start()
	shown := n.deviceIs(n.disks[0], diskv1alpha1.DeviceCandidate, "waits for approval")
	if shown.ByID != links[0] || shown.Class != n.name || shown.Size != units.GiB || shown.Transport != diskv1alpha1.TransportUnknown && shown.Transport != diskv1alpha1.TransportVirtual {
		t.Errorf("the device is %+v", shown)
	}
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range ndc.Status.Conditions {
		if c.Type == diskv1alpha1.ConditionReady && (c.Reason != "NoDisks" || !strings.Contains(c.Message, "2 devices wait")) {
			t.Errorf("condition is %+v", c)
		}
	}
	n.edit(ndc, func() {
		ndc.Spec.Adopt = []diskv1alpha1.DeviceApproval{{ByID: links[0], Class: n.name, Fingerprint: "0123456789abcdef"}}
	})
	n.deviceIs(n.disks[0], diskv1alpha1.DeviceCandidate, "has changed since it was approved")
	n.published("the approval in vain is said", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if !meta.IsStatusConditionTrue(s.Conditions, diskv1alpha1.ConditionDevicesRefused) {
			return errors.New("it is not")
		}
		return nil
	})
	if !slices.Equal(before, sums(t, n.disks...)) {
		t.Fatal("a device was written to without approval")
	}
	n.edit(ndc, func() { ndc.Spec.Adopt[0].Fingerprint = shown.Fingerprint })
	taken := n.deviceIs(n.disks[0], diskv1alpha1.DeviceInUse, "")
	if taken.Disk == "" || len(taken.Reasons) > 0 || taken.Fingerprint != "" {
		t.Errorf("the device is %+v", taken)
	}
	n.deviceIs(n.disks[1], diskv1alpha1.DeviceCandidate, "waits for approval")
	if sums(t, n.disks[1])[0] != before[1] {
		t.Error("the other device was written to")
	}
}

// TestAgentNewDevice: a device that comes is not taken before its time, nor while a volume of
// another driver has just been attached.
func TestAgentNewDevice(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	n.edit(class, func() { class.Spec.NewDeviceGrace = &metav1.Duration{Duration: 3 * time.Second} })
	volume := "other"
	attachment := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: n.name + "-attachment"}, Spec: storagev1.VolumeAttachmentSpec{
		Attacher: "other.example.org", NodeName: n.name, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume},
	}}
	n.sys.hide(t, n.disks[1], true)
	n.start()
	n.deviceIs(n.disks[0], diskv1alpha1.DeviceInUse, "")
	n.create(attachment)
	n.sys.hide(t, n.disks[1], false)
	n.deviceIs(n.disks[1], diskv1alpha1.DeviceCandidate, "")
	// Nothing else happens: the agent wakes by itself.
	n.deviceIs(n.disks[1], diskv1alpha1.DeviceInUse, "")
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	if len(ndc.Status.Disks) != 2 {
		t.Errorf("there are %d disks", len(ndc.Status.Disks))
	}
}
