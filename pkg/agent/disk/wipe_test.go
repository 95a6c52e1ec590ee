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
)

// zeroBy replaces the ways to zero.
func (l *loop) zeroBy(methods ...method) { l.wiping.zero = methods }

// wipe wipes a volume with the default options.
func wipe(ctx context.Context, d *Disk, partition string) error {
	_, err := d.Wipe(ctx, partition, WipeOptions{})
	return err
}

// canary fills a volume with a pattern, through its device and past all caches.
func canary(t *testing.T, l *loop, v Volume) {
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

// canaries counts what is left of the pattern in the whole file behind the disk.
func canaries(t *testing.T, l *loop) int {
	t.Helper()
	raw, err := os.ReadFile(l.image)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(raw, []byte("canary"))
}

// TestMethods asserts that every method leaves nothing of a volume, and changes nothing of another.
func TestMethods(t *testing.T) {
	for _, r := range defaultWipeConfig().zero {
		t.Run(r.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				small := r
				small.step = min(r.step, 3*mib) // several steps, the last one shorter
				if r.name == "overwrite" {
					small.step = bounceBytes
				}
				l := initialized(t, 32*mib, sector)
				l.zeroBy(small)
				d := l.open(t)
				ctx := t.Context()
				v, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(3, 10), Ephemeral: true})
				if err != nil {
					t.Fatal(err)
				}
				canary(t, l, v)
				l.put(t, []byte("kept kept kept kept kept"), 3*mib-24)
				l.put(t, []byte("kept kept kept kept kept"), 13*mib)
				if err := wipe(ctx, d, a); err != nil {
					t.Fatal(err)
				}
				if n := canaries(t, l); n != 0 {
					t.Errorf("%d canaries are left", n)
				}
				raw, err := os.ReadFile(l.image)
				if err != nil {
					t.Fatal(err)
				}
				if e := at(3, 10); !allZero(raw[e.Start:e.End]) || bytes.Count(raw, []byte("kept")) != 10 {
					t.Error("not zero, or its neighbours are gone")
				}
			})
		})
	}
}

// TestMethodsInOrder asserts that the next method follows one that fails, or that reports zeros which are none.
func TestMethodsInOrder(t *testing.T) {
	unsupported := method{"unsupported", mib, func(*blockDevice, int64, int64) error { return unix.EOPNOTSUPP }}
	lies := method{"lies", mib, func(*blockDevice, int64, int64) error { return nil }}
	l := initialized(t, 32*mib, 512)
	d := l.open(t)
	ctx := quiet(t)
	v, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	canary(t, l, v)

	l.zeroBy(unsupported, lies)
	if err := wipe(ctx, d, a); err == nil {
		t.Fatal("a wipe that zeroed nothing succeeded")
	}
	s := d.Snapshot()
	if got := volumes(s); s.Err != nil || !slices.Equal(got, []string{"a:Wiping@3+10"}) || s.Free.Overlaps(at(3, 10)) {
		t.Fatalf("after a failed wipe: %+v", s)
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(3, 10), Ephemeral: true}); !errors.Is(err, ErrInUse) {
		t.Errorf("Create of a volume that is being wiped: %v", err)
	}
	if err := d.MarkFormatted(ctx, a); !errors.Is(err, ErrInUse) {
		t.Errorf("MarkFormatted of a volume that is being wiped: %v", err)
	}

	// Cut short in the middle, by the caller.
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	l.zeroBy(method{"cut", mib, func(d *blockDevice, off, n int64) error {
		if off == 7*mib {
			cancel()
		}
		return overwrite(d, off, n)
	}})
	if err := wipe(stopped, d, a); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled wipe: %v", err)
	}
	if n := canaries(t, l); n == 0 || int64(n) == 10*mib/8 {
		t.Fatalf("a cancelled wipe left %d canaries", n)
	}
	// And cut short by a restart.
	d.Close()
	d = l.open(t)
	l.zeroBy(append([]method{unsupported, lies}, defaultWipeConfig().zero...)...)
	if err := wipe(ctx, d, a); err != nil {
		t.Fatal(err)
	}
	if n := canaries(t, l); n != 0 {
		t.Errorf("%d canaries are left", n)
	}
	if got := volumes(d.Snapshot()); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

// TestWipeInUse asserts that a volume in use is kept, and nothing is changed.
func TestWipeInUse(t *testing.T) {
	l := initialized(t, 32*mib, 512)
	d := l.open(t)
	ctx := quiet(t)
	v, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	d.settle(t)
	holder, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	before := l.hash(t)
	if err := wipe(ctx, d, a); !errors.Is(err, ErrInUse) {
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
	if err := wipe(ctx, d, a); !errors.Is(err, ErrInUse) {
		t.Errorf("Wipe of a volume that is looked at: %v", err)
	}
	if l.hash(t) != before {
		t.Error("the disk was written to")
	}
	if got := d.Snapshot(); !slices.Equal(volumes(got), []string{"a:Reserved@3+10"}) || got.Volumes[0].Device != v.Device {
		t.Errorf("then: %+v", got)
	}
	looker.Close()
	if err := wipe(ctx, d, a); err != nil {
		t.Error(err)
	}
}

// TestWipeIsSaidOnce asserts that a wipe is logged when its bytes are zeroed, and not each time when the volume is
// held.
func TestWipeIsSaidOnce(t *testing.T) {
	d := initialized(t, 32*mib, 512).open(t)
	v, err := d.Create(quiet(t), CreateOptions{Partition: a, Extent: at(3, 4), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	d.settle(t)
	log := &ktesting.BufferTL{}
	ctx := klog.NewContext(t.Context(), ktesting.NewLogger(log, ktesting.NewConfig(ktesting.Verbosity(2))))
	const says = "Volume is being wiped"
	holder, err := os.OpenFile(v.Device, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := d.Wipe(ctx, a, WipeOptions{}); !errors.Is(err, ErrInUse) {
			t.Errorf("of a volume that is held: %v", err)
		}
	}
	if strings.Contains(log.String(), says) {
		t.Errorf("of a volume that is held the log says %s", log.String())
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Wipe(ctx, a, WipeOptions{}); err != nil {
		t.Fatal(err)
	}
	if strings.Count(log.String(), says) != 1 {
		t.Errorf("the log says %s", log.String())
	}
}
