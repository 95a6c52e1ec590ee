package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/agent/mounts"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// Volumes of the disk in these tests. The neighbor exists before, stays mounted and must not change. The other two
// live their lives.
const (
	neighbor  = "a0000000-0000-5000-8000-00000000000a"
	fsVolume  = "b0000000-0000-5000-8000-00000000000b"
	rawVolume = "c0000000-0000-5000-8000-00000000000c"

	diskSize      = 48 * units.MiB
	fsVolumeSize  = 8 * units.MiB
	fsVolumeGrown = 12 * units.MiB
)

var (
	neighborAt  = extent.New(2*units.MiB, 8*units.MiB)
	fsVolumeAt  = extent.New(10*units.MiB, fsVolumeSize)
	grownAt     = extent.New(10*units.MiB, fsVolumeGrown)
	rawVolumeAt = extent.New(30*units.MiB, 2*units.MiB)
)

// fileSystemSpan is the span with the file systems.
var fileSystemSpan = Span{2 * units.MiB, diskSize - 4*units.MiB}

// node is the operations of a node on one disk.
type node struct {
	*faultyDisk
	engine *disk.Disk
	// Options with which the engine is opened.
	commandTimeout time.Duration
	changed        func()
	mnt            string // where the living volume is mounted
	beside         string // where the neighbor is mounted
	// The neighbor as it was, and the free space as it was.
	neighbor Digest
	free     extent.Set
	// resized: a resize2fs of the living volume's file system was begun.
	resized bool
	// healed: the disk does not fail any more. Before that, e2fsck -y could go on for ever.
	healed bool
}

// newNode makes a disk that has the neighbor on it, mounted.
func newNode(t testing.TB, sector int64) *node {
	t.Helper()
	n := &node{faultyDisk: newFaultyDisk(t, diskSize, sector), mnt: t.TempDir()}
	if _, err := disk.Initialize(t.Context(), n.path, disk.Owner{}); err != nil {
		t.Fatal(err)
	}
	n.must(n.open(t.Context()))
	t.Cleanup(func() {
		n.unmount()
		n.close()
	})
	v, err := n.engine.Create(t.Context(), disk.CreateOptions{Partition: neighbor, Name: "neighbor", Extent: neighborAt, Note: "the neighbor"})
	n.must(err)
	n.must(mkfs(t.Context(), v))
	n.must(n.engine.MarkFormatted(t.Context(), neighbor))
	n.must(unix.Mount(v.Device, n.mnt, "ext4", 0, ""))
	n.must(os.WriteFile(filepath.Join(n.mnt, "file"), content(neighbor), 0o600))
	n.unmount()
	n.beside = t.TempDir()
	n.mountNeighbor()
	t.Cleanup(n.unmountNeighbor)
	n.free = n.engine.Snapshot().Free
	n.close()
	n.neighbor = n.digest(neighborAt)
	n.call("Save", 0, new(bool))
	// Done first when the test has failed meanwhile: the cleanups below wait for the disk.
	t.Cleanup(func() { n.heal() })
	return n
}

// mountNeighbor mounts the neighbor read-only, so that it causes none of the requests that are counted.
func (n *node) mountNeighbor() {
	n.t.Helper()
	n.must(unix.Mount(n.path+"p1", n.beside, "ext4", unix.MS_RDONLY, ""))
}

func (n *node) unmountNeighbor() {
	n.t.Helper()
	if err := unix.Unmount(n.beside, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		n.t.Errorf("unmounting the neighbor: %v", err)
	}
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) open(ctx context.Context) (err error) {
	n.engine, err = disk.Open(ctx, n.path, disk.Options{CommandTimeout: n.commandTimeout, OnChange: n.changed})
	if err == nil {
		err = n.engine.Snapshot().Err
	}
	return err
}

// close may be called again.
func (n *node) close() {
	if n.engine != nil {
		n.engine.Close()
		n.engine = nil
	}
}

