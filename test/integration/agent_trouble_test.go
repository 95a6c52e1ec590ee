package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentRefusesWhatIsNotBlank: devices with anything on them are named, with the
// reason, and not a byte of them is changed.
func TestAgentRefusesWhatIsNotBlank(t *testing.T) {
	n := newNode(t, 256*units.MiB, 256*units.MiB, units.GiB)
	foreign, tail := n.disks[0], n.disks[1]
	testenv.Run(t, "mkfs.ext4", "-q", foreign.path)
	testenv.WriteDevice(t, tail.path, []byte("foreign"))
	before := sums(t, foreign, tail)
	n.start()
	status := n.published("the blank disk is in service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 1 {
			return fmt.Errorf("%d disks", len(s.Disks))
		}
		return nil
	})
	if of(&status, n.disks[2]).ID == "" {
		t.Errorf("the disk in service is %s", status.Disks[0].Device)
	}
	refused := meta.FindStatusCondition(status.Conditions, diskv1alpha1.ConditionDevicesRefused)
	if refused == nil || refused.Status != metav1.ConditionTrue || !strings.Contains(refused.Message, foreign.name()) || !strings.Contains(refused.Message, tail.name()) {
		t.Errorf("condition is %+v", refused)
	}
	if after := sums(t, foreign, tail); !slices.Equal(before, after) {
		t.Error("a refused device was written to")
	}

	// An operator wipes one; only the kernel knows.
	testenv.Run(t, "wipefs", "-q", "-a", foreign.path)
	testenv.Run(t, "blkdiscard", "-f", "-z", foreign.path)
	n.sys.hide(t, foreign, false)
	n.published("the wiped disk is in service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 2 {
			return fmt.Errorf("%d disks", len(s.Disks))
		}
		return nil
	})
}

func sums(t *testing.T, disks ...*testDisk) []string {
	t.Helper()
	var sums []string
	for _, d := range disks {
		sums = append(sums, testenv.Run(t, "sha256sum", d.path))
	}
	return sums
}

// TestAgentTwins: a disk in service goes on when a copy shows up. When neither is in service
// and nothing distinguishes them, both are refused.
func TestAgentTwins(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	original, twin := n.disks[0], n.disks[1]
	// Copies need the same sector size.
	testenv.Run(t, "losetup", "--detach", twin.path)
	testenv.Run(t, "losetup", "--sector-size", "512", twin.path, twin.image)
	n.sys.hide(t, twin, true)
	n.start()
	n.published("the original is in service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if of(s, original).State != diskv1alpha1.DiskReady {
			return errors.New("it is not")
		}
		return nil
	})
	testenv.Run(t, "cp", "--sparse=always", original.image, twin.image)
	testenv.Run(t, "losetup", "--detach", twin.path)
	testenv.Run(t, "losetup", "--sector-size", "512", twin.path, twin.image)
	refused := func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		c := meta.FindStatusCondition(s.Conditions, diskv1alpha1.ConditionDevicesRefused)
		if c == nil || !strings.Contains(c.Message, original.name()) || !strings.Contains(c.Message, twin.name()) {
			return fmt.Errorf("condition is %+v", c)
		}
		if len(s.Disks) != 1 || s.Disks[0].State != diskv1alpha1.DiskFailed || len(s.Disks[0].Free) != 0 {
			return errors.New("the disk is in service")
		}
		return nil
	}
	n.sys.hide(t, twin, false)
	n.published("the copy is refused", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		c := meta.FindStatusCondition(s.Conditions, diskv1alpha1.ConditionDevicesRefused)
		if c == nil || !strings.Contains(c.Message, twin.name()+": a copy of disk") {
			return fmt.Errorf("condition is %+v", c)
		}
		if len(s.Disks) != 1 || of(s, original).State != diskv1alpha1.DiskReady {
			return errors.New("the original is not in service")
		}
		return nil
	})
	n.stop()
	n.start()
	n.published("both are refused after a restart", refused)
	n.sys.hide(t, twin, true)
	n.published("without its copy the disk is in service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if of(s, original).State != diskv1alpha1.DiskReady {
			return errors.New("it is not")
		}
		return nil
	})
}

