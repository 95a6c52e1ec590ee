package signature

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/testenv"
)

// image makes a file that is used as a device: blkid and wipefs read both.
func image(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

func runCommand(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
}

// put writes bytes at an offset.
func put(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// TestFind asserts that a file system, a table and nothing are distinguished, and that Erase leaves nothing.
func TestFind(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "blkid", "wipefs", "sgdisk")
	ctx := t.Context()
	path := image(t, 64<<20)
	if found, err := Find(ctx, path); err != nil || len(found) != 0 {
		t.Errorf("of a blank device: %v, %v", found, err)
	}
	runCommand(t, "sgdisk", "-o", path)
	if found, err := Find(ctx, path); err != nil || !slices.Contains(found, "gpt") {
		t.Errorf("of a partition table: %v, %v", found, err)
	}
	if err := Erase(ctx, path); err != nil {
		t.Fatal(err)
	}
	runCommand(t, "mkfs.ext4", "-q", path)
	if found, err := Find(ctx, path); err != nil || !slices.Equal(found, []string{"ext4"}) {
		t.Errorf("of ext4: %v, %v", found, err)
	}
	if fsType, err := FileSystem(ctx, path); err != nil || fsType != "ext4" {
		t.Errorf("FileSystem: %q, %v", fsType, err)
	}
	if err := Erase(ctx, path); err != nil {
		t.Fatal(err)
	}
	if found, err := Find(ctx, path); err != nil || len(found) != 0 {
		t.Errorf("after Erase: %v, %v", found, err)
	}
}

// TestFileSystem asserts that an old label of another type does not hide the requested file system. It also asserts
// that a part of a device can be read.
func TestFileSystem(t *testing.T) {
	testenv.NeedProgram(t, "mkfs.ext4", "mkswap", "blkid")
	ctx := t.Context()
	path := image(t, 64<<20)
	runCommand(t, "mkfs.ext4", "-q", path)
	// The super block of a romfs is where ext4 has nothing.
	put(t, path, 0, []byte("-rom1fs-\x00\x00\x00\x40\x00\x00\x00\x00label\x00"))
	if found, err := FileSystem(ctx, path); err != nil || found != Ambiguous {
		t.Errorf("with an old label: %q, %v", found, err)
	}
	if found, err := Find(ctx, path); err != nil || !slices.Contains(found, Ambiguous) || !slices.Contains(found, "romfs") {
		t.Errorf("Find with an old label: %q, %v", found, err)
	}
	if found, err := FileSystem(ctx, path, "ext4", "xfs"); err != nil || found != "ext4" {
		t.Errorf("with an old label, looking for ext4 and xfs: %q, %v", found, err)
	}
	whole := image(t, 96<<20)
	part, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	put(t, whole, 32<<20, part)
	if found, err := FileSystemAt(ctx, whole, 32<<20, 64<<20, "ext4"); err != nil || found != "ext4" {
		t.Errorf("in a part of the device: %q, %v", found, err)
	}
	if found, err := FileSystemAt(ctx, whole, 0, 32<<20); err != nil || found != "" {
		t.Errorf("in the other part: %q, %v", found, err)
	}
}

// TestNoAnswer asserts that a program which is missing, or fails, is an error.
func TestNoAnswer(t *testing.T) {
	path := image(t, 1<<20)
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	program := func(name, script string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(reason string) {
		t.Helper()
		if found, err := Find(t.Context(), path); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("Find: %v, %v, want %q", found, err, reason)
		}
	}
	refused("blkid")
	program("blkid", "exit 4")
	refused("exit code 4")
	if found, err := FileSystem(t.Context(), path); err == nil {
		t.Errorf("FileSystem: %q", found)
	}
	program("blkid", "exit 2")
	refused("wipefs")
	program("wipefs", "exit 1")
	refused("exit code 1")
	if err := Erase(t.Context(), path); err == nil {
		t.Error("Erase succeeded")
	}
	program("wipefs", "echo nonsense")
	refused("output of wipefs")
	program("blkid", "kill -9 $$")
	refused("blkid")
}
