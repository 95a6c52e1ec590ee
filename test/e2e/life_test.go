package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestLife follows a volume from the pod's creation to the wiped extent, from within the pod, from its node, and from
// the API.
func TestLife(t *testing.T) {
	c := sharedCluster(t)
	for class, sector := range map[string]int{sector512: 512, sector4096: 4096} {
		for _, fsType := range []string{v1alpha1.FSTypeExt4, v1alpha1.FSTypeXFS} {
			t.Run(fmt.Sprintf("%s/%d", fsType, sector), func(t *testing.T) {
				t.Parallel()
				life(newTenant(t, c), class, sector, fsType)
			})
		}
	}
}

func life(e *tenant, class string, sector int, fsType string) {
	t := e.t
	const size = 400 * units.MiB
	pod := e.podOf("life", volume("data", class, "400Mi", fsType))
	e.create(pod)
	e.ready(pod)
	p := e.find(pod, "data")
	e.asRecorded(pod, "data", p)
	if p.allocation.Length != size || p.allocation.Owner != e.namespace+"/life" || p.allocation.Volume != v1alpha1.InlineVolumeID(pod.UID, "data") {
		t.Errorf("published is %+v", p.allocation)
	}
	if p.disk.Class != class || p.disk.SectorSize != int32(sector) || p.machine.SectorSize != sector {
		t.Errorf("the disk is %+v", p.disk)
	}
	device := e.device(pod, "/data")
	e.isPartition(device, fsType, p)
	sizeInside(e, pod, device, size)

	mark := canary(e)
	e.write(pod, mark)
	if !contains(t, p.machine.File, p.allocation.Extent, mark) {
		t.Fatalf("what the pod wrote is not at %v", p)
	}
	e.restart(pod)
	e.holds(pod, mark)
	if out := e.exec(pod, "wc -l < /data/starts"); out != "2" {
		t.Errorf("the container has noted %s starts on its volume, want 2", out)
	}
	if again := e.device(pod, "/data"); again != device {
		t.Errorf("the restarted container has %s, the first had %s", again, device)
	}

	e.delete(pod)
	e.gone(pod)
	e.isFree(p)
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("what the pod wrote is still on %s", p.machine.Path)
	}
}

// sizeInside asserts that df shows about the requested size: the file system needs some of it for itself (xfs a log of
// 64 MiB).
func sizeInside(e *tenant, pod *corev1.Pod, device string, size int64) {
	e.t.Helper()
	shown, got := e.mounted(pod)
	if shown != device {
		e.t.Fatalf("df shows device %s, want %s", shown, device)
	}
	if got > size || got < size*4/5 {
		e.t.Errorf("df shows %d bytes, asked for were %d", got, size)
	}
}

// mounted returns the device that the pod has on /data, and the size of its file system.
func (e *tenant) mounted(pod *corev1.Pod) (device string, size int64) {
	e.t.Helper()
	lines := strings.Split(e.exec(pod, "df -k /data"), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if len(fields) < 2 {
		e.t.Fatalf("df says %q", lines)
	}
	kib, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		e.t.Fatal(err)
	}
	return fields[0], kib << 10
}

// TestNothingOfThePast asserts that a pod that gets the extent of another one's volume finds nothing of it, neither in
// the file system nor below it.
func TestNothingOfThePast(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	first := e.podOf("first", volume("data", pair, "300Mi", "ext4"))
	e.create(first)
	e.ready(first)
	before := e.find(first, "data")
	mark := canary(e)
	e.write(first, mark)
	e.delete(first)
	// At once: the wipe may still be in progress when it is created.
	second := e.podOf("second", volume("data", pair, "300Mi", "ext4"))
	e.create(second)
	e.ready(second)
	if p := e.find(second, "data"); p.allocation.Partition == before.allocation.Partition {
		t.Errorf("both pods have partition %s", p.allocation.Partition)
	}
	if out := e.exec(second, "find /data ! -name lost+found ! -name starts"); out != "/data" {
		t.Errorf("the new pod finds %q", out)
	}
	e.isFreeOrOthers(before, mark)

	// Again, with nothing in between: the same request gets the same place.
	e.delete(second)
	e.gone(second)
	e.eventually("the volumes are gone", e.allFree)
	third := e.podOf("third", volume("data", pair, "300Mi", "ext4"))
	e.create(third)
	e.ready(third)
	p := e.find(third, "data")
	if p.allocation.Extent != before.allocation.Extent || p.disk.ID != before.disk.ID {
		t.Errorf("the first volume was at %v, the third is at %v: this test has shown nothing", before, p)
	}
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("what the first pod wrote is on the disk of the third")
	}
	if out := e.exec(third, "find /data ! -name lost+found ! -name starts"); out != "/data" {
		t.Errorf("the new pod finds %q", out)
	}
}

// isFreeOrOthers waits until the volume is not published any more, and asserts that nothing of it is left on the disk.
func (e *tenant) isFreeOrOthers(p place, mark string) {
	e.t.Helper()
	e.released(p)
	if contains(e.t, p.machine.File, whole(p.machine), mark) {
		e.t.Errorf("%q is still on %s", mark, p.machine.Path)
	}
}

// TestCompleted asserts that a completed pod releases its volume, although the pod still exists.
func TestCompleted(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	mark := canary(e)
	pod := e.podOf("job", volume("data", pair, "300Mi", "ext4"))
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Command = []string{"sh", "-c", "yes " + mark + " | head -c 4000000 > /data/file && sync /data/file"}
	e.create(pod)
	e.eventually("the pod has succeeded", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("it is %s", pod.Status.Phase)
		}
		return nil
	})
	e.eventually("its volume is gone", e.allFree)
	for _, d := range e.disksOf(pairNode) {
		if contains(t, d.File, whole(d), mark) {
			t.Errorf("what it wrote is still on %s", d.Path)
		}
	}
	// The scheduler knows, too: these pods need what the first pod had.
	for _, name := range []string{"one", "two"} {
		next := e.podOf(name, volume("data", pair, "2000Mi", ""))
		e.create(next)
		e.ready(next)
	}
}

// TestRestricted asserts that pods under the strictest Pod Security level can use volumes without being root.
func TestRestricted(t *testing.T) {
	e := newTenant(t, sharedCluster(t), "pod-security.kubernetes.io/enforce=restricted")
	pod := e.podOf("pod", volume("data", pair, "64Mi", ""))
	restrict(pod, 1000, 2000)
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/part", SubPath: "sub/path"})
	e.create(pod)
	e.ready(pod)
	if out := e.exec(pod, "id -u; echo hello > /part/file; cat /data/sub/path/file; stat -c %g /data/sub/path/file; cat /data/starts"); out != "1000\nhello\n2000\nstarted" {
		t.Errorf("the pod says %q", out)
	}
}
