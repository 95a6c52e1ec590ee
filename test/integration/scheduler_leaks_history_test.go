package integration

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/faultyproxy"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

const (
	// leakSteps is how many things happen in a history.
	leakSteps = 60
	// leakNodes nodes of leakDisks disks of leakDiskGiB.
	leakNodes, leakDisks, leakDiskGiB = 3, 2, 10
	// leakReservations is the share of bindings and of new PersistentVolumes that fail at least.
	leakReservations = 0.5
	// leakPods and leakClaims are how many there are at once. Names of claims are used again and again.
	leakPods, leakClaims = 8, 5
)

// watchedByScheduler are resources whose watches break.
var watchedByScheduler = []string{
	"pods", "persistentvolumes", "persistentvolumeclaims", "nodediskcapacities", "nodes", "csinodes",
}

// leakHistory is what happens between a scheduler and an API server, by a seed. The API server itself never fails: the
// test writes to it beside the proxy.
type leakHistory struct {
	*schedulers
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	nodes []*steppedNode
	under *faultyScheduler
	// broken are resources whose watches are interrupted.
	broken map[string]bool
	// pods counts, for each of the leakPods, how many there have been. Each has a name of its own, see createPod.
	pods map[string]int
	// steps are what happened.
	steps []string
}

// faultsOf decides by the seed which requests fail, and how: the same ones of each kind, in whatever order they come.
// One history has more faults than another.
func faultsOf(seed uint64) func(faultyproxy.Request) faultyproxy.Fault {
	rng := rand.New(rand.NewPCG(seed, 2))
	writes, reads := 0.1+rng.Float64()*0.5, rng.Float64()*0.3
	return func(r faultyproxy.Request) faultyproxy.Fault {
		h := fnv.New64a()
		fmt.Fprintf(h, "%d %s %s %d", seed, r.Verb, r.Resource, r.Count)
		rng := rand.New(rand.NewPCG(h.Sum64(), seed))
		share := writes
		if r.Resource == "events" {
			// They are many, and nothing depends on them.
			return faultyproxy.None
		}
		switch {
		case r.Verb == "get" || r.Verb == "list":
			share = reads
		case r.Resource == "pods/binding", r.Verb == "create" && r.Resource == "persistentvolumes":
			// What failed waits, so that it can be deleted in doubt or after a refusal.
			share = max(share, leakReservations)
		}
		if rng.Float64() >= share {
			return faultyproxy.None
		}
		return faultyproxy.Faults[rng.IntN(len(faultyproxy.Faults))]
	}
}

func (h *leakHistory) note(format string, args ...any) {
	h.steps = append(h.steps, fmt.Sprintf(format, args...))
}

// must is for what the API server does at once; that an object is there or gone already, or has changed, is part of the
// history.
func (h *leakHistory) must(err error) {
	h.t.Helper()
	if !goneOrChanged(err) {
		h.fail("the history cannot go on: %v", err)
	}
}

// fail ends the test with what happened.
func (h *leakHistory) fail(format string, args ...any) {
	h.t.Helper()
	for i, step := range h.steps {
		h.t.Logf("step %d: %s", i, step)
	}
	failed := failures{}
	failed.add(h.under.proxy.Failures())
	h.t.Log(failed)
	kept := keepLog(h.t, h.under.log, h.seed)
	h.t.Logf("run it again with %s=%d; the scheduler's log is kept in %s", leakSeed, h.seed, kept)
	h.t.Fatalf("seed %d: %s", h.seed, fmt.Sprintf(format, args...))
}

// happen makes one thing happen.
func (h *leakHistory) happen(ctx context.Context) {
	kinds := []struct {
		weight int
		do     func(context.Context)
	}{
		{7, h.inlinePod}, {7, h.claimingPod}, {4, h.ephemeralPod}, {2, h.loneClaim}, {1, h.pinnedPod},
		{5, h.endPod}, {3, h.replacePod}, {3, h.endClaim}, {2, h.replaceClaim}, {6, h.growClaim},
		{3, h.endVolume}, {14, h.nodeWorks}, {2, h.nodeGoes}, {2, h.diskFails}, {1, h.unpublish},
		{6, h.breakWatch}, {4, h.mendWatch},
	}
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	at := h.rng.IntN(total)
	for _, k := range kinds {
		if at -= k.weight; at < 0 {
			k.do(ctx)
			return
		}
	}
}

// createPod creates the pod if the last one of its name is gone, under a name that no pod has had. Kube-scheduler 1.36
// ends its process if a pod with a node is created again under its name and the watch shows that as one change: its
// handler does not compare UIDs.
func (h *leakHistory) createPod(ctx context.Context, pod *corev1.Pod) {
	base := pod.Name
	last := &corev1.Pod{}
	err := h.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: h.lastPod(base)}, last)
	if err == nil {
		return
	}
	h.must(err)
	h.pods[base]++
	pod.Name = h.lastPod(base)
	h.must(h.client.Create(ctx, pod))
}

