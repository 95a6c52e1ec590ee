package capacity

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// TestNeededBy asserts what keeps the NodeDiskCapacity of a node that is gone.
func TestNeededBy(t *testing.T) {
	const disk = "11111111-2222-4333-8444-555555555555"
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "gone"}}
	ndc.Status.Disks = []diskv1alpha1.Disk{{ID: disk, Allocations: []diskv1alpha1.Allocation{{Partition: diskv1alpha1.PartitionID("by-handle")}}}}
	volume := func(driver, handle, label, on string) *corev1.PersistentVolume {
		pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv", Labels: map[string]string{diskv1alpha1.LabelNode: label}}}
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: handle, VolumeAttributes: map[string]string{diskv1alpha1.AttributeDisk: on}}
		return pv
	}
	pod := func(node string) *corev1.Pod { return &corev1.Pod{Spec: corev1.PodSpec{NodeName: node}} }
	for name, test := range map[string]struct {
		volumes []*corev1.PersistentVolume
		pods    []*corev1.Pod
		needed  bool
	}{
		"nothing":                       {nil, nil, false},
		"a volume labeled for it":       {[]*corev1.PersistentVolume{volume(diskv1alpha1.DriverName, "x", "gone", "")}, nil, true},
		"a volume on its disk":          {[]*corev1.PersistentVolume{volume(diskv1alpha1.DriverName, "x", "other", disk)}, nil, true},
		"a volume that it published":    {[]*corev1.PersistentVolume{volume(diskv1alpha1.DriverName, "by-handle", "other", "")}, nil, true},
		"a volume elsewhere":            {[]*corev1.PersistentVolume{volume(diskv1alpha1.DriverName, "x", "other", "y")}, nil, false},
		"a volume of another driver":    {[]*corev1.PersistentVolume{volume("other.example.com", "by-handle", "gone", disk)}, nil, false},
		"a pod that is bound to it":     {nil, []*corev1.Pod{pod("gone")}, true},
		"a pod that is bound elsewhere": {nil, []*corev1.Pod{pod("other")}, false},
	} {
		if got := neededBy(ndc, test.volumes, test.pods); (got != "") != test.needed {
			t.Errorf("%s: %q, want needed %v", name, got, test.needed)
		}
	}
}

