package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/faultyproxy"
)

const (
	// leakSeed is the environment variable with the history that is to be run, or the first and last of several: 7-20.
	leakSeed = "BERTH_LEAK_SEED"
	// leakBudget is after when no further history begins, leakLeast how many there are in any case.
	leakBudget, leakLeast = time.Minute, 4
	// leakTorture is how many there are in the long form.
	leakTorture = 300
	// restPatience is how long the scheduler may take to come to rest: its pauses after failures have grown.
	restPatience = 3 * time.Minute
)

// TestSchedulerLeaks makes histories happen between the scheduler and an API server behind a faulty proxy. After each
// it asserts that what the ledger withholds is what the API server says, to the byte, and that it remembers nothing
// else: once when the scheduler has come to rest, once without what could not be placed, and once when all is deleted.
func TestSchedulerLeaks(t *testing.T) {
	s := leakPlane(t)
	if value := os.Getenv(leakSeed); value != "" {
		first, last, several := strings.Cut(value, "-")
		if !several {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 64)
		to, err2 := strconv.ParseUint(last, 10, 64)
		if err := errors.Join(err, err2); err != nil || from > to {
			t.Fatalf("%s=%s is neither a seed nor the first and last of several, as in 7-20: %v", leakSeed, value, err)
		}
		for seed := from; seed <= to; seed++ {
			runHistory(t, s, seed)
		}
		return
	}
	begin, ran := time.Now(), 0
	failed := failures{}
	for seed := uint64(1); ; seed++ {
		if os.Getenv("BERTH_TORTURE") != "" {
			if seed > leakTorture {
				break
			}
		} else if ran >= leakLeast && time.Since(begin) > leakBudget {
			break
		}
		failed.add(runHistory(t, s, seed))
		ran++
	}
	t.Logf("%d histories in %s, with these failures: %s", ran, time.Since(begin).Round(time.Second), failed)
	for _, write := range []string{"create pods/binding", "create persistentvolumes"} {
		if failed[write] == 0 {
			t.Errorf("no request failed to %s", write)
		}
	}
}

// failures are how many requests of a kind failed, and how many in a certain way.
type failures map[string]int

func (f failures) add(more map[faultyproxy.Failure]int) {
	for failure, count := range more {
		f[failure.Verb+" "+failure.Resource] += count
		f[failure.Fault.String()] += count
	}
}

func (f failures) String() string {
	var text []string
	for _, kind := range slices.Sorted(maps.Keys(f)) {
		text = append(text, fmt.Sprintf("%s: %d", kind, f[kind]))
	}
	return strings.Join(text, ", ")
}

// leakPlane is a control plane with the controllers of claims, without a scheduler.
func leakPlane(t *testing.T) *schedulers {
	t.Helper()
	s := startPlane(t, cluster.Options{
		ControllerManager: true, Controllers: claimControllers,
		Manifests: []string{
			"config/crd", "config/nodeagent/csidriver.yaml", "config/nodeagent/rbac.yaml", "config/scheduler/rbac.yaml",
		},
	})
	s.make(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: schedulerTests}})
	s.eventually(t, func(ctx context.Context) error {
		return s.client.Get(ctx, client.ObjectKey{Namespace: schedulerTests, Name: "default"}, &corev1.ServiceAccount{})
	})
	leakClasses(t, s)
	return s
}

// runHistory returns the failures that there were.
func runHistory(t *testing.T, s *schedulers, seed uint64) map[faultyproxy.Failure]int {
	t.Helper()
	begin := time.Now()
	h := &leakHistory{
		schedulers: s, t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), broken: map[string]bool{}, pods: map[string]int{},
		nodes: makeSteppedNodes(t, s.client, leakNodes, leakDisks, leakDiskGiB),
	}
	h.under = startFaultyScheduler(t, s.cluster, faultsOf(seed))
	defer h.under.stop()
	h.play(t.Context())
	h.under.proxy.Heal()
	played := time.Since(begin)

	h.rest("after the history", false)
	h.rest("without what could not be placed", true, h.dropPending)
	h.rest("with everything deleted", true, h.allPresent, h.empty)
	rested := time.Since(begin) - played
	t.Logf("seed %d: %s, and %s to come to rest and be checked",
		seed, played.Round(time.Millisecond), rested.Round(time.Millisecond))
	return h.under.proxy.Failures()
}

