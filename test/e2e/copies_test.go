package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// raws are raw block volumes of pods on movedNode, beside the node's own disks. The kubelet puts a loop device over
// each of them, which a class selects.
type raws struct {
	*tenant
	// pods have the volumes. keeper has a file system on a disk that serves all the time.
	pods   []*corev1.Pod
	keeper *corev1.Pod
	// disks are the devices of the node's own disks, by their IDs.
	disks map[string]string
}

// copies asserts that a raw block volume never becomes a disk, for any content that its pod writes. The contents are
// nothing, a copy of one of the node's disks, and only that disk's table. The node's disks serve. The one that was
// copied serves again after it was missing, also after restarts of the agent.
func copies(e *tenant) {
	t := e.t
	r := &raws{tenant: e, disks: map[string]string{}}
	kept := canary(e)
	r.keeper = e.podOf("keeper", volume("data", large, "64Mi", v1alpha1.FSTypeExt4))
	claim := e.claim("data", small, "32Mi")
	user := e.podOf("user", claimed("data", claim))
	e.create(r.keeper)
	pv, p, mark := e.fill(user, claim)
	e.ready(r.keeper)
	e.write(r.keeper, kept)
	r.disks[p.disk.ID] = p.disk.Device
	onLarge := e.find(r.keeper, "data").disk
	r.disks[onLarge.ID] = onLarge.Device

	const folder = "/var/lib/forged"
	r.forge(p.machine, folder)
	for _, name := range []string{"copy", "table"} {
		r.pods = append(r.pods, r.rawPod(name, name, folder))
	}
	e.ready(r.pods...)
	e.make(ofSize(diskClass("some-loop", movedNode), smallSize))
	r.looked("while the volumes are blank", kept)
	for _, pod := range r.pods {
		place := e.findVolume(e.boundTo(e.claim(pod.Name, large, "61Mi")))
		if at, found := firstNonZero(t, place.machine.File, place.allocation.Extent); found {
			t.Errorf("the blank volume of pod %s has a byte at %d", pod.Name, at)
		}
		e.exec(pod, fmt.Sprintf("dd if=/forged/%[1]s of=/dev/%[1]s bs=1M conv=fsync 2>/dev/null", pod.Name))
	}
	r.looked("when the volumes are written", kept)
	r.restart()
	r.looked("after a restart of the agent", kept)

	// The disk is detached, first as far as that is possible while the agent has it open.
	e.delete(user)
	e.gone(user)
	unmounted(e, p)
	limit(t, p.machine.Path, uint64(units.MiB))
	r.is(p.disk.ID, v1alpha1.DiskFailed)
	r.looked("while the disk is missing", kept)
	detach(e, p.machine.Path)
	// The kubelet's next loop device gets the number that is free now.
	again := r.rawPod("copy-again", "copy", folder)
	e.delete(r.pods[0])
	e.gone(r.pods[0])
	r.pods[0] = again
	e.ready(again)
	t.Logf("the disk was %s, the copy is behind %s", p.machine.Path, kubeletLoop(e, again))
	r.looked("while the disk is away", kept)
	r.restart()
	r.looked("while the disk is away, after a restart of the agent", kept)
	r.is(p.disk.ID, v1alpha1.DiskFailed)

	r.disks[p.disk.ID] = r.attach(p.machine)
	r.is(p.disk.ID, v1alpha1.DiskReady)
	r.looked("when the disk is back", kept)
	r.restart()
	r.looked("when the disk is back, after a restart of the agent", kept)
	next := e.podOf("next", claimed("data", claim))
	e.create(next)
	e.ready(next)
	e.holds(next, mark)
	if now := e.findVolume(pv); now.allocation != p.allocation || now.disk.ID != p.disk.ID {
		t.Errorf("the volume was at %v, now it is at %v", p, now)
	}
	// The volume has only the table that was written.
	e.exec(r.pods[0], "cmp /forged/copy /dev/copy")
	e.exec(r.pods[1], "cmp -n $(stat -c %s /forged/table) /forged/table /dev/table")
}

// forge writes a copy of the disk, and one of its table alone, into a folder of the node.
func (r *raws) forge(d cluster.Disk, folder string) {
	r.t.Helper()
	const table = "2"
	for _, command := range []string{
		"mkdir " + folder,
		"cp --sparse=never " + d.File + " " + folder + "/copy",
		"dd if=" + d.File + " of=" + folder + "/table bs=1M count=" + table,
	} {
		if _, err := r.cluster.Exec(r.t.Context(), movedNode, "sh", "-c", command); err != nil {
			r.t.Fatal(err)
		}
	}
}

