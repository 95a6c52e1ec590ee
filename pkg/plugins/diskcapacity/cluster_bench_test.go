package diskcapacity

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	st "k8s.io/kubernetes/pkg/scheduler/testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/test/units"
)

// volumesANode are on its two disks. Each disk has a free extent behind each of its volumes, and one at its end.
const volumesANode = 10

// fullCluster is a cluster with its volumes: seven of ten are inline volumes of pods, three
// have PersistentVolumes.
type fullCluster struct {
	capacities []any
	pods       []*corev1.Pod
	volumes    []*corev1.PersistentVolume
}

func nodeNames(count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("node-%05d.example", i)
	}
	return names
}

func newFullCluster(b *testing.B, env *bench, names []string, volumesANode int) *fullCluster {
	b.Helper()
	class := env.storageClass(b, "fast", nil)
	c := &fullCluster{}
	for i, name := range names {
		ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: name, ResourceVersion: strconv.Itoa(i + 1)}}
		for d := range 2 {
			disk := diskv1alpha1.Disk{
				ID: diskv1alpha1.PartitionID(fmt.Sprint(name, d)), Device: fmt.Sprintf("nvme%dn1", d), Class: "ssd",
				SectorSize: 512, Size: 4096 * units.GiB, State: diskv1alpha1.DiskReady,
			}
			next := diskv1alpha1.Alignment
			for v := range volumesANode / 2 {
				uid := fmt.Sprintf("%s-%d-%d", name, d, v)
				place := diskv1alpha1.Place{Disk: disk.ID, Extent: diskv1alpha1.Extent{Start: next, Length: 10 * units.GiB}}
				allocation := diskv1alpha1.Allocation{Extent: place.Extent, Phase: diskv1alpha1.PhaseFormatted}
				if v%5 < 4-d {
					pod := podOf(uid, 10)
					pod.UID, pod.Spec.NodeName = uidOf(uid), name
					record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{Name: "data", Disk: place.Disk, Extent: place.Extent}})
					if err != nil {
						b.Fatal(err)
					}
					pod.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: record}
					allocation.Volume = diskv1alpha1.InlineVolumeID(pod.UID, "data")
					c.pods = append(c.pods, pod)
				} else {
					pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: uid, Namespace: "default", UID: uidOf(uid)}}
					pvc.Spec.StorageClassName = &class.Name
					pvc.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
					pvc.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(10*units.GiB, resource.BinarySI)}
					wanted, err := claim.Request(pvc, class)
					if err != nil {
						b.Fatal(err)
					}
					pv := claim.NewVolume(pvc, class, wanted, name, place)
					pv.UID = uidOf("volume " + uid)
					allocation.Volume = wanted.ID
					c.volumes = append(c.volumes, pv)
				}
				allocation.Partition = diskv1alpha1.PartitionID(allocation.Volume)
				disk.Allocations = append(disk.Allocations, allocation)
				gap := int64(1+(i*7+v*5+d*3)%97) * units.GiB
				disk.Free = append(disk.Free, diskv1alpha1.Extent{Start: next + 11*units.GiB, Length: gap})
				next += 12*units.GiB + gap
			}
			disk.Free = append(disk.Free, diskv1alpha1.Extent{Start: next + units.GiB, Length: int64(100+i%900) * units.GiB})
			ndc.Status.Disks = append(ndc.Status.Disks, disk)
		}
		c.capacities = append(c.capacities, decoded(b, ndc))
	}
	return c
}

// decoded is the object as the API server sends it: it shares no string with others.
func decoded(b *testing.B, ndc *diskv1alpha1.NodeDiskCapacity) *diskv1alpha1.NodeDiskCapacity {
	b.Helper()
	text, err := json.Marshal(ndc)
	if err != nil {
		b.Fatal(err)
	}
	out := &diskv1alpha1.NodeDiskCapacity{}
	if err := json.Unmarshal(text, out); err != nil {
		b.Fatal(err)
	}
	return out
}

// arrive puts the lists into the informers' stores.
func (c *fullCluster) arrive(b *testing.B, f *feed) {
	b.Helper()
	for _, pod := range c.pods {
		if err := f.pods.Add(pod); err != nil {
			b.Fatal(err)
		}
	}
	for _, pv := range c.volumes {
		if err := f.volumes.Add(pv); err != nil {
			b.Fatal(err)
		}
	}
}