// rest runs the nodes until the ledger is as it should be, and everything else is as it is to be before.
func (h *leakHistory) rest(when string, strict bool, before ...func(context.Context) error) {
	h.t.Helper()
	if err := cluster.Eventually(h.t.Context(), restPatience, func(ctx context.Context) error {
		for _, n := range h.nodes {
			if busy, err := n.work(ctx, false); err != nil || busy {
				return errors.Join(err, fmt.Errorf("node %s has work to do: %v", n.name, busy))
			}
		}
		for _, is := range before {
			if err := is(ctx); err != nil {
				return err
			}
		}
		return h.check(ctx, strict)
	}); err != nil {
		h.fail("%s: %v", when, err)
	}
	if err := h.under.ledger.Validate(); err != nil {
		h.fail("%s: %v", when, err)
	}
}

// dropPending deletes claims whose volume does not exist, pods that use them, and pods without a node; it returns an
// error until they are gone.
func (h *leakHistory) dropPending(ctx context.Context) error {
	at, err := h.read(ctx)
	if err != nil {
		return err
	}
	left := 0
	unbound := map[string]bool{}
	for i := range at.claims {
		if pvc := &at.claims[i]; at.isPending(pvc) {
			left++
			unbound[pvc.Name] = true
			this := client.Preconditions{ResourceVersion: &pvc.ResourceVersion}
			if err := h.client.Delete(ctx, pvc, this); !goneOrChanged(err) {
				return err
			}
		}
	}
	for i := range at.pods {
		pod := &at.pods[i]
		uses := func(v corev1.Volume) bool {
			return v.PersistentVolumeClaim != nil && unbound[v.PersistentVolumeClaim.ClaimName] ||
				v.Ephemeral != nil && unbound[pod.Name+"-"+v.Name]
		}
		if pod.Spec.NodeName == "" || slices.ContainsFunc(pod.Spec.Volumes, uses) {
			left++
			this := client.Preconditions{ResourceVersion: &pod.ResourceVersion}
			if err := h.client.Delete(ctx, pod, client.GracePeriodSeconds(0), this); !goneOrChanged(err) {
				return err
			}
		}
	}
	if left > 0 {
		return fmt.Errorf("%d pods and claims that could not be placed are left", left)
	}
	return nil
}

// allPresent makes the Nodes that are absent.
func (h *leakHistory) allPresent(ctx context.Context) error {
	for _, n := range h.nodes {
		if n.absent {
			if err := n.appear(ctx); err != nil {
				return fmt.Errorf("making node %s: %w", n.name, err)
			}
		}
	}
	return nil
}

// empty deletes all pods, claims and volumes; it returns an error until they are gone.
func (h *leakHistory) empty(ctx context.Context) error {
	at, err := h.read(ctx)
	if err != nil {
		return err
	}
	var all []client.Object
	for i := range at.pods {
		all = append(all, &at.pods[i])
	}
	for i := range at.claims {
		all = append(all, &at.claims[i])
	}
	for i := range at.volumes {
		all = append(all, &at.volumes[i])
	}
	for _, o := range all {
		if err := h.client.Delete(ctx, o, client.GracePeriodSeconds(0)); !goneOrChanged(err) {
			return err
		}
	}
	if len(all) > 0 {
		return fmt.Errorf("%d pods, claims and volumes are left", len(all))
	}
	return nil
}

// said is what the API server says.
type said struct {
	pods       []corev1.Pod
	claims     []corev1.PersistentVolumeClaim
	volumes    []corev1.PersistentVolume
	capacities []diskv1alpha1.NodeDiskCapacity
	nodes      []corev1.Node
}

// isPending reports whether the claim's volume does not exist: it may be made yet, or it was deleted while a request to
// make it may still be on its way.
func (s said) isPending(pvc *corev1.PersistentVolumeClaim) bool {
	return !slices.ContainsFunc(s.volumes, func(pv corev1.PersistentVolume) bool { return pv.Name == pvc.Spec.VolumeName })
}

func (h *leakHistory) read(ctx context.Context) (said, error) {
	var pods corev1.PodList
	var claims corev1.PersistentVolumeClaimList
	var volumes corev1.PersistentVolumeList
	var capacities diskv1alpha1.NodeDiskCapacityList
	var nodes corev1.NodeList
	for _, list := range []client.ObjectList{&pods, &claims, &volumes, &capacities, &nodes} {
		if err := h.client.List(ctx, list); err != nil {
			return said{}, err
		}
	}
	return said{pods.Items, claims.Items, volumes.Items, capacities.Items, nodes.Items}, nil
}

