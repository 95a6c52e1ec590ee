package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// The lines of the journal, in the order of a life.
const (
	adopted   = "adopted"
	formatted = "formatted"
	written   = "written"
	grown     = "grown"
	moved     = "moved"
	deleted   = "deleted"
	wiped     = "wiped"
)

// journal is what the program has acknowledged, a line for each thing. It only grows, so a line is either there or not
// when the program is killed.
type journal struct {
	path  string
	lines map[string]string
}

func (j *journal) read() error {
	j.lines = map[string]string{}
	b, err := os.ReadFile(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		what, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		j.lines[what] = value
	}
	return nil
}

func (j *journal) has(what string) bool {
	_, has := j.lines[what]
	return has
}

func (j *journal) value(what string) string { return j.lines[what] }

func (j *journal) add(what string, value ...string) error {
	if j.has(what) {
		return nil
	}
	f, err := os.OpenFile(j.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, strings.Join(append([]string{what}, value...), " "))
	j.lines[what] = strings.Join(value, " ")
	return errors.Join(err, f.Close())
}

// mkfs makes a file system like the agent. An mkfs of a killed agent may still be running and hold the volume, so mkfs
// waits for it.
func mkfs(ctx context.Context, v disk.Volume) error {
	for deadline := time.Now().Add(timeout); ; {
		out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m0", "-U", v.Partition,
			"-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", v.Device).CombinedOutput()
		if err == nil || time.Now().After(deadline) || !bytes.Contains(out, []byte("in use")) {
			if err != nil {
				err = fmt.Errorf("mkfs.ext4 %s: %w: %s", v.Device, err, out)
			}
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// canary is the content of the volume's file. Afterwards the whole disk is searched for it.
var canary = bytes.Repeat([]byte("canary of a life"), 1<<16)

func canaryFile(mountpoint string) string { return filepath.Join(mountpoint, "canary") }

func writeCanary(mountpoint string) error {
	f, err := os.Create(canaryFile(mountpoint))
	if err != nil {
		return err
	}
	_, err = f.Write(canary)
	return errors.Join(err, f.Sync(), f.Close())
}

func readCanary(mountpoint string) error {
	got, err := os.ReadFile(canaryFile(mountpoint))
	if err != nil {
		return fmt.Errorf("the volume lost its file: %w", err)
	}
	if !bytes.Equal(got, canary) {
		return errors.New("the volume's file is not what was written")
	}
	return nil
}
