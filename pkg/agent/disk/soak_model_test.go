package disk

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

const (
	// soakVolumesEnd is where the volumes' part of the disk ends, in MiB. Foreign partitions follow.
	soakVolumesEnd = 40
	// soakForeignCount leaves 6 of the kernel's partition numbers, so that every disk has volumes with a number and
	// without.
	soakForeignCount = MetaEntry - 1 - 6
)

// soak is a disk, and a model of it.
type soak struct {
	t      *testing.T
	ctx    context.Context
	random *rand.Rand
	l      *loopDisk
	d      *Disk
	id     string
	dir    string // of the mount points
	image  []byte // what the disk holds, without its end
	want   []byte // what it should hold
	// volumes that the disk should have, by partition.
	volumes map[string]*soakVolume
	// knownZero is what is zero and known to the disk as zero.
	knownZero extent.Set

	// These are used by an operation of this round.
	claimed        extent.Set
	claimedVolumes map[string]bool

	done, tables, shown, highest int
	counts                       map[string]int
	history                      []string
}

// soakVolume is a volume of the model.
type soakVolume struct {
	Volume         // as the snapshot should show it
	ext4    bool   // it holds a file system
	mounted string // where
}

func newSoak(t *testing.T, sector int, seed uint64) *soak {
	t.Helper()
	s := &soak{t: t, ctx: withoutLogs(t), random: rand.New(rand.NewPCG(seed, uint64(sector))), volumes: map[string]*soakVolume{}, counts: map[string]int{}, dir: t.TempDir()}
	s.l = initialized(t, (soakVolumesEnd+soakForeignCount+1)*units.MiB, sector)
	s.addForeign()
	fillWithData(t, s.l, extentMiB(2, soakVolumesEnd-2))
	f, err := os.Open(s.l.image)
	s.must(err)
	defer f.Close()
	s.image, err = unix.Mmap(int(f.Fd()), 0, int(soakVolumesEnd*units.MiB), unix.PROT_READ, unix.MAP_SHARED)
	s.must(err)
	t.Cleanup(func() { _ = unix.Munmap(s.image) })
	s.want = bytes.Clone(s.image)
	t.Cleanup(func() {
		for _, v := range s.volumes {
			if v.mounted != "" {
				_ = unix.Unmount(v.mounted, unix.MNT_DETACH)
			}
		}
		s.d.Close()
	})
	s.open()
	s.id = s.d.Snapshot().ID
	return s
}

// addForeign writes foreign entries into the table, each with a MiB behind the volumes' part.
func (s *soak) addForeign() {
	device, err := openDevice(s.l.path, os.O_RDWR)
	s.must(err)
	defer device.Close()
	s.must(device.readLayout())
	found, err := examine(device, device.layout)
	s.must(err)
	c := found.current
	perMiB := units.MiB / device.sector
	for i := range int64(soakForeignCount) {
		c, err = c.withEntry(device.layout, foreignEntry(device.layout, int(i)+1, (soakVolumesEnd+i)*perMiB, (soakVolumesEnd+i+1)*perMiB))
		s.must(err)
	}
	both := renderCopies(device.layout, c)
	for _, w := range []sectorWrite{both.backup, both.primary} {
		_, err := device.WriteAt(w.data, w.off)
		s.must(err)
	}
}

func (s *soak) open() {
	s.t.Helper()
	// Programs that the other disk's soak starts have this one's files open between fork and exec.
	s.must(await(s.ctx, lockTimeout, func() (bool, error) {
		d, err := Open(s.ctx, s.l.path, Options{SeenBefore: func(id string) bool { return id == s.id }})
		if errors.Is(err, ErrInUse) {
			return false, nil
		}
		if err == nil {
			s.d = d
		}
		return err == nil, err
	}))
	s.knownZero = extent.Set{}
}

// restart closes the disk and opens it again.
func (s *soak) restart(meanwhile func() error) error {
	if err := s.d.Close(); err != nil {
		return err
	}
	if meanwhile != nil {
		if err := meanwhile(); err != nil {
			return err
		}
	}
	s.open()
	return nil
}

