//go:build vm

package disk

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMapperTakesTheWholeDisk: why a disk is attached by partitions or by the device
// mapper, never by both. The device mapper claims the whole disk, and the kernel lets nobody claim
// a disk of which a partition is claimed (mounted, or held as the meta partition is), nor
// a partition of a claimed disk.
func TestMapperTakesTheWholeDisk(t *testing.T) {
	l := initialized(t, 64*mib, 512)
	d := l.open(t)
	m, err := openMapper()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var st unix.Stat_t
	if err := unix.Stat(l.path, &st); err != nil {
		t.Fatal(err)
	}
	uuid := "BERTH-" + a
	if err := m.create(uuid, "berth-"+a); err != nil {
		t.Fatal(err)
	}
	defer m.remove(uuid)
	t.Log(m.status(uuid))
	if err := m.show(uuid, linear{st.Rdev, at(2, 10)}); err != nil {
		t.Errorf("beside a held partition: %v", err)
	}
	d.Close()
	t.Log(m.show(uuid, linear{st.Rdev, at(2, 10)}))
	t.Log(m.status(uuid))
	f, err := os.OpenFile(d.meta.Name(), os.O_RDONLY|unix.O_EXCL, 0)
	t.Log(f, err, errors.Is(err, unix.EBUSY))
}
