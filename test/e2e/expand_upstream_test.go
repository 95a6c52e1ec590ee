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
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// These are the cases of Kubernetes' expansion tests of External.Storage: volume_expand.go and ephemeral.go of
// test/e2e/storage/testsuites. They run here on a disk that is half full. This machine's kernel has no device mapper.
// So a volume that has another one right behind it is moved when no pod uses it, and only one with free space behind it
// grows under its pod. The tests of test/vm show how volumes grow by pieces.

// pattern is a test pattern of External.Storage.
type pattern struct {
	name, class, fsType string
}

var patterns = []pattern{
	{"ext4", hdd, v1alpha1.FSTypeExt4},
	{"xfs", ssd, v1alpha1.FSTypeXFS},
	{"block", ssd, ""},
}

// Sizes of volumes: four of them take more than half of a disk of the shared cluster.
const (
	beforeSize, afterSize = "300Mi", "350Mi"
	afterBytes            = 350 * units.MiB
	// fileSystemLeast is what a file system of that size has at least: the log of xfs takes 64 MiB. One of the size before
	// has less.
	fileSystemLeast = 280 * units.MiB
)

// TestExpandHalfFull asserts that a volume grows while a pod uses it, before its pod is made again on the same node,
// and while no pod uses it. No volume of the disk loses data, and the claims say that nothing is left to be done.
func TestExpandHalfFull(t *testing.T) {
	for _, k := range patterns {
		t.Run(k.name, func(t *testing.T) {
			e := newTenant(t, sharedCluster(t))
			row := e.row(k, beforeSize, "offline", "again", "neighbor", "online")
			marks := make([]string, len(row))
			for i := range row {
				marks[i] = canary(e)
				e.put(k, row[i].pod, marks[i])
			}
			// The last one has free space behind it. The others are moved behind it.
			e.expandOnline(k, &row[3])
			e.expandForNext(k, &row[1])
			e.expandOffline(k, &row[0])
			for i := range row {
				e.has(k, row[i].pod, marks[i])
			}
		})
	}
}

// expandOnline is "should resize volume when PVC is edited while pod is using it".
func (e *tenant) expandOnline(k pattern, u *user) {
	e.t.Helper()
	e.expand(u.pvc, afterSize)
	if e.waitsForMount(k, u.pvc) {
		e.runAgain(k, u)
	}
	e.hasGrown(u.pvc, afterBytes)
	e.isResized(k, u)
	if after := e.placeNow(e.boundTo(u.pvc)); after.allocation.Start != u.at.allocation.Start {
		e.t.Errorf("volume %s was at %v, and is at %v", u.pvc.Name, u.at, after)
	}
}

// expandForNext is "should resize volume when PVC is edited and the pod is re-created on the same node after controller
// resize is finished".
func (e *tenant) expandForNext(k pattern, u *user) {
	e.t.Helper()
	e.expand(u.pvc, afterSize)
	e.isGranted(u.pvc)
	e.saysRestart(u.pvc)
	e.runAgain(k, u)
	e.hasGrown(u.pvc, afterBytes)
	e.isResized(k, u)
}

// expandOffline is "Verify if offline PVC expansion works".
func (e *tenant) expandOffline(k pattern, u *user) {
	e.t.Helper()
	e.delete(u.pod)
	e.gone(u.pod)
	e.expand(u.pvc, afterSize)
	e.isGranted(u.pvc)
	e.eventually("only the next pod's mount is missing", func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(u.pvc), u.pvc); err != nil {
			return err
		}
		state, allocated := u.pvc.Status.AllocatedResourceStatuses[corev1.ResourceStorage], u.pvc.Status.AllocatedResources[corev1.ResourceStorage]
		if state != "" && state != corev1.PersistentVolumeClaimNodeResizePending || allocated.Value() < afterBytes {
			return fmt.Errorf("its status is %+v", u.pvc.Status)
		}
		return nil
	})
	e.runNext(k, u)
	e.hasGrown(u.pvc, afterBytes)
	e.isResized(k, u)
}

