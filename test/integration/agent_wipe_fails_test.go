package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentWipeFails: what cannot be overwritten is not free. An event of the
// NodeDiskCapacity says so once, and the wipe is tried again until it succeeds. Here the
// file behind the disk is sparse, and what it lies on is full.
func TestAgentWipeFails(t *testing.T) {
	const size = 48 * units.MiB
	n := newNode(t, 64*units.MiB)
	full := testenv.NewFreezer(t, 160*units.MiB)
	here := n.images
	n.images = full.Dir
	d := n.attach(96*units.MiB, 512)
	n.images = here
	n.disks = append(n.disks, d)
	t.Cleanup(n.stop)
	class := n.class(n.name+"-full", d)
	class.Spec.WipePolicy = diskv1alpha1.WipeOverwrite
	n.create(class)
	n.options.Devices = nil
	n.start()
	n.ready()
	volume := n.volumeOf("data", strconv.FormatInt(size, 10), "")
	volume.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class.Name
	pod := n.pod("full", "", nil, volume)
	_, a := n.formatted(pod, "data")
	makeRoom := fill(t, filepath.Join(full.Dir, "filler"))

	n.delete(pod)
	event := n.capacityEvent("VolumeNotWiped", a.Partition)
	if event.Type != corev1.EventTypeWarning {
		t.Errorf("the event is %s", event.Type)
	}
	n.published("the volume is shown as Wiping, its space not as free", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if _, still, ok := allocation(s, pod, "data"); !ok || still.Phase != diskv1alpha1.PhaseWiping || still.Length != size {
			return fmt.Errorf("it is %+v", still)
		}
		return nil
	})
	makeRoom()
	n.published("the space is free", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if on := of(s, d); on.State != diskv1alpha1.DiskReady || len(on.Allocations) > 0 {
			return errors.New("it is not")
		}
		return nil
	})
	n.capacityEvent("VolumeWiped", a.Partition)
}

// fill leaves nothing free in the file system of the file.
func fill(t *testing.T, file string) (makeRoom func()) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := units.MiB; block >= 1024; block /= 2 {
		zeros := make([]byte, block)
		for err == nil {
			_, err = f.Write(zeros)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		err = nil
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
}
