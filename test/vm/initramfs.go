package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
)

// archive is an initramfs that is being written: cpio in the format newc, which the kernel reads.
type archive struct {
	w     *bufio.Writer
	inode int
	has   map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriter(w), has: map[string]bool{}}
}

const (
	modeDirectory = 0o040755
	modeFile      = 0o100755
)

// entry writes one entry, and before it the directories above that do not exist yet. The first error is kept for close.
func (a *archive) entry(name string, mode int, content []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if a.has[name] {
		return
	}
	a.has[name] = true
	if above := path.Dir(name); above != "." {
		a.entry(above, modeDirectory, nil)
	}
	a.inode++
	a.write(name, mode, content)
}

func (a *archive) write(name string, mode int, content []byte) {
	// Magic, then inode, mode, uid, gid, links, time, size, device, special device, and the length of the name with its
	// zero. Last is a checksum that is not checked.
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	a.padded([]byte(header + name + "\x00"))
	a.padded(content)
}

// padded writes bytes and zeros up to a multiple of 4.
func (a *archive) padded(b []byte) {
	if a.err != nil {
		return
	}
	if _, a.err = a.w.Write(b); a.err == nil {
		_, a.err = a.w.Write(make([]byte, -len(b)&3))
	}
}

func (a *archive) close() error {
	a.write("TRAILER!!!", 0, nil)
	return errors.Join(a.err, a.w.Flush())
}

// file copies a file of this machine.
func (a *archive) file(name, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	a.entry(name, modeFile, content)
	return nil
}

// libraryLine is a line of ldd: "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", or
// the loader with nothing before its path.
var libraryLine = regexp.MustCompile(`(/\S+) \(0x`)

// program copies a program of this machine, with the libraries that it is linked to.
func (a *archive) program(ctx context.Context, name string) error {
	from, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("the virtual machine needs %s of this one: %w", name, err)
	}
	libraries, err := output(ctx, "", "ldd", from)
	if err != nil {
		return err
	}
	for _, found := range libraryLine.FindAllStringSubmatch(libraries, -1) {
		if err := a.file(found[1], found[1]); err != nil {
			return err
		}
	}
	return a.file("/bin/"+name, from)
}

// guestModules are the modules that the guest needs, beside what is built in.
var guestModules = []string{
	"virtio_pci", "virtio_blk", "virtio_console", "dm_mod", "loop", "ext4", "xfs",
	// Disks with several paths, and encrypted ones.
	"virtio_scsi", "sd_mod", "dm_multipath", "dm_round_robin", "dm_crypt", "aes_generic", "ecb", "xts",
	"algif_skcipher",
}

// guestPrograms are those that the engine and the users of its volumes run.
var guestPrograms = []string{"blkid", "wipefs", "mkfs.ext4", "e2fsck", "resize2fs", "mkfs.xfs", "xfs_growfs", "losetup", "dmsetup", "cryptsetup", "sync"}

// luksKey is a file of the guest with the passphrase of its encrypted disk.
const luksKey = "/etc/luks.key"

// writeInitramfs writes the archive from which the machine boots: init and further programs of ours, by name, and
// everything that they need.
func writeInitramfs(ctx context.Context, to string, k kernel, ours map[string]string) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	a := newArchive(f)
	for _, dir := range []string{"/proc", "/sys", "/dev", "/tmp", "/run", "/etc", "/bin"} {
		a.entry(dir, modeDirectory, nil)
	}
	a.entry(luksKey, modeFile, []byte("not a secret"))
	modules, err := k.withDependencies(ctx, guestModules...)
	if err != nil {
		return err
	}
	// The guest loads them in the order of their names.
	for i, m := range modules {
		a.entry(fmt.Sprintf("/modules/%02d-%s.ko", i, m.name), modeFile, m.bytes)
	}
	for name, from := range ours {
		if err := a.file(name, from); err != nil {
			return err
		}
	}
	for _, name := range guestPrograms {
		if err := a.program(ctx, name); err != nil {
			return err
		}
	}
	return a.close()
}
