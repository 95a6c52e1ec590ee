package disk

import (
	"errors"
	"slices"
	"testing"
)

// TestFaults makes every single operation of a change fail once, fail for good, or be dropped. It asserts that the
// change is done, or that the disk is out of service. Then it has the old or the new table after a restart.
func TestFaults(t *testing.T) {
	for _, fault := range []struct {
		name  string
		fails func(n, at int) (error, bool)
	}{
		{"once", func(n, at int) (error, bool) {
			if n == at {
				return errInjected, false
			}
			return nil, false
		}},
		{"from then on", func(n, at int) (error, bool) {
			if n >= at {
				return errInjected, false
			}
			return nil, false
		}},
		{"dropped", func(n, at int) (error, bool) { return nil, n == at }},
		{"dropped from then on", func(n, at int) (error, bool) { return nil, n >= at }},
	} {
		for _, change := range []step{
			setPhase(guidA, Formatted), prepareFormat(guidA).followedBy(setPhase(guidA, Formatted)), prepareFormat(guidA).followedBy(undoPrepareFormat()),
			reservePrimaryFirst(guidB, 10, 3), reserveUnfinished(guidB, 10, 3).followedBy(prepareFormat(guidB), setPhase(guidB, Formatted)), prepareFormat(guidA).followedBy(reservePrimaryFirst(guidB, 10, 3)), reserveRaw(guidB, 10, 3), growVolume(guidA, 5), setPhase(guidA, Wiping),
			setPhase(guidA, Formatted).followedBy(copyVolume(guidA, 10, 3), switchVolume(guidA)),
		} {
			outcomes := map[bool]int{}
			for _, l := range crashLayouts(t) {
				for at := range 30 {
					outcomes[withFault(t, l, change, func(n int, _ string) (error, bool) { return fault.fails(n, at) })]++
				}
			}
			t.Logf("%s, %s: %v", change.name, fault.name, outcomes)
			if outcomes[true] == 0 {
				t.Errorf("%s, %s: it never succeeds", change.name, fault.name)
			}
		}
	}
}

// withFault makes a change on a disk that fails, and checks the outcome.
func withFault(t *testing.T, l layout, change step, fails func(int, string) (error, bool)) (ok bool) {
	t.Helper()
	disk, _ := newFormattedDisk(t, l)
	s, _, err := disk.openTable(t, l, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := reserve(guidA, 2, 3).do(t, s); err != nil {
		t.Fatal(err)
	}
	possible := [][]entry{slices.Clone(s.table.entries)}
	disk.operations, disk.fault = 0, fails
	for _, st := range change.flatten() {
		if err = st.do(t, s); err != nil {
			break
		}
		possible = append(possible, slices.Clone(s.table.entries))
	}
	disk.fault = nil
	if err != nil {
		if !errors.Is(err, ErrOutOfService) {
			t.Errorf("%s: %v", change.name, err)
		}
		// The twin has the result of the step without a fault.
		twin, _ := newFormattedDisk(t, l)
		whole, _, twinErr := twin.openTable(t, l, false)
		if twinErr != nil {
			t.Fatal(twinErr)
		}
		if err := reserve(guidA, 2, 3).do(t, whole); err != nil {
			t.Fatal(err)
		}
		for _, d := range change.run(t, twin, whole) {
			possible = append(possible, d.entries)
		}
	} else {
		possible = possible[len(possible)-1:]
	}
	// Without the foreign entry and the meta partition, whose GUIDs are random.
	volumesOf := func(entries []entry) []string {
		return describeEntries(slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return !e.isVolume() }))
	}
	among := func(entries []entry) bool {
		return slices.ContainsFunc(possible, func(p []entry) bool { return slices.Equal(volumesOf(p), volumesOf(entries)) })
	}
	if !among(s.table.entries) {
		t.Errorf("%s: %v; the table is %v", change.name, err, describeEntries(s.table.entries))
	}
	again, f, openErr := disk.openTable(t, l, false)
	switch {
	case openErr != nil:
		t.Errorf("%s: %v; then %+v, %v", change.name, err, f, openErr)
	case !among(again.table.entries):
		t.Errorf("%s: %v; then %v", change.name, err, describeEntries(again.table.entries))
	}
	return err == nil
}
