package integration

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// TestSchedulerClaims runs the real scheduler against a real API server and the real
// controllers of claims.
func TestSchedulerClaims(t *testing.T) {
	s := claimSchedulers(t)
	s.runClaimTests(t, []claimTest{
		{"one plan", onePlan},
		{"all or none", allOrNone},
		{"writes", claimWrites},
		{"other drivers", otherDrivers},
		{"bound claims", boundClaims},
		{"generic ephemeral", genericEphemeral},
		{"shared claim", sharedClaim},
		{"in pieces", placedInPieces},
		{"retained volume", retainedVolume},
		{"bad claims", badClaims},
		{"unlabeled node", unlabeledNode},
		{"long node name", longNodeName},
		{"preemption", claimPreemption},
		{"overcommit race", claimRace},
		{"half done", halfDone},
		{"killed", claimsKilled},
		{"claim deleted", claimDeleted},
		{"class deleted", classDeleted},
	})
}

type claimTest struct {
	name string
	run  func(*testing.T, *schedulers)
}

// runClaimTests runs them one after the other, and removes what each leaves behind.
func (s *schedulers) runClaimTests(t *testing.T, tests []claimTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Cleanup(func() { s.clearClaims(t) })
			test.run(t, s)
		})
	}
}

// onePlan: two claims and an inline volume of a pod are placed together, on the only node
// that has room for all of them.
func onePlan(t *testing.T, s *schedulers) {
	small := newSimNode(t, s.client, "sim-0", 9, diskv1alpha1.DriverName)
	large := newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, small, large)
	s.pvc(t, "data", "ssd", 4)
	s.pvc(t, "log", "ssd", 3)
	pod := withClaims(diskPod("db", 3), "data", "log")
	s.create(t, pod)
	s.waitNode(t, pod)
	if pod.Spec.NodeName != large.name {
		t.Errorf("the pod is on %s", pod.Spec.NodeName)
	}
	for _, name := range []string{"data", "log"} {
		pv, v := s.volumeOf(t, name)
		if v.Node != large.name || v.Place.Disk != simDisk(large.name) || pv.Annotations[claim.AnnotationProvisionedBy] != diskv1alpha1.DriverName ||
			pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			t.Errorf("the volume of claim %s is %+v", name, pv.Spec)
		}
	}
	if total := s.holdApart(t); total != 10*units.GiB {
		t.Errorf("%d GiB are recorded, want 10", total/units.GiB)
	}
	large.check(t)
}

// allOrNone: of two claims that do not fit together, none gets a volume; with room for
// growth asked for, that counts, too.
func allOrNone(t *testing.T, s *schedulers) {
	s.storageClass(t, "roomy", func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.ParameterHeadroom] = "50%" })
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	s.pvc(t, "one", "ssd", 6)
	s.pvc(t, "other", "ssd", 6)
	s.create(t, claimPod("greedy", "one", "other"))
	s.waitEvent(t, "greedy", "free space of class ssd is 10Gi, 2 volumes (6Gi + 6Gi) want 12Gi")
	s.pvc(t, "roomy", "roomy", 7)
	s.create(t, claimPod("roomy", "roomy"))
	s.waitEvent(t, "roomy", "largest free extent of class ssd is 10Gi, wants 10752Mi")
	if volumes := s.volumes(t); len(volumes) != 0 {
		t.Errorf("there are %d volumes of pods that have no place", len(volumes))
	}
	// One of the claims will do with what is there.
	pod := claimPod("modest", "one")
	s.create(t, pod)
	s.waitNode(t, pod)
	s.waitEvent(t, "greedy", "wants 6Gi")
}

