package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// kernel is a kernel with its modules, unpacked and not installed.
type kernel struct {
	image   string
	modules string // the directory with one kernel's modules
}

// metaPackages are the Debian packages that depend on the newest kernel, the smallest first.
var metaPackages = []string{"linux-image-cloud-amd64", "linux-image-amd64"}

// fetchKernel unpacks the distribution's kernel below dir, once.
func fetchKernel(ctx context.Context, dir string) (kernel, error) {
	if k, err := findKernel(dir); err == nil {
		return k, nil
	}
	var failed []error
	for _, meta := range metaPackages {
		err := unpackKernel(ctx, meta, dir)
		if err == nil {
			return findKernel(dir)
		}
		failed = append(failed, err)
	}
	return kernel{}, fmt.Errorf("no kernel for the virtual machine (apt-get update may help): %w", errors.Join(failed...))
}

func findKernel(dir string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(dir, "root", "boot", "vmlinuz-*"))
	if err != nil || len(images) == 0 {
		return kernel{}, fmt.Errorf("%s has no kernel: %w", dir, fs.ErrNotExist)
	}
	k := kernel{image: images[0]}
	release := strings.TrimPrefix(filepath.Base(k.image), "vmlinuz-")
	for _, modules := range []string{"lib/modules", "usr/lib/modules"} {
		k.modules = filepath.Join(dir, "root", modules, release)
		if _, err := os.Stat(k.modules); err == nil {
			return k, nil
		}
	}
	return kernel{}, fmt.Errorf("%s has a kernel %s without modules: remove it", dir, release)
}

func unpackKernel(ctx context.Context, meta, dir string) error {
	depends, err := output(ctx, "", "apt-cache", "depends", "--important", meta)
	if err != nil {
		return err
	}
	var name string
	for line := range strings.Lines(depends) {
		if found, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			name = "linux-image-" + found
		}
	}
	if name == "" {
		return fmt.Errorf("%s depends on no kernel", meta)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "unpack-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if _, err := output(ctx, work, "apt-get", "download", "--quiet", name); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(archives) != 1 {
		return fmt.Errorf("downloading %s: got %v, %w", name, archives, err)
	}
	if _, err := output(ctx, work, "dpkg-deb", "--extract", archives[0], "root"); err != nil {
		return err
	}
	// Renamed at once, so that a partial result is never found. Another process may have been faster.
	err = os.Rename(filepath.Join(work, "root"), filepath.Join(dir, "root"))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// withDependencies returns the files of the named modules and of those that they need, in the order in which they can
// be loaded. The package has no modules.dep, so the dependencies are read from the modules themselves.
func (k kernel) withDependencies(ctx context.Context, names ...string) ([]module, error) {
	builtin, err := os.ReadFile(filepath.Join(k.modules, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("modules of the kernel: %w", err)
	}
	inKernel := map[string]bool{}
	for line := range strings.Lines(string(builtin)) {
		inKernel[moduleName(strings.TrimSpace(line))] = true
	}
	files := map[string]string{}
	err = filepath.WalkDir(filepath.Join(k.modules, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.Contains(d.Name(), ".ko") {
			files[moduleName(path)] = path
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("modules of the kernel: %w", err)
	}
	var loaded []module
	var add func(name string) error
	add = func(name string) error {
		if inKernel[name] || slices.ContainsFunc(loaded, func(m module) bool { return m.name == name }) {
			return nil
		}
		path, ok := files[name]
		if !ok {
			return fmt.Errorf("the kernel %s has no module %s", filepath.Base(k.modules), name)
		}
		m, err := readModule(ctx, name, path)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, needed := range m.needs {
			if err := add(needed); err != nil {
				return err
			}
		}
		loaded = append(loaded, m)
		return nil
	}
	for _, name := range names {
		if err := add(moduleName(name)); err != nil {
			return nil, err
		}
	}
	return loaded, nil
}

// module is a module of the kernel, not compressed.
type module struct {
	name  string
	needs []string
	bytes []byte
}

// moduleName is the name of a file's module. To the kernel - and _ are the same.
func moduleName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return strings.ReplaceAll(name, "-", "_")
}

func readModule(ctx context.Context, name, path string) (module, error) {
	m := module{name: name}
	var err error
	switch filepath.Ext(path) {
	case ".ko":
		m.bytes, err = os.ReadFile(path)
	case ".xz":
		m.bytes, err = exec.CommandContext(ctx, "xz", "--decompress", "--stdout", path).Output()
	case ".zst":
		m.bytes, err = exec.CommandContext(ctx, "zstd", "--decompress", "--stdout", path).Output()
	default:
		err = errors.New("compressed in a way that is not known here")
	}
	if err != nil {
		return m, err
	}
	file, err := elf.NewFile(bytes.NewReader(m.bytes))
	if err != nil {
		return m, err
	}
	info := file.Section(".modinfo")
	if info == nil {
		return m, errors.New("it has no section .modinfo")
	}
	text, err := info.Data()
	if err != nil {
		return m, err
	}
	for field := range bytes.SplitSeq(text, []byte{0}) {
		if list, ok := strings.CutPrefix(string(field), "depends="); ok && list != "" {
			for needed := range strings.SplitSeq(list, ",") {
				m.needs = append(m.needs, moduleName(needed))
			}
		}
	}
	return m, nil
}

// output runs a program in a directory and returns its output.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", cmd, err, stderr.Bytes())
	}
	return string(out), nil
}