// TestExpandEphemeral is "should support expansion of pvcs created for ephemeral pvcs", behind a volume that fills half
// of the disk.
func TestExpandEphemeral(t *testing.T) {
	for _, k := range patterns {
		t.Run(k.name, func(t *testing.T) {
			e := newTenant(t, sharedCluster(t))
			before := e.row(k, "1Gi", "before")[0]
			mark := canary(e)
			e.put(k, before.pod, mark)
			template := &corev1.PersistentVolumeClaimTemplate{Spec: objects.ClaimSpec(k.class, beforeSize)}
			template.Spec.VolumeMode = k.mode()
			pod := e.podOf("pod", corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: template}}})
			u := user{pvc: e.claim("pod-data", k.class, beforeSize), pod: e.onNode1(k, pod)}
			e.create(u.pod)
			e.ready(u.pod)
			pv := e.boundTo(u.pvc)
			if u.at = e.findVolume(pv); u.at.disk.ID != before.at.disk.ID {
				t.Fatalf("the volumes are at %v and %v: this test shows nothing", before.at, u.at)
			}
			own := canary(e)
			e.put(k, u.pod, own)
			e.expand(u.pvc, afterSize)
			// The claim ends with its pod, so there is no next mount.
			if !e.waitsForMount(k, u.pvc) {
				e.hasGrown(u.pvc, afterBytes)
				e.isResized(k, &u)
			}
			e.has(k, u.pod, own)
			e.has(k, before.pod, mark)
			after := e.placeNow(pv)
			e.delete(u.pod)
			e.gone(u.pod)
			e.wiped(pv, after, own)
		})
	}
}

func (k pattern) mode() *corev1.PersistentVolumeMode {
	mode := corev1.PersistentVolumeFilesystem
	if k.fsType == "" {
		mode = corev1.PersistentVolumeBlock
	}
	return &mode
}

// row makes pods with a claim each on node1, whose volumes lie one behind the other in this order.
func (e *tenant) row(k pattern, size string, names ...string) []user {
	e.t.Helper()
	row := make([]user, len(names))
	for i, name := range names {
		u := &row[i]
		u.pvc = e.claim(name, k.class, size)
		u.pvc.Spec.VolumeMode = k.mode()
		u.pod = e.userOf(k, u.pvc, name)
		e.make(u.pvc)
		e.create(u.pod)
		// The next one must find the place taken.
		e.boundTo(u.pvc)
	}
	for i := range row {
		u := &row[i]
		e.ready(u.pod)
		u.at = e.findVolume(e.boundTo(u.pvc))
		if i == 0 {
			continue
		}
		if before := row[i-1].at; before.disk.ID != u.at.disk.ID || before.allocation.Start+before.allocation.Length != u.at.allocation.Start {
			e.t.Fatalf("the volumes are at %v and %v: this test shows nothing", before, u.at)
		}
	}
	return row
}

// userOf is a pod on node1 that has the claim as /data or /dev/data.
func (e *tenant) userOf(k pattern, pvc *corev1.PersistentVolumeClaim, name string) *corev1.Pod {
	return e.onNode1(k, e.podOf(name, claimed("data", pvc)))
}

func (e *tenant) onNode1(k pattern, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "node1"}
	if k.fsType == "" {
		asDevice(pod)
	}
	return pod
}

// runAgain deletes the pod, and makes one with the same claim.
func (e *tenant) runAgain(k pattern, u *user) {
	e.t.Helper()
	e.delete(u.pod)
	e.gone(u.pod)
	e.runNext(k, u)
}

func (e *tenant) runNext(k pattern, u *user) {
	e.t.Helper()
	u.pod = e.userOf(k, u.pvc, "next-"+u.pvc.Name)
	e.create(u.pod)
	e.ready(u.pod)
}

