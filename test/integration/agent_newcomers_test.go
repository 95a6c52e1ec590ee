package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentBesideOtherDriver asserts that no byte is written to the volumes of another driver,
// which attaches blank devices that a class selects and formats each three seconds later.
func TestAgentBesideOtherDriver(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.RemoveNewLoops(t)
	const (
		volumes = 100
		// size is that of no other device on this machine, as the class selects every loop device that has it.
		size  = 43 * units.MiB
		delay = 3 * time.Second
		grace = 40 * time.Second
	)
	n := newNode(t, units.GiB)
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: n.name + "-any"}}
	class.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"beside": "another-driver"}}
	class.Spec.Devices.Paths = []string{"/dev/loop*"}
	class.Spec.Devices.MinSize, class.Spec.Devices.MaxSize = resource.NewQuantity(size, resource.BinarySI), resource.NewQuantity(size, resource.BinarySI)
	class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptAutomatic, &metav1.Duration{Duration: grace}
	n.create(class)
	node := &corev1.Node{}
	if err := n.client.Get(t.Context(), client.ObjectKey{Name: n.name}, node); err != nil {
		t.Fatal(err)
	}
	node.Labels = class.Spec.NodeSelector.MatchLabels
	if err := n.client.Update(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	n.options.Devices = nil
	n.start()
	// Before the devices that come later are detached.
	defer n.stop()
	n.ready()

	others, sums := make([]*testDisk, volumes), make([][]byte, volumes)
	waiting := atomic.Int32{}
	group, programs := errgroup.Group{}, semaphore.NewWeighted(2)
	for i := range others {
		d, attached := n.attach(size, 512), time.Now()
		others[i] = d
		n.disks = append(n.disks, d) // the next image has another name
		group.Go(func() error {
			<-time.After(delay) // what the driver takes
			if ndc, err := n.ndc(); err != nil {
				return err
			} else if s := listed(&ndc.Status, d); s.State == diskv1alpha1.DeviceCandidate {
				waiting.Add(1)
			}
			if err := programs.Acquire(t.Context(), 1); err != nil {
				return err
			}
			defer programs.Release(1)
			if at, err := firstData(d.image); err != nil || at >= 0 {
				return fmt.Errorf("%s has data at %d before its driver has written any: %w", d.path, at, err)
			}
			if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", d.path).CombinedOutput(); err != nil {
				return fmt.Errorf("mkfs.ext4 %s: %w: %s", d.path, err, out)
			}
			if took := time.Since(attached); took >= grace {
				return fmt.Errorf("%s was formatted %s after it was attached, which the grace of %s does not cover", d.path, took, grace)
			}
			var err error
			sums[i], err = sum(d.image)
			return err
		})
	}
	// Of the same kind, and of no driver: the class would take the others as well.
	blank, attached := n.attach(size, 512), time.Now()
	n.disks = append(n.disks, blank)
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if waiting.Load() == 0 {
		t.Error("none of the devices was ever a candidate: the class does not cover them")
	}

	unchanged := func(when string) {
		t.Helper()
		n.publishedWithin(grace+patience, "the blank one is in service "+when, func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
			if of(s, blank).State != diskv1alpha1.DiskReady {
				return fmt.Errorf("it is %+v", listed(s, blank))
			}
			for _, d := range others {
				if s := listed(s, d); s.State == diskv1alpha1.DeviceCandidate || len(s.Reasons) == 0 {
					return fmt.Errorf("%s is %+v", d.path, s)
				}
			}
			return nil
		})
		status, err := n.ndc()
		if err != nil {
			t.Fatal(err)
		}
		changed := 0
		for i, d := range others {
			if of(&status.Status, d).ID != "" {
				t.Errorf("%s is a disk %s", d.path, when)
			}
			now, err := sum(d.image)
			if err != nil {
				t.Fatal(err)
			}
			if string(now) != string(sums[i]) {
				changed++
			}
		}
		if changed > 0 {
			t.Errorf("%s, %d of %d volumes of the other driver are not as it has left them", when, changed, volumes)
		}
	}
	unchanged("after the grace period")
	if waited := time.Since(attached); waited < grace {
		t.Errorf("the blank device was taken %s after it appeared, before the grace of %s was over", waited, grace)
	}
	n.stop()
	n.start()
	unchanged("after a restart of the agent")
	t.Logf("%d volumes, 0 bytes of ours; the blank device was taken", volumes)
}

// listed is the device as the agent lists it.
func listed(s *diskv1alpha1.NodeDiskCapacityStatus, d *testDisk) diskv1alpha1.Device {
	for _, device := range s.Devices {
		if device.Name == d.name() {
			return device
		}
	}
	return diskv1alpha1.Device{}
}

// firstData is where the sparse file has its first data; -1 if it has none.
func firstData(image string) (int64, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return -1, nil
	}
	return at, err
}

// sum is the hash of a file.
func sum(image string) ([]byte, error) {
	f, err := os.Open(image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}
