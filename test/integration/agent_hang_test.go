package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
)

// freezer is a file system that can be made to hang.
type freezer struct {
	t   *testing.T
	dir string
}

func newFreezer(t *testing.T, size int64) *freezer {
	t.Helper()
	testenv.NeedProgram(t, "fsfreeze")
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	f := &freezer{t: t, dir: filepath.Join(dir, "mount")}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size), os.Mkdir(f.dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", image)
	command(t, "mount", "-o", "loop", image, f.dir)
	t.Cleanup(func() {
		// The kernel releases a loop device after a while.
		command(t, "bash", "-c", "for i in {1..100}; do umount $0 2>/dev/null && exit; sleep 0.1; done; umount $0", f.dir)
	})
	return f
}

func (f *freezer) freeze() { command(f.t, "fsfreeze", "--freeze", f.dir) }
func (f *freezer) thaw()   { command(f.t, "fsfreeze", "--unfreeze", f.dir) }

// TestAgentDiskHangs: a disk that answers nothing costs the node that disk, and neither
// the others nor the start of an agent.
func TestAgentDiskHangs(t *testing.T) {
	n := newNode(t, gib)
	f := newFreezer(t, 3*gib)
	good := n.disks[0]
	here := n.images
	n.images = f.dir
	bad := n.attach(gib, 512)
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

	f.freeze()
	frozen := true
	thaw := func() {
		if frozen {
			frozen = false
			f.thaw()
		}
	}
	defer thaw()
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

	thaw()
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
	f.freeze()
	frozen = true
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
	thaw()
	n.ready()
}

// forget makes the disk blank, as an operator does.
func (n *node) forget(d *testDisk) {
	n.t.Helper()
	d.forget(n.t)
	command(n.t, "blkdiscard", "-f", "-z", d.path)
}
