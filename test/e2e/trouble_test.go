package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/units"
)

// burst makes pods with a small volume each.
func (e *tenant) burst(name string, n int, class string) []*corev1.Pod {
	e.t.Helper()
	var pods []*corev1.Pod
	for i := range n {
		pods = append(pods, e.podOf(fmt.Sprintf("%s%d", name, i), volume("data", class, "64Mi", "ext4")))
	}
	e.create(pods...)
	return pods
}

// TestAgentKilled kills an agent again and again, while its pods are made and deleted. It asserts that the disks end up
// with the volumes of the pods and nothing else.
func TestAgentKilled(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	var keep, going []*corev1.Pod
	for round := range 3 {
		pods := e.burst(fmt.Sprintf("round%d-", round), 4, pair)
		e.eventually("pods are bound", func(ctx context.Context) error { return e.bound(ctx, pods...) })
		e.delete(going...)
		if err := e.cluster.KillAgent(pairNode); err != nil {
			t.Fatal(err)
		}
		e.delete(pods[0])
		if err := e.cluster.StartAgent(t.Context(), pairNode); err != nil {
			t.Fatal(err)
		}
		keep, going = append(keep, pods[2:]...), pods[1:2]
	}
	e.delete(going...)
	e.ready(keep...)
	mark := canary(e)
	for _, pod := range keep {
		e.asRecorded(pod, "data", e.find(pod, "data"))
	}
	e.write(keep[0], mark)
	e.eventually("only the volumes of the pods that stay are left", func(ctx context.Context) error { return e.volumesOf(ctx, len(keep)) })
	p := e.find(keep[0], "data")
	e.delete(keep...)
	e.gone(keep...)
	e.isFree(p)
	e.eventually("all is free", e.allFree)
	for _, d := range e.disksOf(pairNode) {
		if contains(t, d.File, whole(d), mark) {
			t.Errorf("%q is still on %s", mark, d.Path)
		}
	}
}

// bound returns nil when all of the pods have a node.
func (e *tenant) bound(ctx context.Context, pods ...*corev1.Pod) error {
	for _, pod := range pods {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
			return err
		}
		if pod.Spec.NodeName == "" {
			return fmt.Errorf("pod %s has no node", pod.Name)
		}
	}
	return nil
}

// volumesOf returns nil when the node for single tests has that many volumes.
func (e *tenant) volumesOf(ctx context.Context, want int) error {
	status, err := e.published(ctx, pairNode)
	if err != nil {
		return err
	}
	n := 0
	for _, d := range status.Disks {
		n += len(d.Allocations)
	}
	if n != want {
		return fmt.Errorf("%d volumes, want %d: %+v", n, want, status.Disks)
	}
	return nil
}

func (e *tenant) disksOf(node string) []cluster.Disk {
	e.t.Helper()
	n, err := e.cluster.Node(node)
	if err != nil {
		e.t.Fatal(err)
	}
	return n.Disks
}

// TestAgentDown asserts that running pods go on without the agent, also over a restart of the container. Volumes that
// are deleted meanwhile are wiped when it is back.
func TestAgentDown(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	stays, goes := e.podOf("stays", volume("data", pair, "64Mi", "ext4")), e.podOf("goes", volume("data", pair, "300Mi", "xfs"))
	e.create(stays, goes)
	e.ready(stays, goes)
	p, q := e.find(stays, "data"), e.find(goes, "data")
	mark := canary(e)
	e.write(goes, mark)
	if err := e.cluster.KillAgent(pairNode); err != nil {
		t.Fatal(err)
	}
	e.write(stays, mark)
	e.restart(stays)
	e.holds(stays, mark)
	late := e.podOf("late", volume("data", pair, "64Mi", ""))
	e.create(late)
	e.eventually("a pod is bound without the agent", func(ctx context.Context) error { return e.bound(ctx, late) })
	e.delete(goes)
	if err := e.cluster.StartAgent(t.Context(), pairNode); err != nil {
		t.Fatal(err)
	}
	e.gone(goes)
	e.isFree(q)
	e.ready(stays, late)
	e.asRecorded(late, "data", e.find(late, "data"))
	e.holds(stays, mark)
	if again := e.find(stays, "data"); again.allocation != p.allocation {
		t.Errorf("the volume was %+v and is %+v", p.allocation, again.allocation)
	}
}

// TestKubeletRestarted asserts that data and mounts outlive the kubelet, and that a volume that it finds again is
// released like any other.
func TestKubeletRestarted(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pod := e.podOf("pod", volume("data", pair, "64Mi", "ext4"))
	e.create(pod)
	e.ready(pod)
	p := e.find(pod, "data")
	mark := canary(e)
	e.write(pod, mark)
	if err := e.cluster.RestartKubelet(t.Context(), pairNode); err != nil {
		t.Fatal(err)
	}
	e.ready(pod)
	e.eventually("the kubelet knows the pod", func(ctx context.Context) error {
		_, err := e.cluster.Kubectl(ctx, "exec", "--namespace", e.namespace, pod.Name, "--", "true")
		return err
	})
	e.holds(pod, mark)
	if n := restarts(pod); n != 0 {
		t.Errorf("the container was restarted %d times", n)
	}
	e.restart(pod)
	e.holds(pod, mark)
	other := e.podOf("other", volume("data", pair, "64Mi", "ext4"))
	e.create(other)
	e.ready(other)
	e.delete(pod)
	e.gone(pod)
	e.isFree(p)
}