// content is the content of a volume's file.
func content(partition string) []byte { return bytes.Repeat([]byte(partition+"\n"), 5000) }

// mkfs makes a file system like package volumes.
func mkfs(ctx context.Context, v disk.Volume) error {
	extended := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
	if v.Prezeroed {
		extended = "nodiscard,assume_storage_prezeroed=1"
	}
	return run(ctx, "mkfs.ext4", "-q", "-F", "-m0", "-U", v.Partition, "-E", extended, v.Device)
}

func run(ctx context.Context, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %.300s", name, args, err, bytes.TrimSpace(out))
	}
	return nil
}

func (n *node) volume(partition string) disk.Volume {
	s := n.engine.Snapshot()
	v, _ := s.Volume(partition)
	return v
}

// ensureMounted mounts the living volume, unless it is mounted.
func (n *node) ensureMounted() error {
	targets, err := mounts.OfDevice(n.volume(fsVolume).Device)
	if err != nil || len(targets) > 0 {
		return err
	}
	err = unix.Mount(n.volume(fsVolume).Device, n.mnt, "ext4", 0, "")
	if err != nil && n.resized && n.healed {
		// An interrupted resize2fs leaves errors that an operator must agree to repair.
		if err = fsck(context.Background(), "-y", n.volume(fsVolume).Device); err == nil {
			err = unix.Mount(n.volume(fsVolume).Device, n.mnt, "ext4", 0, "")
		}
	}
	if err != nil {
		return fmt.Errorf("mounting: %w", err)
	}
	return nil
}

func (n *node) unmount() {
	err := unix.Unmount(n.mnt, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		n.t.Errorf("unmounting: %v", err)
	}
}

// step is a part of a life. It can be repeated, whether it was done or not.
type step struct {
	name string
	do   func(ctx context.Context, n *node) error
	// state is the state in the table when the step is done. between is a state that the table may have on the way,
	// besides the one before.
	state, between string
}

// lifeSteps are the steps of a volume with a file system and of a raw one. An agent, a pod and a kubelet take them.
func lifeSteps() []step {
	return []step{
		{"open", func(ctx context.Context, n *node) error {
			if n.engine != nil {
				return nil
			}
			return n.open(ctx)
		}, state("", ""), ""},
		{"create", func(ctx context.Context, n *node) error {
			_, err := n.engine.Create(ctx, disk.CreateOptions{Partition: fsVolume, Name: "living", Extent: fsVolumeAt, Ephemeral: true, Note: "whose it is"})
			return err
		}, state("Reserved 8", ""), ""},
		{"mkfs", func(ctx context.Context, n *node) error {
			v := n.volume(fsVolume)
			if v.Phase == disk.Formatted {
				return nil
			}
			return n.engine.Format(ctx, fsVolume, func(ctx context.Context) error { return mkfs(ctx, v) })
		}, state("Reserved 8", ""), ""},
		{"mount", func(ctx context.Context, n *node) error {
			var mounting sync.WaitGroup
			var err error
			mounting.Go(func() { err = n.ensureMounted() })
			markErr := n.engine.MarkFormatted(ctx, fsVolume)
			mounting.Wait()
			return errors.Join(err, markErr)
		}, state("Formatted 8", ""), ""},
		{"write", func(_ context.Context, n *node) error { return n.writeFile() }, state("Formatted 8", ""), ""},
		{"grow", func(ctx context.Context, n *node) error {
			_, err := n.engine.Grow(ctx, fsVolume, fsVolumeGrown)
			return err
		}, state("Formatted 12", ""), ""},
		{"resize", func(ctx context.Context, n *node) error { return n.resize(ctx) }, state("Formatted 12", ""), ""},
		{"read", func(_ context.Context, n *node) error { return n.readFile() }, state("Formatted 12", ""), ""},
		{"raw", func(ctx context.Context, n *node) error {
			v, err := n.engine.Create(ctx, disk.CreateOptions{Partition: rawVolume, Name: "raw", Extent: rawVolumeAt, Raw: true})
			if err != nil {
				return err
			}
			return os.WriteFile(v.Device, content(rawVolume), 0)
		}, state("Formatted 12", "Formatted 2"), ""},
		{"wipe", func(ctx context.Context, n *node) error {
			n.unmount()
			return n.wipe(ctx, fsVolume)
		}, state("", "Formatted 2"), state("Wiping 12", "Formatted 2")},
		{"wipe raw", func(ctx context.Context, n *node) error { return n.wipe(ctx, rawVolume) }, state("", ""), state("", "Wiping 2")},
	}
}

