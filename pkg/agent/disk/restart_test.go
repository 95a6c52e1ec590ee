package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// volumes of a snapshot, as "a:Reserved@2+10".
func volumes(s Snapshot) []string {
	var all []string
	for _, v := range s.Volumes {
		all = append(all, fmt.Sprintf("%c:%s@%d+%d", v.Partition[0], v.Phase, v.Extent.Start/units.MiB, v.Extent.Len()/units.MiB))
	}
	return all
}

// TestRestart asserts that a restart in every phase keeps the volumes. The kernel's partitions are there, as after a
// crash of the agent, or not, as after a reboot.
func TestRestart(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		ctx := t.Context()
		var id string
		for _, step := range []struct {
			do   func(d *Disk) error
			want []string
		}{
			{func(d *Disk) error { return nil }, nil},
			{func(d *Disk) error {
				_, err := d.Create(ctx, CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 10), Ephemeral: true})
				return err
			}, []string{"a:Reserved@2+10"}},
			{func(d *Disk) error { return d.MarkFormatted(ctx, guidA) }, []string{"a:Formatted@2+10"}},
			{func(d *Disk) error {
				_, err := d.Create(ctx, CreateOptions{Partition: guidB, Name: "b", Extent: extentMiB(30, 4)})
				return err
			}, []string{"a:Formatted@2+10", "b:Reserved@30+4"}},
			{func(d *Disk) error {
				return d.runInWorker(ctx, func(ctx context.Context) error { return d.setPhase(ctx, guidA, Wiping) })
			}, []string{"a:Wiping@2+10", "b:Reserved@30+4"}},
			{func(d *Disk) error { return wipeVolume(ctx, d, guidA) }, []string{"b:Reserved@30+4"}},
			// As after a crash between detaching and the phase Wiping.
			{func(d *Disk) error {
				return d.runInWorker(ctx, func(ctx context.Context) error { return d.device.detach(ctx, 2, busyTimeout) })
			}, []string{"b:Reserved@30+4"}},
			{func(d *Disk) error { return wipeVolume(ctx, d, guidB) }, nil},
		} {
			d := l.open(t)
			if err := step.do(d); err != nil {
				t.Fatalf("%v: %v", step.want, err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				d := l.open(t)
				s := d.Snapshot()
				if id == "" {
					id = s.ID
				}
				if got := volumes(s); !slices.Equal(got, step.want) || s.ID != id {
					t.Fatalf("disk %s: %v, want disk %s: %v", s.ID, got, id, step.want)
				}
				for _, v := range s.Volumes {
					p, shown := l.partitions(t)[v.Index]
					if v.Phase == Wiping {
						if shown || v.Device != "" {
							t.Fatalf("%+v is being wiped and is attached as %+v", v, p)
						}
						continue
					}
					if p.extent != v.Extent || "/dev/"+p.name != v.Device {
						t.Fatalf("%+v is attached as %+v", v, p)
					}
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				l.removePartitions(t) // the second time, a reboot
			}
		}
	})
}

// TestRestoresLostBeginning asserts that the table is restored when the first MiB is zeroed between two opens.
func TestRestoresLostBeginning(t *testing.T) {
	bothSectors(t, func(t *testing.T, sector int) {
		l := initialized(t, 64*units.MiB, sector)
		d := l.open(t)
		if _, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 10), Ephemeral: true}); err != nil {
			t.Fatal(err)
		}
		id := d.Snapshot().ID
		d.Close()
		l.writeAt(t, make([]byte, units.MiB), 0)
		before := l.hash(t)
		if found, err := Inspect(t.Context(), l.path); err != nil || found.State != Ours || found.ID != id || found.Reason == "" {
			t.Errorf("Inspect: %+v, %v", found, err)
		}
		if _, err := Initialize(t.Context(), l.path, Owner{}); err == nil {
			t.Error("Initialize succeeded")
		}
		for _, known := range []func(string) bool{nil, func(string) bool { return false }} {
			if d, err := Open(t.Context(), l.path, Options{SeenBefore: known}); err == nil {
				d.Close()
				t.Fatal("Open of an unknown disk succeeded")
			}
		}
		if l.hash(t) != before {
			t.Error("a refused disk was written to")
		}
		d, err := Open(t.Context(), l.path, Options{SeenBefore: func(got string) bool { return got == id }})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if got := volumes(d.Snapshot()); !slices.Equal(got, []string{"a:Reserved@2+10"}) {
			t.Errorf("restored %v", got)
		}
		verifyTable(t, l.path)
	})
}

