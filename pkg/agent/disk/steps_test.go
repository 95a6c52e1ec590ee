package disk

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// step is one change of a table, as Create, MarkFormatted and Wipe make it, or several without a restart in between.
type step struct {
	name string
	do   func(t testing.TB, s *store) error
	then []step
}

// acknowledged is a table that was acknowledged, and how long the log was then.
type acknowledged struct {
	entries []entry
	log     int
}

// run does the step and those that follow it, and returns the table after each.
func (st step) run(t testing.TB, m *memDisk, s *store) []acknowledged {
	t.Helper()
	if err := st.do(t, s); err != nil {
		t.Fatalf("%s: %v", st.name, err)
	}
	tables := []acknowledged{{slices.Clone(s.table.entries), len(m.log)}}
	for _, next := range st.then {
		tables = append(tables, next.run(t, m, s)...)
	}
	return tables
}

// flatten are the step and all that follow, in order.
func (st step) flatten() []step {
	steps := []step{st}
	for _, next := range st.then {
		steps = append(steps, next.flatten()...)
	}
	return steps
}

func (st step) followedBy(then ...step) step {
	st.then = append(slices.Clone(st.then), then...)
	return st
}

func reserve(guid string, start, length int64) step {
	return step{name: "reserve", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: extentMiB(start, length), Ephemeral: true})
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, e)
	}}
}

func reserveRaw(guid string, start, length int64) step {
	return step{name: "raw", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Extent: extentMiB(start, length), Raw: true})
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, e)
	}}
}

func growVolume(guid string, length int64) step {
	return step{name: "grow", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withLength(guid, length*units.MiB)
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, e)
	}}
}

// reserveInPieces makes a volume of two pieces, as Create does.
func reserveInPieces(guid string, start, length, start2, length2 int64) step {
	return step{name: "reserve in pieces", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: extentMiB(start, length), Pieces: []extent.Extent{extentMiB(start2, length2)}})
		if err != nil {
			return err
		}
		return s.putSet(withoutLogs(t), next, next.setOf(e).entries(), true, nil)
	}}
}

// addPiece gives a volume its next piece, as AddPiece does.
func addPiece(guid string, number int, start, length int64) step {
	return step{name: "add piece", do: func(t testing.TB, s *store) error {
		next, changed, err := s.table.withPiece(guid, number, extentMiB(start, length))
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, changed...)
	}}
}

// dropPiece drops the last piece of a volume that is being wiped, as Wipe does.
func dropPiece(guid string) step {
	return step{name: "drop piece", do: func(t testing.TB, s *store) error {
		next, gone, first, err := s.table.withoutPiece(guid)
		if err != nil {
			return err
		}
		return s.drop(withoutLogs(t), next, gone.index, first)
	}}
}

// copyOf is the GUID of a volume's copy.
func copyOf(guid string) string { return uuid.NewSHA1(uuid.Nil, []byte("copy of "+guid)).String() }

// copyVolume makes the target of a move, as Move does.
func copyVolume(guid string, start, length int64) step {
	return step{name: "copy", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withCopy(guid, copyOf(guid), extentMiB(start, length))
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, e)
	}}
}

// switchVolume makes the copy the volume, as Move does.
func switchVolume(guid string) step {
	return step{name: "switch", do: func(t testing.TB, s *store) error {
		next, volume, old, err := s.table.withMoved(guid, copyOf(guid))
		if err != nil {
			return err
		}
		return s.putMoved(withoutLogs(t), next, volume, old, nil)
	}}
}

// reservePrimaryFirst is a reserve as Create makes it, with what the worker does afterwards.
func reservePrimaryFirst(guid string, start, length int64) step {
	return reserveUnfinished(guid, start, length).followedBy(step{name: "finish", do: func(t testing.TB, s *store) error { return s.finish(withoutLogs(t)) }})
}

// reserveUnfinished is reservePrimaryFirst before the worker has written the backup.
func reserveUnfinished(guid string, start, length int64) step {
	return step{name: "reserve, primary first", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withNew(CreateOptions{Partition: guid, Name: "default/pod", Extent: extentMiB(start, length)})
		if err != nil {
			return err
		}
		return s.putNew(withoutLogs(t), next, e, true, nil)
	}}
}

