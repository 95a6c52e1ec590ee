package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	manyVolumes = 1000
	// manyTarget is the target for the median volume. manySlope is how much slower the last hundred may be than the
	// first.
	manyTarget = 50 * time.Millisecond
	manySlope  = 2.0
)

// BenchmarkThousandVolumes fills a disk of 1 TiB with volumes of 1 GiB, which stay mounted, and wipes them all at the
// end. Most of them have no partition number. The time of each is measured like in BenchmarkRequestToMounted: from the
// watch's event of the bound pod to the end of the CSI call.
func BenchmarkThousandVolumes(b *testing.B) {
	for b.Loop() {
		testenv.RemoveNewLoops(b)
		ctx, cancel := context.WithTimeoutCause(b.Context(), 20*time.Minute, fmt.Errorf("the benchmark took over 20 minutes"))
		defer cancel()
		n := newAgentNode(ctx, b, 1, 1024*units.GiB)
		free := n.status(ctx, "the disk is published", func(s *diskv1alpha1.NodeDiskCapacityStatus) bool { return len(s.Disks[0].Free) == 1 })
		bound := n.watchAllBound(ctx)
		var pods []*corev1.Pod
		var took []time.Duration
		target := func(i int) string { return filepath.Join(n.dir, fmt.Sprintf("target%d", i)) }
		// Nothing stays mounted, also after a failure.
		b.Cleanup(func() {
			for i := range manyVolumes {
				_ = unix.Unmount(target(i), unix.MNT_DETACH)
			}
		})
		for i := range manyVolumes {
			place := &diskv1alpha1.RecordVolume{Name: "data", Disk: free.Disks[0].ID, Extent: diskv1alpha1.Extent{
				Start: free.Disks[0].Free[0].Start + int64(i)*volumeSize, Length: volumeSize,
			}}
			pod := n.pod(ctx, fmt.Sprintf("many-%d", i), volumeSize, diskv1alpha1.FSTypeExt4, place)
			begin := bound(pod.Name)
			n.must(n.publish(ctx, pod, target(i)))
			took = append(took, time.Since(begin))
			pods = append(pods, pod)
		}
		n.reportMany(b, took)

		begin := time.Now()
		var group errgroup.Group
		group.SetLimit(8)
		for i, pod := range pods {
			group.Go(func() error {
				n.unpublish(ctx, pod, target(i))
				return nil
			})
		}
		n.must(group.Wait())
		for _, pod := range pods {
			n.remove(ctx, pod)
		}
		ndc := &diskv1alpha1.NodeDiskCapacity{}
		n.must(cluster.Eventually(ctx, 10*time.Minute, func(ctx context.Context) error {
			if err := n.client.Get(ctx, client.ObjectKey{Name: n.name}, ndc); err != nil {
				return err
			}
			if left := ndc.Status.Summary.Volumes; left > 0 {
				return fmt.Errorf("%d volumes are left", left)
			}
			return nil
		}))
		b.ReportMetric(float64(manyVolumes)/time.Since(begin).Seconds(), "wiped/s")
		b.Logf("%d volumes unmounted, wiped and published as free in %v", manyVolumes, time.Since(begin).Round(time.Millisecond))
	}
}

// watchAllBound returns a function that waits for a pod and returns the time at which it was seen as bound. It must be
// called for one pod after the other, in the order of their creation.
func (n *agentNode) watchAllBound(ctx context.Context) func(name string) time.Time {
	n.tb.Helper()
	watching, err := client.NewWithWatch(n.cluster.RESTConfig(), client.Options{})
	n.must(err)
	w, err := watching.Watch(ctx, &corev1.PodList{}, client.InNamespace(metav1.NamespaceDefault))
	n.must(err)
	n.tb.Cleanup(w.Stop)
	type sighting struct {
		name string
		at   time.Time
	}
	seen := make(chan sighting, 8*manyVolumes) // never blocks: that would make later times late
	go func() {
		defer close(seen)
		for event := range w.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && pod.Spec.NodeName != "" && event.Type == watch.Modified {
				select {
				case seen <- sighting{pod.Name, time.Now()}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return func(name string) time.Time {
		for s := range seen {
			if s.name == name {
				return s.at
			}
		}
		n.tb.Fatalf("the watch ended before pod %s was bound", name)
		return time.Time{}
	}
}

// reportMany prints the medians of each hundred.
func (n *agentNode) reportMany(b *testing.B, took []time.Duration) {
	b.Helper()
	var hundreds []time.Duration
	for part := range slices.Chunk(took, 100) {
		part = slices.Sorted(slices.Values(part))
		hundreds = append(hundreds, part[len(part)/2].Round(10*time.Microsecond))
	}
	all := slices.Sorted(slices.Values(took))
	median, slope := all[len(all)/2], ratio(hundreds[len(hundreds)-1], hundreds[0])
	b.ReportMetric(milliseconds(median), "volume-ms")
	b.ReportMetric(ratio(percentile(all, 99), median), "p99/p50")
	b.ReportMetric(slope, "last/first-hundred")
	b.Logf("%d volumes of 1 GiB on one disk: %v median (target %v), %v best, %v at the 99th percentile; last hundred against the first %.2f (target %.1f); medians of each hundred: %v",
		len(took), median, manyTarget, all[0], percentile(all, 99), slope, manySlope, hundreds)
}
