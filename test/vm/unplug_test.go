package vm

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/vm/wire"
)

// TestUnplug pulls disks out while their volumes are written to: first the one attached by the device mapper, then the
// other. It asserts that the engine reports the disk as out of service, that nothing hangs, and that the other disk
// goes on. When the disk is back everything acknowledged is on it.
func TestUnplug(t *testing.T) {
	i := needImage(t)
	dir := newMachineDir(t)
	victims, drives := newVictims(t, dir)
	m, err := boot(t.Context(), dir, i, drives...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cut)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	for _, v := range victims {
		v.prepare(t, ctx, m)
		if err := m.call(ctx, "close", v.burst.Disk, nil); err != nil {
			t.Fatal(err)
		}
	}
	m.cut()
	if m, err = boot(ctx, dir, i, drives...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cut)
	for _, v := range victims {
		v.check(t, ctx, m, 0)
	}
	small, crowded := victims[0], victims[1]
	crowded.pull(t, ctx, m, small)
	small.pull(t, ctx, m, crowded)
}

// pull pulls the disk out in the middle of a burst, and plugs it in again.
func (v *victim) pull(t *testing.T, ctx context.Context, m *machine, other *victim) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	// One volume is mounted all the time, like a pod's.
	kept := wire.Volume{Disk: v.burst.Disk, Partition: "e0000000-0000-4000-8000-00000000000e", Start: 490 * mib, Length: 16 * mib}
	for _, do := range []string{"create", "format", "mount", "fill"} {
		if err := m.call(ctx, do, kept, nil); err != nil {
			t.Fatal(err)
		}
		v.model.take(wire.Step{Do: do, Partition: kept.Partition, Start: kept.Start, Length: kept.Length, Done: true})
	}
	var bursts []<-chan wire.Reply
	for _, b := range []*victim{v, other} {
		b.burst.Seed = r.Uint64()
		replies, err := m.begin("burst", b.burst)
		if err != nil {
			t.Fatal(err)
		}
		bursts = append(bursts, replies)
	}
	v.follow(t, ctx, bursts[0], 20)
	other.follow(t, ctx, bursts[1], 20)

	began := time.Now()
	pulled, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := m.monitor.unplug(pulled, v.name); err != nil {
		t.Fatalf("%s: the guest does not release the disk: %v", v.name, err)
	}
	// Its burst ends by itself, because every step fails: none waits for a disk that is gone.
	failure := v.follow(t, pulled, bursts[0], 0)
	if !strings.Contains(failure, "out of service") && !strings.Contains(failure, "input/output error") && !strings.Contains(failure, "no such device") {
		t.Errorf("%s: the burst ended with %q", v.name, failure)
	}
	if err := m.call(pulled, "check", v.burst.Disk, nil); err == nil {
		t.Errorf("%s: a disk that is gone was checked, and found good", v.name)
	}
	var s wire.State
	if err := m.call(pulled, "state", v.burst.Disk, &s); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(s.OutOf, "out of service") || len(s.Volumes) == 0 {
		t.Errorf("%s: after it was pulled out it has %d volumes and is out of service because of %q", v.name, len(s.Volumes), s.OutOf)
	}
	if err := m.call(pulled, "wipe", kept, nil); err == nil {
		t.Errorf("%s: a volume of a disk that is gone was wiped", v.name)
	}
	t.Logf("%s: out of service %v after it was pulled out: %s", v.name, time.Since(began).Round(time.Millisecond), s.OutOf)
	other.follow(t, pulled, bursts[1], 20)
	if err := m.call(ctx, "stop", other.burst.Disk, nil); err != nil {
		t.Fatal(err)
	}
	if failure := other.follow(t, ctx, bursts[1], 0); failure != "" {
		t.Errorf("%s: %s", other.name, failure)
	}
	t.Logf("%s went on: %d steps acknowledged", other.name, other.model.steps)

	// It is plugged in again, while its volume is still mounted from before.
	if err := m.call(ctx, "close", v.burst.Disk, nil); err != nil {
		t.Errorf("%s: %v", v.name, err)
	}
	if err := v.platter.powerCut(r, r.Float64()); err != nil {
		t.Fatal(err)
	}
	if err := m.monitor.plug(v.drive()); err != nil {
		t.Fatal(err)
	}
	if v.mapped {
		// The volume's device exists, and shows a disk that is gone.
		var s wire.State
		err := m.call(ctx, "open", v.device(t, ctx, m), &s)
		if why := s.OutOf; err == nil && !strings.Contains(why, "unmount it") || err != nil && !strings.Contains(err.Error(), "unmount it") {
			t.Errorf("%s: plugged in while a volume is mounted: %v, out of service because of %q", v.name, err, why)
		}
		if err == nil {
			if err := m.call(ctx, "close", v.burst.Disk, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if err := m.call(ctx, "unmount", kept, nil); err != nil {
		t.Errorf("%s: unmounting the volume of a disk that is gone: %v", v.name, err)
	}
	v.check(t, ctx, m, 0)
	// The disk serves again.
	again := wire.Volume{Disk: v.burst.Disk, Partition: kept.Partition}
	if err := m.call(ctx, "wipe", again, nil); err != nil {
		t.Errorf("%s: after it came back: %v", v.name, err)
	}
	delete(v.model.volumes, kept.Partition)
}

// follow takes the steps of a burst: until that many more are acknowledged, or if steps is 0 until it fails. It returns
// the failure.
func (v *victim) follow(t *testing.T, ctx context.Context, replies <-chan wire.Reply, steps int) string {
	t.Helper()
	for want := v.model.steps + steps; steps == 0 || v.model.steps < want; {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: a burst hangs", v.name)
		case r, ok := <-replies:
			if !ok || r.Done {
				if steps > 0 {
					t.Fatalf("%s: the burst ended: %s", v.name, r.Error)
				}
				return r.Error
			}
			v.model.take(step(t, r))
		}
	}
	return ""
}
