package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// heldVolume is a volume whose pod is deleted, and that something else holds.
type heldVolume struct {
	what string
	pod  *corev1.Pod
	place
	// words are in the report about the holder.
	words []string
	// release ends the holder. It may be called more than once.
	release func()
	// reported is true when the condition names the holder, free when the space is published as free.
	reported, free bool
}

// holders asserts that a volume which something holds is not wiped, that its space is not free, and that its holder is
// reported. When the holder has released it, the volume is wiped once, before its space is free.
func holders(e *tenant) {
	t := e.t
	mark := canary(e)
	claim, pv, swap := e.swapped(mark)
	volumes := []*heldVolume{e.leakedLoop(mark), e.copiedMount(mark), e.writer(mark), swap}
	watcher, err := client.NewWithWatch(e.cluster.RESTConfig(), client.Options{Scheme: e.client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	seen, err := watcher.Watch(t.Context(), &v1alpha1.NodeDiskCapacityList{}, client.MatchingFields{"metadata.name": heldNode})
	if err != nil {
		t.Fatal(err)
	}
	defer seen.Stop()
	for _, v := range volumes {
		e.delete(v.pod)
	}
	e.unmake(claim)
	for _, v := range volumes {
		e.gone(v.pod)
	}

	e.follow(seen, volumes, "every holder is reported", func(v *heldVolume) bool { return v.reported })
	for _, v := range volumes {
		if v.free {
			t.Errorf("%s: the space is free while the volume is held", v.what)
		}
		if !contains(t, v.machine.File, v.allocation.Extent, mark) {
			t.Errorf("%s: the volume was wiped while it is held", v.what)
		}
		if n, messages := e.reportsOf("ReclaimBlocked", append(v.words, v.allocation.Partition)...); n == 0 {
			t.Errorf("%s: no event says what holds the volume: %q", v.what, messages)
		}
	}
	// Its claim is gone.
	e.event(pv, "ReclaimBlocked", swap.words...)

	for _, v := range volumes {
		v.release()
	}
	e.follow(seen, volumes, "every volume is free", func(v *heldVolume) bool { return v.free })
	for _, v := range volumes {
		e.isFree(v.place)
		if contains(t, v.machine.File, whole(v.machine), mark) {
			t.Errorf("%s: %q is still on %s", v.what, mark, v.machine.Path)
		}
		e.eventually(v.what+": one wipe is reported", func(context.Context) error {
			if n, messages := e.reportsOf("VolumeWiped", v.allocation.Partition); n != 1 {
				return fmt.Errorf("%d are: %q", n, messages)
			}
			return nil
		})
	}
	if n, messages := e.reportsOf("VolumeNotWiped"); n > 0 {
		t.Errorf("wipes have failed: %q", messages)
	}
	e.eventually("no volume is reported as held", func(ctx context.Context) error {
		status, err := e.published(ctx, heldNode)
		if err == nil && !meta.IsStatusConditionFalse(status.Conditions, v1alpha1.ConditionReclaimBlocked) {
			err = fmt.Errorf("conditions are %+v", status.Conditions)
		}
		return err
	})
}

// follow checks everything that the node publishes until all volumes are as wanted. Space that is published as free
// must be zero at that moment.
func (e *tenant) follow(seen watch.Interface, volumes []*heldVolume, what string, done func(*heldVolume) bool) {
	e.t.Helper()
	// A holder is reported after a minute, at the next try, which is at most half a minute later.
	deadline := time.After(2 * patience)
	for {
		var left []string
		for _, v := range volumes {
			if !done(v) {
				left = append(left, v.what)
			}
		}
		if len(left) == 0 {
			return
		}
		select {
		case event := <-seen.ResultChan():
			ndc, ok := event.Object.(*v1alpha1.NodeDiskCapacity)
			if !ok {
				e.t.Fatalf("the watch says %v", event)
			}
			for _, v := range volumes {
				v.look(e, &ndc.Status)
			}
		case <-deadline:
			e.t.Fatalf("%s: not so of %s", what, strings.Join(left, ", "))
		}
	}
}

// look notes the volume's state in the published status.
func (v *heldVolume) look(e *tenant, s *v1alpha1.NodeDiskCapacityStatus) {
	e.t.Helper()
	c := meta.FindStatusCondition(s.Conditions, v1alpha1.ConditionReclaimBlocked)
	if c != nil && c.Status == metav1.ConditionTrue && lacks(c.Message, append(v.words, v.allocation.Partition)) == "" {
		v.reported = true
	}
	for _, d := range s.Disks {
		for _, f := range d.Free {
			x := v.allocation.Extent
			if v.free || d.ID != v.disk.ID || f.Start >= x.Start+x.Length || x.Start >= f.Start+f.Length {
				continue
			}
			v.free = true
			if at, found := firstNonZero(e.t, v.machine.File, x); found {
				e.t.Errorf("%s: the space is published as free, and has a byte at %d that is not zero", v.what, at)
			}
		}
	}
}

// reportsOf returns the node's events with that reason and all of the words, and how often they were reported.
func (e *tenant) reportsOf(reason string, words ...string) (n int, messages []string) {
	e.t.Helper()
	events := &corev1.EventList{}
	if err := e.client.List(e.t.Context(), events, client.InNamespace(metav1.NamespaceDefault)); err != nil {
		e.t.Fatal(err)
	}
	for _, event := range events.Items {
		about := event.InvolvedObject
		if about.Kind != "NodeDiskCapacity" || about.Name != heldNode || event.Reason != reason {
			continue
		}
		messages = append(messages, event.Message)
		if lacks(event.Message, words) == "" {
			n += max(1, int(event.Count))
		}
	}
	return n, messages
}

// mountedVolume is a pod with a volume that contains the mark.
func (e *tenant) mountedVolume(name, mark string) *heldVolume {
	e.t.Helper()
	pod := e.podOf(name, volume("data", held, "48Mi", v1alpha1.FSTypeExt4))
	e.create(pod)
	e.ready(pod)
	e.write(pod, mark)
	return &heldVolume{what: name, pod: pod, place: e.find(pod, "data")}
}

// endsBy sets how the holder releases the volume, at the end of the test at the latest.
func (v *heldVolume) endsBy(e *tenant, release func()) {
	v.release = sync.OnceFunc(release)
	e.t.Cleanup(v.release)
}

// leakedLoop has a loop device over the volume, as a kubelet may leave one.
func (e *tenant) leakedLoop(mark string) *heldVolume {
	e.t.Helper()
	v := e.mountedVolume("leaked-loop", mark)
	loop := strings.TrimSpace(testenv.Run(e.t, "losetup", "--find", "--show", e.partition(v.place)))
	v.words = []string{"loop device " + filepath.Base(loop) + " lies on it"}
	v.endsBy(e, func() { testenv.Run(e.t, "losetup", "--detach", loop) })
	return v
}

// copiedMount has a pod that monitors the node, with a copy of the volume's mount.
func (e *tenant) copiedMount(mark string) *heldVolume {
	e.t.Helper()
	v := e.mountedVolume("copied-mount", mark)
	observer := e.podOf("observer", corev1.Volume{Name: "observed", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: fmt.Sprintf("/var/lib/kubelet/pods/%s/volumes/kubernetes.io~csi/data/mount", v.pod.UID)},
	}})
	observer.Spec.NodeSelector = map[string]string{corev1.LabelHostname: heldNode}
	e.create(observer)
	e.ready(observer)
	v.words = []string{"it is mounted at /observed in the mount namespace of process", "of pod " + string(observer.UID)}
	v.endsBy(e, func() {
		if err := e.client.Delete(context.Background(), observer); err != nil {
			e.t.Error(err)
		}
	})
	return v
}

