// Package signature finds the content of a block device: file systems, partition tables, RAID and LVM members. It runs
// blkid and wipefs, and nothing else in the agent does.
package signature

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// programTimeout bounds one run of blkid or wipefs.
const programTimeout = 30 * time.Second

// Exit codes of blkid.
const (
	blkidFound     = 0
	blkidNothing   = 2
	blkidAmbiguous = 8
)

// Ambiguous means several signatures of which blkid cannot decide which one counts.
const Ambiguous = "several signatures that contradict each other"

// Find returns the type of everything that blkid and wipefs find on a device. An error means that they could not read
// it, never that there is nothing.
func Find(ctx context.Context, device string) ([]string, error) {
	var found []string
	out, code, err := run(ctx, "blkid", "--probe", "--output", "export", device)
	if err != nil {
		return nil, err
	}
	switch code {
	case blkidFound:
		for line := range strings.Lines(string(out)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && (key == "TYPE" || key == "PTTYPE") {
				found = append(found, value)
			}
		}
		if len(found) == 0 {
			found = append(found, "something that blkid knows")
		}
	case blkidNothing:
	case blkidAmbiguous:
		found = append(found, Ambiguous)
	default:
		return nil, fmt.Errorf("blkid %s ended with exit code %d", device, code)
	}
	out, code, err = run(ctx, "wipefs", "--json", "--no-act", device)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("wipefs %s ended with exit code %d", device, code)
	}
	var report struct {
		Signatures []struct {
			Type string `json:"type"`
		} `json:"signatures"`
	}
	if len(bytes.TrimSpace(out)) > 0 {
		if err := json.Unmarshal(out, &report); err != nil {
			return nil, fmt.Errorf("output of wipefs: %w", err)
		}
	}
	for _, s := range report.Signatures {
		if !slices.Contains(found, s.Type) {
			found = append(found, s.Type)
		}
	}
	return found, nil
}

// FileSystem returns the type of the file system on a device, Ambiguous, or nothing. If types are given, only those are
// considered: an old label of another type does not hide them.
func FileSystem(ctx context.Context, device string, types ...string) (string, error) {
	return fileSystem(ctx, types, device)
}

// FileSystemAt is FileSystem of a part of a device, in bytes.
func FileSystemAt(ctx context.Context, device string, start, length int64, types ...string) (string, error) {
	return fileSystem(ctx, types, "--offset", strconv.FormatInt(start, 10), "--size", strconv.FormatInt(length, 10), device)
}

// fileSystem runs blkid on the device, or on the part of it that where names.
func fileSystem(ctx context.Context, types []string, where ...string) (string, error) {
	// blkid accepts one filter, not both.
	filter := []string{"--usages", "filesystem"}
	if len(types) > 0 {
		filter = []string{"--match-types", strings.Join(types, ",")}
	}
	args := slices.Concat([]string{"--probe", "--match-tag", "TYPE", "--output", "value"}, filter, where)
	out, code, err := run(ctx, "blkid", args...)
	if err != nil {
		return "", err
	}
	switch code {
	case blkidFound, blkidNothing:
		return strings.TrimSpace(string(out)), nil
	case blkidAmbiguous:
		return Ambiguous, nil
	}
	return "", fmt.Errorf("blkid %s ended with exit code %d", strings.Join(where, " "), code)
}

// Erase removes every signature that wipefs knows. A device that is in use is refused.
func Erase(ctx context.Context, device string) error {
	_, code, err := run(ctx, "wipefs", "--all", "--quiet", device)
	if err == nil && code != 0 {
		err = fmt.Errorf("wipefs --all %s ended with exit code %d", device, code)
	}
	return err
}

// run runs a program that reads a device. A device that hangs can make the program unkillable. Then it keeps running in
// the background.
func run(ctx context.Context, name string, args ...string) (out []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.WaitDelay = time.Second
		out, err := cmd.Output()
		done <- result{out, err}
	}()
	select {
	case <-ctx.Done():
		return nil, 0, fmt.Errorf("%s did not end: %w", name, ctx.Err())
	case r := <-done:
		var exit *exec.ExitError
		if errors.As(r.err, &exit) && exit.Exited() {
			return r.out, exit.ExitCode(), nil
		}
		if r.err != nil {
			return nil, 0, fmt.Errorf("running %s: %w", name, r.err)
		}
		return r.out, 0, nil
	}
}
