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
	other := uuid.NewSHA1(uuid.Nil, []byte{0}).String()
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
	for _, e := range now.entries {
		if !e.isVolume() {
			continue
		}
		switch e.phase() {
		case Reserved:
			possible = append(possible, setPhase(e.guid, Formatted), prepareFormat(e.guid).followedBy(setPhase(e.guid, Formatted)), setPhase(e.guid, Wiping))
			if len(possible) > 4 {
				// Another change between the two halves.
				possible = append(possible, prepareFormat(e.guid).followedBy(possible[0], setPhase(e.guid, Formatted)))
			}
		case Formatted:
			possible = append(possible, setPhase(e.guid, Wiping))
			if c, err := now.volume(copyOf(e.guid)); err != nil && now.free().Contains(extent.New(start*units.MiB, e.extent.Len())) {
				possible = append(possible, copyVolume(e.guid, start, e.extent.Len()/units.MiB), copyVolume(e.guid, start, e.extent.Len()/units.MiB).followedBy(switchVolume(e.guid)))
			} else if err == nil && c.phase() == Copying && c.extent.Len() >= e.extent.Len() {
				possible = append(possible, switchVolume(e.guid), switchVolume(e.guid))
			}
			if e.extent.End < 53*units.MiB && now.free().Contains(extent.New(e.extent.End, units.MiB)) {
				possible = append(possible, growVolume(e.guid, e.extent.Len()/units.MiB+1))
			}
		case Wiping:
			possible = append(possible, removeVolume(e.guid))
		case Copying:
			possible = append(possible, setPhase(e.guid, Wiping))
		}
	}
	if len(possible) == 0 {
		return undoPrepareFormat()
	}
	return possible[random.IntN(len(possible))]
}
