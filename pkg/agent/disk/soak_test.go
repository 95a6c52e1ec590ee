package disk

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
)

// TestSoak runs random operations on a disk, one after the other and several at once, and on a model of the disk. After
// each it asserts that all bytes of the disk, its table, its snapshot and the kernel's view match the model.
func TestSoak(t *testing.T) {
	testenv.NeedRoot(t)
	testenv.NeedProgram(t, "mkfs.ext4")
	operations, seed := 1000, uint64(1)
	if os.Getenv("BERTH_TORTURE") != "" {
		operations, seed = 10_000, uint64(time.Now().UnixNano())
	}
	for _, sector := range []int{512, 4096} {
		t.Run(strconv.Itoa(sector), func(t *testing.T) {
			// Most of the time goes into waiting for the medium.
			t.Parallel()
			soakDisk(t, sector, operations, seed)
		})
	}
}

func soakDisk(t *testing.T, sector, operations int, seed uint64) {
	begin := time.Now()
	s := newSoak(t, sector, seed)
	for s.done < operations {
		s.runRound()
	}
	s.finish()
	t.Logf("seed %d: %d operations in %v, %d tables compared, %d shown to the tools, volumes up to entry %d: %v",
		seed, s.done, time.Since(begin).Round(time.Second), s.tables, s.shown, s.highest, s.counts)
	for _, name := range []string{
		"create", "create raw", "create again", "overlap", "format", "mkfs", "mark", "write", "mount", "unmount", "grow", "grow too far", "move", "move on", "move of mounted", "cut move", "wipe Zero",
		"wipe Overwrite", "wipe SecureDiscard", "wipe None", "cut wipe", "held wipe", "check", "reopen", "reboot", "damage", "other agent", "at once",
	} {
		if s.counts[name] == 0 {
			t.Errorf("no operation was a %s", name)
		}
	}
	if s.highest <= MetaEntry {
		t.Error("no volume was above the kernel's partitions")
	}
}

// soakOperation is one operation. It is planned on the model, done on the disk, perhaps concurrently with others, and
// then done on the model.
type soakOperation struct {
	name string
	do   func() error
	then func(err error)
}

// runRound plans and does one operation or several at once, and checks everything.
func (s *soak) runRound() {
	s.t.Helper()
	n := 1
	if s.random.IntN(8) == 0 {
		n = 2 + s.random.IntN(3)
	}
	s.claimed, s.claimedVolumes = extent.Set{}, map[string]bool{}
	var operations []soakOperation
	if n == 1 && s.random.IntN(12) == 0 {
		operations = s.planWholeDisk()
	}
	for tries := 0; len(operations) < n && tries < 50; tries++ {
		if d, possible := s.planOperation(); possible {
			operations = append(operations, d)
		}
	}
	var names []string
	for _, d := range operations {
		names = append(names, d.name)
	}
	s.history = append(s.history, strings.Join(names, " & "))
	failures := make([]error, len(operations))
	if len(operations) == 1 {
		failures[0] = operations[0].do()
	} else {
		var all sync.WaitGroup
		for i, d := range operations {
			all.Go(func() { failures[i] = d.do() })
		}
		all.Wait()
	}
	for i, d := range operations {
		d.then(failures[i])
		s.count(d.name)
		s.done++
	}
	if len(operations) > 1 {
		s.count("at once")
	}
	s.check()
}

// planOperation chooses an operation that concerns one volume or one place. No other operation uses that in this round.
func (s *soak) planOperation() (soakOperation, bool) {
	ways := []func() (soakOperation, bool){
		s.create, s.create, s.create, s.createRaw, s.createAgain, s.overlap,
		s.format, s.format, s.mkfs, s.markFormatted, s.write, s.write, s.mount, s.unmount, s.unmount,
		s.grow, s.grow, s.growTooFar, s.move, s.move, s.cutMove, s.wipe, s.wipe, s.wipe, s.cutWipe, s.heldWipe, s.checkDisk,
	}
	return ways[s.random.IntN(len(ways))]()
}

// planWholeDisk are the operations that concern the whole disk.
func (s *soak) planWholeDisk() []soakOperation {
	switch s.random.IntN(4) {
	case 0:
		return []soakOperation{{"reopen", func() error { return s.restart(nil) }, s.must}}
	case 1:
		return []soakOperation{{"reboot", func() error {
			if err := s.unmountAll(); err != nil {
				return err
			}
			return s.restart(func() error { s.l.removePartitions(s.t); return nil })
		}, s.must}}
	case 2:
		return []soakOperation{{"damage", func() error { return s.restart(s.damage) }, s.must}}
	}
	return []soakOperation{{"other agent", func() error {
		other, err := Open(s.ctx, s.l.path, Options{})
		if err == nil {
			other.Close()
		}
		return err
	}, func(err error) { s.mustBe(err, ErrInUse) }}}
}

// damage destroys some sectors of one copy of the table.
func (s *soak) damage() error {
	device, err := openDevice(s.l.path, os.O_RDWR)
	if err != nil {
		return err
	}
	defer device.Close()
	if err := device.readLayout(); err != nil {
		return err
	}
	copyOf := []location{device.primary(), device.backup()}[s.random.IntN(2)]
	for range 1 + s.random.IntN(3) {
		sector := s.random.Int64N(device.copyBytes() / device.sector)
		spoiled := make([]byte, device.sector)
		if s.random.IntN(2) == 0 {
			spoiled = s.pattern(device.sector)
		}
		if _, err := device.WriteAt(spoiled, device.copyOffset(copyOf)+sector*device.sector); err != nil {
			return err
		}
	}
	return device.Sync()
}