// writer is this process, which writes to the volume's device all the time.
func (e *tenant) writer(mark string) *heldVolume {
	e.t.Helper()
	v := e.mountedVolume("writer", mark)
	device, err := os.OpenFile(e.partition(v.place), os.O_WRONLY, 0)
	if err != nil {
		e.t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		stopped <- func() error {
			for {
				select {
				case <-stop:
					return device.Close()
				case <-time.After(100 * time.Millisecond):
				}
				// The last MiB: at first the file system is still mounted.
				if _, err := device.WriteAt([]byte(mark), v.allocation.Length-units.MiB); err != nil {
					return errors.Join(err, device.Close())
				}
				if err := device.Sync(); err != nil {
					return errors.Join(err, device.Close())
				}
			}
		}()
	}()
	v.words = []string{fmt.Sprintf("process %d", os.Getpid()), "has it open for writing"}
	v.endsBy(e, func() {
		close(stop)
		if err := testenv.Receive(e.t, "the end of the writer", stopped); err != nil {
			e.t.Errorf("writing to %s: %v", device.Name(), err)
		}
	})
	return v
}

// swapped is a raw block volume that the kernel uses as swap space, because of what its pod wrote.
func (e *tenant) swapped(mark string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, *heldVolume) {
	e.t.Helper()
	claim := e.blockClaim("raw", held, "48Mi")
	pod := e.podOf("swap", claimed("raw", claim))
	asDevice(pod)
	e.make(claim)
	e.create(pod)
	e.ready(pod)
	pv := e.boundTo(claim)
	v := &heldVolume{what: "swap", pod: pod, place: e.findVolume(pv)}
	e.exec(pod, "yes "+mark+" | dd of=/dev/raw bs=1M count=4 iflag=fullblock conv=fsync 2>/dev/null; mkswap /dev/raw")
	device := e.partition(v.place)
	testenv.Run(e.t, "swapon", "--priority=0", device)
	v.words = []string{"it is used as swap"}
	v.endsBy(e, func() { testenv.Run(e.t, "swapoff", device) })
	return claim, pv, v
}
