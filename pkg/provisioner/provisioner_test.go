package provisioner

import (
	"encoding/json"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

func TestBackoff(t *testing.T) {
	now := time.Unix(1000, 0)
	var p backoff
	for try, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute, time.Minute} {
		if have := p.remaining(now); have != want {
			t.Errorf("try %d waits %s, want %s", try, have, want)
		}
		p.record(now)
	}
	p.tries = 1 << 30
	if have := p.remaining(now); have != time.Minute {
		t.Errorf("after very many tries it waits %s", have)
	}
	if have := p.remaining(now.Add(time.Hour)); have != 0 {
		t.Errorf("after an hour it still waits %s", have)
	}
}

func TestClaimMemory(t *testing.T) {
	m := newClaimMemory()
	first, earlier := m.stateOf("a/b", "1")
	if again, _ := m.stateOf("a/b", "1"); again != first || earlier != "" {
		t.Error("the claim is not known again")
	}
	if second, earlier := m.stateOf("a/b", "2"); second == first || earlier != "1" {
		t.Errorf("a recreated claim is taken for the earlier one, %q", earlier)
	}
	if uid := m.forget("a/b"); uid != "2" || m.knows("a/b") || m.forget("a/b") != "" {
		t.Errorf("forgot %q", uid)
	}
	m.addWaiting("node", "a/b")
	m.addWaiting("node", "a/b")
	m.addWaiting("node", "c/d")
	if woken := m.takeWaiting("node"); len(woken) != 2 || len(m.takeWaiting("node")) != 0 || len(m.takeWaiting("other")) != 0 {
		t.Errorf("woke %v", woken)
	}
}

func TestWithoutHeadroom(t *testing.T) {
	for headroom, tests := range map[string]map[int64]int64{
		"":     {0: 0, units.MiB: units.MiB, 10 * units.GiB: 10 * units.GiB, diskv1alpha1.MaxVolumeSize: diskv1alpha1.MaxVolumeSize},
		"1Gi":  {0: 0, units.GiB: 0, units.GiB + units.MiB: units.MiB, 10 * units.GiB: 9 * units.GiB},
		"50%":  {0: 0, units.MiB: 0, 2 * units.MiB: units.MiB, 3 * units.MiB: 2 * units.MiB, 3 * units.GiB: 2 * units.GiB},
		"100%": {10 * units.GiB: 5 * units.GiB, 3 * units.MiB: units.MiB},
	} {
		text := map[string]string{diskv1alpha1.AttributeClass: "ssd"}
		if headroom != "" {
			text[diskv1alpha1.ParameterHeadroom] = headroom
		}
		parameters, err := diskv1alpha1.ParseParameters(text)
		if err != nil {
			t.Fatal(err)
		}
		for longest, want := range tests {
			have := maxVolumeSize(longest, parameters)
			if have != want {
				t.Errorf("with headroom %q the largest volume in %d bytes has %d, want %d", headroom, longest, have, want)
			}
			if have > 0 && have+parameters.Headroom(have) > longest {
				t.Errorf("with headroom %q a volume of %d bytes does not fit %d", headroom, have, longest)
			}
		}
	}
}

