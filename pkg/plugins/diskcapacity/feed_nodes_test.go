package diskcapacity

import (
	"reflect"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestAbsentNodes asserts that nothing is free in a capacity without a Node, whichever of the two is known first. Its
// space is free again when there is a Node.
func TestAbsentNodes(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	f := b.plugin.feed
	nodes := b.factory.Core().V1().Nodes().Informer().GetIndexer()
	free := func(name string, want int) {
		t.Helper()
		if got := len(f.ledger.Snapshot(name).Node.Disks); got != want {
			t.Errorf("node %s has %d disks in service, want %d", name, got, want)
		}
	}
	// Before the Nodes are known, no Node counts as missing.
	f.nodesSynced = func() bool { return false }
	b.publish(t, "early", 10)
	b.publish(t, "n1", 10)
	free("early", 1)
	f.nodesSynced = func() bool { return true }
	if !f.hasSynced() {
		t.Fatal("the feed has everything, and says it has not")
	}
	free("early", 0)
	free("n1", 1)
	b.publish(t, "late", 10)
	free("late", 0)

	node, _, err := nodes.GetByKey("n1")
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes.Delete(node); err != nil {
		t.Fatal(err)
	}
	f.foldNode(klog.Background(), "n1")
	free("n1", 0)
	if err := nodes.Add(node); err != nil {
		t.Fatal(err)
	}
	f.foldNode(klog.Background(), "n1")
	free("n1", 1)
}

// TestOwnedDisks asserts that spec.ownedDisks of a NodeDiskCapacity reaches the ledger.
func TestOwnedDisks(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	b.publish(t, "n1", 10)
	ndc := b.capacity("n2", 10)
	ndc.Status.Disks[0].ID = b.capacity("n1", 10).Status.Disks[0].ID
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
	if n := len(b.plugin.ledger.Snapshot("n2").Node.Disks); n != 0 {
		t.Errorf("%d disks of another node are in service", n)
	}
	owned := b.capacity("n2", 10)
	owned.Status.Disks, owned.Spec.OwnedDisks = ndc.Status.Disks, []string{ndc.Status.Disks[0].ID}
	if err := b.plugin.feed.capacities.Add(owned); err != nil {
		t.Fatal(err)
	}
	if n, other := len(b.plugin.ledger.Snapshot("n2").Node.Disks), len(b.plugin.ledger.Snapshot("n1").Node.Disks); n != 1 || other != 0 {
		t.Errorf("%d disks are in service on the owner and %d on the other, want 1 and 0", n, other)
	}
}

// TestReportOf asserts which fields of a NodeDiskCapacity the controllers get.
func TestReportOf(t *testing.T) {
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{UID: "u"}}
	ndc.Status.Conditions = []metav1.Condition{
		{Type: diskv1alpha1.ConditionReady, Status: metav1.ConditionTrue},
		{Type: diskv1alpha1.ConditionDisksShared, Status: metav1.ConditionTrue, Message: "d1 with n2"},
	}
	ndc.Status.Disks = []diskv1alpha1.Disk{
		{ID: "1", Class: "ssd", State: diskv1alpha1.DiskReady}, {ID: "2", State: diskv1alpha1.DiskReady}, {ID: "3", Class: "ssd", State: diskv1alpha1.DiskFailed},
	}
	ndc.Status.Devices = []diskv1alpha1.Device{
		{Name: "a", State: diskv1alpha1.DeviceInUse, Class: "ssd"}, {Name: "b", State: diskv1alpha1.DeviceCandidate, Class: "ssd"},
		{Name: "c", State: diskv1alpha1.DeviceBusy, Class: "ssd", Reasons: []string{"mounted", "held"}}, {Name: "d", State: diskv1alpha1.DeviceExcluded},
	}
	want := &Report{UID: "u", Ready: true, Shared: "d1 with n2", InService: 1, Classes: map[string]UnusedDevices{
		"ssd": {Candidates: 1, Refused: []RefusedDevice{{Name: "c", Reasons: []string{"mounted", "held"}}}},
	}}
	if got := reportOf(ndc); !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	ndc.Status.Conditions = nil
	if got := reportOf(ndc); got.Ready || got.Shared != "" {
		t.Errorf("without conditions: %+v", got)
	}
}

// TestCordonedDisks asserts that a disk takes no volume from the moment at which spec says so, before the agent has
// seen it, and that the volumes on it stay known.
func TestCordonedDisks(t *testing.T) {
	const id = "6f2d9c1e-0000-4000-8000-000000000001"
	for name, test := range map[string]struct {
		spec  []diskv1alpha1.DiskDecision
		state diskv1alpha1.DiskState
		ready bool
	}{
		"nothing decided":         {nil, diskv1alpha1.DiskReady, true},
		"another disk":            {[]diskv1alpha1.DiskDecision{{ID: "other", Unschedulable: true}}, diskv1alpha1.DiskReady, true},
		"cordoned":                {[]diskv1alpha1.DiskDecision{{ID: id, Unschedulable: true}}, diskv1alpha1.DiskReady, false},
		"drained":                 {[]diskv1alpha1.DiskDecision{{ID: id, Drain: &diskv1alpha1.DiskDrain{}}}, diskv1alpha1.DiskReady, false},
		"published as cordoned":   {nil, diskv1alpha1.DiskCordoned, false},
		"published as draining":   {nil, diskv1alpha1.DiskDraining, false},
		"cordoned and uncordoned": {[]diskv1alpha1.DiskDecision{{ID: id}}, diskv1alpha1.DiskReady, true},
	} {
		ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{ResourceVersion: "1"}}
		ndc.Spec.Disks = test.spec
		ndc.Status.Disks = []diskv1alpha1.Disk{{ID: id, Class: "ssd", State: test.state, Size: 1 << 30, Allocations: []diskv1alpha1.Allocation{{Partition: "p"}}}}
		c, err := capacityOf(ndc)
		if err != nil || c.Disks[0].Ready != test.ready || len(c.Disks[0].Allocations) != 1 {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}