// TestSchedulerKilled asserts that a scheduler that is killed in the middle of a burst has reserved nothing twice and
// forgotten nothing.
func TestSchedulerKilled(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pods := e.burst("first", 8, sector512)
	if err := e.cluster.KillScheduler(); err != nil {
		t.Fatal(err)
	}
	pods = append(pods, e.burst("second", 8, sector4096)...)
	if err := e.cluster.StartScheduler(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.ready(pods...)
	for _, pod := range pods {
		e.asRecorded(pod, "data", e.find(pod, "data"))
	}
}

// TestForceDeleted asserts that a pod that is removed from the API before its container has ended releases its volume,
// wiped.
func TestForceDeleted(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	pod := e.podOf("pod", volume("data", pair, "300Mi", "xfs"))
	e.create(pod)
	e.ready(pod)
	p := e.find(pod, "data")
	mark := canary(e)
	e.write(pod, mark)
	if err := e.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	if err := e.client.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); !apierrors.IsNotFound(err) {
		t.Fatalf("the pod is still there: %v", err)
	}
	e.isFree(p)
	if contains(t, p.machine.File, whole(p.machine), mark) {
		t.Errorf("%q is still on %s", mark, p.machine.Path)
	}

	// A pod that is deleted before it ever ran.
	pods := e.burst("hasty", 3, pair)
	e.eventually("pods are bound", func(ctx context.Context) error { return e.bound(ctx, pods...) })
	for _, pod := range pods {
		if err := e.client.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
			t.Fatal(err)
		}
	}
	e.eventually("all is free", e.allFree)
}

// TestDeviceVanishes asserts that a disk that vanishes affects no other disk, and is unchanged when it is back.
func TestDeviceVanishes(t *testing.T) {
	e := newTenant(t, sharedCluster(t))
	spread := func(name string) corev1.Volume {
		v := volume(name, pair, "64Mi", "ext4")
		v.CSI.VolumeAttributes[v1alpha1.AttributeSpread] = v1alpha1.SpreadDisk
		return v
	}
	// One of its volumes is on each disk.
	pod := e.podOf("pod", spread("data"), spread("more"))
	e.create(pod)
	e.ready(pod)
	lost, kept := e.find(pod, "more"), e.find(pod, "data")
	mark := canary(e)
	e.write(pod, mark)

	limit(t, lost.machine.Path, uint64(units.MiB))
	defer limit(t, lost.machine.Path, 0)
	state := func(want v1alpha1.DiskState) func(context.Context) error {
		return func(ctx context.Context) error {
			status, err := e.published(ctx, pairNode)
			if err != nil {
				return err
			}
			for _, d := range status.Disks {
				if d.ID == lost.disk.ID && d.State == want && (want == v1alpha1.DiskReady || d.Message != "" && len(d.Free) == 0) {
					return nil
				}
			}
			return fmt.Errorf("the disk is not %s: %+v", want, status.Disks)
		}
	}
	e.eventually("the disk is out of service", state(v1alpha1.DiskFailed))
	e.holds(pod, mark)
	other := e.podOf("other", volume("data", pair, "64Mi", "ext4"))
	e.create(other)
	e.ready(other)
	if p := e.find(other, "data"); p.disk.ID != kept.disk.ID {
		t.Errorf("a new volume is at %v", p)
	}
	apart := e.podOf("apart", spread("data"), spread("more"))
	e.create(apart)
	e.waits(apart)

	limit(t, lost.machine.Path, 0)
	e.eventually("the disk is in service again", state(v1alpha1.DiskReady))
	e.ready(pod, other, apart)
	if again := e.find(pod, "more"); again.allocation != lost.allocation {
		t.Errorf("the volume was %+v and is %+v", lost.allocation, again.allocation)
	}
	e.delete(pod)
	e.gone(pod)
	e.isFree(lost)
	e.isFree(kept)
}

// limit makes a loop device end after that many bytes, or restores all of its file with 0. It is the closest simulation
// of a vanished disk while the device is held.
func limit(t *testing.T, device string, size uint64) {
	t.Helper()
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	info.Sizelimit = size
	// The kernel returns EAGAIN while it has pages of the device to write.
	err = cluster.Eventually(context.Background(), patience, func(context.Context) error {
		err := unix.IoctlLoopSetStatus64(int(loop.Fd()), info)
		if errors.Is(err, unix.EAGAIN) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
