package diskcapacity

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// allowPieces makes class ssd allow so many pieces.
func (b *bench) allowPieces(t testing.TB, most int32) {
	t.Helper()
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{MaxPieces: &most}}
	if err := b.plugin.feed.classes.Add(class); err != nil {
		t.Fatal(err)
	}
}

// publishPieces publishes a node with free extents of 4 and 5 GiB on one disk.
func (b *bench) publishPieces(t testing.TB, node string, deviceMapper bool) {
	t.Helper()
	ndc := b.capacity(node, 5, volumeOf(podOf("neighbor", 1), 4, 1))
	ndc.Status.DeviceMapper = deviceMapper
	ndc.Status.Disks[0].Free = append([]diskv1alpha1.Extent{{Start: diskv1alpha1.Alignment, Length: 4 * units.GiB}}, ndc.Status.Disks[0].Free...)
	if err := b.plugin.feed.capacities.Add(ndc); err != nil {
		t.Fatal(err)
	}
}

// TestPlaceInPieces asserts that a claim which no extent holds gets pieces where its class and the node allow them.
func TestPlaceInPieces(t *testing.T) {
	never := "largest free extent of class ssd is 5Gi, wants 7Gi"
	for name, test := range map[string]struct {
		pieces       int32
		deviceMapper bool
		pod          func(*testing.T, *bench) *corev1.Pod
		refused      string
	}{
		"pieces":           {2, true, claimOf7, ""},
		"no device mapper": {2, false, claimOf7, never + ", and there are no pieces without the device mapper in the node's kernel"},
		"one piece":        {1, true, claimOf7, never},
		"inline":           {2, true, func(*testing.T, *bench) *corev1.Pod { return podOf("a", 7) }, never},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			b.allowPieces(t, test.pieces)
			b.publishPieces(t, "n1", test.deviceMapper)
			pod := test.pod(t, b)
			_, statuses := b.filter(t, pod)
			if got := statuses["n1"].Message(); got != test.refused {
				t.Fatalf("refused: %q, want %q", got, test.refused)
			}
			if test.refused != "" {
				return
			}
			want := "claim default/data: 7Gi in 2 pieces of ssd disk " + diskOf("n1") + ", because no free extent holds it: 5Gi at 5121Mi, 2Gi at 1Mi"
			if got := b.describeReserved(t, pod, "n1"); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			_, records := b.plugin.ledger.Records(string(pod.UID))
			first := diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(uidOf("data")))
			if len(records) != 2 || records[0].Partition != first || records[1].Partition != diskv1alpha1.PieceID(first, 1) {
				t.Errorf("reserved %v", records)
			}
		})
	}
}

// claimOf7 is a pod with a claim of 7 GiB.
func claimOf7(t *testing.T, b *bench) *corev1.Pod {
	b.storageClass(t, "ssd", nil)
	b.claim(t, "data", "ssd", 7, nil)
	return claimPod("a", "data")
}

// TestPiecesWake asserts that a waiting pod is woken when pieces become possible for it, by its class or by the node.
func TestPiecesWake(t *testing.T) {
	for name, test := range map[string]struct {
		before func(*testing.T, *bench)
		change func(*testing.T, *bench)
	}{
		"the class allows more": {
			func(t *testing.T, b *bench) { b.allowPieces(t, 1); b.publishPieces(t, "n1", true) },
			func(t *testing.T, b *bench) { b.allowPieces(t, 2) },
		},
		"the class is listed again and allows more": {
			func(t *testing.T, b *bench) { b.allowPieces(t, 1); b.publishPieces(t, "n1", true) },
			func(t *testing.T, b *bench) {
				most := int32(2)
				class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "ssd"}, Spec: diskv1alpha1.DiskClassSpec{MaxPieces: &most}}
				if err := b.plugin.feed.classes.Replace([]any{class}, "9"); err != nil {
					t.Fatal(err)
				}
			},
		},
		"the node gets the device mapper": {
			func(t *testing.T, b *bench) { b.allowPieces(t, 2); b.publishPieces(t, "n1", false) },
			func(t *testing.T, b *bench) { b.publishPieces(t, "n1", true) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil, "n1")
			test.before(t, b)
			pod := claimOf7(t, b)
			b.refuse(t, pod)
			b.woken(pod)
			test.change(t, b)
			if !b.woken(pod) {
				t.Error("the pod was not woken")
			}
		})
	}
}

// TestClassAllowsFewerPieces asserts that no pod is woken by a class that allows no more than before.
func TestClassAllowsFewerPieces(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.allowPieces(t, 1)
	b.publishPieces(t, "n1", false)
	pod := claimOf7(t, b)
	b.refuse(t, pod)
	b.woken(pod)
	b.allowPieces(t, 1)
	if b.woken(pod) {
		t.Error("the pod was woken in vain")
	}
}

// TestPreemptPieces asserts that all pieces of an ephemeral claim count as free when its pod is evicted.
func TestPreemptPieces(t *testing.T) {
	b := newBench(t, nil, "n1")
	b.storageClass(t, "ssd", nil)
	victim := withEphemeral(claimPod("victim"), "tmp")
	pvc := b.claim(t, "victim-tmp", "ssd", 7, ownedBy(victim))
	pv := b.volume(t, pvc, "n1", 0)
	pv.Annotations[diskv1alpha1.AnnotationPieces] = diskv1alpha1.JoinPieces([]diskv1alpha1.Place{
		{Disk: diskOf("n1"), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment + 8*units.GiB, Length: units.GiB}},
	})
	b.storeVolume(t, pv)
	first := diskv1alpha1.PartitionID(diskv1alpha1.ClaimVolumeID(pvc.UID))
	for name, volume := range map[string]string{"unbound": "", "bound": pv.Name} {
		pvc.Spec.VolumeName = volume
		got := b.plugin.feed.ephemeralPartitions(victim)
		if !slices.Contains(got, first) || !slices.Contains(got, diskv1alpha1.PieceID(first, 1)) {
			t.Errorf("%s: %s", name, strings.Join(got, ", "))
		}
	}
}

// TestNarrowToPieces asserts that a pod in a large cluster is tried on nodes that have room in pieces only.
func TestNarrowToPieces(t *testing.T) {
	names := make([]string, narrowAbove+1)
	for i := range names {
		names[i] = "n" + string(rune('a'+i/26)) + string(rune('a'+i%26))
	}
	b := newBench(t, nil, names...)
	b.allowPieces(t, 2)
	for _, name := range names {
		b.publish(t, name, 1)
	}
	b.publishPieces(t, "nab", true)
	b.publishPieces(t, "nac", false)
	pod := claimOf7(t, b)
	b.store(t, pod)
	if _, tried := b.triedOn(t, pod); !slices.Equal(tried, []string{"nab"}) {
		t.Errorf("tried on %v", tried)
	}
}
