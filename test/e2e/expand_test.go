package e2e

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/units"
)

// TestExpandMounted asserts that an xfs volume grows under the running pod.
func TestExpandMounted(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", ssd, "400Mi")
	pod := e.podOf("pod", claimed("data", pvc))
	_, before, mark := e.fill(pod, pvc)
	e.expand(pvc, "800Mi")
	e.hasGrown(pvc, 800*units.MiB)
	e.event(pvc, "FileSystemResizeRequired")
	e.event(pod, "FileSystemResizeSuccessful")
	e.noWarnings()
	after := e.findVolume(e.boundTo(pvc))
	if after.allocation.Start != before.allocation.Start || after.allocation.Length != 800*units.MiB {
		t.Errorf("the volume was %+v, is %+v", before.allocation, after.allocation)
	}
	e.holds(pod, mark)
	if _, size := e.mounted(pod); size < 700*units.MiB {
		t.Errorf("the pod has %d bytes", size)
	}
	if n := restarts(pod); n != 0 {
		t.Errorf("the container was restarted %d times", n)
	}
	e.isPartition(e.device(pod, "/data"), "xfs", after)
	e.delete(pod)
	e.unmake(pvc)
	e.gone(pod)
	e.wiped(e.volumeOf(pvc), after, mark)
}

// TestExpandAtNextMount asserts that an ext4 volume whose pod is gone grows when the next one mounts it.
func TestExpandAtNextMount(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.claim("data", hdd, "200Mi")
	pod := e.podOf("first", claimed("data", pvc))
	_, before, mark := e.fill(pod, pvc)
	e.delete(pod)
	e.gone(pod)
	e.expand(pvc, "600Mi")
	e.eventually("the claim waits for its file system", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		for _, c := range pvc.Status.Conditions {
			if c.Type == corev1.PersistentVolumeClaimFileSystemResizePending && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", pvc.Status)
	})
	next := e.podOf("second", claimed("data", pvc))
	e.create(next)
	e.ready(next)
	e.hasGrown(pvc, 600*units.MiB)
	after := e.findVolume(e.boundTo(pvc))
	if after.allocation.Start != before.allocation.Start || after.allocation.Length != 600*units.MiB {
		t.Errorf("the volume was %+v, is %+v", before.allocation, after.allocation)
	}
	e.holds(next, mark)
	if _, size := e.mounted(next); size < 500*units.MiB {
		t.Errorf("the pod has %d bytes", size)
	}
}

// TestExpandBlock asserts that a raw volume grows under the running pod.
func TestExpandBlock(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pvc := e.blockClaim("raw", ssd, "100Mi")
	pod := e.podOf("pod", claimed("raw", pvc))
	asDevice(pod)
	e.make(pvc)
	e.create(pod)
	e.ready(pod)
	e.boundTo(pvc)
	e.exec(pod, "yes hello | dd of=/dev/raw bs=1M count=100 iflag=fullblock conv=fsync 2>/dev/null")
	e.expand(pvc, "300Mi")
	e.hasGrown(pvc, 300*units.MiB)
	e.event(pvc, "VolumeResizeSuccessful")
	e.noWarnings()
	out := e.exec(pod, "blockdev --getsize64 /dev/raw; head -n 1 /dev/raw; tail -c 209715200 /dev/raw | od -A n -t x1 | sort -u")
	if want := []string{strconv.FormatInt(300*units.MiB, 10), "hello", "00 00"}; lacks(out, want) != "" || strings.Count(out, "\n") > 3 {
		t.Errorf("the pod's device is %q, want %q", out, want)
	}
}

// TestExpandTooFar asserts that a claim that requests more than its disk has does not change. Its status says how much
// it could have, and it grows where it is when there is room.
func TestExpandTooFar(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	first, behind := e.neighbors()
	mark := canary(e)
	e.write(first.pod, mark)
	e.expand(first.pvc, "500Gi")
	e.event(first.pvc, "VolumeResizeFailed", "500Gi", "nothing is free behind it", "the largest free extent of the disk")
	e.expand(behind.pvc, "500Gi")
	e.event(behind.pvc, "VolumeResizeFailed", "cannot grow to 500Gi, to", "at most")
	for _, c := range []*corev1.PersistentVolumeClaim{first.pvc, behind.pvc} {
		e.cannotGrow(c)
	}
	e.delete(behind.pod)
	e.unmake(behind.pvc)
	e.wiped(e.volumeOf(behind.pvc), behind.at)
	e.expand(first.pvc, "600Mi")
	e.hasGrown(first.pvc, 600*units.MiB)
	e.holds(first.pod, mark)
	if _, size := e.mounted(first.pod); size < 500*units.MiB {
		t.Errorf("the pod has %d bytes", size)
	}
}

