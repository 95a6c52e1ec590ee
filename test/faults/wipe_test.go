package faults

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestWipe wipes a volume that is full of a canary, under each policy. The disk fails or drops each request of the wipe
// in turn. The test asserts that a free extent holds zeros in every case, and that the wipe ends after the disk is
// healed.
func TestWipe(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy disk.WipePolicy
		plain  bool
	}{
		{"zero", disk.WipeZero, false},
		{"zero by writing", disk.WipeZero, true},
		{"overwrite", disk.WipeOverwrite, false},
		{"secure discard", disk.WipeSecureDiscard, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t, 512)
			if c.plain {
				n.call("Plain", 0, new(bool))
			}
			n.full(t)
			wipes(t, n, disk.WipeOptions{Policy: c.policy}, 1500*time.Millisecond)
		})
	}
}

// full fills the living volume to its last byte, and saves the disk in that state.
func (n *node) full(t *testing.T) {
	t.Helper()
	n.must(n.open(t.Context()))
	v, err := n.engine.Create(t.Context(), disk.CreateOptions{Partition: living, Name: "living", Extent: livingAt})
	n.must(err)
	canary := []byte("my bonnie lies over the ocean; ")
	device, err := os.OpenFile(v.Device, os.O_WRONLY, 0)
	n.must(err)
	_, err = device.Write(bytes.Repeat(canary, int(livingShort)/len(canary)+1)[:livingShort])
	n.must(errors.Join(err, device.Sync(), device.Close()))
	n.must(n.engine.MarkFormatted(t.Context(), living))
	n.close()
	if n.digest(livingAt).Zero {
		t.Fatal("the canary is not on the medium")
	}
	n.call("Save", 0, new(bool))
}

// wipes tries the faults.
func wipes(t *testing.T, n *node, o disk.WipeOptions, limit time.Duration) {
	n.must(n.open(t.Context()))
	n.set(Fault{})
	w, err := n.engine.Wipe(t.Context(), living, o)
	whole := n.heal()
	n.close()
	if err != nil || !w.Verified || w.Policy != o.Policy || w.Extent != livingAt || !n.digest(livingAt).Zero {
		t.Fatalf("on a disk that is well: %+v, %v", w, err)
	}
	t.Logf("by %s: %d reads, %d writes, %d zeroings, %d flushes", w.Method, whole.of(Read), whole.of(Write), whole.of(Zero), whole.of(Sync))
	var kinds [][]Fault
	add := func(f Fault) {
		var kind []Fault
		for f.At = range whole.of(f.Op) {
			kind = append(kind, f)
		}
		if len(kind) > 0 {
			kinds = append(kinds, kind)
		}
	}
	for _, count := range []int{0, 1} {
		for _, op := range []Op{Read, Write, Zero, Sync} {
			add(Fault{Op: op, Do: Fail, Count: count})
		}
		add(Fault{Op: Write, Do: Drop, Count: count})
		add(Fault{Op: Zero, Do: Drop, Count: count})
	}
	add(Fault{Op: Any, Do: Fail})
	hits, done, failed := map[string]int{}, 0, 0
	tried, all := inTurn(t, kinds, limit, func(f Fault) {
		n.call("Restore", 0, new(bool))
		n.must(n.open(t.Context()))
		n.set(f)
		w, err := n.engine.Wipe(t.Context(), living, o)
		if n.heal().Hits > 0 {
			hits[f.String()]++
		}
		if err == nil {
			done++
		} else {
			failed++
		}
		n.wiped(t, w, err)
		n.close()
	})
	t.Logf("%d of %d faults tried; they hit: %v; the wipe was done %d times and failed %d times", tried, all, hits, done, failed)
	if len(hits) < len(kinds)-2 || failed == 0 {
		t.Error("the faults hit too little")
	}
}

// wiped checks the result of a wipe on a bad disk, and wipes again on the healed one.
func (n *node) wiped(t *testing.T, w disk.WipeResult, err error) {
	t.Helper()
	zero, phase := n.digest(livingAt).Zero, n.volume(living).Phase
	switch {
	case err == nil && (!w.Verified || phase != "" || !zero):
		t.Errorf("the wipe is done: %+v; the volume is %q, and its bytes are zero: %t", w, phase, zero)
	case err != nil && phase == "" && n.engine.Snapshot().Err == nil:
		t.Errorf("the wipe failed: %v; and the volume is gone", err)
	}
	if n.engine.Snapshot().Err != nil {
		n.close()
		n.must(n.open(t.Context()))
		if n.volume(living).Phase == "" && !n.digest(livingAt).Zero {
			t.Errorf("the wipe failed: %v; the extent is free, and not zero", err)
		}
	}
	if err := n.wipe(t.Context(), living); err != nil {
		t.Errorf("wiping again: %v", err)
	}
	if !n.digest(livingAt).Zero {
		t.Error("wiped again, the extent is not zero")
	}
	n.inspect(t)
}