// boundClaims restrict their pod to their node, and ask for nothing.
func boundClaims(t *testing.T, s *schedulers) {
	full := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	empty := newSimNode(t, s.client, "sim-1", 20, diskv1alpha1.DriverName)
	followClaims(t, s.client, full, empty)
	s.pvc(t, "data", "ssd", 10)
	for i := range 3 {
		pod := claimPod(fmt.Sprintf("try-%d", i), "data")
		s.create(t, pod)
		s.waitNode(t, pod)
		if pod.Spec.NodeName != full.name {
			t.Errorf("the pod is on %s, the claim on %s", pod.Spec.NodeName, full.name)
		}
		if err := s.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	// With an inline volume that only fits elsewhere, there is no node for both.
	s.create(t, withClaims(diskPod("torn", 1), "data"))
	s.waitEvent(t, "torn", "didn't match PersistentVolume's node affinity")
	s.waitEvent(t, "torn", "no free space of class ssd, wants 1Gi")
}

// genericEphemeral: the pod is held, without an event, until its claim exists; the volume
// ends with the pod.
func genericEphemeral(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	thaw := s.freeze(t, "kube-controller-manager")
	pod := withEphemeral(plainPod("scratch", "berth"), "tmp", "ssd", 10)
	s.create(t, pod)
	// A pod behind it is bound: the scheduler has had its time.
	other := diskPod("behind", 1)
	s.create(t, other)
	s.waitNode(t, other)
	if err := s.client.Delete(t.Context(), other, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	s.reload(t, pod)
	if len(pod.Status.Conditions) > 0 {
		t.Errorf("the pod was tried without its claim: %v", pod.Status.Conditions)
	}
	thaw()
	s.waitNode(t, pod)
	if _, v := s.volumeOf(t, "scratch-tmp"); v.Size != 10*units.GiB {
		t.Errorf("the volume has %d bytes", v.Size)
	}
	next := withEphemeral(plainPod("next", "berth"), "tmp", "ssd", 8)
	s.create(t, next)
	s.waitEvent(t, "next", "no free space of class ssd, wants 8Gi")
	if err := s.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	s.waitNode(t, next)
	s.holdApart(t)
	// A claim of that name that is not the pod's.
	s.pvc(t, "foreign-tmp", "ssd", 1)
	s.create(t, withEphemeral(plainPod("foreign", "berth"), "tmp", "ssd", 1))
	s.waitEvent(t, "foreign", "was not created for pod")
}

// sharedClaim: pods that share a claim get one volume, whichever of them comes first.
func sharedClaim(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	followClaims(t, s.client, nodes...)
	for i := range 5 {
		name := fmt.Sprintf("shared-%d", i)
		s.pvc(t, name, "ssd", 2)
		one, other := claimPod(name+"-a", name), withClaims(diskPod(name+"-b", 1), name)
		s.create(t, one, other)
		s.waitNode(t, one)
		s.waitNode(t, other)
		if one.Spec.NodeName != other.Spec.NodeName {
			t.Errorf("the pods are on %s and %s", one.Spec.NodeName, other.Spec.NodeName)
		}
	}
	if total := s.holdApart(t); total != 15*units.GiB {
		t.Errorf("%d GiB are recorded, want 15", total/units.GiB)
	}
}

// placedInPieces: a claim that no free extent holds waits, until its class allows pieces. Its PersistentVolume names
// all of them. A scheduler that starts again takes none of them for free.
func placedInPieces(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	node.hasMapper = true
	node.claimed[diskv1alpha1.PartitionID("neighbor")] = extent.New(diskv1alpha1.Alignment+4*units.GiB, units.GiB)
	node.must(t, node.publish(t.Context()))
	followClaims(t, s.client, node)
	s.pvc(t, "data", "ssd", 7)
	pod := claimPod("db", "data")
	s.create(t, pod)
	s.waitEvent(t, "db", "largest free extent of class ssd is 5Gi, wants 7Gi")
	setMaxPieces(t, s.client, "ssd", ptr.To[int32](2))
	s.waitNode(t, pod)
	pv, v := s.volumeOf(t, "data")
	want := []diskv1alpha1.Place{{Disk: simDisk(node.name), Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 2 * units.GiB}}}
	if v.Place.Start != diskv1alpha1.Alignment+5*units.GiB || v.FirstLength() != 5*units.GiB || !slices.Equal(v.Pieces, want) || v.Size != 7*units.GiB {
		t.Errorf("the volume is %+v, by %v and %v", v, pv.Spec.CSI.VolumeAttributes, pv.Annotations)
	}

	// Its capacity does not show the volume, so that only the PersistentVolume does.
	node.setSilent(true)
	before := &simNode{name: node.name, client: s.client, size: node.size, claimed: map[string]extent.Extent{
		diskv1alpha1.PartitionID("neighbor"): extent.New(diskv1alpha1.Alignment+4*units.GiB, units.GiB),
	}, hasMapper: true}
	node.must(t, before.publish(t.Context()))
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pvc(t, "other", "ssd", 3)
	s.create(t, claimPod("other", "other"))
	s.waitEvent(t, "other", "2 free extents of a disk of class ssd add up to 2Gi, wants 3Gi")
	s.holdApart(t)
}

// retainedVolume: a volume that was kept is bound to a new claim, on a node that has no
// space for another.
func retainedVolume(t *testing.T, s *schedulers) {
	s.storageClass(t, "keep", func(c *storagev1.StorageClass) {
		retain := corev1.PersistentVolumeReclaimRetain
		c.ReclaimPolicy = &retain
	})
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	old := s.pvc(t, "old", "keep", 7)
	pod := claimPod("first", "old")
	s.create(t, pod)
	s.waitNode(t, pod)
	pv, _ := s.volumeOf(t, "old")
	for _, o := range []client.Object{pod, old} {
		if err := s.client.Delete(t.Context(), o, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil || pv.Status.Phase != corev1.VolumeReleased {
			return fmt.Errorf("volume %s is %s: %w", pv.Name, pv.Status.Phase, err)
		}
		return nil
	})
	filler := diskPod("filler", 3)
	s.create(t, filler)
	s.waitNode(t, filler)
	s.pvc(t, "new", "keep", 6)
	second := claimPod("second", "new")
	s.create(t, second)
	s.waitEvent(t, "second", "no free space of class ssd, wants 6Gi")
	// An operator makes it bindable again.
	s.reload(t, pv)
	pv.Spec.ClaimRef = nil
	if err := s.client.Update(t.Context(), pv); err != nil {
		t.Fatal(err)
	}
	s.waitNode(t, second)
	if again, v := s.volumeOf(t, "new"); again.Name != pv.Name || v.Size != 7*units.GiB {
		t.Errorf("the claim is bound to %s, want %s", again.Name, pv.Name)
	}
	if total := s.holdApart(t); total != 10*units.GiB {
		t.Errorf("%d GiB are recorded, want 10", total/units.GiB)
	}
}

// badClaims are what nothing can be done about on any node.
func badClaims(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	tests := map[string]struct {
		class func(*storagev1.StorageClass)
		claim func(*corev1.PersistentVolumeClaimSpec)
		says  string
	}{
		"misspelled": {func(c *storagev1.StorageClass) { c.Parameters["disk.berth.dev/kind"] = "ssd" }, nil, `unknown parameter "disk.berth.dev/kind"`},
		"no-class":   {func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.AttributeClass] = "tape" }, nil, `DiskClass "tape" does not exist: there are ssd`},
		"many": {nil, func(spec *corev1.PersistentVolumeClaimSpec) {
			spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "access mode ReadWriteMany is not possible"},
		"small": {func(c *storagev1.StorageClass) { c.Parameters[diskv1alpha1.ParameterFSType] = "xfs" }, func(spec *corev1.PersistentVolumeClaimSpec) {
			spec.Resources = objects.ClaimSpec("", "0").Resources
			spec.Resources.Requests[corev1.ResourceStorage] = *quantity(1 << 20)
		}, "xfs"},
		"huge": {nil, func(spec *corev1.PersistentVolumeClaimSpec) { *spec = objects.ClaimSpec("huge", "11Gi") }, "which no disk there could ever hold"},
	}
	for name, test := range tests {
		s.storageClass(t, name, test.class)
		pvc := &corev1.PersistentVolumeClaim{Spec: objects.ClaimSpec(name, "1Gi")}
		pvc.Namespace, pvc.Name = schedulerTests, name
		if test.claim != nil {
			test.claim(&pvc.Spec)
		}
		s.make(t, pvc)
		s.create(t, claimPod("bad-"+name, name))
	}
	for name, test := range tests {
		s.waitEvent(t, "bad-"+name, test.says)
	}
	s.waitEvent(t, "bad-many", "claim scheduler-tests/many: ")
	// What was missing appears.
	s.class(t, "tape")
	s.waitEvent(t, "bad-no-class", "no disk of class tape")
	if volumes := s.volumes(t); len(volumes) != 0 {
		t.Errorf("there are %d volumes", len(volumes))
	}
}