// TestExpandByMove asserts that a volume with another behind it is moved when its pod is started again. Until then the
// pod runs on, and the claim says what to do. The volume keeps its data, and its earlier place is wiped.
func TestExpandByMove(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	first, _ := e.neighbors()
	pvc, pod := first.pvc, first.pod
	mark := canary(e)
	e.write(pod, mark)
	e.expand(pvc, "600Mi")
	e.event(pvc, "FileSystemResizeRequired", "The volume gets 600Mi elsewhere", "delete the pod and start it again")
	e.saysRestart(pvc)
	e.holds(pod, mark)
	if n := restarts(pod); n != 0 {
		t.Errorf("the container was restarted %d times", n)
	}
	e.delete(pod)
	e.gone(pod)
	next := e.podOf("second", claimed("data", pvc))
	e.create(next)
	e.ready(next)
	e.hasGrown(pvc, 600*units.MiB)
	e.holds(next, mark)
	if _, size := e.mounted(next); size < 500*units.MiB {
		t.Errorf("the pod has %d bytes", size)
	}
	e.event(pvc, "VolumeMoved")
	pv := e.boundTo(pvc)
	after := e.placeNow(pv)
	if after.allocation.Start == first.at.allocation.Start || after.disk.ID != first.at.disk.ID || after.allocation.Length != 600*units.MiB {
		t.Errorf("the volume was %+v of disk %s, is %+v of disk %s", first.at.allocation, first.at.disk.ID, after.allocation, after.disk.ID)
	}
	e.isPartition(e.device(next, "/data"), "xfs", after)
	e.eventually("the move is over", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pv), pv); err != nil {
			return err
		}
		if to := pv.Annotations[v1alpha1.AnnotationMoveTo]; to != "" {
			return fmt.Errorf("it is to be moved to %s", to)
		}
		return nil
	})
	e.isFree(first.at)
	if at, found := firstNonZero(t, first.at.machine.File, first.at.allocation.Extent); found {
		t.Errorf("the volume was moved, and there is a byte at %d of %v that is not zero", at, first.at)
	}
	e.delete(next)
	e.unmake(pvc)
	e.gone(next)
	e.wiped(pv, after, mark)
}

// user is a claim with its pod, and where its volume is.
type user struct {
	pvc *corev1.PersistentVolumeClaim
	pod *corev1.Pod
	at  place
}

// neighbors makes two pods with a claim of 400Mi each, whose volumes lie one behind the other.
func (e *tenant) neighbors() (first, behind user) {
	e.t.Helper()
	row := e.row(pattern{"xfs", ssd, v1alpha1.FSTypeXFS}, "400Mi", "data", "behind")
	return row[0], row[1]
}

// cannotGrow waits until the claim's status says why it does not change.
func (e *tenant) cannotGrow(pvc *corev1.PersistentVolumeClaim) {
	e.t.Helper()
	e.eventually("claim "+pvc.Name+" says that it cannot grow", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		for _, c := range pvc.Status.Conditions {
			if c.Type == corev1.PersistentVolumeClaimControllerResizeError && strings.Contains(c.Message, "cannot grow") {
				e.t.Logf("claim %s: %s", pvc.Name, c.Message)
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", pvc.Status)
	})
	if capacity := pvc.Status.Capacity[corev1.ResourceStorage]; capacity.Value() != 400*units.MiB {
		e.t.Errorf("claim %s could not grow, and has %s", pvc.Name, capacity.String())
	}
}

// expand requests a larger size.
func (e *tenant) expand(pvc *corev1.PersistentVolumeClaim, size string) {
	e.t.Helper()
	before := pvc.DeepCopy()
	pvc.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse(size)
	if err := e.client.Patch(e.t.Context(), pvc, client.MergeFrom(before)); err != nil {
		e.t.Fatalf("expand claim %s to %s: %v", pvc.Name, size, err)
	}
}

// hasGrown waits until the claim has its size and nothing is pending.
func (e *tenant) hasGrown(pvc *corev1.PersistentVolumeClaim, size int64) {
	e.t.Helper()
	e.eventually("claim "+pvc.Name+" has grown", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		capacity := pvc.Status.Capacity[corev1.ResourceStorage]
		if capacity.Value() != size || len(pvc.Status.Conditions) > 0 || len(pvc.Status.AllocatedResourceStatuses) > 0 {
			return fmt.Errorf("its status is %+v", pvc.Status)
		}
		return nil
	})
	pv := e.boundTo(pvc)
	if capacity := pv.Spec.Capacity[corev1.ResourceStorage]; capacity.Value() != size {
		e.t.Errorf("volume %s has capacity %s, want %d", pv.Name, capacity.String(), size)
	}
	// No component waits for that, so the node publishes it after a second.
	e.eventually("volume "+pv.Name+" is published with its new size", func(ctx context.Context) error {
		status, err := e.published(ctx, pv.Labels[v1alpha1.LabelNode])
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			for _, a := range d.Allocations {
				if a.Volume == pv.Spec.CSI.VolumeHandle && a.Length == size {
					return nil
				}
			}
		}
		return fmt.Errorf("the node has published %+v", status.Disks)
	})
}

// volumeOf is the PersistentVolume that the claim had when it was read last.
func (e *tenant) volumeOf(pvc *corev1.PersistentVolumeClaim) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{}
	pv.Name = pvc.Spec.VolumeName
	return pv
}
