package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// copyPairModel is what a pair should have on the medium, kept in the simplest way: whole arrays.
type copyPairModel struct {
	primary, backup []byte
	state           pairState
}

// TestCopyPair runs random operations on a pair and compares it with the model after each: its state, and both copies
// on the medium. The power is cut in each operation. Then one copy is intact, and the table that counts is the one
// before the operation or the one after it. Sometimes the disk fails. Then the pair recovers, or gives up and writes
// nothing more.
func TestCopyPair(t *testing.T) {
	states, gaveUp, reached := 0, 0, map[string]int{}
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 21))
		l := crashLayouts(t)[seed%2]
		m := newOwnDisk(t, l, Owner{})
		s, _, err := m.openTable(t, l, false)
		if err != nil {
			t.Fatal(err)
		}
		p := newCopyPair(m, l, s.current())
		table := bytes.Clone(p.current().array)
		model := copyPairModel{primary: table, backup: bytes.Clone(table), state: pairInSync}
		for step := range 40 {
			// Entry 255 is the meta partition's.
			index, slot := 1+random.IntN(200), make([]byte, entrySize)
			for i := range slot {
				slot[i] = byte(random.Uint32())
			}
			with := func(array []byte) []byte {
				next := bytes.Clone(array)
				copy(next[(index-1)*entrySize:], slot)
				return next
			}
			before, old := m.clone(), model
			m.log, m.operations, m.fault = nil, 0, nil
			if random.IntN(8) == 0 {
				at, forGood := random.IntN(6), random.IntN(2) == 0
				m.fault = func(n int, _ string) (error, bool) {
					if n == at || forGood && n > at {
						return errInjected, false
					}
					return nil, false
				}
			}
			var op string
			switch random.IntN(5) {
			case 0:
				changes, next := []entryChange{{index, slot}}, with(old.primary)
				if random.IntN(2) == 0 {
					// Two entries change, as in a move.
					other, bytes := 1+(index+random.IntN(199))%200, slices.Repeat([]byte{byte(random.Uint32())}, entrySize)
					changes = append(changes, entryChange{other, bytes})
					copy(next[(other-1)*entrySize:], bytes)
				}
				op, err = "put", p.put(withoutLogs(t), changes, nil)
				model = copyPairModel{primary: next, backup: next, state: pairInSync}
			case 1:
				op, err = "putPrimaryFirst", p.putPrimaryFirst(withoutLogs(t), []entryChange{{index, slot}}, nil)
				model = copyPairModel{primary: with(old.primary), backup: old.primary, state: pairBackupPending}
				// In state backup ahead, or after an error for which everything was written again, the copies are as
				// after put.
				if old.state == pairBackupAhead || err == nil && p.state == pairInSync && m.fault != nil {
					model.backup, model.state = model.primary, pairInSync
				}
			case 2:
				op, err = "prepare", p.prepare(withoutLogs(t), entryChange{index, slot})
				model = copyPairModel{primary: old.primary, backup: with(old.primary), state: pairBackupAhead}
			case 3:
				op, err = "completeBackup", p.completeBackup(withoutLogs(t))
				if old.state == pairBackupPending {
					model = copyPairModel{primary: old.primary, backup: old.primary, state: pairInSync}
				}
			case 4:
				op, err = "undoPrepare", p.undoPrepare(withoutLogs(t))
				if old.state == pairBackupAhead {
					model = copyPairModel{primary: old.primary, backup: old.primary, state: pairInSync}
				}
			}
			failing := m.fault != nil
			m.fault = nil
			name := fmt.Sprintf("seed %d, step %d: %s in state %s", seed, step, op, old.state)
			reached[string(old.state)+" "+op]++
			powerCuts(before, m.log, random, func(cut *memDisk, _ int) {
				states++
				f, err := examine(cut, l)
				if failing {
					return // half a write may have been torn as well
				}
				if err != nil || !f.ours || f.mustBeSeenBefore {
					t.Fatalf("%s: a power cut leaves %v, %v", name, f, err)
				}
				if got := f.current.array; !bytes.Equal(got, old.primary) && !bytes.Equal(got, model.primary) {
					t.Fatalf("%s: a power cut leaves neither the table before nor the one after", name)
				}
			})
			if err != nil {
				if !failing || !errors.Is(err, ErrOutOfService) {
					t.Fatalf("%s: %v", name, err)
				}
				gaveUp++
				break // the disk is opened again
			}
			if p.state != model.state {
				t.Fatalf("%s: it is %s, and should be %s", name, p.state, model.state)
			}
			for _, c := range []struct {
				at   location
				want []byte
			}{{l.primary(), model.primary}, {l.backup(), model.backup}} {
				if got, err := readCopy(m, l, c.at); err != nil || !got.clean || !bytes.Equal(got.array, c.want) {
					t.Fatalf("%s: the %s is not what it should be: %v", name, c.at.name, err)
				}
			}
			if got := p.current().array; !bytes.Equal(got, model.primary) {
				t.Fatalf("%s: the pair believes in another table", name)
			}
		}
	}
	t.Logf("%d states of power cuts, gave up %d times, operations by state: %v", states, gaveUp, reached)
	for _, state := range []pairState{pairInSync, pairBackupPending, pairBackupAhead} {
		for _, op := range []string{"put", "putPrimaryFirst", "prepare", "completeBackup", "undoPrepare"} {
			if reached[string(state)+" "+op] == 0 {
				t.Errorf("%s was never tried in state %s", op, state)
			}
		}
	}
	if gaveUp == 0 {
		t.Error("no failure was ever too much")
	}
}

// TestCopyPairOfAnotherDisk asserts that no operation writes a byte when the header on the medium has changed.
func TestCopyPairOfAnotherDisk(t *testing.T) {
	slot := bytes.Repeat([]byte{7}, entrySize)
	for name, do := range map[string]func(p *copyPair) error{
		"put":             func(p *copyPair) error { return p.put(withoutLogs(t), []entryChange{{3, slot}}, nil) },
		"putPrimaryFirst": func(p *copyPair) error { return p.putPrimaryFirst(withoutLogs(t), []entryChange{{3, slot}}, nil) },
		"prepare":         func(p *copyPair) error { return p.prepare(withoutLogs(t), entryChange{3, slot}) },
	} {
		for _, l := range crashLayouts(t) {
			m, _ := newFormattedDisk(t, l)
			s, _, err := m.openTable(t, l, false)
			if err != nil {
				t.Fatal(err)
			}
			p := newCopyPair(m, l, s.current())
			m.write(l.sector, make([]byte, l.sector))
			m.log = nil
			if err := do(&p); !errors.Is(err, ErrOutOfService) || len(m.log) > 0 {
				t.Errorf("%s: %v, %d writes", name, err, len(m.log))
			}
		}
	}
}
