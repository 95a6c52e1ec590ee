package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// TestDrainDisk asserts that a cordoned disk gets no volume. A disk that is drained ends empty and zeroed, while the
// agent is killed again and again. The claim that no pod uses is moved at once, the one in use when its pod is
// deleted, and an inline volume ends with its pod. What is waited for is in the status. No data is lost.
func TestDrainDisk(t *testing.T) {
	p := newPairTenant(t)
	e, from, to := p.tenant, p.from, p.to
	idle, used := e.claim("idle", p.class, "100Mi"), e.claim("used", p.class, "150Mi")
	first, second := e.podOf("first", claimed("data", idle)), e.podOf("second", claimed("data", used))
	inline := e.podOf("inline", volume("data", pair, "64Mi", v1alpha1.FSTypeExt4))
	e.make(idle, used)
	e.create(first, second, inline)
	e.ready(first, second, inline)
	marks := [2]string{canary(e) + "a", canary(e) + "b"}
	e.write(first, marks[0])
	e.write(second, marks[1])
	on := func(pvc *corev1.PersistentVolumeClaim, want v1alpha1.Disk) error {
		at := e.placeNow(e.boundTo(pvc))
		if at.disk.ID != want.ID || at.node != pairNode {
			return fmt.Errorf("the volume of %s is %v, want it on %s", pvc.Name, at, want.Device)
		}
		return nil
	}
	// The other disk is cordoned.
	for _, err := range []error{on(idle, from), on(used, from)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	e.delete(first)
	e.gone(first)
	p.decide(v1alpha1.DiskDecision{ID: from.ID, Drain: &v1alpha1.DiskDrain{Mode: v1alpha1.DrainMove, Reason: "a test"}})
	for range 3 {
		if err := errors.Join(e.cluster.KillAgent(pairNode), e.cluster.StartAgent(t.Context(), pairNode)); err != nil {
			t.Fatal(err)
		}
	}
	e.eventually("the idle claim has left the disk", func(context.Context) error { return on(idle, to) })
	e.drainSays(from.ID, "second uses it", "it ends with pod "+e.namespace+"/inline")
	e.holds(second, marks[1])
	e.delete(second, inline)
	e.gone(second, inline)
	if err := errors.Join(e.cluster.KillAgent(pairNode), e.cluster.StartAgent(t.Context(), pairNode)); err != nil {
		t.Fatal(err)
	}
	e.eventually("the disk is drained", func(ctx context.Context) error {
		d, err := e.diskOf(ctx, from.ID)
		if err == nil && (d.Drain == nil || !d.Drain.Done || d.State != v1alpha1.DiskDraining || len(d.Allocations) > 0) {
			err = fmt.Errorf("it is %s, %q: %+v with %+v", d.State, d.Message, d.Drain, d.Allocations)
		}
		return err
	})
	for _, n := range e.cluster.Nodes() {
		for _, machine := range n.Disks {
			if n.Name != pairNode || !strings.HasSuffix(machine.Path, "/"+from.Device) {
				continue
			}
			all := v1alpha1.Extent{Start: 2 * units.MiB, Length: machine.Size - 4*units.MiB}
			if at, found := firstNonZero(t, machine.File, all); found {
				t.Errorf("the disk is drained, and its byte at %d is not zero", at)
			}
		}
	}
	for i, pvc := range []*corev1.PersistentVolumeClaim{idle, used} {
		if err := on(pvc, to); err != nil {
			t.Error(err)
		}
		next := e.podOf("next-"+pvc.Name, claimed("data", pvc))
		e.create(next)
		e.ready(next)
		e.holds(next, marks[i])
		e.delete(next)
		e.gone(next)
	}
	// The volumes do not go back: the sectors there are larger.
	p.decide(v1alpha1.DiskDecision{ID: to.ID, Drain: &v1alpha1.DiskDrain{Mode: v1alpha1.DrainMove}})
	e.drainSays(to.ID, "takes volumes of a disk with sectors of 512 bytes")
	p.decide()
	pvs := []*corev1.PersistentVolume{e.boundTo(idle), e.boundTo(used)}
	places := []place{e.placeNow(pvs[0]), e.placeNow(pvs[1])}
	e.unmake(idle, used)
	for i := range pvs {
		e.wiped(pvs[i], places[i], marks[i])
	}
}

// TestDrainEvicts asserts that a drain in mode Evict waits for a disruption budget, and then evicts the pod of a
// StatefulSet. Its next pod has its data, and both its volumes on another disk.
func TestDrainEvicts(t *testing.T) {
	p := newPairTenant(t)
	e, from, to := p.tenant, p.from, p.to
	set := e.statefulSet("db", 1)
	set.Spec.Template.Spec.Volumes = []corev1.Volume{volume("scratch", pair, "64Mi", v1alpha1.FSTypeExt4)}
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}, Spec: objects.ClaimSpec(p.class, "100Mi")}}
	main := &set.Spec.Template.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "scratch", MountPath: "/scratch"}}
	one := intstr.FromInt32(1)
	budget := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: "db"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: set.Spec.Selector},
	}
	e.make(budget, set)
	r := &replica{pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: "db-0"}}, mark: canary(e)}
	e.ready(r.pod)
	first := r.pod.UID
	e.write(r.pod, r.mark)
	pv := e.boundTo(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: e.namespace, Name: "data-db-0"}})
	if at, scratch := e.findVolume(pv), e.find(r.pod, "scratch"); at.disk.ID != from.ID || scratch.disk.ID != from.ID {
		t.Fatalf("the volumes are %v and %v, want them on %s", at, scratch, from.Device)
	}
	p.decide(v1alpha1.DiskDecision{ID: from.ID, Drain: &v1alpha1.DiskDrain{Mode: v1alpha1.DrainEvict}})
	e.drainSays(from.ID, "db-0 uses it, which is evicted as soon as its disruption budget allows it", "it ends with pod "+e.namespace+"/db-0")
	e.holds(r.pod, r.mark)
	if e.ready(r.pod); r.pod.UID != first {
		t.Error("the pod was evicted against its disruption budget")
	}
	e.unmake(budget)
	start := time.Now()
	seen := map[types.UID]bool{first: true}
	e.eventually("the disk is drained", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(r.pod), r.pod); client.IgnoreNotFound(err) != nil {
			return err
		}
		seen[r.pod.UID] = true
		d, err := e.diskOf(ctx, from.ID)
		if err == nil && (d.Drain == nil || !d.Drain.Done) {
			err = fmt.Errorf("it is %s, %q: %+v with %+v", d.State, d.Message, d.Drain, d.Allocations)
		}
		return err
	})
	t.Logf("the disk was drained %s after the budget was gone, with %d pods", time.Since(start), len(seen))
	e.ready(r.pod)
	e.holds(r.pod, r.mark)
	if at, scratch := e.placeNow(pv), e.find(r.pod, "scratch"); at.disk.ID != to.ID || scratch.disk.ID != to.ID {
		t.Errorf("the volumes are %v and %v, want them on %s", at, scratch, to.Device)
	}
	p.decide()
	e.unmake(set)
}

