package integration

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentDiskHangs: a disk that answers nothing costs the node that disk, and neither
// the others nor the start of an agent.
func TestAgentDiskHangs(t *testing.T) {
	n := newNode(t, units.GiB)
	f := testenv.NewFreezer(t, 3*units.GiB)
	good := n.disks[0]
	here := n.images
	n.images = f.Dir
	bad := n.attach(units.GiB, 512)
	n.images = here
	n.disks = append(n.disks, bad)
	t.Cleanup(n.stop)
	class := n.class(n.name+"-bad", bad)
	n.create(class)
	n.options.Devices = nil
	n.options.DeviceTimeout = 2 * time.Second
	n.start()
	n.ready()
	volume := n.volumeOf("data", "300Mi", "")
	volume.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] = class.Name

	f.Freeze()
	defer f.Thaw()
	// More pods than the agent has workers for.
	var stuck []*corev1.Pod
	for _, name := range strings.Fields("a b c d e f g h i j k l") {
		small := volume.DeepCopy()
		small.CSI.VolumeAttributes[diskv1alpha1.AttributeSize] = "20Mi"
		stuck = append(stuck, n.pod("stuck-"+name, "", nil, *small))
	}
	first := n.pod("first", "", nil, n.volumeOf("data", "100Mi", ""))
	n.formatted(first, "data")
	if err := n.publish(first, "data"); err != nil {
		t.Errorf("publish beside a disk that hangs: %v", err)
	}
	n.unpublish(first, "data")
	n.delete(first)
	n.published("a volume beside a disk that hangs is wiped", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if len(of(s, good).Allocations) > 0 {
			return errors.New("it is not")
		}
		return nil
	})
	// It vanishes, and cannot even be closed.
	n.sys.hide(t, bad, true)
	n.published("the disk that hangs is out of service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if of(s, bad).State != diskv1alpha1.DiskFailed {
			return errors.New("it is not")
		}
		return nil
	})
	second := n.pod("second", "", nil, n.volumeOf("data", "100Mi", ""))
	n.formatted(second, "data")
	if err := n.publish(second, "data"); err != nil {
		t.Errorf("publish beside a disk that cannot be closed: %v", err)
	}
	n.unpublish(second, "data")

	f.Thaw()
	n.sys.hide(t, bad, false)
	n.ready()
	for _, pod := range append(stuck, second) {
		n.formatted(pod, "data")
		n.delete(pod)
	}
	n.released()
	n.stop()

	// An agent that starts: the table of a blank disk is written, which hangs.
	n.forget(bad)
	f.Freeze()
	n.start()
	n.published("the other disk is in service", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		c := meta.FindStatusCondition(s.Conditions, diskv1alpha1.ConditionDevicesRefused)
		if of(s, good).State != diskv1alpha1.DiskReady || c == nil || !strings.Contains(c.Message, bad.name()+" hangs") {
			return errors.New("it is not")
		}
		return nil
	})
	third := n.pod("third", "", nil, n.volumeOf("data", "100Mi", ""))
	n.formatted(third, "data")
	n.delete(third)
	f.Thaw()
	n.ready()
}

// forget makes the disk blank, as an operator does.
func (n *node) forget(d *testDisk) {
	n.t.Helper()
	d.forget(n.t)
	testenv.Run(n.t, "blkdiscard", "-f", "-z", d.path)
}