func (s *soak) unmountAll() error {
	for _, v := range s.volumes {
		if v.mounted == "" {
			continue
		}
		if err := unmountIdle(v.mounted, s.device(v)); err != nil {
			return err
		}
		v.mounted = ""
		s.acceptActual(v.Extent)
	}
	return nil
}

// finish ends all volumes.
func (s *soak) finish() {
	s.t.Helper()
	s.must(s.unmountAll())
	for guid, v := range s.volumes {
		_, err := s.d.Wipe(s.ctx, guid, WipeOptions{})
		s.must(err)
		s.removeVolume(v, WipeZero)
	}
	s.check()
	s.must(s.d.Close())
	verifyTable(s.t, s.l.path)
}

// unclaimed is the free space in the model, without what this round uses.
func (s *soak) unclaimed() extent.Set {
	return s.freeInModel().Subtract(s.claimed)
}

func (s *soak) freeInModel() extent.Set {
	free := extent.NewSet(extentMiB(2, soakVolumesEnd-2))
	for _, v := range s.volumes {
		free = free.Remove(v.Extent)
	}
	return free
}

// reserveExtent takes some free MiBs for this round.
func (s *soak) reserveExtent(length int64) (extent.Extent, bool) {
	var starts []int64
	for _, e := range s.unclaimed().All() {
		for start := e.Start; start+length*units.MiB <= e.End; start += units.MiB {
			starts = append(starts, start)
		}
	}
	if len(starts) == 0 {
		return extent.Extent{}, false
	}
	e := extent.New(starts[s.random.IntN(len(starts))], length*units.MiB)
	s.claimed = s.claimed.Add(e)
	return e, true
}

func (s *soak) guid() string {
	var id uuid.UUID
	for i := range id {
		id[i] = byte(s.random.Uint32())
	}
	return uuid.NewSHA1(uuid.Nil, id[:]).String()
}

// pattern is data that occurs nowhere else.
func (s *soak) pattern(n int64) []byte {
	unit := fmt.Appendf(nil, "%016x", s.random.Uint64())
	return bytes.Repeat(unit, int(n)/len(unit))
}

// device is the device that the volume's user opens.
func (s *soak) device(v *soakVolume) string {
	s.t.Helper()
	now, found := ptr(s.d.Snapshot()).Volume(v.Partition)
	if !found || now.Device == "" {
		s.fatalf("%+v has no device", v)
	}
	return now.Device
}

func (s *soak) wantZeros(e extent.Extent) { clear(s.want[e.Start:e.End]) }

// acceptActual copies what a file system has written, or what is left of a volume, into the model.
func (s *soak) acceptActual(e extent.Extent) { copy(s.want[e.Start:e.End], s.image[e.Start:e.End]) }

// removeVolume ends a volume in the model.
func (s *soak) removeVolume(v *soakVolume, policy WipePolicy) {
	delete(s.volumes, v.Partition)
	if policy != WipeNone {
		s.wantZeros(v.Extent)
		s.knownZero = s.knownZero.Add(v.Extent)
	}
}

