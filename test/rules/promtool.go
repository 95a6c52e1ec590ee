package rules

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// Promtool returns the path of promtool: the one that is installed, or Debian's. That is unpacked below dir and not
// installed, because its package would start a server.
func Promtool(ctx context.Context, dir string) (string, error) {
	if path, err := exec.LookPath("promtool"); err == nil {
		return path, nil
	}
	path := filepath.Join(dir, "root", "usr/bin/promtool")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, "unpack-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := download(ctx, work); err != nil {
		return "", fmt.Errorf("promtool of Debian's package prometheus: %w", err)
	}
	archives, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(archives) != 1 {
		return "", fmt.Errorf("downloading prometheus: got %v, %w", archives, err)
	}
	if err := run(ctx, work, "dpkg-deb", "--extract", archives[0], "root"); err != nil {
		return "", err
	}
	// Renamed at once, so that a partial result is never found. Another process may have been faster.
	if err := os.Rename(filepath.Join(work, "root"), filepath.Join(dir, "root")); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return path, nil
}

// download gets the package. A new machine has no lists of packages yet.
func download(ctx context.Context, dir string) error {
	get := func() error { return run(ctx, dir, "apt-get", "download", "--quiet", "prometheus") }
	if err := get(); err == nil {
		return nil
	}
	if err := run(ctx, dir, "apt-get", "update", "--quiet"); err != nil {
		return err
	}
	return get()
}

func run(ctx context.Context, dir, program string, arguments ...string) error {
	command := exec.CommandContext(ctx, program, arguments...)
	command.Dir = dir
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}
