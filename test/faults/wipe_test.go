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
			n.fillVolume(t)
			tryWipeFaults(t, n, disk.WipeOptions{Policy: c.policy}, 1500*time.Millisecond)
		})
	}
}

// fillVolume fills the living volume to its last byte, and saves the disk in that state.
func (n *node) fillVolume(t *testing.T) {
	t.Helper()
	n.must(n.open(t.Context()))
	v, err := n.engine.Create(t.Context(), disk.CreateOptions{Partition: fsVolume, Name: "living", Extent: fsVolumeAt})
	n.must(err)
	canary := []byte("my bonnie lies over the ocean; ")
	device, err := os.OpenFile(v.Device, os.O_WRONLY, 0)
	n.must(err)
	_, err = device.Write(bytes.Repeat(canary, int(fsVolumeSize)/len(canary)+1)[:fsVolumeSize])
	n.must(errors.Join(err, device.Sync(), device.Close()))
	n.must(n.engine.MarkFormatted(t.Context(), fsVolume))
	n.close()
	if n.digest(fsVolumeAt).Zero {
		t.Fatal("the canary is not on the medium")
	}
	n.call("Save", 0, new(bool))
}

// tryWipeFaults tries the faults.
func tryWipeFaults(t *testing.T, n *node, o disk.WipeOptions, limit time.Duration) {
	n.must(n.open(t.Context()))
	n.setFault(Fault{})
	w, err := n.engine.Wipe(t.Context(), fsVolume, o)
	whole := n.heal()
	n.close()
	if err != nil || !w.Verified || w.Policy != o.Policy || w.Extent != fsVolumeAt || !n.digest(fsVolumeAt).Zero {
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
	tried, all := tryFaults(t, kinds, limit, func(f Fault) {
		n.call("Restore", 0, new(bool))
		n.must(n.open(t.Context()))
		n.setFault(f)
		w, err := n.engine.Wipe(t.Context(), fsVolume, o)
		if n.heal().Hits > 0 {
			hits[f.String()]++
		}
		if err == nil {
			done++
		} else {
			failed++
		}
		n.checkWipe(t, w, err)
		n.close()
	})
	t.Logf("%d of %d faults tried; they hit: %v; the wipe was done %d times and failed %d times", tried, all, hits, done, failed)
	if len(hits) < len(kinds)-2 || failed == 0 {
		t.Error("the faults hit too little")
	}
}

// checkWipe checks the result of a wipe on a bad disk, and wipes again on the healed one.
func (n *node) checkWipe(t *testing.T, w disk.WipeResult, err error) {
	t.Helper()
	zero, phase := n.digest(fsVolumeAt).Zero, n.volume(fsVolume).Phase
	switch {
	case err == nil && (!w.Verified || phase != "" || !zero):
		t.Errorf("the wipe is done: %+v; the volume is %q, and its bytes are zero: %t", w, phase, zero)
	case err != nil && phase == "" && n.engine.Snapshot().Err == nil:
		t.Errorf("the wipe failed: %v; and the volume is gone", err)
	}
	if n.engine.Snapshot().Err != nil {
		n.close()
		n.must(n.open(t.Context()))
		if n.volume(fsVolume).Phase == "" && !n.digest(fsVolumeAt).Zero {
			t.Errorf("the wipe failed: %v; the extent is free, and not zero", err)
		}
	}
	if err := n.wipe(t.Context(), fsVolume); err != nil {
		t.Errorf("wiping again: %v", err)
	}
	if !n.digest(fsVolumeAt).Zero {
		t.Error("wiped again, the extent is not zero")
	}
	n.checkEnd(t)
}