// rawPod makes a pod with a raw block volume of the size of the small disk, and with the folder. The claim may exist
// already.
func (r *raws) rawPod(name, claim, folder string) *corev1.Pod {
	r.t.Helper()
	pvc := r.blockClaim(claim, large, "61Mi")
	if name == claim {
		r.make(pvc)
	}
	pod := r.podOf(name, claimed(claim, pvc))
	asDevice(pod)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "forged", VolumeSource: corev1.VolumeSource{
		HostPath: &corev1.HostPathVolumeSource{Path: folder},
	}})
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "forged", MountPath: "/forged", ReadOnly: true}}
	r.create(pod)
	return pod
}

func (r *raws) restart() {
	r.t.Helper()
	if err := errors.Join(r.cluster.KillAgent(movedNode), r.cluster.StartAgent(r.t.Context(), movedNode)); err != nil {
		r.t.Fatal(err)
	}
}

// looked waits until a blank device, of the class that selects the kubelet's loop devices, is taken: then the agent has
// scanned all devices. It asserts that the disks are still the node's own, and that they serve. The kubelet's loop
// devices must not even be listed.
func (r *raws) looked(when, kept string) {
	r.t.Helper()
	own := addDisk(r.t, r.cluster, smallSize)
	r.eventually(when+": a blank device is taken", func(ctx context.Context) error { return serves(ctx, r.cluster, own) })
	status, err := r.published(r.t.Context(), movedNode)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, d := range status.Disks {
		if d.Device == filepath.Base(own.Path) && d.State == v1alpha1.DiskReady {
			r.disks[d.ID] = d.Device
		}
		if device, known := r.disks[d.ID]; !known || d.State == v1alpha1.DiskReady && d.Device != device {
			r.t.Errorf("%s: disk %s is in service on %s, want %q", when, d.ID, d.Device, device)
		}
	}
	if len(status.Disks) != len(r.disks) {
		r.t.Errorf("%s: the disks are %+v, want %v", when, status.Disks, r.disks)
	}
	for _, pod := range r.pods {
		loop := filepath.Base(kubeletLoop(r.tenant, pod))
		if slices.ContainsFunc(status.Devices, func(d v1alpha1.Device) bool { return d.Name == loop }) {
			r.t.Errorf("%s: %s, the kubelet's over the volume of pod %s, is listed", when, loop, pod.Name)
		}
	}
	r.holds(r.keeper, kept)
	r.write(r.keeper, kept)
}

// is waits until a disk is in that state.
func (r *raws) is(id string, state v1alpha1.DiskState) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("disk %s is %s", id, state), func(ctx context.Context) error {
		status, err := r.published(ctx, movedNode)
		if err != nil {
			return err
		}
		for _, d := range status.Disks {
			if d.ID == id && d.State == state {
				return nil
			}
		}
		return fmt.Errorf("disks are %+v", status.Disks)
	})
}

// unmounted waits until the volume is mounted in no mount namespace: the kubelet unmounts the staging path of a claim
// after the pod is gone.
func unmounted(e *tenant, p place) {
	e.t.Helper()
	parts, err := filepath.Glob("/sys/block/" + filepath.Base(p.machine.Path) + "/*/start")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, part := range parts {
		if readTrimmed(e.t, part) != strconv.FormatInt(p.allocation.Start/512, 10) {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(part))
		e.eventually(device+" is unmounted", func(context.Context) error {
			f, err := os.OpenFile(device, os.O_RDONLY|unix.O_EXCL, 0)
			if err != nil {
				return err
			}
			return f.Close()
		})
		return
	}
	e.t.Fatalf("the kernel has no partition at %v: this test shows nothing", p)
}

// detach detaches a loop device once the agent has closed its meta partition.
func detach(e *tenant, device string) {
	e.t.Helper()
	file := testenv.BackingFile(e.t, device)
	testenv.Detach(e.t, device)
	testenv.AwaitDetached(e.t, device, file)
}

// attach attaches a disk again that was detached, under any name, which it returns.
func (r *raws) attach(d cluster.Disk) string {
	r.t.Helper()
	n, err := r.cluster.Node(movedNode)
	if err != nil {
		r.t.Fatal(err)
	}
	path := strings.TrimSpace(testenv.Run(r.t, "losetup", "--find", "--show", d.File))
	at := slices.IndexFunc(n.Disks, func(other cluster.Disk) bool { return other.File == d.File })
	n.Disks[at].Path = path
	return filepath.Base(path)
}

// kubeletLoop is the loop device that the kubelet has over the raw block volume of a pod.
func kubeletLoop(e *tenant, pod *corev1.Pod) string {
	e.t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		e.t.Fatal(err)
	}
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && strings.Contains(string(backing), string(pod.UID)) {
			return "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		}
	}
	e.t.Fatalf("the kubelet has no loop device over the volume of pod %s: this test shows nothing", pod.Name)
	return ""
}