// TestCompactDisk asserts that a claim moves into a hole of its disk when the disk is compacted and no pod uses it. It
// stays while one does, and the data of its neighbor is kept.
func TestCompactDisk(t *testing.T) {
	p := newPairTenant(t)
	e, from := p.tenant, p.from
	var claims []*corev1.PersistentVolumeClaim
	var pods []*corev1.Pod
	// One after the other, so that they are in this order on the disk.
	for _, name := range []string{"first", "second", "third"} {
		pvc := e.claim(name, p.class, "200Mi")
		pod := e.podOf(name, claimed("data", pvc))
		e.make(pvc)
		e.create(pod)
		e.ready(pod)
		claims, pods = append(claims, pvc), append(pods, pod)
	}
	mark := canary(e)
	e.write(pods[1], mark)
	hole, before := e.findVolume(e.boundTo(claims[0])), e.findVolume(e.boundTo(claims[2]))
	if before.disk.ID != from.ID || hole.allocation.Start >= before.allocation.Start {
		t.Fatalf("the volumes are %v and %v, want them on %s in this order", hole, before, from.Device)
	}
	e.delete(pods[0], pods[1])
	e.gone(pods[0], pods[1])
	e.unmake(claims[0])
	largest := func(ctx context.Context) (n int64, d v1alpha1.Disk, err error) {
		d, err = e.diskOf(ctx, from.ID)
		for _, free := range d.Free {
			n = max(n, free.Length)
		}
		return n, d, err
	}
	e.isFree(hole)
	p.decide(v1alpha1.DiskDecision{ID: p.to.ID, Unschedulable: true}, v1alpha1.DiskDecision{ID: from.ID, Compact: true})
	// The second one brings nothing, because the third one is behind it and in use.
	e.eventually("the third volume is waited for", func(ctx context.Context) error {
		_, d, err := largest(ctx)
		if err == nil && (d.Compaction == nil || d.Compaction.Done || !strings.Contains(d.Compaction.Message, "pod "+e.namespace+"/third uses it")) {
			err = fmt.Errorf("it says %+v", d.Compaction)
		}
		return err
	})
	e.delete(pods[2])
	e.eventually("the disk is compacted", func(ctx context.Context) error {
		n, d, err := largest(ctx)
		if err == nil && (d.Compaction == nil || !d.Compaction.Done || len(d.Free) != 1 || d.Compaction.LargestNow != n) {
			err = fmt.Errorf("it says %+v, and is free at %+v", d.Compaction, d.Free)
		}
		return err
	})
	next := e.podOf("next", claimed("data", claims[1]))
	e.create(next)
	e.ready(next)
	e.holds(next, mark)
	p.decide()
	e.delete(next)
	e.gone(next)
	e.unmake(claims[1], claims[2])
}

