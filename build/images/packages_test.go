package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestHasRelease asserts that a machine whose package sources are others is told what to do.
func TestHasRelease(t *testing.T) {
	const policy = `Package files:
 100 /var/lib/dpkg/status
     release a=now
 500 http://mirror.example.com/debian bookworm/main arm64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=arm64
     origin mirror.example.com
 500 http://mirror.example.com/ubuntu noble/main amd64 Packages
     release v=24.04,o=Ubuntu,a=noble,n=noble,l=Ubuntu,c=main,b=amd64
`
	for _, test := range []struct{ name, arch, distribution, release, want string }{
		{"the release is there", "arm64", "Debian", "bookworm", ""},
		{"another architecture", "amd64", "Debian", "bookworm", "no packages of Debian bookworm for amd64 (they have: Ubuntu noble)"},
		{"another release", "arm64", "Debian", "trixie", "(they have: Debian bookworm)"},
		{"another distribution", "arm64", "Ubuntu", "bookworm", "(they have: Debian bookworm)"},
		{"any", "amd64", "", "", ""},
		{"none at all", "riscv64", "", "", "no packages of any distribution for riscv64 (they have: none)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := (&apt{arch: test.arch, distribution: test.distribution, release: test.release}).hasRelease(policy)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "make images-lock") {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

// TestKeep asserts that only a package with the expected checksum gets into the archive.
func TestKeep(t *testing.T) {
	const sum = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" // of "hello"
	p := lockedPackage{Name: "mount", Version: "1:2.3", SHA256: sum}
	for content, want := range map[string]string{"hello": "", "hullo": "which build/images/packages.lock.yaml does not have"} {
		c, work := archive{dir: t.TempDir()}, t.TempDir()
		if err := os.WriteFile(filepath.Join(work, "mount_1%3a2.3_amd64.deb"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		err := c.keep(work, "amd64", map[string]lockedPackage{sum: p})
		kept := err == nil
		if _, statErr := os.Stat(c.path(p, "amd64")); (statErr == nil) != kept || kept != (want == "") {
			t.Errorf("%s: %v, and in the archive: %v", content, err, statErr)
		}
		if !kept && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", content, err, want)
		}
	}
	if err := (archive{}).keep(t.TempDir(), "amd64", map[string]lockedPackage{sum: p}); err == nil {
		t.Error("a package that was not downloaded is no error")
	}
}

// TestSelection asserts what cannot be in an image, and that links are followed.
func TestSelection(t *testing.T) {
	here, other := platforms[0], platforms[1]
	tree := newTree()
	tree.files = map[string]*file{
		"/usr/sbin/mkfs.ext4":               {link: "mke2fs", owner: "e2fsprogs"},
		"/usr/sbin/mke2fs":                  {content: elfOf(t, elf.EM_X86_64), owner: "e2fsprogs"},
		"/usr/sbin/xfs_info":                {content: []byte("#!/bin/sh\n"), owner: "xfsprogs"},
		"/usr/sbin/lost":                    {link: "/bin/nowhere", owner: "lost"},
		"/usr/share/doc/e2fsprogs":          {link: "e2fslibs", owner: "e2fsprogs"},
		"/usr/share/doc/e2fslibs/copyright": {content: []byte("GPL"), owner: "e2fslibs"},
	}
	for _, test := range []struct {
		program  string
		platform platform
		want     string
	}{
		{"mkfs.ext4", here, ""},
		{"mkfs.ext4", other, "and not for " + other.name},
		{"xfs_info", here, "is a script"},
		{"lost", here, "no package has /usr/bin/nowhere"},
		{"mkfs.btrfs", here, "no package has the program mkfs.btrfs"},
	} {
		s := newSelection(tree, test.platform)
		err := s.addProgram(test.program)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s for %s: %v, want %q", test.program, test.platform.name, err, test.want)
		}
	}
	s := newSelection(tree, here)
	if err := errors.Join(s.addProgram("mkfs.ext4"), s.addRecords()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/usr/sbin/mkfs.ext4", "/usr/sbin/mke2fs", "/usr/share/doc/e2fsprogs", "/usr/share/doc/e2fslibs/copyright"} {
		if s.files[name] == nil {
			t.Errorf("%s is not in the image", name)
		}
	}
	if err := newSelection(tree, here).addLibrary("libblkid.so.1"); err == nil {
		t.Error("a library that no package has is no error")
	}
	tree.files["/usr/sbin/unlicensed"] = &file{content: []byte("data"), owner: "unlicensed"}
	s = newSelection(tree, here)
	if err := errors.Join(s.addProgram("unlicensed"), s.addRecords()); err == nil || !strings.Contains(err.Error(), "the licence of package unlicensed") {
		t.Errorf("a package without a copyright file: %v", err)
	}
}

// elfOf is a program that needs nothing.
func elfOf(t *testing.T, machine elf.Machine) []byte {
	t.Helper()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var out bytes.Buffer
	if err := binary.Write(&out, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestChanges asserts what `images lock` says about new versions.
func TestChanges(t *testing.T) {
	before := []lockedPackage{{Name: "a", Version: "1"}, {Name: "b", Version: "1"}, {Name: "c", Version: "1"}}
	after := []lockedPackage{{Name: "a", Version: "1"}, {Name: "b", Version: "2"}, {Name: "d", Version: "1"}}
	want := []string{"b 2, was 1", "d 1", "c is not needed any more"}
	if got := changes(before, after); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestAdvice asserts that a version that is not offered any more comes with what to do, and that nothing else does.
func TestAdvice(t *testing.T) {
	if err := advice(errNotOffered); !errors.Is(err, errNotOffered) || !strings.Contains(err.Error(), "make images-lock") {
		t.Errorf("got %v", err)
	}
	if other := errors.New("other"); advice(other) != other {
		t.Errorf("got %v", advice(other))
	}
}

// TestLock asserts that the lock file is of the declared release, and has the declared packages for each platform.
func TestLock(t *testing.T) {
	declared, err := readContents("../..")
	if err != nil {
		t.Fatal(err)
	}
	l, err := readLock("../..", declared)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range platforms {
		for _, name := range declared.Packages {
			if !slices.ContainsFunc(l.Platforms[p.name], func(q lockedPackage) bool { return q.Name == name && len(q.SHA256) == 64 }) {
				t.Errorf("%s has no %s for %s", lockPath, name, p.name)
			}
		}
	}
	declared.Release = "sid"
	if _, err := readLock("../..", declared); err == nil || !strings.Contains(err.Error(), "run make images-lock") {
		t.Errorf("a lock of another release: %v", err)
	}
}

// TestUnpinned asserts that a build says what to do when a declared version is not offered any more. If it is allowed
// to, it takes what this machine has, and the images say so.
func TestUnpinned(t *testing.T) {
	b := build{
		repository: copyOfSources(t, t.TempDir()), cache: cacheFolder(t), version: "v1.2.3", created: time.Unix(1, 0),
		platforms: []string{"linux/" + runtime.GOARCH}, log: t.Output(),
	}
	path := filepath.Join(b.repository, lockPath)
	l := lockFile{}
	if err := readYAML(path, &l); err != nil {
		t.Fatal(err)
	}
	gone := &l.Platforms[b.platforms[0]][0]
	gone.Version, gone.SHA256 = "0:0-gone", strings.Repeat("0", 64)
	if err := l.write(path); err != nil {
		t.Fatal(err)
	}
	_, err := b.images(t.Context(), t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "make images-lock") || !strings.Contains(err.Error(), "--sources FILE") {
		t.Errorf("a version that is gone: %v", err)
	}
	b.allowUnpinned = true
	images, err := b.images(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range images {
		if why := must(t, m.index.IndexManifest).Annotations[labelUnpinned]; !strings.Contains(why, "packages of the build machine") {
			t.Errorf("%s says %q", m.name(), why)
		}
	}
}