// TestInService asserts when the start-up taint may go.
func TestInService(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "now"}}
	csiNode := func(uid types.UID, drivers ...string) *storagev1.CSINode {
		c := &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "Node", UID: uid}}}}
		for _, d := range drivers {
			c.Spec.Drivers = append(c.Spec.Drivers, storagev1.CSINodeDriver{Name: d})
		}
		return c
	}
	some := map[string]diskcapacity.UnusedDevices{"ssd": {Candidates: 1}}
	for name, test := range map[string]struct {
		csiNode *storagev1.CSINode
		report  diskcapacity.Report
		want    bool
	}{
		"all of it":             {csiNode("now", "other", diskv1alpha1.DriverName), diskcapacity.Report{Ready: true, InService: 2, Classes: some}, true},
		"nothing is selected":   {csiNode("now", diskv1alpha1.DriverName), diskcapacity.Report{Ready: true}, true},
		"devices wait":          {csiNode("now", diskv1alpha1.DriverName), diskcapacity.Report{Ready: true, Classes: some}, false},
		"not ready":             {csiNode("now", diskv1alpha1.DriverName), diskcapacity.Report{InService: 2}, false},
		"no driver":             {csiNode("now", "other"), diskcapacity.Report{Ready: true, InService: 2}, false},
		"no CSINode":            {nil, diskcapacity.Report{Ready: true, InService: 2}, false},
		"of the Node before it": {csiNode("before", diskv1alpha1.DriverName), diskcapacity.Report{Ready: true, InService: 2}, false},
	} {
		if got := inService(node, test.csiNode, &test.report); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

// TestSharedMessage asserts what a node says of disks that others publish, too.
func TestSharedMessage(t *testing.T) {
	shared := []ledger.SharedDisk{{ID: "d1", Owner: "a", Others: []string{"b", "c"}}, {ID: "d2", Others: []string{"b"}}}
	if got := sharedMessage("a", shared); !strings.Contains(got, "disk d1 is published by node b, c, too; it serves here") || !strings.Contains(got, "disk d2 is published by node b, too; it serves on no node") {
		t.Error(got)
	}
	if got := sharedMessage("b", shared[:1]); !strings.Contains(got, "it serves on node a and is out of service here") {
		t.Error(got)
	}
	if got := sharedMessage("a", nil); got != "" {
		t.Error(got)
	}
	if got := sharedMessage("a", slices.Repeat(shared, 100)); len(got) > maxMessage {
		t.Errorf("a message of %d bytes", len(got))
	}
}

// TestPeers asserts that all nodes are looked at that share a disk with a node, or no longer do.
func TestPeers(t *testing.T) {
	p := newPeers()
	for i, step := range []struct{ now, want []string }{
		{nil, nil}, {[]string{"b"}, []string{"b"}}, {[]string{"b"}, nil}, {[]string{"b", "c"}, []string{"b", "c"}}, {nil, []string{"b", "c"}}, {nil, nil},
	} {
		if got := p.change("a", step.now); !slices.Equal(got, step.want) {
			t.Errorf("step %d: %v, want %v", i, got, step.want)
		}
	}
}

// TestStatusOfClass asserts what a class says of what it selects, and that the same facts in
// another order are the same status.
func TestStatusOfClass(t *testing.T) {
	u := newUnused()
	u.add("n2", diskcapacity.UnusedDevices{Candidates: 1, Refused: []diskcapacity.RefusedDevice{{Name: "sdb", Reasons: []string{"mounted", "held"}}}})
	u.add("n1", diskcapacity.UnusedDevices{Candidates: 2, Refused: []diskcapacity.RefusedDevice{{Name: "sdc", Reasons: []string{"mounted"}}}})
	s := statusOfClass(&diskv1alpha1.DiskClassStatus{}, 3, 2, ledger.ClassStats{Disks: 4, Nodes: 2, Size: 5 << 40, Free: 3 << 30, Largest: 1 << 30}, u)
	want := []diskv1alpha1.RefusedDevices{{Reason: "mounted", Count: 2, Example: "n1/sdc"}, {Reason: "held", Count: 1, Example: "n2/sdb"}}
	if s.Nodes != 2 || s.Disks != 4 || s.Candidates != 3 || s.RefusedDevices != 2 || !slices.Equal(s.Refused, want) ||
		s.Size != "5Ti" || s.Free != "3Gi" || s.Largest != "1Gi" {
		t.Errorf("got %+v", s)
	}
	if c := s.Conditions[0]; c.Type != diskv1alpha1.ConditionReady || c.Status != metav1.ConditionTrue || c.ObservedGeneration != 3 {
		t.Errorf("condition %+v", c)
	}
	if again := statusOfClass(&s, 3, 2, ledger.ClassStats{Disks: 4, Nodes: 2, Size: 5 << 40, Free: 3 << 30, Largest: 1 << 30}, u); !equality.Semantic.DeepEqual(again, s) {
		t.Errorf("the same facts give another status: %+v", again)
	}
	for reason, u := range map[string]*unused{
		"CandidatesWait": {candidates: 1}, "DevicesRefused": {refused: 1}, "NoDevices": nil,
	} {
		if c := statusOfClass(&s, 3, 2, ledger.ClassStats{}, u).Conditions[0]; c.Status != metav1.ConditionFalse || c.Reason != reason {
			t.Errorf("want the reason %s, got %+v", reason, c)
		}
	}
	if c := statusOfClass(&s, 3, 0, ledger.ClassStats{}, nil).Conditions[0]; c.Reason != "NoDevices" || !strings.Contains(c.Message, "berth-nodeagent") {
		t.Errorf("without an agent the condition is %+v", c)
	}
	many := newUnused()
	for i := range 100 {
		many.add("n", diskcapacity.UnusedDevices{Refused: []diskcapacity.RefusedDevice{{Name: fmt.Sprint("sd", i), Reasons: []string{strings.Repeat("ü", 200) + strconv.Itoa(i)}}}})
		many.add("n", diskcapacity.UnusedDevices{Refused: []diskcapacity.RefusedDevice{{Name: fmt.Sprint("sd", i), Reasons: []string{strconv.Itoa(i)}}}})
	}
	top := many.top()
	if len(top) != maxReasons || top[0].Count != 100 || len(top[0].Reason) > maxReason {
		t.Errorf("%d reasons, the first %+v", len(top), top[0])
	}
}