// lastPod is the name of the last pod of those that have that base.
func (h *leakHistory) lastPod(base string) string { return fmt.Sprintf("%s-%d", base, h.pods[base]) }

func (h *leakHistory) podName() string   { return fmt.Sprintf("p%d", h.rng.IntN(leakPods)) }
func (h *leakHistory) claimName() string { return fmt.Sprintf("c%d", h.rng.IntN(leakClaims)) }
func (h *leakHistory) node() *steppedNode {
	return h.nodes[h.rng.IntN(len(h.nodes))]
}

// somePod is of any kind.
func (h *leakHistory) somePod() *corev1.Pod {
	switch h.rng.IntN(4) {
	case 0:
		return h.randomClaimPod()
	case 1:
		return withEphemeral(plainPod(h.podName(), "berth"), "scratch", "ssd", h.size())
	}
	pod := diskPod(h.podName(), h.size())
	if h.rng.IntN(3) == 0 {
		second := pod.Spec.Volumes[0].DeepCopy()
		second.Name = "more"
		pod.Spec.Volumes = append(pod.Spec.Volumes, *second)
	}
	if h.rng.IntN(4) == 0 {
		withClaims(pod, h.claimName())
	}
	return pod
}

func (h *leakHistory) randomClaimPod() *corev1.Pod {
	names := []string{h.claimName()}
	if other := h.claimName(); other != names[0] && h.rng.IntN(3) == 0 {
		names = append(names, other)
	}
	return claimPod(h.podName(), names...)
}

func (h *leakHistory) size() int64 { return 1 + h.rng.Int64N(4) }

func (h *leakHistory) inlinePod(ctx context.Context) {
	pod := h.somePod()
	h.note("create pod %s", pod.Name)
	h.createPod(ctx, pod)
}

// newClaim is of any StorageClass of ours, perhaps with a node that another scheduler has chosen.
func (h *leakHistory) newClaim(name string) *corev1.PersistentVolumeClaim {
	class := "ssd"
	if h.rng.IntN(6) == 0 {
		class = "now"
	}
	pvc := &corev1.PersistentVolumeClaim{Spec: objects.ClaimSpec(class, objects.GiB(h.size()))}
	pvc.Namespace, pvc.Name = schedulerTests, name
	if h.rng.IntN(6) == 0 {
		pvc.Annotations = map[string]string{selectedNode: h.node().name}
	}
	return pvc
}

func (h *leakHistory) claimingPod(ctx context.Context) {
	pod := h.randomClaimPod()
	for i := range pod.Spec.Volumes {
		pvc := h.newClaim(pod.Spec.Volumes[i].PersistentVolumeClaim.ClaimName)
		h.note("create claim %s of class %s", pvc.Name, *pvc.Spec.StorageClassName)
		h.must(h.client.Create(ctx, pvc))
	}
	h.note("create pod %s with these claims", pod.Name)
	h.createPod(ctx, pod)
}

func (h *leakHistory) ephemeralPod(ctx context.Context) {
	pod := withEphemeral(plainPod(h.podName(), "berth"), "scratch", "ssd", h.size())
	h.note("create pod %s with an ephemeral claim", pod.Name)
	h.createPod(ctx, pod)
}

func (h *leakHistory) loneClaim(ctx context.Context) {
	pvc := h.newClaim(h.claimName())
	h.note("create claim %s of class %s", pvc.Name, *pvc.Spec.StorageClassName)
	h.must(h.client.Create(ctx, pvc))
}

// pinnedPod names its node itself.
func (h *leakHistory) pinnedPod(ctx context.Context) {
	pod := h.somePod()
	pod.Spec.NodeName = h.node().name
	h.note("create pod %s on node %s", pod.Name, pod.Spec.NodeName)
	h.createPod(ctx, pod)
}

func (h *leakHistory) endPod(ctx context.Context) {
	pod := plainPod(h.lastPod(h.podName()), "berth")
	if h.rng.IntN(2) == 0 {
		h.note("delete pod %s", pod.Name)
		h.must(h.client.Delete(ctx, pod))
		return
	}
	h.note("delete pod %s by force", pod.Name)
	h.must(h.client.Delete(ctx, pod, client.GracePeriodSeconds(0)))
}

// replacePod makes another pod in the place of the last one at once.
func (h *leakHistory) replacePod(ctx context.Context) {
	pod := h.somePod()
	h.note("replace pod %s", pod.Name)
	h.must(h.client.Delete(ctx, plainPod(h.lastPod(pod.Name), "berth"), client.GracePeriodSeconds(0)))
	h.createPod(ctx, pod)
}

func (h *leakHistory) endClaim(ctx context.Context) {
	pvc := h.newClaim(h.claimName())
	h.note("delete claim %s", pvc.Name)
	h.must(h.client.Delete(ctx, pvc))
}

// force deletes an object with whatever finalizers it has.
func (h *leakHistory) force(ctx context.Context, o client.Object) {
	h.must(h.client.Delete(ctx, o, client.GracePeriodSeconds(0)))
	h.must(h.client.Patch(ctx, o, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))))
}