func setPhase(guid string, to Phase) step {
	return step{name: string(to), do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, to)
		if err != nil {
			return err
		}
		return s.put(withoutLogs(t), next, e)
	}}
}

// prepareFormat is what Format does while mkfs runs. undoPrepareFormat is what it does when mkfs fails.
func prepareFormat(guid string) step {
	return step{name: "prepare", do: func(t testing.TB, s *store) error {
		next, e, err := s.table.withPhase(guid, Formatted)
		if err != nil {
			return err
		}
		return s.prepare(withoutLogs(t), next, e)
	}}
}

func undoPrepareFormat() step {
	return step{name: "undo", do: func(t testing.TB, s *store) error {
		return s.undoPrepare(withoutLogs(t))
	}}
}

func removeVolume(guid string) step {
	return step{name: "remove", do: func(t testing.TB, s *store) error {
		i := s.table.indexOf(guid)
		next, err := s.table.without(guid)
		if err != nil {
			return err
		}
		return s.drop(withoutLogs(t), next, s.table.entries[i].index)
	}}
}

// volumeLife is what a disk goes through: entries in one sector and in others.
func volumeLife() []step {
	steps := []step{reservePrimaryFirst(guidA, 2, 3), setPhase(guidA, Formatted), reservePrimaryFirst(guidB, 5, 1), setPhase(guidB, Formatted), setPhase(guidA, Wiping), removeVolume(guidA), reserve(guidC, 2, 3)}
	for i := range int64(40) {
		reserveIn := []func(string, int64, int64) step{reserve, reservePrimaryFirst}[i%2]
		steps = append(steps, reserveIn(uuid.NewSHA1(uuid.Nil, []byte{byte(i)}).String(), 6+i, 1))
	}
	small := func(i byte) string { return uuid.NewSHA1(uuid.Nil, []byte{i}).String() }
	other, inPieces := small(0), uuid.NewSHA1(uuid.Nil, []byte("in pieces")).String()
	return append(steps, setPhase(guidB, Wiping), removeVolume(guidB),
		// Formatted as Format does it, alone and with other changes in between.
		prepareFormat(guidC).followedBy(setPhase(guidC, Formatted)),
		reserveUnfinished(c4, 46, 1).followedBy(prepareFormat(c4), setPhase(c4, Formatted)),
		reserveUnfinished(c5, 48, 1).followedBy(prepareFormat(other), prepareFormat(c5), reserveUnfinished(c6, 49, 1), prepareFormat(c6), undoPrepareFormat(), setPhase(c5, Formatted)),
		reservePrimaryFirst(guidA, 50, 1).followedBy(prepareFormat(guidA), reservePrimaryFirst(guidB, 51, 1), prepareFormat(guidB), setPhase(guidA, Formatted), setPhase(guidB, Formatted)),
		reserve(c2, 52, 1).followedBy(prepareFormat(c2), undoPrepareFormat(), prepareFormat(c2), setPhase(guidA, Wiping), setPhase(c2, Wiping)),
		reserveRaw(c3, 57, 1), growVolume(c3, 2), growVolume(guidC, 4),
		reserve(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), 47, 1).followedBy(
			prepareFormat(uuid.NewSHA1(uuid.Nil, []byte("x")).String()), growVolume(c3, 3), setPhase(uuid.NewSHA1(uuid.Nil, []byte("x")).String(), Formatted)),
		setPhase(c3, Wiping), removeVolume(c3),
		// Moves: given up, done, and done while another change is prepared in the backup.
		reserveRaw(c3, 57, 1), copyVolume(c3, 58, 2), setPhase(copyOf(c3), Wiping), removeVolume(copyOf(c3)),
		copyVolume(c3, 58, 1), switchVolume(c3), removeVolume(copyOf(c3)),
		setPhase(guidC, Wiping), removeVolume(guidC),
		copyVolume(c3, 2, 2).followedBy(prepareFormat(c6), switchVolume(c3), setPhase(c6, Formatted)),
		removeVolume(copyOf(c3)),
		// Pieces: added one by one, while another change is prepared, moved into one, and dropped.
		addPiece(c3, 1, 58, 1), growVolume(c3, 4),
		reserve(inPieces, 53, 1).followedBy(prepareFormat(inPieces), addPiece(c3, 2, 57, 1), setPhase(inPieces, Formatted)),
		setPhase(small(0), Wiping), removeVolume(small(0)), setPhase(small(1), Wiping), removeVolume(small(1)), setPhase(small(2), Wiping), removeVolume(small(2)),
		copyVolume(c3, 4, 5).followedBy(switchVolume(c3)), dropPiece(copyOf(c3)), dropPiece(copyOf(c3)), removeVolume(copyOf(c3)),
		setPhase(inPieces, Wiping), removeVolume(inPieces),
		reserveInPieces(inPieces, 58, 1, 54, 1).followedBy(prepareFormat(inPieces), setPhase(inPieces, Formatted)),
		setPhase(inPieces, Wiping), dropPiece(inPieces), removeVolume(inPieces),
	)
}

