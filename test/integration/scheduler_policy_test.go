package integration

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// policies: every pod gets the one place that the policy of its class names, found here by looking
// at every free extent of every node; with all nodes tried, and with the best of many.
func policies(t *testing.T, s *schedulers) {
	for _, class := range []string{"packed", "spread", "equal"} {
		s.class(t, class)
	}
	if got := s.policyOf(t, "packed"); got != diskv1alpha1.PlaceBestFit {
		t.Errorf("a class that names no policy has %q", got)
	}
	if err := s.setPolicy(t, "spread", "Scatter"); err == nil || !strings.Contains(err.Error(), "spec.placementPolicy: Unsupported value") {
		t.Errorf("policy Scatter is answered with: %v", err)
	}
	if err := s.setPolicy(t, "spread", diskv1alpha1.PlaceSpread); err != nil {
		t.Fatal(err)
	}

	m := &spaceModel{schedulers: s, rng: rand.New(rand.NewPCG(1, 1))}
	m.addNodes(t, 20)
	m.waitPolicy(t, "spread", placement.BestFit, placement.Spread)
	for _, class := range []string{"packed", "spread"} {
		for range 8 {
			m.place(t, class)
		}
	}
	m.same(t, "equal")

	// From here on the scheduler asks the index for the best.
	m.addNodes(t, 90)
	for _, class := range []string{"packed", "spread"} {
		for range 8 {
			m.place(t, class)
		}
	}
	m.same(t, "equal")
	m.bothClasses(t)

	// A changed policy counts for the next pod.
	for _, change := range []struct {
		class         string
		to            diskv1alpha1.PlacementPolicy
		before, after placement.Policy
	}{
		{"spread", diskv1alpha1.PlaceBestFit, placement.Spread, placement.BestFit},
		{"packed", diskv1alpha1.PlaceSpread, placement.BestFit, placement.Spread},
	} {
		if err := s.setPolicy(t, change.class, change.to); err != nil {
			t.Fatal(err)
		}
		m.waitPolicy(t, change.class, change.before, change.after)
		for range 3 {
			m.place(t, change.class)
		}
	}
}

func (s *schedulers) policyOf(t *testing.T, class string) diskv1alpha1.PlacementPolicy {
	t.Helper()
	object := &diskv1alpha1.DiskClass{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: class}, object); err != nil {
		t.Fatal(err)
	}
	return object.Spec.PlacementPolicy
}

func (s *schedulers) setPolicy(t *testing.T, class string, policy diskv1alpha1.PlacementPolicy) error {
	t.Helper()
	object := &diskv1alpha1.DiskClass{}
	if err := s.client.Get(t.Context(), client.ObjectKey{Name: class}, object); err != nil {
		t.Fatal(err)
	}
	object.Spec.PlacementPolicy = policy
	return s.client.Update(t.Context(), object)
}

// spaceModel is what is free, and who is to get it. Its nodes' agents have published their disks
// and say no more.
type spaceModel struct {
	*schedulers
	rng   *rand.Rand
	disks []*modelDisk
	// policies as the scheduler knows them.
	policies map[string]placement.Policy
	pods     int
}

type modelDisk struct {
	node, id, class string
	free            extent.Set
}

// addNodes makes nodes with two disks each of the classes packed and spread, of all sizes, and
// one of class equal that is like all others.
func (m *spaceModel) addNodes(t *testing.T, count int) {
	t.Helper()
	for range count {
		n := newSimNode(t, m.client, fmt.Sprintf("policy-%03d", len(m.disks)/5), 1, diskv1alpha1.DriverName)
		var published []diskv1alpha1.Disk
		for i, class := range []string{"packed", "spread", "packed", "spread", "equal"} {
			var free []extent.Extent
			start := diskv1alpha1.Alignment
			for range 4 {
				length := 40 * units.GiB
				if class != "equal" {
					length = (1<<10 + m.rng.Int64N(30<<10)) << 20
				}
				free = append(free, extent.New(start, length))
				start += length + units.GiB
			}
			d := &modelDisk{node: n.name, id: diskv1alpha1.PartitionID(fmt.Sprint(n.name, i)), class: class, free: extent.NewSet(free...)}
			m.disks = append(m.disks, d)
			p := diskv1alpha1.Disk{ID: d.id, Device: fmt.Sprint("sim", i), Class: class, SectorSize: 512, Size: 1 << 40, State: diskv1alpha1.DiskReady}
			for _, e := range d.free.All() {
				p.Free = append(p.Free, diskv1alpha1.Extent{Start: e.Start, Length: e.Len()})
			}
			published = append(published, p)
		}
		n.must(t, n.write(t.Context(), published...))
	}
}

// spot is a free extent as a policy sees it: what is smaller is better, from the left to the right.
type spot struct {
	*modelDisk
	most, over int64
	order      uint64
	start      int64
}

