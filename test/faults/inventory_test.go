package faults

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/testenv"
)

// timeout is short for a disk, and long for a test on a busy machine.
const timeout = 2 * time.Second

// inventory is an agent's inventory of the given disks. It counts the changes.
func inventory(t *testing.T, known []discovery.Disk, disks ...*node) (*discovery.Inventory, *atomic.Int64) {
	class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "faulty"}}
	class.Spec.Adoption, class.Spec.NewDeviceGrace = diskv1alpha1.AdoptAutomatic, &metav1.Duration{}
	for _, d := range disks {
		class.Spec.Devices.Paths = append(class.Spec.Devices.Paths, d.path)
	}
	changes := new(atomic.Int64)
	o := discovery.Options{
		Sys: os.DirFS("/sys/block"), Dev: "/dev", DevicePatterns: class.Spec.Devices.Paths,
		Classes:       func() []*diskv1alpha1.DiskClass { return []*diskv1alpha1.DiskClass{class} },
		NodeLabels:    func() map[string]string { return nil },
		Changed:       func() { changes.Add(1) },
		DeviceTimeout: timeout, CommandTimeout: timeout,
	}
	for _, d := range known {
		o.PublishedDisks = append(o.PublishedDisks, diskv1alpha1.Disk{ID: d.ID(), Device: d.Device.Name, Class: d.Class, Size: d.Device.Size, SectorSize: int32(d.Device.SectorSize)})
	}
	i := discovery.NewInventory(o)
	t.Cleanup(func() { i.Close() })
	return i, changes
}

// diskOf returns a disk from the inventory.
func (n *node) diskOf(i *discovery.Inventory) discovery.Disk {
	for _, d := range i.Disks() {
		if d.Device.Path == n.path {
			return d
		}
	}
	return discovery.Disk{Problem: "the inventory does not know it"}
}

// rescan rescans all devices. It fails if that takes longer than limit.
func rescan(t *testing.T, i *discovery.Inventory, limit time.Duration) {
	t.Helper()
	begin := time.Now()
	if _, err := i.Rescan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > limit {
		t.Errorf("a rescan took %s, which is longer than %s", took, limit)
	}
}

// TestInventory has an agent's inventory of two disks, of which one hangs or fails. The fault lasts while it is open,
// when an agent stops, when one starts, and until it is healed.
func TestInventory(t *testing.T) {
	for _, f := range []Fault{{Op: Any, Do: Hang}, {Op: Any, Do: Fail}} {
		t.Run(f.Do.String(), func(t *testing.T) {
			good, bad := newNode(t, 512), newNode(t, 4096)
			i, changes := inventory(t, nil, good, bad)
			rescan(t, i, 30*time.Second)
			for _, n := range []*node{good, bad} {
				if d := n.diskOf(i); !d.Ready() || len(d.Snapshot.Volumes) != 1 {
					t.Fatalf("%s: %s; refused: %v", n.path, d.Problem, i.Refused())
				}
			}
			// Two patiences at most: one to close the disk, and one to inspect it.
			limit := 2*timeout + 5*time.Second

			bad.setFault(f)
			before := changes.Load()
			engine := bad.diskOf(i).Engine
			called := make(chan error, 1)
			go func() {
				_, err := engine.Create(t.Context(), disk.CreateOptions{Partition: fsVolume, Extent: fsVolumeAt})
				called <- err
			}()
			testenv.Eventually(t, "the failure", func() error {
				if !i.Failing() || changes.Load() == before {
					return errors.New("the failure was not noticed")
				}
				return nil
			})
			problem := bad.diskOf(i).Problem
			if !strings.Contains(problem, "out of service") {
				t.Errorf("the bad disk's problem is %q", problem)
			}
			serves(t, i, good)
			rescan(t, i, limit)
			if d := bad.diskOf(i); d.Ready() || len(d.Snapshot.Volumes) < 1 {
				t.Errorf("the bad disk after a rescan: %+v", d)
			}
			if refused := i.Refused(); !slices.ContainsFunc(refused, func(r discovery.RefusedDevice) bool { return "/dev/"+r.Device == bad.path }) {
				t.Errorf("refused are %v", refused)
			}
			serves(t, i, good)

			// Another agent starts.
			known := i.Disks()
			begin := time.Now()
			_ = i.Close()
			if took := time.Since(begin); took > limit {
				t.Errorf("to stop took %s", took)
			}
			next, _ := inventory(t, known, good, bad)
			rescan(t, next, limit)
			if d := bad.diskOf(next); d.Ready() {
				t.Error("the bad disk is in service")
			}
			serves(t, next, good)

			counts := bad.heal()
			if counts.Hits == 0 {
				t.Error("nothing met the fault")
			}
			_ = testenv.Receive(t, "the call", called)
			testenv.Eventually(t, "the disk serves again", func() error {
				rescan(t, next, limit)
				if d := bad.diskOf(next); !d.Ready() {
					return fmt.Errorf("%s, well again: %s; refused: %v", bad.path, d.Problem, next.Refused())
				}
				return nil
			})
			serves(t, next, bad)
			if bad.digest(neighborAt).Hash != bad.neighbor.Hash {
				t.Error("the neighbor's bytes have changed")
			}
			t.Logf("%d requests met the fault; problem of the open disk: %s; refused: %v", counts.Hits, problem, i.Refused())
			if err := next.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// serves asserts that a volume can be made on the disk and wiped again.
func serves(t *testing.T, i *discovery.Inventory, n *node) {
	t.Helper()
	d := n.diskOf(i)
	if !d.Ready() {
		t.Fatalf("%s does not serve: %s", n.path, d.Problem)
	}
	n.engine = d.Engine
	defer func() { n.engine = nil }()
	begin := time.Now()
	if err := n.shortLife(t.Context()); err != nil {
		t.Errorf("%s: %v", n.path, err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("%s took %s for a short life", n.path, took)
	}
}