// placeNow is where a volume is that may have been moved since the scheduler placed it.
func (e *tenant) placeNow(pv *corev1.PersistentVolume) place {
	e.t.Helper()
	return e.findPartition("volume "+pv.Name, pv.Labels[v1alpha1.LabelNode], v1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle))
}

// pairTenant is a tenant whose volumes come to the node with a pair of disks.
type pairTenant struct {
	*tenant
	// from is the disk that all volumes come to, and to the other one, which is cordoned. The sectors of from are larger.
	from, to v1alpha1.Disk
	// class is the StorageClass of the pair.
	class string
}

// newPairTenant cordons one of the two disks. What is decided about them ends with the test.
func newPairTenant(t *testing.T) *pairTenant {
	t.Helper()
	p := &pairTenant{tenant: newTenant(t, sharedCluster(t))}
	ndc := &v1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: pairNode}}
	if err := p.client.Get(t.Context(), client.ObjectKeyFromObject(ndc), ndc); err != nil {
		t.Fatal(err)
	}
	for _, d := range ndc.Status.Disks {
		switch {
		case d.Class != pair:
		case d.SectorSize == 512:
			p.to = d
		default:
			p.from = d
		}
	}
	if p.from.ID == "" || p.to.ID == "" {
		t.Fatalf("the disks of %s are %+v", pairNode, ndc.Status.Disks)
	}
	class := storageClass(p.namespace, pair, v1alpha1.FSTypeExt4)
	p.class = class.Name
	p.make(class)
	t.Cleanup(func() {
		if err := errors.Join(p.writeDecisions(context.Background()), p.client.Delete(context.Background(), class)); err != nil {
			t.Error(err)
		}
	})
	p.decide(v1alpha1.DiskDecision{ID: p.to.ID, Unschedulable: true})
	return p
}

// decide makes these the decisions about the disks of the node with the pair.
func (p *pairTenant) decide(decisions ...v1alpha1.DiskDecision) {
	p.t.Helper()
	p.eventually("the decisions are written", func(ctx context.Context) error { return p.writeDecisions(ctx, decisions...) })
}

func (p *pairTenant) writeDecisions(ctx context.Context, decisions ...v1alpha1.DiskDecision) error {
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		ndc := &v1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: pairNode}}
		if err := p.client.Get(ctx, client.ObjectKeyFromObject(ndc), ndc); err != nil {
			return err
		}
		ndc.Spec.Disks = decisions
		return p.client.Update(ctx, ndc)
	})
}

// diskOf is a disk of the node with the pair, as it is published.
func (e *tenant) diskOf(ctx context.Context, id string) (v1alpha1.Disk, error) {
	ndc := &v1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: pairNode}}
	if err := e.client.Get(ctx, client.ObjectKeyFromObject(ndc), ndc); err != nil {
		return v1alpha1.Disk{}, err
	}
	for _, d := range ndc.Status.Disks {
		if d.ID == id {
			return d, nil
		}
	}
	return v1alpha1.Disk{}, fmt.Errorf("disk %s is not published", id)
}

// drainSays waits until the status of a disk that is drained says all of that.
func (e *tenant) drainSays(id string, texts ...string) {
	e.t.Helper()
	e.eventually("the status says what is waited for", func(ctx context.Context) error {
		d, err := e.diskOf(ctx, id)
		if err != nil {
			return err
		}
		said := fmt.Sprintf("%+v", d.Drain)
		for _, text := range texts {
			if !strings.Contains(said, text) {
				return fmt.Errorf("it says %s, want %q", said, text)
			}
		}
		return nil
	})
}