// TestAgentDeviceVanishes: a disk that is gone stays published as failed, others go on,
// and when it is back its volumes are where they were.
func TestAgentDeviceVanishes(t *testing.T) {
	n := newNode(t, 2*units.GiB, 2*units.GiB)
	n.start()
	status := n.ready()
	lost, other := of(&status, n.disks[0]), of(&status, n.disks[1])
	onLost := n.pod("lost", record(t, at("data", lost.ID, lost.Free[0].Start, 300*units.MiB)), nil, n.volumeOf("data", "300Mi", ""))
	_, before := n.formatted(onLost, "data")

	failed := func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		for _, d := range s.Disks {
			if d.ID == lost.ID && d.State == diskv1alpha1.DiskFailed && len(d.Free) == 0 && len(d.Allocations) == 1 && d.Message != "" {
				return nil
			}
		}
		return errors.New("it is not")
	}
	n.sys.hide(t, n.disks[0], true)
	n.published("the disk is Failed", failed)
	if err := n.publish(onLost, "data"); err == nil || !strings.Contains(err.Error(), "Unavailable") || !strings.Contains(err.Error(), "out of service") {
		t.Errorf("publish from a lost disk says %v", err)
	}
	onOther := n.pod("other", "", nil, n.volumeOf("data", "300Mi", ""))
	if d, _ := n.formatted(onOther, "data"); d.ID != other.ID {
		t.Errorf("a volume was put on %s", d.Device)
	}
	// Even an agent that never saw it knows that the node had it.
	n.stop()
	n.start()
	n.published("the disk is Failed after a restart", failed)

	n.sys.hide(t, n.disks[0], false)
	n.ready()
	if _, after := n.formatted(onLost, "data"); after != before {
		t.Errorf("the volume was %+v and is %+v", before, after)
	}
	if err := n.publish(onLost, "data"); err != nil {
		t.Error(err)
	}
	n.unpublish(onLost, "data")

	// A pod that goes while its disk is away.
	n.sys.hide(t, n.disks[0], true)
	n.published("the disk is Failed again", failed)
	n.delete(onLost)
	n.delete(onOther)
	n.sys.hide(t, n.disks[0], false)
	n.ready()
	n.released()
	if !n.disks[0].zero(t, before.Start, before.Length) {
		t.Error("the extent is published as free and does not read as zeros")
	}
}

// TestAgentClassGone: volumes on a disk that no class selects any more are served to
// their end, over a restart, and nothing is added.
func TestAgentClassGone(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	pod := n.pod("stays", "", nil, n.volumeOf("data", "300Mi", ""))
	n.formatted(pod, "data")
	if err := n.client.Delete(t.Context(), n.class(n.name)); err != nil {
		t.Fatal(err)
	}
	classless := func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 1 || s.Disks[0].Class != "" || s.Disks[0].State != diskv1alpha1.DiskReady {
			return errors.New("it has")
		}
		return nil
	}
	n.published("the disk has no class", classless)
	n.stop()
	n.start()
	n.published("the disk has no class after a restart", classless)
	if err := n.publish(pod, "data"); err != nil {
		t.Errorf("publish of a volume that is there: %v", err)
	}
	late := n.pod("late", "", nil, n.volumeOf("data", "300Mi", ""))
	n.event(late, "NoRoomForVolume")
	n.unpublish(pod, "data")
	n.delete(pod)
	n.released()
}