// put writes a canary into the volume.
func (e *tenant) put(k pattern, pod *corev1.Pod, mark string) {
	e.t.Helper()
	if k.fsType == "" {
		e.exec(pod, "yes "+mark+" | dd of=/dev/data bs=1M count=4 iflag=fullblock conv=fsync 2>/dev/null")
		return
	}
	e.write(pod, mark)
}

// has fails the test unless the volume contains what put wrote.
func (e *tenant) has(k pattern, pod *corev1.Pod, mark string) {
	e.t.Helper()
	if k.fsType != "" {
		e.holds(pod, mark)
	} else if out := e.exec(pod, "head -n 1 /dev/data"); out != mark {
		e.t.Errorf("the volume of %s does not hold %q any more: %q", pod.Name, mark, out)
	}
}

// isResized fails the test unless the pod has the new size without a restart of its container, and the claim's status
// has all that Kubernetes' tests look at.
func (e *tenant) isResized(k pattern, u *user) {
	e.t.Helper()
	if k.fsType == "" {
		if out := e.exec(u.pod, "blockdev --getsize64 /dev/data"); out != strconv.FormatInt(afterBytes, 10) {
			e.t.Errorf("the device of pod %s has %s bytes", u.pod.Name, out)
		}
	} else if _, size := e.mounted(u.pod); size < fileSystemLeast {
		// Of xfs and ext4 a part is for themselves.
		e.t.Errorf("pod %s has %d bytes", u.pod.Name, size)
	}
	if n := restarts(u.pod); n != 0 {
		e.t.Errorf("the container of pod %s was restarted %d times", u.pod.Name, n)
	}
	if allocated := u.pvc.Status.AllocatedResources[corev1.ResourceStorage]; allocated.Value() < afterBytes {
		e.t.Errorf("claim %s has its size, and allocated are %s", u.pvc.Name, allocated.String())
	}
}

// isGranted waits until the PersistentVolume has the claim's new size.
func (e *tenant) isGranted(pvc *corev1.PersistentVolumeClaim) {
	e.t.Helper()
	e.eventually("claim "+pvc.Name+" is granted its size", func(ctx context.Context) error {
		pv := &corev1.PersistentVolume{}
		if err := e.client.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil {
			return err
		}
		if capacity := pv.Spec.Capacity[corev1.ResourceStorage]; capacity.Value() < afterBytes {
			return fmt.Errorf("it has %s", capacity.String())
		}
		return nil
	})
}

// saysRestart waits until the claim's status says that its pod must be started again.
func (e *tenant) saysRestart(pvc *corev1.PersistentVolumeClaim) {
	e.t.Helper()
	e.says(pvc, "delete the pod and start it again", func(corev1.PersistentVolumeClaimCondition) bool { return true })
}

// waitsForMount reports whether the volume of a running pod has its size only at the next mount: the kernel permits
// only processes with CAP_SYS_RESOURCE to grow a mounted ext4. It waits until the claim says so.
func (e *tenant) waitsForMount(k pattern, pvc *corev1.PersistentVolumeClaim) bool {
	e.t.Helper()
	if k.fsType != v1alpha1.FSTypeExt4 || mayGrowMounted(e.t) {
		return false
	}
	e.t.Log("without CAP_SYS_RESOURCE: the kernel refuses")
	e.says(pvc, "next mounted", func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimNodeResizeError
	})
	return true
}

// says waits until the claim has such a condition whose message contains the text.
func (e *tenant) says(pvc *corev1.PersistentVolumeClaim, text string, is func(corev1.PersistentVolumeClaimCondition) bool) {
	e.t.Helper()
	e.eventually("claim "+pvc.Name+" says "+text, func(ctx context.Context) error {
		if err := e.client.Get(ctx, client.ObjectKeyFromObject(pvc), pvc); err != nil {
			return err
		}
		for _, c := range pvc.Status.Conditions {
			if is(c) && c.Status == corev1.ConditionTrue && strings.Contains(c.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("its status is %+v", pvc.Status)
	})
}