// TestStatusChange asserts that the status fields about growth are replaced as a whole, and that no other field
// changes.
func TestStatusChange(t *testing.T) {
	old := metav1.NewTime(time.Unix(1000, 0))
	condition := func(kind corev1.PersistentVolumeClaimConditionType, message string) corev1.PersistentVolumeClaimCondition {
		return corev1.PersistentVolumeClaimCondition{Type: kind, Status: corev1.ConditionTrue, Message: message, LastTransitionTime: old}
	}
	other := condition(corev1.PersistentVolumeClaimVolumeModifyingVolume, "not ours")
	other2 := corev1.ResourceName("example.com/other")
	size, larger := resource.MustParse("1Gi"), resource.MustParse("2Gi")
	status := corev1.PersistentVolumeClaimStatus{
		Capacity:                  corev1.ResourceList{corev1.ResourceStorage: size},
		AllocatedResourceStatuses: map[corev1.ResourceName]corev1.ClaimResourceStatus{other2: corev1.PersistentVolumeClaimNodeResizePending},
		Conditions:                []corev1.PersistentVolumeClaimCondition{other, condition(corev1.PersistentVolumeClaimControllerResizeError, "no room")},
	}
	steps := []struct {
		change     statusChange
		conditions map[corev1.PersistentVolumeClaimConditionType]string
		state      corev1.ClaimResourceStatus
		capacity   resource.Quantity
	}{
		{
			statusChange{state: corev1.PersistentVolumeClaimControllerResizeInfeasible, condition: corev1.PersistentVolumeClaimControllerResizeError, message: "less room"},
			map[corev1.PersistentVolumeClaimConditionType]string{other.Type: other.Message, corev1.PersistentVolumeClaimControllerResizeError: "less room"},
			corev1.PersistentVolumeClaimControllerResizeInfeasible, size,
		},
		{
			statusChange{allocated: &larger, state: corev1.PersistentVolumeClaimNodeResizePending, condition: corev1.PersistentVolumeClaimFileSystemResizePending, message: "soon"},
			map[corev1.PersistentVolumeClaimConditionType]string{other.Type: other.Message, corev1.PersistentVolumeClaimFileSystemResizePending: "soon"},
			corev1.PersistentVolumeClaimNodeResizePending, size,
		},
		{
			statusChange{allocated: &larger, capacity: &larger},
			map[corev1.PersistentVolumeClaimConditionType]string{other.Type: other.Message}, "", larger,
		},
	}
	for i, step := range steps {
		step.change.apply(&status)
		have := map[corev1.PersistentVolumeClaimConditionType]string{}
		for _, c := range status.Conditions {
			have[c.Type] = c.Message
			if c.Type == corev1.PersistentVolumeClaimControllerResizeError && !c.LastTransitionTime.Equal(&old) {
				t.Errorf("step %d: the condition was true before, and is said to be so only now", i)
			}
		}
		if a, b := text(t, have), text(t, step.conditions); a != b {
			t.Errorf("step %d: conditions %s, want %s", i, a, b)
		}
		if status.AllocatedResourceStatuses[corev1.ResourceStorage] != step.state || status.AllocatedResourceStatuses[other2] == "" {
			t.Errorf("step %d: %v", i, status.AllocatedResourceStatuses)
		}
		if status.Capacity.Storage().Cmp(step.capacity) != 0 {
			t.Errorf("step %d: capacity %s", i, status.Capacity.Storage())
		}
	}
	// What is gone from the map is removed by the patch, too.
	if have := text(t, orNull(nil)); have != `{"storage":null}` {
		t.Errorf("the patch says %s", have)
	}
}

func text(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestNodeTakenBack asserts that a claim that has no node any more holds no place there.
func TestNodeTakenBack(t *testing.T) {
	c := &Controllers{ledger: ledger.New(), memory: newClaimMemory()}
	c.ledger.SetCapacity("n1", &ledger.Capacity{Revision: 1, Disks: []ledger.Disk{{
		ID: "disk", Class: "ssd", Ready: true, Size: 11 * units.GiB, Free: []extent.Extent{extent.New(diskv1alpha1.Alignment, 10*units.GiB)},
	}}})
	class, pvc := objects.StorageClass("ssd", "ssd"), objects.Claim("default", "data", "ssd", "4Gi")
	pvc.UID = "3b6d1e0c-9f52-4b6a-9d5d-111111111111"
	want := ledger.VolumeRequest{Partition: "part", Persistent: true, Request: placement.Request{Class: "ssd", Size: 4 * units.GiB}}
	if _, err := c.ledger.Reserve(holderOf(pvc.UID), "n1", []ledger.VolumeRequest{want}); err != nil {
		t.Fatal(err)
	}
	if err := c.syncUnbound(t.Context(), &claimState{uid: pvc.UID}, pvc, class); err != nil {
		t.Fatal(err)
	}
	if free := c.ledger.Snapshot("n1").Node.Disks[0].Free.Total(); free != 10*units.GiB {
		t.Errorf("%d GiB are free, want 10", free/units.GiB)
	}
}