// TestAgentHandEdit asserts that what an operator writes into the NDC is put right, and misleads no component.
func TestAgentHandEdit(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	want := n.ready()
	right := func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(s.Disks) != 1 || s.Disks[0].Free == nil || s.Disks[0].Free[0] != want.Disks[0].Free[0] || s.Disks[0].Message != "" || s.Summary != want.Summary || len(s.Conditions) != len(want.Conditions) {
			return errors.New("it is not")
		}
		return nil
	}
	for name, edit := range map[string]func(*diskv1alpha1.NodeDiskCapacityStatus){
		"empty":         func(s *diskv1alpha1.NodeDiskCapacityStatus) { *s = diskv1alpha1.NodeDiskCapacityStatus{} },
		"less free":     func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Free[0].Length -= 100 * units.MiB },
		"another disk":  func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].ID = "11111111-2222-4333-8444-555555555555" },
		"a message":     func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Disks[0].Message = "hello" },
		"one condition": func(s *diskv1alpha1.NodeDiskCapacityStatus) { s.Conditions = s.Conditions[:1] },
	} {
		n.eventually("edit "+name, func() error {
			ndc, err := n.ndc()
			if err != nil {
				return err
			}
			edit(&ndc.Status)
			return n.client.Status().Update(t.Context(), ndc)
		})
		n.eventually(name+" is put right", func() error {
			ndc, err := n.ndc()
			if err != nil {
				return err
			}
			return right(&ndc.Status)
		})
	}
	ndc, err := n.ndc()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.client.Delete(t.Context(), ndc); err != nil {
		t.Fatal(err)
	}
	n.published("a deleted NDC is there again", right)
}

// TestAgentPodGoes: the pod is deleted at every stage of its volume, and the space comes
// back wiped.
func TestAgentPodGoes(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	free := n.ready().Disks[0].Free[0]
	for name, until := range map[string]func(*corev1.Pod){
		"at once": func(*corev1.Pod) {},
		"on disk": func(p *corev1.Pod) {
			n.eventually("a partition", func() error {
				if !n.onDisk(p, "data") {
					return errors.New("there is none")
				}
				return nil
			})
		},
		"formatted": func(p *corev1.Pod) { n.formatted(p, "data") },
		"mounted": func(p *corev1.Pod) {
			if err := n.publish(p, "data"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(n.target(p, "data"), "secret"), []byte(strings.Repeat("secret", 1<<16)), 0o600); err != nil {
				t.Fatal(err)
			}
			n.unpublish(p, "data")
		},
	} {
		pod := n.pod(strings.ReplaceAll(name, " ", "-"), "", nil, n.volumeOf("data", "600Mi", ""))
		until(pod)
		n.delete(pod)
		n.eventually(name+": the volume is gone", func() error {
			if n.onDisk(pod, "data") {
				return errors.New("it is there")
			}
			return nil
		})
		n.released()
		if !n.disks[0].zero(t, free.Start, 600*units.MiB) {
			t.Errorf("%s: the extent does not read as zeros", name)
		}
	}

	// A pod that has ended keeps its object, not its space.
	ended := n.pod("ended", "", nil, n.volumeOf("data", "600Mi", ""))
	n.formatted(ended, "data")
	ended.Status.Phase = corev1.PodSucceeded
	if err := n.client.Status().Update(t.Context(), ended); err != nil {
		t.Fatal(err)
	}
	n.released()
}

// TestAgentAPIDown: without an answer from the API server nothing is reclaimed.
func TestAgentAPIDown(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	gate := newGate(t, n.options.Config)
	n.options.Config = gate.config(t, n.options.Config)
	n.start()
	n.ready()
	seen := n.pod("seen", "", nil, n.volumeOf("data", "300Mi", ""))
	unseen := n.pod("unseen", "", nil, n.volumeOf("data", "300Mi", ""))
	n.formatted(seen, "data")
	n.formatted(unseen, "data")
	if err := n.publish(seen, "data"); err != nil {
		t.Fatal(err)
	}
	// One pod goes while the agent is down, so that its end is not seen.
	n.stop()
	n.delete(unseen)
	n.options.OrphanGrace = 300 * time.Millisecond
	n.start()
	gate.shut(t)
	n.delete(seen)
	n.unpublish(seen, "data")
	n.never("a volume is reclaimed without the API server", 3*time.Second, func() error {
		if n.onDisk(seen, "data") && n.onDisk(unseen, "data") {
			return errors.New("both are there")
		}
		return nil
	})
	gate.open(t)
	n.released()
}