// expect is the place of a volume of that size, under the policy.
func (m *spaceModel) expect(class string, policy placement.Policy, size int64) *spot {
	var spots []spot
	for _, d := range m.disks {
		for _, e := range d.free.All() {
			if d.class != class || e.Len() < size {
				continue
			}
			at := spot{modelDisk: d, order: placement.NodeRank(d.node), start: e.Start}
			if policy == placement.Spread {
				at.most = -d.free.Total()
			} else {
				at.over = e.Len() - size
			}
			spots = append(spots, at)
		}
	}
	if len(spots) == 0 {
		return nil
	}
	best := slices.MinFunc(spots, func(a, b spot) int {
		return cmp.Or(cmp.Compare(a.most, b.most), cmp.Compare(a.over, b.over), cmp.Compare(a.order, b.order), cmp.Compare(a.id, b.id), cmp.Compare(a.start, b.start))
	})
	if policy == placement.Spread {
		// On the disk, as with BestFit.
		whole := m.disks
		m.disks = []*modelDisk{best.modelDisk}
		best.start = m.expect(class, placement.BestFit, size).start
		m.disks = whole
	}
	return &best
}

// place creates a pod with a volume of some size, and holds it to its place.
func (m *spaceModel) place(t *testing.T, class string) {
	t.Helper()
	size := (512 + m.rng.Int64N(25<<10)) << 20
	want := m.expect(class, m.policies[class], size)
	if want == nil {
		t.Fatalf("class %s has no room for %d", class, size)
	}
	m.take(t, m.run(t, m.pod(class, size)), size, want)
}

// take holds what a pod got against what is expected, and takes it.
func (m *spaceModel) take(t *testing.T, pod *corev1.Pod, size int64, wants ...*spot) {
	t.Helper()
	record, err := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
	if err != nil {
		t.Fatalf("pod %s: %v", pod.Name, err)
	}
	for i, want := range wants {
		got := record.Volumes[i]
		if pod.Spec.NodeName != want.node || got.Disk != want.id || got.Start != want.start || got.Length != size {
			t.Fatalf("pod %s has %d bytes at %d of disk %s on %s, want %d at %d of disk %s on %s (%s)", pod.Name,
				got.Length, got.Start, got.Disk, pod.Spec.NodeName, size, want.start, want.id, want.node, want.class)
		}
		want.free = want.free.Remove(extent.New(want.start, size))
	}
}

// pod asks for volumes of that size, of each class one.
func (m *spaceModel) pod(classes string, size int64) *corev1.Pod {
	m.pods++
	pod := plainPod(fmt.Sprintf("policy-%03d", m.pods), "berth")
	for _, class := range strings.Fields(classes) {
		pod.Spec.Volumes = append(pod.Spec.Volumes, objects.InlineVolume(class, class, objects.Bytes(size)))
	}
	return pod
}

// run creates the pod and waits until it is bound.
func (m *spaceModel) run(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	m.create(t, pod)
	m.eventually(t, func(ctx context.Context) error {
		if err := m.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Spec.NodeName == "" {
			return fmt.Errorf("pod %s is not bound: %+v", pod.Name, pod.Status.Conditions)
		}
		return nil
	})
	return pod
}

// same: of equal places it is the same one each time, when it is free again.
func (m *spaceModel) same(t *testing.T, class string) {
	t.Helper()
	want := m.expect(class, m.policies[class], 5*units.GiB)
	for range 10 {
		pod := m.run(t, m.pod(class, 5*units.GiB))
		m.take(t, pod, 5*units.GiB, want)
		if err := m.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
		want.free = want.free.Add(extent.New(want.start, 5*units.GiB))
	}
}

// bothClasses: a pod with volumes of two classes has each placed by its own policy. Of equal
// volumes the first class in the alphabet chooses the node.
func (m *spaceModel) bothClasses(t *testing.T) {
	t.Helper()
	for range 3 {
		size := (512 + m.rng.Int64N(5<<10)) << 20
		packed := m.expect("packed", m.policies["packed"], size)
		whole := m.disks
		m.disks = slices.DeleteFunc(slices.Clone(whole), func(d *modelDisk) bool { return d.node != packed.node })
		spread := m.expect("spread", m.policies["spread"], size)
		m.disks = whole
		if spread == nil {
			t.Fatalf("node %s has no room for both", packed.node)
		}
		m.take(t, m.run(t, m.pod("packed spread", size)), size, packed, spread)
	}
}

// waitPolicy waits until the scheduler has a class's new policy. Until then every pod
// gets its place under the old one.
func (m *spaceModel) waitPolicy(t *testing.T, class string, before, after placement.Policy) {
	t.Helper()
	size := 12 * units.GiB
	m.eventually(t, func(context.Context) error {
		old, now := m.expect(class, before, size), m.expect(class, after, size)
		if old.modelDisk == now.modelDisk && old.start == now.start {
			t.Fatalf("the policies choose the same place for %d bytes of class %s: this shows nothing", size, class)
		}
		pod := m.run(t, m.pod(class, size))
		if pod.Spec.NodeName == now.node && strings.Contains(pod.Annotations[diskv1alpha1.AnnotationAllocation], now.id) {
			m.take(t, pod, size, now)
			return nil
		}
		m.take(t, pod, size, old)
		return fmt.Errorf("pod %s was placed by the old policy", pod.Name)
	})
	if m.policies == nil {
		m.policies = map[string]placement.Policy{}
	}
	m.policies[class] = after
}