// check compares the ledger with the API server. Unless it is strict, pods without a node and claims whose volume does
// not exist may be in doubt, and refused: they may take their place yet.
func (h *leakHistory) check(ctx context.Context, strict bool) error {
	at, err := h.read(ctx)
	if err != nil {
		return err
	}
	contents := h.under.ledger.Contents()
	snapshots := map[string]*ledger.Snapshot{}
	for _, n := range h.nodes {
		snapshots[n.name] = h.under.ledger.Snapshot(n.name)
	}
	again, err := h.read(ctx)
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(at, again) || !reflect.DeepEqual(contents, h.under.ledger.Contents()) {
		return errors.New("something changes yet")
	}
	pending := map[string]bool{}
	for i := range at.pods {
		if at.pods[i].Spec.NodeName == "" {
			pending[string(at.pods[i].UID)] = true
		}
	}
	for i := range at.claims {
		if at.isPending(&at.claims[i]) {
			pending["claim/"+string(at.claims[i].UID)], pending["binding/"+string(at.claims[i].UID)] = true, true
		}
	}
	if strict && len(pending) > 0 {
		return fmt.Errorf("%d pods and claims are left that could not be placed", len(pending))
	}
	var wrong []error
	recorded := at.recorded()
	if !reflect.DeepEqual(contents.Observed, recorded) {
		wrong = append(wrong, fmt.Errorf("only the ledger has the records\n%sonly the API server has\n%s",
			lines(without(contents.Observed, recorded)), lines(without(recorded, contents.Observed))))
	}
	if len(contents.Assumed) > 0 {
		wrong = append(wrong, fmt.Errorf("reservations are left:\n%s", lines(contents.Assumed)))
	}
	if len(contents.Grants) > 0 {
		wrong = append(wrong, fmt.Errorf("grants are left for volumes %q", contents.Grants))
	}
	for _, doubt := range contents.Doubts {
		// One pod's try to make a volume may end in doubt after another pod's has made it. That withholds nothing more,
		// and is settled in minutes.
		if !pending[doubt.Key] && !isRecorded(doubt, recorded) {
			wrong = append(wrong, fmt.Errorf("a doubt is left: %+v", doubt))
		}
	}
	for uid, nodes := range contents.Refusals {
		if !pending[uid] {
			wrong = append(wrong, fmt.Errorf("a refusal is left of pod %s by %q", uid, nodes))
		}
	}
	for _, n := range h.nodes {
		if err := compareFree(snapshots[n.name], at.free(n.name, append(recorded, contents.Doubts...))); err != nil {
			wrong = append(wrong, fmt.Errorf("node %s: %w", n.name, err))
		}
	}
	return errors.Join(wrong...)
}

// isRecorded reports whether all that is held is recorded on that node, too.
func isRecorded(held ledger.HolderRecords, recorded []ledger.HolderRecords) bool {
	return !slices.ContainsFunc(held.Records, func(r ledger.Record) bool {
		return !slices.ContainsFunc(recorded, func(other ledger.HolderRecords) bool {
			return other.Node == held.Node && slices.ContainsFunc(other.Records, func(o ledger.Record) bool {
				// The volume may have grown since.
				return o.Partition == r.Partition && o.Disk == r.Disk && o.Extent.Contains(r.Extent)
			})
		})
	})
}

func lines(held []ledger.HolderRecords) string {
	var b strings.Builder
	for _, h := range held {
		fmt.Fprintf(&b, "  %+v\n", h)
	}
	return b.String()
}

// without are the first ones that are not among the others.
func without(some, others []ledger.HolderRecords) []ledger.HolderRecords {
	return slices.DeleteFunc(slices.Clone(some), func(h ledger.HolderRecords) bool {
		return slices.ContainsFunc(others, func(other ledger.HolderRecords) bool { return reflect.DeepEqual(h, other) })
	})
}