// TestAgentKilled: kill -9 at random moments while pods come and go; in the end every
// pod has its volume and nothing else is left.
func TestAgentKilled(t *testing.T) {
	n := newNode(t, 4*units.GiB, 4*units.GiB)
	run := n.process()
	var pods []*corev1.Pod
	process := run()
	n.ready()
	for round := range 8 {
		// One stays, one goes.
		stays := n.pod(fmt.Sprintf("stays%d", round), "", nil, n.volumeOf("data", "300Mi", []string{"ext4", "xfs"}[round%2]))
		goes := n.pod(fmt.Sprintf("goes%d", round), "", nil, n.volumeOf("data", "300Mi", ""))
		pods = append(pods, stays)
		pause := time.NewTimer(time.Duration(round*17) * time.Millisecond)
		<-pause.C
		n.delete(goes)
		if err := process.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = process.Wait()
		process = run()
	}
	defer func() { n.end(process) }()
	n.published("every pod has its volume and nothing else is left", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		got := sets.New[string]()
		for _, d := range s.Disks {
			for _, a := range d.Allocations {
				if a.Phase == diskv1alpha1.PhaseFormatted {
					got.Insert(a.Partition)
				} else {
					got.Insert(string(a.Phase))
				}
			}
		}
		want := sets.New[string]()
		for _, p := range pods {
			want.Insert(diskv1alpha1.PartitionID(diskv1alpha1.InlineVolumeID(p.UID, "data")))
		}
		if !got.Equal(want) {
			return fmt.Errorf("%d volumes too few, %d too many", want.Difference(got).Len(), got.Difference(want).Len())
		}
		return nil
	})
	for _, p := range pods {
		if err := n.publish(p, "data"); err != nil {
			t.Error(err)
		}
		n.unpublish(p, "data")
	}
}

// kubeconfig writes one with the agent's own permissions.
func (n *node) kubeconfig() string {
	n.t.Helper()
	config, err := clientcmd.LoadFromFile(n.plane.Kubeconfig())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		impersonate(user, n.options.Config)
	}
	path := filepath.Join(n.dir, "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		n.t.Fatal(err)
	}
	return path
}

func impersonate(user *clientcmdapi.AuthInfo, as *rest.Config) {
	user.Impersonate, user.ImpersonateGroups, user.ImpersonateUserExtra = as.Impersonate.UserName, as.Impersonate.Groups, as.Impersonate.Extra
}

// TestAgentDamagedFileSystem: a volume that was formatted and cannot be mounted is never
// formatted again.
func TestAgentDamagedFileSystem(t *testing.T) {
	n := newNode(t, 2*units.GiB)
	n.start()
	n.ready()
	for _, fsType := range []string{"ext4", ""} {
		pod := n.pod("damaged"+fsType, "", nil, n.volumeOf("data", "300Mi", fsType))
		disk, a := n.formatted(pod, "data")
		// It is the only volume, so it has the first entry.
		device := "/dev/" + disk.Device + "p1"
		testenv.WriteDevice(t, device, make([]byte, units.MiB))
		for range 2 {
			if err := n.publish(pod, "data"); err == nil || !strings.Contains(err.Error(), "not formatted again") {
				t.Errorf("publish of a damaged %q says %v", fsType, err)
			}
		}
		if !n.disks[0].zero(t, a.Start, units.MiB) {
			t.Error("it was formatted again")
		}
		n.unpublish(pod, "data")
		n.delete(pod)
		n.released()
	}
}
