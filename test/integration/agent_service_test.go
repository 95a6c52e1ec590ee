package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentSaysOutOfService: a disk that goes out of service and comes back is reported in
// state, condition, event and metric, and what is mounted of it works meanwhile.
func TestAgentSaysOutOfService(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	n.start()
	status := n.ready()
	lost := n.disks[0]
	id := of(&status, lost).ID
	labels := map[string]string{"disk": id, "device": lost.name(), "class": n.name}
	pod := n.pod("stays", record(t, at("data", id, of(&status, lost).Free[0].Start, 64*units.MiB)), nil, n.volumeOf("data", "64Mi", ""))
	n.formatted(pod, "data")
	if err := n.publish(pod, "data"); err != nil {
		t.Fatal(err)
	}
	n.writeCanary(n.target(pod, "data"))
	out := func(want float64) {
		n.t.Helper()
		n.eventually("the metric says so", func() error {
			if got := metric(t, "berth_node_disk_out_of_service", labels); got != want {
				return fmt.Errorf("it is %v", got)
			}
			return nil
		})
	}
	out(0)
	n.sys.hide(t, lost, true)
	n.capacityEvent("DiskOutOfService", "is gone")
	n.published("the disk is Failed", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		c := condition(s, diskv1alpha1.ConditionReady)
		if of(s, lost).State != diskv1alpha1.DiskFailed || c.Reason != "DisksOutOfService" || !strings.Contains(c.Message, id) {
			return errors.New("it is not")
		}
		return nil
	})
	out(1)
	if got := metric(t, "berth_node_disk_failures_total", map[string]string{"disk": id}); got != 1 {
		t.Errorf("%v failures are counted", got)
	}
	n.writeCanary(n.target(pod, "data"))
	if !n.hasCanary(n.target(pod, "data")) {
		t.Error("what is mounted does not work any more")
	}
	n.sys.hide(t, lost, false)
	n.capacityEvent("DiskInService", id)
	n.ready()
	out(0)
	n.unpublish(pod, "data")
}

// TestAgentDiskResized: a disk that was truncated is out of service and says so, with its
// volumes still published; back at its size, or larger, it serves with all of them.
func TestAgentDiskResized(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	n.start()
	status := n.ready()
	d := n.disks[0]
	free := of(&status, d).Free[0]
	pod := n.pod("stays", record(t, at("data", of(&status, d).ID, free.Start+700*units.MiB, 64*units.MiB)), nil, n.volumeOf("data", "64Mi", ""))
	_, before := n.formatted(pod, "data")
	resize := func(size int64) {
		n.t.Helper()
		if err := os.Truncate(d.image, size); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "losetup", "--set-capacity", d.path)
		n.sys.hide(t, d, false)
	}
	resize(512 * units.MiB)
	n.published("the truncated disk is Failed, with its volume", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if p := of(s, d); p.State != diskv1alpha1.DiskFailed || !strings.Contains(p.Message, "truncated") || len(p.Allocations) != 1 || len(p.Free) != 0 {
			return errors.New("it is not")
		}
		return nil
	})
	n.capacityEvent("DiskOutOfService", "truncated")
	other := n.pod("other", "", nil, n.volumeOf("data", "64Mi", ""))
	if on, _ := n.formatted(other, "data"); on.Device != n.disks[1].name() {
		t.Errorf("a volume was put on %s", on.Device)
	}
	// Cut short and made longer again, the file lost its second half: this is about the table.
	resize(units.GiB)
	n.published("the disk is Ready", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if p := of(s, d); p.State != diskv1alpha1.DiskReady || p.Size != units.GiB {
			return errors.New("it is not")
		}
		return nil
	})
	resize(2 * units.GiB)
	grown := n.published("the disk has grown", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if p := of(s, d); p.State != diskv1alpha1.DiskReady || p.Size != 2*units.GiB {
			return errors.New("it has not")
		}
		return nil
	})
	if _, after := n.formatted(pod, "data"); after != before {
		t.Errorf("the volume was %+v and is %+v", before, after)
	}
	if last := of(&grown, d).Free; last[len(last)-1].Length < units.GiB {
		t.Errorf("free are %v", last)
	}
	n.delete(pod)
	n.delete(other)
	n.released()
}