// check compares everything with the model.
func (s *soak) check() {
	s.t.Helper()
	snapshot := s.d.Snapshot()
	s.must(errors.Join(snapshot.Err, snapshot.Validate()))
	if snapshot.ID != s.id && s.id != "" {
		s.fatalf("the disk is %s, it was %s", snapshot.ID, s.id)
	}
	var want []Volume
	for _, v := range s.volumes {
		want = append(want, v.Volume)
	}
	slices.SortFunc(want, func(a, b Volume) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
	if !slices.EqualFunc(snapshot.Volumes, want, func(got, want Volume) bool {
		got.Device, got.Attachment = "", ""
		return reflect.DeepEqual(got, want)
	}) {
		s.fatalf("volumes: %+v\nshould be %+v", snapshot.Volumes, want)
	}
	if !snapshot.Free.Equal(s.freeInModel()) {
		s.fatalf("free: %v\nshould be %v", snapshot.Free, s.freeInModel())
	}
	s.checkBytes()
	s.checkKernel(snapshot)
	if s.random.IntN(8) == 0 {
		s.checkTable(want)
	}
}

// checkBytes compares the whole disk except mounted volumes, which may be written at any time.
func (s *soak) checkBytes() {
	s.t.Helper()
	rest := extent.NewSet(extentMiB(2, soakVolumesEnd-2))
	for _, v := range s.volumes {
		if v.mounted != "" {
			rest = rest.Remove(v.Extent)
		}
	}
	for _, e := range rest.All() {
		if got, want := s.image[e.Start:e.End], s.want[e.Start:e.End]; !bytes.Equal(got, want) {
			off := int64(0)
			for got[off] == want[off] {
				off++
			}
			s.fatalf("at %d the disk holds %q and should hold %q", e.Start+off, got[off:min(off+32, e.Len())], want[off:min(off+32, e.Len())])
		}
	}
}

// checkKernel asserts that the kernel has the volumes and nothing else, and shows each in its place.
func (s *soak) checkKernel(snapshot Snapshot) {
	s.t.Helper()
	partitions := s.l.partitions(s.t)
	if p, ok := partitions[MetaEntry]; ok && p.extent == extentMiB(1, 1) {
		delete(partitions, MetaEntry)
	}
	for _, v := range snapshot.Volumes {
		if p, ok := partitions[v.Index]; ok && p.extent == v.Extent && v.Device == "/dev/"+p.name {
			delete(partitions, v.Index)
		}
		if !v.Phase.HasDevice() {
			if v.Device != "" {
				s.fatalf("%+v has a device", v)
			}
			continue
		}
		device, err := openDevice(v.Device, os.O_RDONLY)
		s.must(err)
		size, _, err := device.geometry()
		ends := make([]byte, 4096)
		for _, off := range []int64{0, v.Extent.Len() - 4096} {
			if err == nil && size == v.Extent.Len() {
				_, err = device.ReadAt(ends, off)
			}
			if err == nil && s.volumes[v.Partition].mounted == "" && !bytes.Equal(ends, s.want[v.Extent.Start+off:][:4096]) {
				err = fmt.Errorf("at %d it shows %q", off, ends[:32])
			}
		}
		device.Close()
		if err != nil || size != v.Extent.Len() {
			s.fatalf("%+v has %d bytes: %v", v, size, err)
		}
	}
	if len(partitions) != 0 {
		s.fatalf("the kernel has %+v", partitions)
	}
}

// checkTable asserts that both copies of the table are intact and have the right entries.
func (s *soak) checkTable(want []Volume) {
	s.t.Helper()
	s.tables++
	s.must(s.d.Check(s.ctx)) // it finishes what is left over
	device, err := openDevice(s.l.path, os.O_RDONLY)
	s.must(err)
	defer device.Close()
	s.must(device.readLayout())
	// If a file system is about to be made, the backup has the next phase already.
	found, err := examine(device, device.layout)
	s.must(err)
	if !found.ours || found.badMBR || found.badPrimary {
		s.fatalf("on the disk: %v", found)
	}
	table, err := decode(device.layout, found.current)
	s.must(err)
	s.must(table.validate())
	others := 0
	for _, e := range table.entries {
		v, ok := s.volumes[e.guid]
		switch {
		case ok && (e.extent != v.Extent || e.phase() != v.Phase || e.index != v.Index || e.name != v.Name):
			s.fatalf("the table has %+v, it should be %+v", e, v)
		case !ok && e.isVolume():
			s.fatalf("the table has %+v", e)
		case !ok && !e.isMeta():
			others++
		}
	}
	if others != soakForeignCount || len(table.entries) != others+1+len(want) {
		s.fatalf("the table has %d entries, %d of others; there are %d volumes", len(table.entries), others, len(want))
	}
	if s.shown < s.done/100 && !found.badBackup {
		s.shown++
		verifyTable(s.t, s.l.path)
	}
}

func (s *soak) count(name string) { s.counts[name]++ }

func (s *soak) must(err error) {
	s.t.Helper()
	if err != nil {
		s.fatalf("%v", err)
	}
}

func (s *soak) mustBe(err, want error) {
	s.t.Helper()
	if !errors.Is(err, want) {
		s.fatalf("%v; it should be %v", err, want)
	}
}

func (s *soak) fatalf(format string, args ...any) {
	s.t.Helper()
	last := s.history[max(0, len(s.history)-12):]
	s.t.Fatalf("after %d operations, the last ones %s:\n%s", s.done, strings.Join(last, "; "), fmt.Sprintf(format, args...))
}
