package disk

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"k8s.io/klog/v2"
)

// chunkBytes is what a disk writes as a whole or not at all, even one with larger sectors.
const chunkBytes = 512

// memDisk is a disk in memory, kept by chunk. Chunks of zeros are not kept. It logs what is written, so that a test can
// find what a power cut may leave.
type memDisk struct {
	chunks map[int64][]byte // never changed in place
	log    []loggedWrite

	// fault, if set, decides the outcome of the n-th operation (from 0).
	fault      func(n int, op string) (err error, dropped bool)
	operations int
}

// loggedWrite is a write, or a flush.
type loggedWrite struct {
	off  int64
	data []byte // nil: a flush
}

func newMemDisk() *memDisk { return &memDisk{chunks: map[int64][]byte{}} }

// clone returns a new disk with the same contents.
func (m *memDisk) clone() *memDisk { return &memDisk{chunks: maps.Clone(m.chunks)} }

func (m *memDisk) write(off int64, data []byte) {
	for i := 0; i < len(data); i += chunkBytes {
		at := off/chunkBytes + int64(i)/chunkBytes
		if allZero(data[i : i+chunkBytes]) {
			delete(m.chunks, at)
		} else {
			m.chunks[at] = bytes.Clone(data[i : i+chunkBytes])
		}
	}
}

// writeTable makes a table the disk's, without validating it.
func (m *memDisk) writeTable(l layout, c tableCopy) {
	both := renderCopies(l, c)
	m.write(both.backup.off, both.backup.data)
	m.write(both.primary.off, both.primary.data)
}

func (m *memDisk) nextOutcome(op string) (error, bool) {
	n := m.operations
	m.operations++
	if m.fault == nil {
		return nil, false
	}
	return m.fault(n, op)
}

func (m *memDisk) ReadAt(b []byte, off int64) (int, error) {
	if err, _ := m.nextOutcome("read"); err != nil {
		return 0, err
	}
	clear(b)
	for i := 0; i < len(b); i += chunkBytes {
		copy(b[i:], m.chunks[(off+int64(i))/chunkBytes])
	}
	return len(b), nil
}

func (m *memDisk) WriteAt(b []byte, off int64) (int, error) {
	err, dropped := m.nextOutcome("write")
	if err != nil {
		// Half of it is on the medium.
		half := len(b) / 2 / chunkBytes * chunkBytes
		m.write(off, b[:half])
		return 0, err
	}
	if !dropped {
		m.write(off, b)
		m.log = append(m.log, loggedWrite{off, bytes.Clone(b)})
	}
	return len(b), nil
}

func (m *memDisk) Sync() error {
	err, _ := m.nextOutcome("sync")
	if err == nil {
		m.log = append(m.log, loggedWrite{})
	}
	return err
}

// powerCuts calls visit with every state that a power cut during the logged writes may leave, starting from before. Up
// to a flush, any of the changed chunks may have reached the medium. If there are too many subsets, a sample is
// visited. written is how much of the log has certainly reached the medium. In the last state it is all of it.
func powerCuts(before *memDisk, log []loggedWrite, random *rand.Rand, visit func(state *memDisk, written int)) {
	state := before.clone()
	written, all := 0, len(log)
	for len(log) > 0 {
		end := slices.IndexFunc(log, func(l loggedWrite) bool { return l.data == nil })
		if end < 0 {
			end = len(log)
		}
		next := state.clone()
		for _, w := range log[:end] {
			next.write(w.off, w.data)
		}
		var differ []int64
		for at := range mergeKeys(state.chunks, next.chunks) {
			if !bytes.Equal(state.chunks[at], next.chunks[at]) {
				differ = append(differ, at)
			}
		}
		slices.Sort(differ)
		for _, subset := range subsets(len(differ), random) {
			cut := state.clone()
			for i, at := range differ {
				if !subset(i) {
					continue
				}
				if b, ok := next.chunks[at]; ok {
					cut.chunks[at] = b
				} else {
					delete(cut.chunks, at)
				}
			}
			visit(cut, written)
		}
		written = min(written+end+1, all)
		state, log = next, log[min(end+1, len(log)):]
	}
	visit(state, all)
}

func mergeKeys(a, b map[int64][]byte) map[int64]bool {
	keys := map[int64]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	return keys
}

// subsets returns subsets of n things: all if they are few. Otherwise none, all, each alone, all but each, every
// prefix, and some at random.
func subsets(n int, random *rand.Rand) []func(int) bool {
	var all []func(int) bool
	if n <= 6 {
		for mask := range 1 << n {
			all = append(all, func(i int) bool { return mask>>i&1 == 1 })
		}
		return all
	}
	all = append(all, func(int) bool { return false }, func(int) bool { return true })
	for k := range n {
		all = append(all,
			func(i int) bool { return i == k },
			func(i int) bool { return i != k },
			func(i int) bool { return i < k })
	}
	for range 64 {
		seed := random.Uint64()
		all = append(all, func(i int) bool { return (seed>>(i%64)^seed>>((i*7+3)%64))&1 == 1 })
	}
	return all
}

// withoutLogs is a context without logs, for tests that cause hundreds of faults.
func withoutLogs(t testing.TB) context.Context { return klog.NewContext(t.Context(), klog.Logger{}) }

var errInjected = errors.New("injected")

// openTable opens the table of a disk in memory, as Open does, and repairs it.
func (m *memDisk) openTable(t testing.TB, l layout, known bool) (*store, findings, error) {
	t.Helper()
	f, err := examine(m, l)
	if err != nil {
		return nil, f, err
	}
	if !f.ours {
		return nil, f, errNotOurs
	}
	if f.mustBeSeenBefore && !known || f.truncated(l) {
		return nil, f, errDamaged
	}
	now := f
	if f.grown(l) {
		if err := extend(withoutLogs(t), m, l, f); err != nil {
			return nil, f, err
		}
		if now, err = examine(m, l); err != nil {
			return nil, f, err
		}
	}
	s, err := load(m, l, now)
	if err != nil {
		return nil, f, err
	}
	return s, f, s.repair(withoutLogs(t), now)
}
