package diskcapacity

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestForgedRecords asserts that a record is believed only if it matches the pod's own request.
func TestForgedRecords(t *testing.T) {
	const disk = "11111111-2222-3333-4444-555555555555"
	record := func(name string, start, length int64) string {
		return fmt.Sprintf(`{"v":1,"volumes":[{"name":%q,"disk":%q,"start":%d,"length":%d}]}`, name, disk, start, length)
	}
	tests := map[string]struct {
		annotation string
		believed   bool
	}{
		"true":                  {record("data", 1<<20, units.GiB), true},
		"garbage":               {"}{", false},
		"empty":                 {"", false},
		"too large":             {record("data", 1<<20, 2*units.GiB), false},
		"too small":             {record("data", 1<<20, units.GiB/2), false},
		"of another volume":     {record("other", 1<<20, units.GiB), false},
		"overflowing":           {record("data", 9223372036854775807-1<<20+1, units.GiB), false},
		"negative":              {record("data", -1<<20, units.GiB), false},
		"not aligned":           {record("data", 1<<20+512, units.GiB), false},
		"more than the pod has": {strings.Replace(record("data", 1<<20, units.GiB), "]", `,{"name":"x","disk":"`+disk+`","start":1048576,"length":1048576}]`, 1), false},
		"of a later version":    {strings.Replace(record("data", 1<<20, units.GiB), `"v":1`, `"v":2`, 1), false},
		"with unknown fields":   {strings.Replace(record("data", 1<<20, units.GiB), `"v":1`, `"v":1,"w":1`, 1), false},
		"enormous":              {strings.Repeat(" ", 1<<20), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			pod := podOf("a", 1)
			pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: test.annotation}
			b.store(t, pod)
			if node, _ := b.plugin.ledger.Records("a"); node != "" {
				t.Error("the annotation of a pod that is not bound was believed")
			}
			pod = pod.DeepCopy()
			pod.Spec.NodeName = "n1"
			b.store(t, pod)
			if _, records := b.plugin.ledger.Records("a"); (len(records) == 1) != test.believed {
				t.Errorf("records are %v, believed should be %v", records, test.believed)
			}
		})
	}
}

func TestEndedPodsHoldNothing(t *testing.T) {
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		b := newBench(t, nil, "n1")
		pod := podOf("a", 1)
		pod.Spec.NodeName = "n1"
		b.store(t, pod)
		ended := pod.DeepCopy()
		ended.Status.Phase = phase
		b.store(t, ended)
		if node, _ := b.plugin.ledger.Records("a"); node != "" {
			t.Errorf("a pod that has %s is still known", phase)
		}
	}
}

// TestPodRecreated asserts that an update from one UID to another is folded in as a deletion and a creation.
func TestPodRecreated(t *testing.T) {
	b := newBench(t, nil, "n1")
	before := podOf("a", 1)
	before.Spec.NodeName = "n1"
	b.store(t, before)
	after := podOf("a", 1)
	after.UID = "recreated"
	b.store(t, after)
	b.plugin.feed.foldPod(klog.Background(), before)
	if node, _ := b.plugin.ledger.Records("a"); node != "" {
		t.Error("the pod that was replaced is still known")
	}
	b.plugin.feed.foldObject(klog.Background(), cache.DeletedFinalStateUnknown{Obj: before})
}

// TestRelist asserts that capacities that vanished while the watch was interrupted are gone after a relist. An earlier
// event does not bring them back.
func TestRelist(t *testing.T) {
	b := newBench(t, nil, "n1", "n2")
	first := b.publish(t, "n1", 10)
	b.publish(t, "n2", 10)
	b.revision += 10
	if err := b.plugin.feed.capacities.Replace([]any{b.capacity("n2", 5)}, strconv.Itoa(b.revision)); err != nil {
		t.Fatal(err)
	}
	if b.plugin.ledger.Snapshot("n1").Published {
		t.Error("n1 is still published")
	}
	if err := b.plugin.feed.capacities.Add(first); err != nil {
		t.Fatal(err)
	}
	if b.plugin.ledger.Snapshot("n1").Published {
		t.Error("an old event brought n1 back")
	}
	if err := b.plugin.feed.capacities.Delete(b.capacity("n2", 0)); err != nil {
		t.Fatal(err)
	}
	if b.plugin.ledger.Snapshot("n2").Published {
		t.Error("n2 is still published after its deletion")
	}
}

// TestRelistFromABackup asserts that a list of an API server that was restored from a backup is believed, although its
// revisions are lower. Events after it are folded in.
func TestRelistFromABackup(t *testing.T) {
	b := newBench(t, nil, "n1", "n2", "n3")
	backup := []any{b.capacity("n1", 2), b.capacity("n3", 4)}
	b.revision = 100
	b.publish(t, "n1", 10)
	b.publish(t, "n2", 10)
	if err := b.plugin.feed.capacities.Delete(b.publish(t, "n3", 10)); err != nil {
		t.Fatal(err)
	}
	if err := b.plugin.feed.capacities.Replace(backup, "50"); err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]int64{"n1": 2, "n3": 4} {
		if have := b.freeGiB(node); have != want {
			t.Errorf("%d GiB are free on %s, want %d", have, node, want)
		}
	}
	if b.plugin.ledger.Snapshot("n2").Published {
		t.Error("n2 is still published")
	}
	b.revision = 51
	b.publish(t, "n2", 7)
	if have := b.freeGiB("n2"); have != 7 {
		t.Errorf("%d GiB are free on n2 after its event, want 7", have)
	}
}

// TestProfilesShareTheLedger asserts that two profiles of a scheduler share a ledger, and that two schedulers in one
// process do not.
func TestProfilesShareTheLedger(t *testing.T) {
	a, b := newBench(t, nil, "n1"), newBench(t, nil, "n1")
	var feeds []*feed
	for _, handle := range []fwk.Handle{a.framework, a.framework, b.framework} {
		f, err := feedOf(a.ctx, handle)
		if err != nil {
			t.Fatal(err)
		}
		feeds = append(feeds, f)
	}
	if feeds[0] != feeds[1] {
		t.Error("two profiles of one scheduler have a ledger each")
	}
	if feeds[0] == feeds[2] {
		t.Error("two schedulers share a ledger")
	}
}
