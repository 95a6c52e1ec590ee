package publish

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
)

func listed(name string, v discovery.Verdict) discovery.ListedDevice {
	return discovery.ListedDevice{Device: discovery.Device{Name: name}, Verdict: v}
}

// TestDevices asserts that the devices are published with their verdicts, sorted by name, and that a failed disk is
// shown as failed.
func TestDevices(t *testing.T) {
	serving, failed := inService(), inService()
	failed.Snapshot.ID, failed.Problem = "b", "device sdb hangs"
	status := Status(Node{}, []discovery.Disk{serving, failed}, []discovery.ListedDevice{
		{
			Device: discovery.Device{Name: "sdc", Identity: discovery.Identity{WWN: "w", Serial: "s", ByID: "l"}, Model: "M", Transport: "sata", Size: 7, Rotational: true},
			Verdict: discovery.Verdict{
				State: diskv1alpha1.DeviceCandidate, Class: "ssd", Reasons: []string{"it waits for approval"}, Fingerprint: "0123456789abcdef",
			},
		},
		listed("sdb", discovery.Verdict{State: diskv1alpha1.DeviceInUse, Class: "ssd", Disk: "b"}),
		listed("sda", discovery.Verdict{State: diskv1alpha1.DeviceInUse, Class: "ssd", Disk: "a"}),
	}, nil, noOwner)
	want := []diskv1alpha1.Device{
		{Name: "sda", State: diskv1alpha1.DeviceInUse, Class: "ssd", Disk: "a"},
		{Name: "sdb", State: diskv1alpha1.DeviceFailed, Class: "ssd", Disk: "b", Reasons: []string{"device sdb hangs"}},
		{
			Name: "sdc", WWN: "w", Serial: "s", ByID: "l", Model: "M", Transport: "sata", Size: 7, Rotational: true,
			State: diskv1alpha1.DeviceCandidate, Class: "ssd", Reasons: []string{"it waits for approval"}, Fingerprint: "0123456789abcdef",
		},
	}
	if diff := cmp.Diff(want, status.Devices); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, c := range Status(Node{}, nil, []discovery.ListedDevice{listed("sdc", discovery.Verdict{State: diskv1alpha1.DeviceCandidate})}, nil, noOwner).Conditions {
		if c.Type == diskv1alpha1.ConditionReady && !strings.Contains(c.Message, "1 devices wait") {
			t.Errorf("condition is %+v", c)
		}
	}
}

// TestDevicesFit asserts that the published devices fit into the object, and that important ones are not left out for
// others.
func TestDevicesFit(t *testing.T) {
	long := make([]string, 2*maxReasons)
	for i := range long {
		long[i] = strings.Repeat("ü", maxReason)
	}
	var devices []discovery.ListedDevice
	for i := range maxDevices {
		devices = append(devices, listed(fmt.Sprintf("a%03d", i), discovery.Verdict{State: diskv1alpha1.DeviceExcluded, Reasons: long}))
	}
	devices = append(devices,
		listed("x", discovery.Verdict{State: diskv1alpha1.DeviceCandidate, Class: "ssd"}),
		listed("y", discovery.Verdict{State: diskv1alpha1.DeviceForeign, Class: "ssd"}),
		listed("z", discovery.Verdict{State: diskv1alpha1.DeviceInUse, Class: "ssd", Disk: "a"}))
	got := devicesOf(devices, nil)
	var names []string
	for _, d := range got {
		names = append(names, d.Name)
		if len(d.Reasons) > maxReasons {
			t.Errorf("%s has %d reasons", d.Name, len(d.Reasons))
		}
		for _, r := range d.Reasons {
			if len(r) > maxReason {
				t.Errorf("%s has a reason of %d bytes", d.Name, len(r))
			}
		}
	}
	if len(got) != maxDevices || !strings.HasSuffix(strings.Join(names, " "), " x y z") || names[0] != "a000" {
		t.Errorf("%d devices, from %s to %v", len(got), names[0], names[len(names)-3:])
	}
	if !isUrgent(&diskv1alpha1.NodeDiskCapacityStatus{Devices: got}, &diskv1alpha1.NodeDiskCapacityStatus{}) {
		t.Error("a changed inventory is no news")
	}
}

// TestConditionsOfOrphans asserts the status, reason and message of the conditions about orphans.
func TestConditionsOfOrphans(t *testing.T) {
	for name, tc := range map[string]struct {
		persistent, ephemeral []string
		status, reason, says  string
	}{
		"none":       {nil, nil, "False", "NoneOrphaned", "every volume"},
		"persistent": {[]string{"pvc-1"}, nil, "True", "NoPersistentVolume", "kept: pvc-1"},
		"ephemeral":  {nil, []string{"a/b"}, "True", "NoPod", "a/b"},
		"both":       {[]string{"pvc-1"}, []string{"a/b"}, "True", "NoPersistentVolume", "kept: pvc-1; "},
	} {
		c := OrphanedCondition(tc.persistent, tc.ephemeral)
		if string(c.Status) != tc.status || c.Reason != tc.reason || !strings.Contains(c.Message, tc.says) {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if c := ReclaimStoppedCondition(""); c.Status != "False" {
		t.Errorf("%+v", c)
	}
	if c := ReclaimStoppedCondition("23 pods"); c.Status != "True" || c.Message != "23 pods" {
		t.Errorf("%+v", c)
	}
}