// fold folds in the lists.
func (c *fullCluster) fold(b *testing.B, f *feed) {
	b.Helper()
	logger := klog.Background()
	for _, pod := range c.pods {
		f.foldObject(logger, pod)
	}
	for _, pv := range c.volumes {
		f.foldVolume(logger, pv)
	}
	if err := f.capacities.Replace(c.capacities, strconv.Itoa(len(c.capacities)+1)); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRebuild fills the ledger of a scheduler that has just started: 10,000 nodes with 100,000 volumes. Targets: 5
// s from when the lists are read, 150 MB of heap. The objects in the informers' stores are the scheduler's in any case
// and do not count. Those of the capacities are in no store.
func BenchmarkRebuild(b *testing.B) {
	const nodes = 10_000
	var took time.Duration
	var megabytes float64
	for b.Loop() {
		env := newBench(b, nil, nodeNames(nodes)...)
		c := newFullCluster(b, env, nodeNames(nodes), volumesANode)
		volumes := len(c.pods) + len(c.volumes)
		f := env.plugin.feed
		c.arrive(b, f)
		capacities := c.capacities
		c.capacities = nil
		before := heap()
		c.capacities = make([]any, len(capacities))
		for i := range capacities {
			c.capacities[i] = decoded(b, capacities[i].(*diskv1alpha1.NodeDiskCapacity))
		}
		start := time.Now()
		c.fold(b, f)
		took += time.Since(start)
		c.capacities = nil
		megabytes += (heap() - before) / 1e6
		runtime.KeepAlive(capacities)
		if s := f.ledger.Stats(); s.Nodes != nodes || s.Contradictory > 0 || volumes != nodes*volumesANode {
			b.Fatalf("%+v with %d volumes, want %d nodes with %d", s, volumes, nodes, nodes*volumesANode)
		}
		for _, pod := range []*corev1.Pod{c.pods[0], c.pods[len(c.pods)-1]} {
			if node, records := f.ledger.Records(string(pod.UID)); node != pod.Spec.NodeName || len(records) != 1 {
				b.Fatalf("pod %s has the records %v on node %q, want one on %s", pod.Name, records, node, pod.Spec.NodeName)
			}
		}
	}
	b.ReportMetric(took.Seconds()/float64(b.N), "s/rebuild")
	b.ReportMetric(megabytes/float64(b.N), "MB")
}

// heap is what is alive, in bytes.
func heap() float64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}

// clusterOf is a scheduler that knows a full cluster.
func clusterOf(b *testing.B, nodes int) *bench {
	env, _ := clusterWith(b, nodes, volumesANode)
	return env
}

func clusterWith(b *testing.B, nodes, volumesANode int) (*bench, *fullCluster) {
	b.Helper()
	env := newBench(b, nil, nodeNames(nodes)...)
	c := newFullCluster(b, env, nodeNames(nodes), volumesANode)
	c.arrive(b, env.plugin.feed)
	c.fold(b, env.plugin.feed)
	return env, c
}

// BenchmarkFilter runs Filter of pods on nodes one after the other: on fifty of 5000, as for narrowed pods, or on all.
// On all, what is read of a node is in no cache of the processor. An operation is one node. Target: 300 ns and no
// allocation.
func BenchmarkFilter(b *testing.B) {
	env := clusterOf(b, 5000)
	for _, bench := range []struct {
		name string
		pod  func(round int) *corev1.Pod
		on   int
		fits bool
	}{
		{"fifty nodes", func(round int) *corev1.Pod { return podOf("a", int64(1+round%90)) }, narrowTo, true},
		{"all nodes", func(round int) *corev1.Pod { return podOf("a", int64(1+round%90)) }, 5000, true},
		{"fifty nodes, three volumes", func(round int) *corev1.Pod {
			return withVolume(withVolume(podOf("a", int64(1+round%90)), "b", "20Gi", "ssd"), "c", "30Gi", "ssd")
		}, narrowTo, true},
		{"all nodes, no room", func(round int) *corev1.Pod { return podOf("a", int64(2000+round%90)) }, 5000, false},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var states []fwk.CycleState
			for round := range 90 {
				state := framework.NewCycleState()
				if _, status := env.plugin.PreFilter(env.ctx, state, bench.pod(round), env.nodes); !status.IsSuccess() {
					b.Fatal(status)
				}
				states = append(states, state)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				state, node := states[i/bench.on%len(states)], env.nodes[i%bench.on]
				if status := env.plugin.Filter(env.ctx, state, nil, node); status.IsSuccess() != bench.fits {
					b.Fatal(status)
				}
			}
		})
	}
}