func state(living, raw string) string { return living + "|" + raw }

// state returns the engine's state of the two volumes.
func (n *node) state() string {
	describe := func(v disk.Volume, at ...extent.Extent) string {
		switch {
		case v.Partition == "":
			return ""
		case !slices.Contains(at, v.Extent):
			return "elsewhere: " + v.Extent.String()
		}
		return fmt.Sprintf("%s %d", v.Phase, v.Extent.Len()/units.MiB)
	}
	return state(describe(n.volume(fsVolume), fsVolumeAt, grownAt), describe(n.volume(rawVolume), rawVolumeAt))
}

func (n *node) wipe(ctx context.Context, partition string) error {
	_, err := n.engine.Wipe(ctx, partition, disk.WipeOptions{})
	if errors.Is(err, disk.ErrNotFound) {
		return nil
	}
	return err
}

// writeFile is a pod that writes, and whose fsync succeeds when its data are safe.
func (n *node) writeFile() error {
	if err := n.ensureMounted(); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(n.mnt, "file"))
	if err != nil {
		return err
	}
	_, err = f.Write(content(fsVolume))
	return errors.Join(err, f.Sync(), f.Close())
}

func (n *node) readFile() error {
	if err := n.ensureMounted(); err != nil {
		return err
	}
	return readBack(filepath.Join(n.mnt, "file"), fsVolume)
}

// readBack reads a volume's file past the page cache.
func readBack(path, partition string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(f); err != nil {
		return err
	}
	if !bytes.Equal(got.Bytes(), content(partition)) {
		return fmt.Errorf("%w: %s does not hold what was written and flushed", errLost, path)
	}
	return nil
}

// errLost says that a file system returned other data than were written.
var errLost = errors.New("data are lost")

// fsck checks an ext4 file system and repairs it.
func fsck(ctx context.Context, consent, device string) error {
	err := run(ctx, "e2fsck", "-f", consent, device)
	if err != nil && consent == "-y" && strings.Contains(err.Error(), "Superblock checksum does not match") {
		// A resize2fs that failed to flush may write a wrong checksum, that of the former superblock. That happens if a
		// second has passed since. A file system this small has no other copy, and debugfs computes the checksum again.
		if err := run(ctx, "debugfs", "-w", "-n", "-R", "set_super_value state 0", device); err != nil {
			return err
		}
		err = run(ctx, "e2fsck", "-f", consent, device)
	}
	if exit := new(exec.ExitError); errors.As(err, &exit) && exit.ExitCode() == 1 {
		return nil // repaired
	}
	return err
}

// resize grows the file system like package csi: while it is mounted, or else while it is not.
func (n *node) resize(ctx context.Context) error {
	if err := n.ensureMounted(); err != nil {
		return err
	}
	device := n.volume(fsVolume).Device
	err := run(ctx, "resize2fs", device)
	if err == nil || !strings.Contains(err.Error(), "Permission denied") {
		return err
	}
	n.unmount()
	consent := "-p"
	if n.resized && n.healed {
		consent = "-y"
	}
	n.resized = true
	err = fsck(ctx, consent, device)
	if err == nil {
		err = run(ctx, "resize2fs", device)
	}
	return errors.Join(err, n.ensureMounted())
}
