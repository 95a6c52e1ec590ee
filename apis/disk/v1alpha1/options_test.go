package v1alpha1

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestMkfsOptions asserts which options a class may pass to mkfs.
func TestMkfsOptions(t *testing.T) {
	for fsType, good := range map[string]string{
		FSTypeExt4: "-b 4096;-i 65536;-I 512;-m 5;-J size=128;-E stride=16;-E stripe_width=64;-E packed_meta_blocks=1;-O project;-O quota",
		FSTypeXFS:  "-b size=4096;-d su=64k,sw=4;-i size=1024;-i maxpct=50;-l size=128m;-m reflink=0;-m rmapbt=1;-n size=8192;-d agcount=8",
	} {
		options := strings.Split(good, ";")
		if err := ValidateMkfsOptions(fsType, options); err != nil {
			t.Errorf("%s: %v", fsType, err)
		}
		for _, o := range options {
			if err := ValidateMkfsOptions(fsType, []string{o, o}); err == nil || !strings.Contains(err.Error(), "exclude each other") {
				t.Errorf("%s twice: %v", o, err)
			}
			other := map[string]string{FSTypeExt4: FSTypeXFS, FSTypeXFS: FSTypeExt4}[fsType]
			if err := ValidateMkfsOptions(other, []string{o}); err == nil {
				t.Errorf("%s is accepted for %s", o, other)
			}
		}
	}
	for _, o := range []string{
		"", "-i", "-i 1", "-i 65536 ", "-i  65536", "-i 65536 /dev/sda", "-n", "-n x", "-U random", "-L name", "-E offset=1", "-E discard", "-O ^has_journal",
		"-O none", "-b 4096\n", "-F", "-c", "-d /", "-S", "-E stride=1,offset=0", "-d size=1m", "-d file", "-l logdev=/dev/sda", "-m uuid=x", "-p /etc/passwd", "-r rtdev=/x",
	} {
		for _, fsType := range []string{FSTypeExt4, FSTypeXFS} {
			if err := ValidateMkfsOptions(fsType, []string{o}); err == nil || !strings.Contains(err.Error(), "docs/operate/file-systems.md") {
				t.Errorf("%q for %s: %v", o, fsType, err)
			}
		}
	}
	if err := ValidateMkfsOptions("btrfs", nil); err == nil {
		t.Error("a file system that volumes cannot have has options")
	}
}

// TestMountOptions asserts which options a class may pass to mount, and which of them each file system gets.
func TestMountOptions(t *testing.T) {
	good := strings.Split("noatime,discard,nosuid,nodev,commit=30,data=writeback,errors=remount-ro,allocsize=64m,logbsize=256k", ",")
	if err := ValidateMountOptions(good); err != nil {
		t.Error(err)
	}
	if got, want := MountOptionsFor(FSTypeExt4, good), good[:7]; !slices.Equal(got, want) {
		t.Errorf("ext4 gets %v, want %v", got, want)
	}
	if got, want := MountOptionsFor(FSTypeXFS, good), append(slices.Clone(good[:4]), good[7:]...); !slices.Equal(got, want) {
		t.Errorf("xfs gets %v, want %v", got, want)
	}
	for _, o := range []string{
		"", "ro", "rw", "bind", "remount", "loop", "nobarrier", "barrier=0", "norecovery", "noload", "errors=panic", "nouuid", "journal_dev=8", "sb=1", "noatime,ro",
		"logdev=/dev/sda", "context=x", "shared", "uid=0", "x-systemd.automount", "noatime ", "suid",
	} {
		if err := ValidateMountOptions([]string{o}); err == nil || !strings.Contains(err.Error(), "docs/operate/file-systems.md") {
			t.Errorf("%q: %v", o, err)
		}
		if got := MountOptionsFor(FSTypeExt4, []string{o}); got != nil {
			t.Errorf("%q is passed on", o)
		}
	}
	for _, o := range [][]string{{"discard", "nodiscard"}, {"commit=1", "commit=2"}, {"noatime", "noatime"}} {
		if err := ValidateMountOptions(o); err == nil || !strings.Contains(err.Error(), "exclude each other") {
			t.Errorf("%v: %v", o, err)
		}
	}
}

// TestOptionsOfTheCRD asserts that the CRD has the same patterns as this package.
func TestOptionsOfTheCRD(t *testing.T) {
	crd, err := os.ReadFile("../../../config/crd/disk.berth.dev_diskclasses.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The generator breaks long lines.
	text := strings.Join(strings.Fields(string(crd)), " ")
	for _, pattern := range []string{mkfsExt4, mkfsXFS, mountCommon, mountExt4, mountXFS} {
		if !strings.Contains(text, strings.ReplaceAll(pattern, "'", "''")) {
			t.Errorf("the CRD does not have %s: change the marker of DiskClassSpec, and run make generate", pattern)
		}
	}
}
