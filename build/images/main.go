// Command images writes the container images of the scheduler and the node agent as
// tar archives in the format of `docker save`, which `ctr images import` reads. It
// needs no container engine and no registry: the agent's image holds the agent and
// the file-system programs of the Debian or Ubuntu machine it is built on.
package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/spf13/cobra"
)

// programs is what the agent runs (see Check in pkg/agent), and what an operator needs in its container
// to look at a damaged volume.
var programs = []string{
	"mkfs.ext4", "mkfs.xfs", "resize2fs", "xfs_growfs", "e2fsck", "blkid", "wipefs", "mount", "umount",
	"xfs_repair", "dumpe2fs", "debugfs",
}

// versioned are the packages whose version decides what a volume looks like on the disk, by the
// label that says it, with the program that prints it.
var versioned = map[string][]string{
	"dev.berth.e2fsprogs": {"mkfs.ext4", "-V"},
	"dev.berth.xfsprogs":  {"mkfs.xfs", "-V"},
}

// image is one image to write.
type image struct {
	tag    string
	binary string
	// needs are programs of this machine that go into the image, with their libraries.
	needs []string
}

func main() {
	var bin, out, version string
	command := &cobra.Command{
		Use:           "images",
		Short:         "Write the container images of Berth as tar archives.",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(*cobra.Command, []string) error {
			for _, i := range []image{
				{tag: "berth/scheduler:" + version, binary: "scheduler"},
				{tag: "berth/nodeagent:" + version, binary: "nodeagent", needs: programs},
			} {
				path := filepath.Join(out, i.binary+".tar")
				if err := i.write(filepath.Join(bin, i.binary), path); err != nil {
					return fmt.Errorf("image %s: %w", i.tag, err)
				}
				fmt.Printf("%s  %s\n", path, i.tag)
			}
			return nil
		},
	}
	command.Flags().StringVar(&bin, "bin", ".build/bin", "directory of the built programs")
	command.Flags().StringVar(&out, "out", ".build/images", "directory to write the archives to")
	command.Flags().StringVar(&version, "version", "dev", "tag of the images")
	if err := command.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func (i image) write(binary, path string) error {
	layer := newLayer()
	if err := layer.file(binary, "/usr/local/bin/"+i.binary); err != nil {
		return fmt.Errorf("%w: build it first with make build", err)
	}
	for _, program := range i.needs {
		if err := layer.program(program); err != nil {
			return err
		}
	}
	content, err := layer.close()
	if err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	labels := map[string]string{}
	for label, program := range versioned {
		if !slices.Contains(i.needs, program[0]) {
			continue
		}
		out, err := exec.Command(program[0], program[1:]...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("version of %s: %w", program[0], err)
		}
		first, _, _ := strings.Cut(string(out), "\n")
		labels[label] = first
	}
	if img, err = mutate.ConfigFile(img, &v1.ConfigFile{
		OS:           "linux",
		Architecture: runtime.GOARCH,
		RootFS:       must(img.ConfigFile()).RootFS,
		Config: v1.Config{
			Labels:     labels,
			Entrypoint: []string{"/usr/local/bin/" + i.binary},
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
	}); err != nil {
		return err
	}
	tag, err := name.NewTag(i.tag)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, img)
}

// must is for values that are already in memory.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// layer is a tar of files at their final places. Directories of a merged-/usr system
// are links here too, so that /sbin/mkfs.ext4 and /lib/… are found.
type layer struct {
	buffer *bytes.Buffer
	tar    *tar.Writer
	done   []string
}

// mergedUsr are the directories that are links into /usr.
var mergedUsr = []string{"bin", "sbin", "lib", "lib64"}

func newLayer() *layer {
	buffer := &bytes.Buffer{}
	l := &layer{buffer: buffer, tar: tar.NewWriter(buffer)}
	for _, d := range mergedUsr {
		// Writing to a buffer cannot fail.
		_ = l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "usr/" + d + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
		_ = l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: d, Linkname: "usr/" + d, ModTime: time.Unix(0, 0)})
	}
	for _, d := range []string{"etc", "run", "tmp", "var"} {
		_ = l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
	}
	return l
}

// file adds the file at source, following links, as target.
func (l *layer) file(source, target string) error {
	for _, d := range mergedUsr {
		if strings.HasPrefix(target, "/"+d+"/") {
			target = "/usr" + target
		}
	}
	if slices.Contains(l.done, target) {
		return nil
	}
	l.done = append(l.done, target)
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	if err := l.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: strings.TrimPrefix(target, "/"), Size: int64(len(content)), Mode: 0o755, ModTime: time.Unix(0, 0),
	}); err != nil {
		return err
	}
	_, err = l.tar.Write(content)
	return err
}

var libraryPath = regexp.MustCompile(`(/\S+) \(0x`)

// program adds a program of this machine and the libraries it is linked with.
func (l *layer) program(program string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("%s is not on this machine: install e2fsprogs, xfsprogs and util-linux", program)
	}
	if err := l.file(path, "/usr/sbin/"+program); err != nil {
		return err
	}
	if static, err := isStatic(path); err != nil || static {
		return err
	}
	out, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	for _, match := range libraryPath.FindAllStringSubmatch(string(out), -1) {
		if err := l.file(match[1], match[1]); err != nil {
			return err
		}
	}
	return nil
}

func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if errors.Is(err, elf.ErrNoSymbols) {
		return true, nil
	}
	return len(libraries) == 0, err
}

func (l *layer) close() ([]byte, error) {
	err := l.tar.Close()
	return l.buffer.Bytes(), err
}
