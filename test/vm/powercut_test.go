package vm

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/vm/wire"
)

// powerCuts is how many cuts come in the middle of bursts. startsHit more come during the next start, while the damage
// of the cut before is being repaired.
const (
	powerCuts = 20
	startsHit = 5
)

// TestPowerCut cuts the power repeatedly in the middle of bursts of creates, formats, grows and wipes. The disks have
// both sector sizes, and one is attached by the device mapper. The cut comes when a flush is requested, before it is
// done. Anything that was written since the last flush may be lost. The test asserts that nothing acknowledged is.
func TestPowerCut(t *testing.T) {
	dir := newMachineDir(t)
	victims, drives := newVictims(t, dir)
	cutPower(t, dir, victims, drives, powerCuts, startsHit)
}

// cutPower cuts the power that many times in the middle of bursts, and of starts after them.
func cutPower(t *testing.T, dir string, victims []*victim, drives []drive, powerCuts, startsHit int) {
	t.Helper()
	testenv.NeedProgram(t, "losetup", "sgdisk", "sfdisk", "parted")
	i := needImage(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	cutsBefore := powerCuts / startsHit
	// What a cut loses is random: there are more cuts until each disk has lost something.
	few := func(v *victim) bool {
		return v.model.steps < 3*powerCuts || v.verified < powerCuts/2 || v.platter.dropped == 0
	}
	planned := powerCuts + startsHit
	for cut, ended := 0, false; !ended; cut++ {
		ended = cut >= planned && (cut == 3*planned || !slices.ContainsFunc(victims, few))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		m, err := boot(ctx, dir, i, drives...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.cut)
		switch {
		case ended:
			last(t, ctx, m, victims, cut)
		case cut%(cutsBefore+1) == cutsBefore:
			cutStart(t, ctx, m, victims, r)
		default:
			cutBurst(t, ctx, m, victims, r, cut)
		}
		keep := []float64{0, 0.2, 0.5, 0.9}[r.IntN(4)]
		for _, v := range victims {
			if err := v.platter.powerCut(r, keep); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
	}
	for _, v := range victims {
		if !v.encrypted {
			v.strict(t)
		}
		t.Logf("%s: %d power cuts in bursts and %d in starts at least, %d steps acknowledged, %d volumes' data read whole, %d flushes; of the cache %d sectors lost, %d kept",
			v.name, powerCuts, startsHit, v.model.steps, v.verified, v.platter.flushes, v.platter.dropped, v.platter.kept)
		if few(v) {
			t.Errorf("%s: too little happened for this to prove anything", v.name)
		}
	}
}

// cutBurst cuts the power in the middle of a burst on all disks, when one of them gets a flush.
func cutBurst(t *testing.T, ctx context.Context, m *machine, victims []*victim, r *rand.Rand, cut int) {
	t.Helper()
	bursts := make([]<-chan wire.Reply, len(victims))
	for _, v := range victims {
		if cut == 0 {
			v.prepare(t, ctx, m)
		} else {
			v.check(t, ctx, m, cut)
		}
		v.burst.Seed = r.Uint64()
	}
	for n, v := range victims {
		var err error
		if bursts[n], err = m.begin("burst", v.burst); err != nil {
			t.Fatal(err)
		}
	}
	// The disks alternate. The cut is somewhere within the next volumes' lives.
	n := cut % len(victims)
	victims[n].follow(t, ctx, bursts[n], 2+r.IntN(10))
	select {
	case <-victims[n].platter.setTrap():
	case <-ctx.Done():
		t.Errorf("cut %d: nothing is written any more", cut)
	}
	m.cut()
	for n, v := range victims {
		for reply := range bursts[n] {
			if reply.Error != "" {
				t.Errorf("cut %d, %s: %s", cut, v.name, reply.Error)
			} else {
				v.model.take(step(t, reply))
			}
		}
	}
}

// cutStart cuts the power while the disks are opened after a power cut.
func cutStart(t *testing.T, ctx context.Context, m *machine, victims []*victim, r *rand.Rand) {
	t.Helper()
	for _, v := range victims {
		if _, err := m.begin("open", v.device(t, ctx, m)); err != nil {
			t.Fatal(err)
		}
	}
	<-time.After(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
	m.cut()
}

// last checks everything again, and leaves the disks as after an orderly shutdown.
func last(t *testing.T, ctx context.Context, m *machine, victims []*victim, cut int) {
	t.Helper()
	for _, v := range victims {
		v.check(t, ctx, m, cut)
		if err := m.call(ctx, "close", v.burst.Disk, nil); err != nil {
			t.Error(err)
		}
	}
	m.cut()
	for _, v := range victims {
		if err := v.platter.flush(); err != nil {
			t.Fatal(err)
		}
	}
}