// BenchmarkPreFilter runs PreFilter of pods with 5000 nodes. Target: 20 µs.
func BenchmarkPreFilter(b *testing.B) {
	env := clusterOf(b, 5000)
	env.claim(b, "wanted", "fast", 50, nil)
	for _, bench := range []struct {
		name   string
		pod    func(round int) *corev1.Pod
		narrow int
	}{
		{"plain pod", func(int) *corev1.Pod { return st.MakePod().Name("a").UID("a").Obj() }, 0},
		{"each pod asks for the same", func(int) *corev1.Pod { return podOf("a", 50) }, narrowTo},
		{"each pod asks for something else", func(round int) *corev1.Pod { return podOf("a", int64(1+round%90)) }, narrowTo},
		{"three volumes", func(round int) *corev1.Pod {
			return withVolume(withVolume(podOf("a", int64(1+round%90)), "b", "20Gi", "ssd"), "c", "30Gi", "ssd")
		}, narrowTo},
		{"claim", func(int) *corev1.Pod { return claimPod("a", "wanted") }, narrowTo},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var pods []*corev1.Pod
			for round := range 90 {
				pods = append(pods, bench.pod(round))
			}
			state := framework.NewCycleState()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				result, status := env.plugin.PreFilter(env.ctx, state, pods[i%len(pods)], env.nodes)
				if narrowed := result != nil; narrowed != (bench.narrow > 0) || narrowed && len(result.NodeNames) != bench.narrow {
					b.Fatal(result, status)
				}
			}
		})
	}
}

// BenchmarkPlainPod is the cost of a pod without disk volumes from its creation to its binding: each event and each
// call that the plugin gets for it.
func BenchmarkPlainPod(b *testing.B) {
	env := newBench(b, nil, "n1")
	p, logger := env.plugin, klog.Background()
	pod := st.MakePod().Namespace("default").Name("a").UID("a").Obj()
	state := framework.NewCycleState()
	b.ReportAllocs()
	for b.Loop() {
		p.feed.foldObject(logger, pod)
		p.PreEnqueue(env.ctx, pod)
		p.SignPod(env.ctx, pod)
		p.PreFilter(env.ctx, state, pod, env.nodes)
		p.PreScore(env.ctx, state, pod, env.nodes)
		p.Reserve(env.ctx, state, pod, "n1")
		if status := p.Bind(env.ctx, state, pod, "n1"); !status.IsSkip() {
			b.Fatal(status)
		}
		p.PostBind(env.ctx, state, pod, "n1")
		p.feed.foldObject(logger, pod)
	}
}

// BenchmarkFold folds in the decoded capacity of a node that makes a volume and removes it again. There are 10,000
// nodes and 100,000 volumes. Target: 10 µs.
func BenchmarkFold(b *testing.B) {
	env, c := clusterWith(b, 10_000, volumesANode)
	publish := c.publications(5000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		publish(b, env, i)
	}
}

// publications has a node publish its first volume when i is odd, and not when it is even.
func (c *fullCluster) publications(node int) func(b *testing.B, env *bench, i int) {
	with := c.capacities[node].(*diskv1alpha1.NodeDiskCapacity)
	without := with.DeepCopy()
	disk := &without.Status.Disks[0]
	disk.Free[0].Start, disk.Free[0].Length = disk.Allocations[0].Start, disk.Free[0].Length+11*units.GiB
	disk.Allocations = disk.Allocations[1:]
	return func(b *testing.B, env *bench, i int) {
		ndc := without
		if i%2 == 1 {
			ndc = with
		}
		ndc.ResourceVersion = strconv.Itoa(1_000_000 + i)
		if err := env.plugin.feed.capacities.Update(ndc); err != nil {
			b.Fatal(err)
		}
	}
}