// randomStep is a random step that is possible with the table, or several of them.
func randomStep(random *rand.Rand, now table) step {
	var id [16]byte
	for i := range id {
		id[i] = byte(random.Uint32())
	}
	guid := uuid.NewSHA1(uuid.Nil, id[:]).String()
	start, length := 2+random.Int64N(50), 1+random.Int64N(3)
	made := []func(string, int64, int64) step{reserve, reservePrimaryFirst}[random.IntN(2)](guid, start, length)
	if random.IntN(4) == 0 {
		made = reserveRaw(guid, start, length)
	}
	var possible []step
	// The last MiBs are for the change after a recovery.
	if now.free().Contains(extentMiB(start, length)) {
		possible = append(possible, made, made)
		if made.name != "raw" {
			possible = append(possible, made.followedBy(prepareFormat(guid), setPhase(guid, Formatted)), made.followedBy(prepareFormat(guid), undoPrepareFormat()),
				reserveUnfinished(guid, start, length).followedBy(prepareFormat(guid), setPhase(guid, Formatted)))
		}
	}
	if start2 := 2 + random.Int64N(50); made.name != "raw" && random.IntN(3) == 0 && !extentMiB(start, length).Overlaps(extentMiB(start2, 1)) &&
		now.free().Contains(extentMiB(start, length)) && now.free().Contains(extentMiB(start2, 1)) {
		possible = append(possible, reserveInPieces(guid, start, length, start2, 1), reserveInPieces(guid, start, length, start2, 1).followedBy(prepareFormat(guid), setPhase(guid, Formatted)))
	}
	volumes, _ := now.sets()
	for _, v := range volumes {
		e, mib := v.first, v.length()/units.MiB
		switch e.phase() {
		case Reserved:
			possible = append(possible, setPhase(e.guid, Formatted), prepareFormat(e.guid).followedBy(setPhase(e.guid, Formatted)), setPhase(e.guid, Wiping))
			if len(possible) > 4 {
				// Another change between the two halves.
				possible = append(possible, prepareFormat(e.guid).followedBy(possible[0], setPhase(e.guid, Formatted)))
			}
		case Formatted:
			possible = append(possible, setPhase(e.guid, Wiping))
			if c, err := now.volume(copyOf(e.guid)); err != nil && now.free().Contains(extentMiB(start, mib)) {
				possible = append(possible, copyVolume(e.guid, start, mib), copyVolume(e.guid, start, mib).followedBy(switchVolume(e.guid)))
			} else if err == nil && c.phase() == Copying && c.extent.Len() >= v.length() {
				possible = append(possible, switchVolume(e.guid), switchVolume(e.guid))
			}
			if last := v.last(); last.extent.End < 53*units.MiB && now.free().Contains(extent.New(last.extent.End, units.MiB)) {
				possible = append(possible, growVolume(e.guid, mib+1))
			}
			if now.free().Contains(extentMiB(start, length)) && len(v.pieces) < 15 {
				possible = append(possible, addPiece(e.guid, len(v.pieces)+1, start, length))
			}
		case Wiping:
			if len(v.pieces) > 0 {
				possible = append(possible, dropPiece(e.guid), dropPiece(e.guid))
			} else {
				possible = append(possible, removeVolume(e.guid))
			}
		case Copying:
			possible = append(possible, setPhase(e.guid, Wiping))
		}
	}
	if len(possible) == 0 {
		return undoPrepareFormat()
	}
	return possible[random.IntN(len(possible))]
}
