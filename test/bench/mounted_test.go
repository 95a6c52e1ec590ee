package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

const (
	mounts     = 100
	volumeSize = units.GiB
)

// BenchmarkRequestToMounted compares the time that a pod waits with the least possible work, on a disk of the same
// kind, alternately. That work is done by hand. It writes a partition table once (two copies, a barrier behind each),
// adds the partition to the kernel's, and runs mkfs and mount(2). Berth's time begins when a watch shows the pod as
// bound, which is when the agent sees it. The kubelet's call comes at once, with nothing prepared.
func BenchmarkRequestToMounted(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithTimeoutCause(b.Context(), 10*time.Minute, fmt.Errorf("the benchmark took over 10 minutes"))
		defer cancel()
		n := newAgentNode(ctx, b, 1, 8*units.GiB)
		spare, err := n.cluster.Node(spareNode)
		n.must(err)
		hand := newHand(n, spare.Disks[0].Path)
		for _, fsType := range []string{diskv1alpha1.FSTypeExt4, diskv1alpha1.FSTypeXFS} {
			var floor, berth []time.Duration
			for i := range mounts + 1 {
				f, m := hand.mount(fsType), n.mount(ctx, fsType, i)
				// For the first of each all caches are empty.
				if i > 0 {
					floor, berth = append(floor, f), append(berth, m)
				}
			}
			slices.Sort(floor)
			slices.Sort(berth)
			report := func(what string, value float64) { b.ReportMetric(value, fsType+"-"+what) }
			report("floor-ms", milliseconds(floor[len(floor)/2]))
			report("berth-ms", milliseconds(berth[len(berth)/2]))
			report("berth/floor", ratio(berth[len(berth)/2], floor[len(floor)/2]))
			report("berth-p99/p50", ratio(percentile(berth, 99), berth[len(berth)/2]))
			report("floor-p99/p50", ratio(percentile(floor, 99), floor[len(floor)/2]))
			b.Logf("%s of 1 GiB, %d of each: by hand %v median, %v best, %v at the 99th percentile; Berth %v median, %v best, %v at the 99th percentile (target: 3 medians)",
				fsType, mounts, floor[len(floor)/2], floor[0], percentile(floor, 99), berth[len(berth)/2], berth[0], percentile(berth, 99))
		}
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func ratio(a, b time.Duration) float64     { return float64(a) / float64(b) }

func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)-1)*p/100]
}

// mount mounts the volume of one pod, and deletes the pod again.
func (n *agentNode) mount(ctx context.Context, fsType string, i int) time.Duration {
	n.tb.Helper()
	status := n.status(ctx, "all space is free", func(s *diskv1alpha1.NodeDiskCapacityStatus) bool { return s.Summary.Volumes == 0 })
	disk := status.Disks[0]
	place := &diskv1alpha1.RecordVolume{Name: "data", Disk: disk.ID, Extent: diskv1alpha1.Extent{Start: disk.Free[0].Start, Length: volumeSize}}
	target := filepath.Join(n.dir, "target")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := fmt.Sprintf("%s-%d", fsType, i)
	bound := n.watchBound(ctx, name)
	pod := n.pod(ctx, name, volumeSize, fsType, place)
	begin := testenv.Receive(n.tb, "the pod's binding", bound)
	n.must(n.publish(ctx, pod, target))
	took := time.Since(begin)
	n.unpublish(ctx, pod, target)
	n.remove(ctx, pod)
	n.wiped()
	return took
}

// watchBound sends the time at which the pod was seen as bound.
func (n *agentNode) watchBound(ctx context.Context, name string) <-chan time.Time {
	n.tb.Helper()
	watching, err := client.NewWithWatch(n.cluster.RESTConfig(), client.Options{})
	n.must(err)
	w, err := watching.Watch(ctx, &corev1.PodList{}, client.InNamespace(metav1.NamespaceDefault), client.MatchingFields{"metadata.name": name})
	n.must(err)
	bound := make(chan time.Time, 1)
	go func() {
		defer w.Stop()
		for event := range w.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
				bound <- time.Now()
				return
			}
		}
	}()
	return bound
}

// hand does the agent's work by hand, on its own disk.
type hand struct {
	n      *agentNode
	path   string
	target string
	size   int64
	disk   *os.File
}

func newHand(n *agentNode, path string) *hand {
	n.tb.Helper()
	h := &hand{n: n, path: path, target: filepath.Join(n.dir, "by-hand")}
	n.must(os.Mkdir(h.target, 0o750))
	var err error
	h.disk, err = os.OpenFile(path, os.O_RDWR, 0)
	n.must(err)
	n.tb.Cleanup(func() { h.disk.Close() })
	h.size, err = h.disk.Seek(0, 2)
	n.must(err)
	return h
}

func (h *hand) mount(fsType string) time.Duration {
	h.n.tb.Helper()
	const start = 2 * units.MiB
	partition := h.path + "p1"
	// The agent writes this for 1024 entries: an array of 128 KiB and a header, twice.
	table := bytes.Repeat([]byte{1}, 128<<10+512)
	program, arguments := "mkfs.ext4", []string{"-q", "-F", "-m0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", partition}
	if fsType == diskv1alpha1.FSTypeXFS {
		program, arguments = "mkfs.xfs", []string{"-q", "-f", "-K", partition}
	}

	begin := time.Now()
	for _, at := range []int64{h.size - int64(len(table)), 512} {
		_, err := h.disk.WriteAt(table, at)
		h.n.must(err)
		h.n.must(h.disk.Sync())
	}
	h.n.must(h.blkpg(unix.BLKPG_ADD_PARTITION, start, volumeSize))
	if out, err := exec.Command(program, arguments...).CombinedOutput(); err != nil {
		h.n.tb.Fatalf("%s: %v: %s", program, err, out)
	}
	h.n.must(unix.Mount(partition, h.target, fsType, 0, ""))
	took := time.Since(begin)

	h.n.must(unix.Unmount(h.target, 0))
	h.n.must(h.blkpg(unix.BLKPG_DEL_PARTITION, 0, 0))
	// The agent's wipe leaves the extent like this.
	h.n.must(unix.Fallocate(int(h.disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, start, volumeSize))
	h.n.must(h.disk.Sync())
	return took
}

// blkpg adds or removes partition 1.
func (h *hand) blkpg(op int32, start, length int64) error {
	partition := unix.BlkpgPartition{Start: start, Length: length, Pno: 1}
	argument := unix.BlkpgIoctlArg{Op: op, Datalen: int32(unsafe.Sizeof(partition)), Data: (*byte)(unsafe.Pointer(&partition))}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, h.disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&argument))); errno != 0 {
		return fmt.Errorf("BLKPG %d on %s: %w", op, h.path, errno)
	}
	return nil
}