// TestKernelPartitionsDiffer asserts that a disk is shown but not changed if the kernel has a partition elsewhere that
// may be in use. One that is not in use is detached.
func TestKernelPartitionsDiffer(t *testing.T) {
	for name, misplaced := range map[string]struct {
		index int
		e     extent.Extent
	}{
		"not in the table": {9, extentMiB(40, 5)},
		"at another place": {1, extentMiB(3, 9)},
		"longer":           {1, extentMiB(2, 11)},
	} {
		for _, inUse := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, in use: %t", name, inUse), func(t *testing.T) {
				l := initialized(t, 64*units.MiB, 512)
				d := l.open(t)
				if _, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Name: "a", Extent: extentMiB(2, 10), Ephemeral: true}); err != nil {
					t.Fatal(err)
				}
				d.Close()
				l.removePartitions(t)
				device, err := openDevice(l.path, os.O_RDONLY)
				if err != nil {
					t.Fatal(err)
				}
				defer device.Close()
				if err := device.blkpg(unix.BLKPG_ADD_PARTITION, misplaced.index, misplaced.e); err != nil {
					t.Fatal(err)
				}
				before := l.hash(t)
				if inUse {
					user, err := os.Open("/dev/" + device.partitionName(misplaced.index))
					if err != nil {
						t.Fatal(err)
					}
					defer user.Close()
				}
				d, err = Open(t.Context(), l.path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				s := d.Snapshot()
				if len(s.Volumes) != 1 {
					t.Errorf("snapshot: %+v", s)
				}
				if !inUse {
					if s.Err != nil || len(l.partitions(t)) != 2 || l.partitions(t)[1].extent != extentMiB(2, 10) {
						t.Errorf("%v; the kernel has %v", s.Err, l.partitions(t))
					}
					if err := wipeVolume(t.Context(), d, guidA); err != nil {
						t.Error(err)
					}
					return
				}
				if !errors.Is(s.Err, ErrOutOfService) || errors.Is(s.Err, ErrInUse) || !strings.Contains(s.Err.Error(), "delpart") {
					t.Errorf("it is in service: %v", s.Err)
				}
				if _, err := d.Create(t.Context(), CreateOptions{Partition: guidB, Name: "b", Extent: extentMiB(20, 5), Ephemeral: true}); !errors.Is(err, ErrOutOfService) {
					t.Errorf("Create: %v", err)
				}
				if err := wipeVolume(t.Context(), d, guidA); !errors.Is(err, ErrOutOfService) {
					t.Errorf("Wipe: %v", err)
				}
				if l.hash(t) != before {
					t.Error("the disk was written to")
				}
			})
		}
	}
}

// TestSecondAgentIsRefused asserts that a second agent, and tools that open whole disks, are refused.
func TestSecondAgentIsRefused(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "wipefs")
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	if other, err := Open(t.Context(), l.path, Options{}); !errors.Is(err, ErrInUse) {
		if err == nil {
			other.Close()
		}
		t.Errorf("a second Open: %v", err)
	}
	before := l.hash(t)
	if err := tryProgram("wipefs", "--all", l.path); err == nil {
		t.Error("wipefs took the disk")
	}
	if l.hash(t) != before {
		t.Error("the disk was changed")
	}
	d.Close()
	l.open(t)
}

// TestClosedDisk asserts that a closed disk refuses every call.
func TestClosedDisk(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := d.Create(t.Context(), CreateOptions{Partition: guidA, Extent: extentMiB(2, 2), Ephemeral: true}); !errors.Is(err, ErrOutOfService) {
		t.Errorf("Create: %v", err)
	}
	if d.Snapshot().Size != 64*units.MiB {
		t.Error("no snapshot any more")
	}
}

