package vm

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/berthdev/berth/test/vm/wire"
)

const powerCuts = 20

// TestPowerCut cuts the power in the middle of bursts of creates, formats, grows and wipes, again and
// again, on disks with both sector sizes, one of them through the device mapper. The cut comes when a
// flush is asked for and before it is done; of what was written since the last one anything may be lost. Nothing that was acknowledged may be.
func TestPowerCut(t *testing.T) {
	i := needImage(t)
	dir := newMachineDir(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	victims, drives := newVictims(t, dir)
	during := 0 // cuts while the machine was still opening its disks
	for cut := range powerCuts {
		m, err := boot(t.Context(), dir, i, drives...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(m.cut)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		// Every fourth cut hits the start: what the cut before left is being repaired.
		early := cut%4 == 3
		for _, v := range victims {
			if cut == 0 {
				v.prepare(t, ctx, m)
			} else if !early {
				v.check(t, ctx, m, cut)
			}
		}
		var replies []<-chan wire.Reply
		for _, v := range victims {
			do, args := "burst", any(v.burst)
			if early {
				do, args = "open", any(v.device(t, ctx, m))
				during++
			} else {
				v.burst.Seed = r.Uint64()
			}
			c, err := m.begin(do, args)
			if err != nil {
				t.Fatal(err)
			}
			replies = append(replies, c)
		}
		if early {
			<-time.After(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		} else {
			<-time.After(time.Second + time.Duration(r.Int64N(int64(4*time.Second))))
			select {
			case <-victims[r.IntN(len(victims))].platter.setTrap():
			case <-ctx.Done():
				t.Errorf("cut %d: nothing is written any more", cut)
			}
		}
		m.cut()
		cancel()
		keep := []float64{0, 0.5, 1, 0.9}[r.IntN(4)]
		for n, v := range victims {
			for reply := range replies[n] {
				if reply.Error != "" {
					t.Errorf("cut %d, %s: %s", cut, v.name, reply.Error)
				} else if !early {
					v.model.take(step(t, reply))
				}
			}
			if err := v.platter.powerCut(r, keep); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, err := boot(t.Context(), dir, i, drives...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.cut)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for _, v := range victims {
		v.check(t, ctx, m, powerCuts)
		if err := m.call(ctx, "close", v.burst.Disk, nil); err != nil {
			t.Error(err)
		}
	}
	m.cut()
	for _, v := range victims {
		if err := v.platter.flush(); err != nil {
			t.Fatal(err)
		}
		v.strict(t)
		t.Logf("%s: %d power cuts, %d steps acknowledged, %d volumes' data read whole, %d flushes; of the cache %d sectors lost, %d kept",
			v.name, powerCuts, v.model.steps, v.verified, v.platter.flushes, v.platter.dropped, v.platter.kept)
		if v.model.steps < 100 || v.verified < 10 || v.platter.dropped < 20 {
			t.Errorf("%s: too little happened for this to prove anything", v.name)
		}
	}
	t.Logf("%d of the cuts came while disks were opened", during/len(victims))
}