// unlabeledNode: where the kubelet does not know the driver's topology yet, a volume could
// never be used.
func unlabeledNode(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	label := func(change func(map[string]string)) {
		n := &corev1.Node{}
		n.Name = node.name
		s.reload(t, n)
		change(n.Labels)
		if err := s.client.Update(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	label(func(labels map[string]string) { delete(labels, diskv1alpha1.LabelNode) })
	followClaims(t, s.client, node)
	s.pvc(t, "data", "ssd", 1)
	pod := claimPod("waits", "data")
	s.create(t, pod)
	s.waitEvent(t, "waits", "the node lacks the label disk.berth.dev/node")
	label(func(labels map[string]string) { labels[diskv1alpha1.LabelNode] = diskv1alpha1.NodeLabel(node.name) })
	s.waitNode(t, pod)
}

// claimRace: fifty claims fit, sixty pods come at once.
func claimRace(t *testing.T, s *schedulers) {
	nodes := fleet(t, s, 10)
	followClaims(t, s.client, nodes...)
	const wanted, room = 60, 50
	for i := range wanted {
		name := fmt.Sprintf("race-%02d", i)
		s.pvc(t, name, "ssd", 1)
		s.create(t, claimPod(name, name))
	}
	s.waitBound(t, room)
	bound := s.waitDecided(t)
	if len(bound) != room {
		t.Errorf("%d pods are bound, want %d", len(bound), room)
	}
	if total := s.holdApart(t); total != room*units.GiB {
		t.Errorf("%d GiB are recorded, want %d", total/units.GiB, room)
	}
	for _, n := range nodes {
		n.check(t)
		if moved, _ := n.counts(); moved > 0 {
			t.Errorf("node %s moved %d volumes", n.name, moved)
		}
	}
}

// claimPreemption: the volume of a generic ephemeral claim dies with its pod, so the pod may
// be preempted for its space; that of a persistent claim does not.
func claimPreemption(t *testing.T, s *schedulers) {
	class := s.important(t)
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	s.pvc(t, "data", "ssd", 5)
	keeper, victim := claimPod("keeper", "data"), withEphemeral(plainPod("victim", "berth"), "tmp", "ssd", 5)
	s.create(t, keeper, victim)
	s.waitNode(t, keeper)
	s.waitNode(t, victim)
	s.pvc(t, "large", "ssd", 6)
	hopeless := claimPod("hopeless", "large")
	hopeless.Spec.PriorityClassName = class.Name
	s.create(t, hopeless)
	s.waitEvent(t, "hopeless", "no free space of class ssd, wants 6Gi")
	s.reload(t, hopeless)
	s.reload(t, victim)
	if hopeless.Status.NominatedNodeName != "" || victim.DeletionTimestamp != nil {
		t.Errorf("nominated to %q, the victim deleted at %v: preempted for space that a persistent claim keeps", hopeless.Status.NominatedNodeName, victim.DeletionTimestamp)
	}
	s.pvc(t, "fitting", "ssd", 5)
	important := claimPod("important", "fitting")
	important.Spec.PriorityClassName = class.Name
	s.create(t, important)
	s.waitNode(t, important)
	s.reload(t, keeper)
	if err := s.client.Get(t.Context(), client.ObjectKeyFromObject(victim), victim); err == nil {
		t.Error("the victim is still there")
	}
	s.holdApart(t)
	if moved, _ := node.counts(); moved > 0 {
		t.Errorf("the node moved %d volumes", moved)
	}
}

// longNodeName: what stands for the node's name in its volumes is distinguished from the name of
// another node, also by a scheduler that starts.
func longNodeName(t *testing.T, s *schedulers) {
	const name = "a-node-in-a-rack-of-a-data-center-of-a-company-that-likes-long-names.example.com"
	node := newSimNode(t, s.client, name, 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node)
	s.pvc(t, "one", "ssd", 6)
	pod := claimPod("one", "one")
	s.create(t, pod)
	s.waitNode(t, pod)
	// Its capacity does not show the volume, so that only the record does.
	node.setSilent(true)
	empty := &simNode{name: name, client: s.client, size: node.size}
	if err := empty.publish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	if err := s.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.pvc(t, "other", "ssd", 6)
	s.create(t, claimPod("other", "other"))
	s.waitEvent(t, "other", "largest free extent of class ssd is 4Gi, wants 6Gi")
	s.pvc(t, "small", "ssd", 4)
	small := claimPod("small", "small")
	s.create(t, small)
	s.waitNode(t, small)
	s.holdApart(t)
}

// otherDrivers: the claims of a pod that are not ours are bound as ever, beside ours: one by
// a provisioner, one to a volume that exists.
func otherDrivers(t *testing.T, s *schedulers) {
	node := newSimNode(t, s.client, "sim-0", 10, diskv1alpha1.DriverName)
	rest := newSimNode(t, s.client, "sim-1", 10, diskv1alpha1.DriverName)
	followClaims(t, s.client, node, rest)
	s.storageClass(t, "other", func(c *storagev1.StorageClass) { c.Provisioner, c.Parameters = "other.example.com", nil })
	s.storageClass(t, "local", func(c *storagev1.StorageClass) { c.Provisioner, c.Parameters = "kubernetes.io/no-provisioner", nil })
	s.make(t, otherVolume("local-pv", "local", node.name))
	s.pvc(t, "data", "ssd", 4)
	s.pvc(t, "dynamic", "other", 1)
	s.pvc(t, "static", "local", 1)
	pod := withClaims(diskPod("mixed", 3), "static", "data", "dynamic")
	s.create(t, pod)
	// The other driver's provisioner takes its time. Until it is done, nothing of ours is made:
	// it could fail, and the pod must be free to go elsewhere.
	dynamic := &corev1.PersistentVolumeClaim{}
	dynamic.Namespace, dynamic.Name = schedulerTests, "dynamic"
	s.eventually(t, func(ctx context.Context) error {
		if err := s.client.Get(ctx, client.ObjectKeyFromObject(dynamic), dynamic); err != nil {
			return err
		}
		if dynamic.Annotations[volume.AnnSelectedNode] != node.name {
			return errors.New("the other driver's claim has no node yet")
		}
		return nil
	})
	for _, pv := range s.volumes(t) {
		if claim.IsOurs(&pv) {
			t.Errorf("volume %s was made before that of the other driver", pv.Name)
		}
	}
	made := otherVolume("dynamic-pv", "other", node.name)
	made.Spec.ClaimRef = &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: dynamic.Namespace, Name: dynamic.Name, UID: dynamic.UID}
	s.make(t, made)
	s.waitNode(t, pod)
	if pod.Spec.NodeName != node.name {
		t.Errorf("the pod is on %s", pod.Spec.NodeName)
	}
	for name, bound := range map[string]string{"dynamic": "dynamic-pv", "static": "local-pv"} {
		pvc := &corev1.PersistentVolumeClaim{}
		pvc.Namespace, pvc.Name = schedulerTests, name
		s.reload(t, pvc)
		if pvc.Spec.VolumeName != bound || pvc.Status.Phase != corev1.ClaimBound {
			t.Errorf("claim %s is %s to %q", name, pvc.Status.Phase, pvc.Spec.VolumeName)
		}
	}
	if total := s.holdApart(t); total != 7*units.GiB {
		t.Errorf("%d GiB are recorded, want 7", total/units.GiB)
	}
}