// replaceClaim makes another claim of the name at once.
func (h *leakHistory) replaceClaim(ctx context.Context) {
	pvc := h.newClaim(h.claimName())
	h.note("replace claim %s", pvc.Name)
	h.force(ctx, pvc.DeepCopy())
	h.must(h.client.Create(ctx, pvc))
}

func (h *leakHistory) growClaim(ctx context.Context) {
	var claims corev1.PersistentVolumeClaimList
	h.must(h.client.List(ctx, &claims, client.InNamespace(schedulerTests)))
	bound := slices.DeleteFunc(claims.Items, func(pvc corev1.PersistentVolumeClaim) bool {
		return pvc.Status.Phase != corev1.ClaimBound
	})
	if len(bound) == 0 {
		h.nodeWorks(ctx)
		return
	}
	pvc := &bound[h.rng.IntN(len(bound))]
	before := pvc.DeepCopy()
	size := pvc.Spec.Resources.Requests.Storage().Value() + h.size()*units.GiB/2
	if has := pvc.Status.Capacity.Storage().Value(); h.rng.IntN(4) == 0 && size > has {
		// A request that was not served may be lowered.
		size = has + units.GiB/2
	}
	pvc.Spec.Resources.Requests[corev1.ResourceStorage] = *quantity(size)
	h.note("claim %s asks for %d MiB", pvc.Name, size/units.MiB)
	if err := h.client.Patch(ctx, pvc, client.MergeFrom(before)); !apierrors.IsForbidden(err) {
		// Forbidden is that of a claim which lost its volume just now.
		h.must(err)
	}
}

// endVolume deletes a PersistentVolume by hand: with whatever finalizers it has, or not.
func (h *leakHistory) endVolume(ctx context.Context) {
	volumes := h.volumes(h.t)
	if len(volumes) == 0 {
		h.nodeWorks(ctx)
		return
	}
	pv := &volumes[h.rng.IntN(len(volumes))]
	if h.rng.IntN(2) == 0 {
		h.note("delete PersistentVolume %s", pv.Name)
		h.must(h.client.Delete(ctx, pv))
		return
	}
	h.note("delete PersistentVolume %s by force", pv.Name)
	h.force(ctx, pv)
}

func (h *leakHistory) nodeWorks(ctx context.Context) {
	n, late := h.node(), h.rng.IntN(3) == 0
	h.note("node %s works, publishes: %v", n.name, !late)
	_, err := n.work(ctx, late)
	h.must(err)
}

// nodeGoes deletes a Node, or makes it again.
func (h *leakHistory) nodeGoes(ctx context.Context) {
	n := h.node()
	if n.absent {
		h.note("node %s comes back", n.name)
		h.must(n.appear(ctx))
		return
	}
	h.note("node %s goes", n.name)
	h.must(n.vanish(ctx))
}

func (h *leakHistory) diskFails(context.Context) {
	n := h.node()
	d := n.disks[h.rng.IntN(len(n.disks))]
	d.failed = !d.failed
	n.unpublished = true
	h.note("disk %s of node %s has failed: %v", d.id, n.name, d.failed)
}

// unpublish deletes a NodeDiskCapacity by hand.
func (h *leakHistory) unpublish(ctx context.Context) {
	n := h.node()
	h.note("delete the NodeDiskCapacity of %s", n.name)
	ndc := &diskv1alpha1.NodeDiskCapacity{}
	ndc.Name = n.name
	h.must(h.client.Delete(ctx, ndc))
	n.unpublished = true
}

// breakWatch interrupts a watch. Each costs the scheduler a longer pause than the one before, so they are few.
func (h *leakHistory) breakWatch(context.Context) {
	resource := watchedByScheduler[h.rng.IntN(len(watchedByScheduler))]
	if _, already := h.broken[resource]; already {
		return
	}
	relist := h.rng.IntN(4) > 0
	h.note("the watch of %s breaks, relist: %v", resource, relist)
	h.broken[resource] = true
	h.under.proxy.Break(resource, relist)
}

func (h *leakHistory) mendWatch(context.Context) {
	for _, resource := range watchedByScheduler {
		if h.broken[resource] {
			h.note("the watch of %s is mended", resource)
			h.under.proxy.Mend(resource)
			// Not again in this history.
			h.broken[resource] = false
			return
		}
	}
}

// leakClasses are what the claims here are of, until the test ends.
func leakClasses(t *testing.T, s *schedulers) {
	t.Helper()
	yes, now := true, storagev1.VolumeBindingImmediate
	s.class(t, "ssd")
	s.storageClass(t, "ssd", func(c *storagev1.StorageClass) { c.AllowVolumeExpansion = &yes })
	s.storageClass(t, "now", func(c *storagev1.StorageClass) { c.AllowVolumeExpansion, c.VolumeBindingMode = &yes, &now })
}

// play makes the history happen.
func (h *leakHistory) play(ctx context.Context) {
	for range leakSteps {
		h.happen(ctx)
		// The scheduler is to come in between, at any moment.
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(h.rng.IntN(120)) * time.Millisecond):
		}
	}
}
