package disk

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// withLadder replaces the ladder for a test.
func withLadder(t *testing.T, rungs ...rung) {
	t.Helper()
	old := ladder
	ladder = rungs
	t.Cleanup(func() { ladder = old })
}

// wipe wipes a volume as it is done unless somebody asks for another way.
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

// TestLadder: every rung alone leaves nothing of a volume, and nothing of another is lost.
func TestLadder(t *testing.T) {
	all := slices.Clone(ladder)
	for _, r := range all {
		t.Run(r.name, func(t *testing.T) {
			bothSectors(t, func(t *testing.T, sector int) {
				small := r
				small.step = min(r.step, 3*mib) // several steps, the last one shorter
				if r.name == "overwrite" {
					small.step = bounceBytes
				}
				withLadder(t, small)
				l := initialized(t, 32*mib, sector)
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

// TestLadderIsClimbed: a rung that fails, or lies, is followed by the next.
func TestLadderIsClimbed(t *testing.T) {
	all := slices.Clone(ladder)
	unsupported := rung{"unsupported", mib, false, func(*blockDevice, int64, int64) error { return unix.EOPNOTSUPP }}
	lies := rung{"lies", mib, false, func(*blockDevice, int64, int64) error { return nil }}
	l := initialized(t, 32*mib, 512)
	d := l.open(t)
	ctx := quiet(t)
	v, err := d.Create(ctx, CreateOptions{Partition: a, Extent: at(3, 10), Ephemeral: true})
	if err != nil {
		t.Fatal(err)
	}
	canary(t, l, v)

	withLadder(t, unsupported, lies)
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

	// Cut short in the middle, by its caller.
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	withLadder(t, rung{"cut", mib, false, func(d *blockDevice, off, n int64) error {
		if off == 4*mib {
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
	// And by a restart.
	d.Close()
	d = l.open(t)
	withLadder(t, append([]rung{unsupported, lies}, all...)...)
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

// TestWipeInUse: whoever holds the volume keeps it, and nothing is changed.
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
	// Somebody only looks, and does not go away: zeroed, but not freed.
	looker, err := os.Open(v.Device)
	if err != nil {
		t.Fatal(err)
	}
	if err := wipe(ctx, d, a); !errors.Is(err, ErrInUse) {
		t.Errorf("Wipe of a volume that is looked at: %v", err)
	}
	if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Wiping@3+10"}) {
		t.Errorf("then: %v", got)
	}
	looker.Close()
	if err := wipe(ctx, d, a); err != nil {
		t.Error(err)
	}
}