// TestConcurrentCalls asserts that everything that was granted to racing callers is there, disjoint, also after a
// restart. They race for space, entries and wipes while others read.
func TestConcurrentCalls(t *testing.T) {
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := t.Context()
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if s := d.Snapshot(); s.Validate() != nil {
						t.Error(s.Validate())
						return
					}
				}
			}
		})
	}
	var mu sync.Mutex
	granted := map[string]extent.Extent{}
	for w := range 4 {
		writers.Go(func() {
			for i := range int64(12) {
				guid, e := uuid.NewString(), extentMiB(2+(i*5+int64(w))%58, 1+i%3)
				_, err := d.Create(ctx, CreateOptions{Partition: guid, Name: "racer", Extent: e, Ephemeral: true})
				if errors.Is(err, ErrOverlap) {
					continue
				}
				if err == nil && i%2 == 0 {
					err = d.MarkFormatted(ctx, guid)
				}
				if err == nil && i%3 == 0 {
					// Two wipes of one volume both succeed.
					var other sync.WaitGroup
					other.Go(func() {
						if err := wipeVolume(ctx, d, guid); err != nil && !errors.Is(err, ErrNotFound) {
							t.Error(err)
						}
					})
					err = wipeVolume(ctx, d, guid)
					other.Wait()
					if err == nil || errors.Is(err, ErrNotFound) {
						continue
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				granted[guid] = e
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	d.Close()
	s := l.open(t).Snapshot()
	if len(s.Volumes) != len(granted) || len(granted) == 0 {
		t.Errorf("%d volumes, %d were granted", len(s.Volumes), len(granted))
	}
	for _, v := range s.Volumes {
		if granted[v.Partition] != v.Extent {
			t.Errorf("%+v was granted %v", v, granted[v.Partition])
		}
	}
	verifyTable(t, l.path)
}

// TestDiskLost asserts that a disk whose medium vanishes while it is open is out of service.
func TestDiskLost(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, l *loopDisk){
		"reads as zeros": func(t *testing.T, l *loopDisk) {
			if err := os.Truncate(l.image, 0); err != nil {
				t.Fatal(err)
			}
		},
		"shrinks": func(t *testing.T, l *loopDisk) {
			if err := os.Truncate(l.image, 8*units.MiB); err != nil {
				t.Fatal(err)
			}
			testenv.Run(t, "losetup", "--set-capacity", l.path)
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := initialized(t, 64*units.MiB, 512)
			d := l.open(t)
			ctx := withoutLogs(t)
			if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 10), Ephemeral: true}); err != nil {
				t.Fatal(err)
			}
			if err := d.Check(ctx); err != nil {
				t.Fatal(err)
			}
			lose(t, l)
			if err := wipeVolume(ctx, d, guidA); !errors.Is(err, ErrOutOfService) {
				t.Errorf("Wipe: %v", err)
			}
			if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(20, 10), Ephemeral: true}); !errors.Is(err, ErrOutOfService) {
				t.Errorf("Create: %v", err)
			}
			if err := d.Check(ctx); !errors.Is(err, ErrOutOfService) {
				t.Errorf("Check: %v", err)
			}
			s := d.Snapshot()
			if !errors.Is(s.Err, ErrOutOfService) || len(s.Volumes) != 1 || s.Validate() != nil {
				t.Errorf("snapshot: %+v", s)
			}
			d.Close()
			if d, err := Open(ctx, l.path, Options{}); err == nil {
				defer d.Close()
				if s := d.Snapshot(); !errors.Is(s.Err, ErrOutOfService) {
					t.Errorf("a lost disk serves: %+v", s)
				}
			}
		})
	}
}

// TestTableChangedByAnotherProgram asserts that the next volume does not remove a partition that a tool has added. When
// the disk is opened again, that partition is a foreign entry.
func TestTableChangedByAnotherProgram(t *testing.T) {
	testenv.NeedProgram(t, "sgdisk")
	l := initialized(t, 64*units.MiB, 512)
	d := l.open(t)
	ctx := withoutLogs(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidA, Extent: extentMiB(2, 10), Ephemeral: true}); err != nil {
		t.Fatal(err)
	}
	d.waitIdle(t)
	testenv.Run(t, "sgdisk", "-n", "256:40M:+5M", l.path)
	before := l.hash(t)
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(40, 10), Ephemeral: true}); !errors.Is(err, ErrOutOfService) {
		t.Errorf("Create: %v", err)
	}
	if l.hash(t) != before {
		t.Error("the disk was written to")
	}
	d.Close()
	d = l.open(t)
	s := d.Snapshot()
	if !s.Free.Equal(extent.NewSet(extentMiB(12, 28), extentMiB(45, 18))) || len(s.Volumes) != 1 {
		t.Errorf("opened again: %+v", s)
	}
	if _, err := d.Create(ctx, CreateOptions{Partition: guidB, Extent: extentMiB(45, 10), Ephemeral: true}); err != nil {
		t.Error(err)
	}
	verifyTable(t, l.path)
}