// recorded is what pods and PersistentVolumes say, sorted as the ledger does.
func (s *said) recorded() []ledger.HolderRecords {
	var all []ledger.HolderRecords
	for i := range s.pods {
		pod := &s.pods[i]
		asked, err := request.FromPod(pod)
		if pod.Spec.NodeName == "" || err != nil || len(asked) == 0 {
			continue
		}
		held := ledger.HolderRecords{Key: string(pod.UID), Node: pod.Spec.NodeName}
		record, _ := diskv1alpha1.DecodeRecord(pod.Annotations[diskv1alpha1.AnnotationAllocation])
		for _, v := range asked {
			if place, ok := record.Volume(v.Name); ok {
				at := extent.New(place.Start, place.Length)
				held.Records = append(held.Records, ledger.Record{Partition: v.Partition, Disk: place.Disk, Extent: at})
			}
		}
		all = append(all, held)
	}
	for i := range s.volumes {
		if v, err := claim.ReadVolume(&s.volumes[i]); err == nil {
			// The nodes' names are short: their labels are the same.
			if v.MoveTo != nil {
				all = append(all, ledger.HolderRecords{Key: "move/" + string(v.UID), Node: v.Node, Records: []ledger.Record{
					{Partition: diskv1alpha1.CopyID(v.Partition), Disk: v.MoveTo.Disk, Extent: extent.New(v.MoveTo.Start, v.MoveTo.Length)},
				}})
			}
			all = append(all, ledger.HolderRecords{Key: "volume/" + string(v.UID), Node: v.Node, Records: []ledger.Record{
				{Partition: v.Partition, Disk: v.Place.Disk, Extent: extent.New(v.Place.Start, v.FirstLength())},
			}})
			further := ledger.HolderRecords{Key: "pieces/" + string(v.UID), Node: v.Node}
			for i, p := range v.Pieces {
				further.Records = append(further.Records, ledger.Record{
					Partition: diskv1alpha1.PieceID(v.Partition, i+1), Disk: p.Disk, Extent: extent.New(p.Start, p.Length),
				})
			}
			if len(v.Pieces) > 0 {
				all = append(all, further)
			}
		}
	}
	slices.SortFunc(all, func(a, b ledger.HolderRecords) int { return strings.Compare(a.Key, b.Key) })
	return all
}

// free is what the node publishes as free, less what is recorded and not published: by disk, of those that take
// volumes.
func (s *said) free(node string, recorded []ledger.HolderRecords) map[string]extent.Set {
	free := map[string]extent.Set{}
	at := slices.IndexFunc(s.capacities, func(c diskv1alpha1.NodeDiskCapacity) bool { return c.Name == node })
	if at < 0 || !slices.ContainsFunc(s.nodes, func(n corev1.Node) bool { return n.Name == node }) {
		return free
	}
	type where struct {
		disk string
		extent.Extent
	}
	shown := map[string]where{}
	for _, d := range s.capacities[at].Status.Disks {
		for _, a := range d.Allocations {
			if a.Phase != diskv1alpha1.PhaseWiping {
				shown[a.Partition] = where{d.ID, extent.New(a.Start, a.Length)}
			}
		}
		if d.State != diskv1alpha1.DiskReady {
			continue
		}
		var pieces []extent.Extent
		for _, e := range d.Free {
			pieces = append(pieces, extent.New(e.Start, e.Length))
		}
		free[d.ID] = extent.NewSet(pieces...)
	}
	for _, held := range recorded {
		if held.Node != node {
			continue
		}
		for _, r := range held.Records {
			if on, ok := shown[r.Partition]; ok {
				// Of what is published only what it is to grow by is missing.
				r.Disk, r.Extent = on.disk, extent.Extent{Start: on.End, End: max(on.End, on.Start+r.Extent.Len())}
			}
			if set, ok := free[r.Disk]; ok && !r.Extent.Empty() {
				free[r.Disk] = set.Subtract(extent.NewSet(r.Extent))
			}
		}
	}
	return free
}

func compareFree(s *ledger.Snapshot, want map[string]extent.Set) error {
	var wrong []error
	for _, d := range s.Node.Disks {
		if w, ok := want[d.ID]; !ok || !d.Free.Equal(w) {
			wrong = append(wrong, fmt.Errorf("on disk %s %v is free, want %v", d.ID, d.Free, w))
		}
	}
	if len(s.Node.Disks) != len(want) {
		ids := slices.Sorted(maps.Keys(want))
		wrong = append(wrong, fmt.Errorf("%d disks are in service, want %v", len(s.Node.Disks), ids))
	}
	return errors.Join(wrong...)
}

// keepLog copies the scheduler's log to where it stays, beside the logs of clusters.
func keepLog(t *testing.T, log string, seed uint64) string {
	t.Helper()
	repository, err := cluster.Repository()
	if err != nil {
		return err.Error()
	}
	kept := filepath.Join(repository, ".build/clusters/logs", fmt.Sprintf("%s-seed-%d.log", t.Name(), seed))
	from, err := os.Open(log)
	if err != nil {
		return err.Error()
	}
	defer from.Close()
	to, err := os.Create(kept)
	if err != nil {
		return err.Error()
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return err.Error()
	}
	return kept
}
