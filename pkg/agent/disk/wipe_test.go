package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/ktesting"

	"github.com/berthdev/berth/test/units"
)

// useMethods replaces the ways to zero.
func (l *loopDisk) useMethods(methods ...method) { l.wipeMethods.zero = methods }

// wipeVolume wipes a volume with the default options.
func wipeVolume(ctx context.Context, d *Disk, partition string) error {
	_, err := d.Wipe(ctx, partition, WipeOptions{})
	return err
}

// writeCanary fills a volume with a pattern, through its device and past all caches.
func writeCanary(t *testing.T, l *loopDisk, v Volume) {
	t.Helper()
	f, err := os.OpenFile(v.Device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("canary!!"), int(v.Extent.Len()/8))); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	if n := int64(bytes.Count(raw, []byte("canary!!"))); n != v.Extent.Len()/8 {
		t.Fatalf("%d canaries on the disk", n)
	}
}

// countCanaries counts what is left of the pattern in the whole file behind the disk.
func countCanaries(t *testing.T, l *loopDisk) int {
	t.Helper()
	raw, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(raw, []byte("canary"))
}

// TestMethods asserts that every method leaves nothing of a volume, and changes nothing of another.
func TestMethods(t *testing.T) {
	for _, r := range defaultWipeMethods().zero {
		t.Run(r.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				small := r
				small.maxStep = min(r.maxStep, 3*units.MiB) // several steps, the last one shorter
				if r.name == "overwrite" {
					small.maxStep = bounceBytes
				}
				l := initialized(t, 32*units.MiB, sector)
				l.useMethods(small)
				d := l.open(t)
				ctx := t.Context()
				v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(3, 10), Ephemeral: true})
				if err != nil {
					t.Fatal(err)
				}
				writeCanary(t, l, v)
				l.writeAt(t, []byte("kept kept kept kept kept"), 3*units.MiB-24)
				l.writeAt(t, []byte("kept kept kept kept kept"), 13*units.MiB)
				if err := wipeVolume(ctx, d, guidA); err != nil {
					t.Fatal(err)
				}
				if n := countCanaries(t, l); n != 0 {
					t.Errorf("%d canaries are left", n)
				}
				raw, err := os.ReadFile(l.image)
				if err != nil {
					t.Fatal(err)
				}
				if e := extentMiB(3, 10); !allZero(raw[e.Start:e.End]) || bytes.Count(raw, []byte("kept")) != 10 {
					t.Error("not zero, or its neighbors are gone")
				}
			})
		})
	}
}

// TestMethodsInOrder asserts that the next method follows one that fails, or that reports zeros which are none.
func TestMethodsInOrder(t *testing.T) {
	unsupported := method{"unsupported", units.MiB, func(*blockDevice, int64, int64) error { return unix.EOPNOTSUPP }}
	lies := method{"lies", units.MiB, func(*blockDevice, int64, int64) error { return nil }}
	l := initialized(t, 32*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	writeCanary(t, l, v)

	l.useMethods(unsupported, lies)
	if err := wipeVolume(ctx, d, guidA); err == nil {
		t.Fatal("a wipe that zeroed nothing succeeded")
	}
	s := d.Snapshot()
	if got := volumes(s); s.Err != nil || !slices.Equal(got, []string{"a:Wiping@3+10"}) || s.Free.Overlaps(extentMiB(3, 10)) {
		t.Fatalf("after a failed wipe: %+v", s)
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(3, 10), Ephemeral: true}); !errors.Is(err, ErrInUse) {
		t.Errorf("Create of a volume that is being wiped: %v", err)
	}
	if err := d.MarkFormatted(ctx, guidA); !errors.Is(err, ErrInUse) {
		t.Errorf("MarkFormatted of a volume that is being wiped: %v", err)
	}

	// Cut short in the middle, by the caller.
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	l.useMethods(method{"cut", units.MiB, func(d *blockDevice, off, n int64) error {
		if off == 7*units.MiB {
			cancel()
		}
		return overwrite(d, off, n)
	}})
	if err := wipeVolume(stopped, d, guidA); !errors.Is(err, context.Canceled) {
		t.Fatalf("a canceled wipe: %v", err)
	}
	if n := countCanaries(t, l); n == 0 || int64(n) == 10*units.MiB/8 {
		t.Fatalf("a canceled wipe left %d canaries", n)
	}
	// And cut short by a restart.
	d.Close()
	d = l.open(t)
	l.useMethods(append([]method{unsupported, lies}, defaultWipeMethods().zero...)...)
	if err := wipeVolume(ctx, d, guidA); err != nil {
		t.Fatal(err)
	}
	if n := countCanaries(t, l); n != 0 {
		t.Errorf("%d canaries are left", n)
	}
	if got := volumes(d.Snapshot()); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestWipeInUse asserts that a volume in use is kept, and nothing is changed.
func TestWipeInUse(t *testing.T) {
	l := initialized(t, 32*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	v, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	holder, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := l.hash(t)
	if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrInUse) {
		t.Errorf("Wipe of a held volume: %v", err)
	}
	if l.hash(t) != before {
		t.Error("the disk was written to")
	}
	holder.Close()
	// A program that only looks, and keeps it open.
	looker, err := os.Open(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrInUse) {
		t.Errorf("Wipe of a volume that is looked at: %v", err)
	}
	if l.hash(t) != before {
		t.Error("the disk was written to")
	}
	if got := d.Snapshot(); !slices.Equal(volumes(got), []string{"a:Reserved@3+10"}) || got.Volumes[0].Device != v.Device {
		t.Errorf("then: %+v", got)
	}
	looker.Close()
	if err := wipeVolume(ctx, d, guidA); err != nil {
		t.Error(err)
	}
}

// TestWipeIsLoggedOnce asserts that a wipe is logged when its bytes are zeroed, and not each time when the volume is
// held.
func TestWipeIsLoggedOnce(t *testing.T) {
	d := initialized(t, 32*units.MiB, 512).open(t)
	v, err := d.Create(withoutLogs(t), CreateOptions{Partition: guidA, Extent: extentMiB(3, 4), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	log := &ktesting.BufferTL{}
	ctx := klog.NewContext(t.Context(), ktesting.NewLogger(log, ktesting.NewConfig(ktesting.Verbosity(2))))
	const says = "Volume is being wiped"
	holder, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := d.Wipe(ctx, guidA, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("of a volume that is held: %v", err)
		}
	}
	if strings.Contains(log.String(), says) {
		t.Errorf("of a volume that is held the log says %s", log.String())
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wipe(ctx, guidA, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), says) != 1 {
		t.Errorf("the log says %s", log.String())
	}
}
