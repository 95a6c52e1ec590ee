package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// State says what Inspect found on a device.
type State string

const (
	// Blank means that nothing is on the device and nobody uses it.
	Blank State = "Blank"
	// Ours means that the device has a table of ours.
	Ours State = "Ours"
	// Foreign means that the device holds something else, or may, or cannot be used.
	Foreign State = "Foreign"
	// Busy means that somebody uses the device.
	Busy State = "Busy"
)

// Contents is what Inspect found on a device.
type Contents struct {
	State State
	// ID is the disk's GUID in lower case, if it is ours.
	ID string
	// Reason is a sentence for a person: why the device is not blank, or what is
	// wrong with a disk of ours.
	Reason string
}

// Inspect says what is on a device. It reads only, and never says Blank of a device
// that it could not look at in every way it knows.
func Inspect(ctx context.Context, path string) (Contents, error) {
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting: %w", err)
	}
	defer d.Close()
	c, err := d.inspect(ctx)
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting %s: %w", path, err)
	}
	if c.State != Blank {
		return c, nil
	}
	// Asked last: an exclusive open, short as it is, is in other people's way.
	exclusive, err := openDevice(path, os.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, ErrInUse) {
		return Contents{State: Busy, Reason: "another program or the kernel holds the device open exclusively"}, nil
	}
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting: %w", err)
	}
	return c, exclusive.Close()
}

// inspect is all of Inspect but the exclusive open.
func (d *blockDevice) inspect(ctx context.Context) (Contents, error) {
	if _, err := os.Stat(filepath.Join(d.sys, "partition")); err == nil {
		return Contents{State: Foreign, Reason: "the device is a partition, not a disk"}, nil
	}
	if info, err := unix.IoctlLoopGetStatus64(d.fd()); err == nil {
		if guid, marked := markOf(info); marked {
			return Contents{State: Foreign, Reason: "the device shows the volume " + guid + " of a disk of ours"}, nil
		}
	}
	if guid, err := mappedVolume(d.sys); err != nil {
		return Contents{}, err
	} else if guid != "" {
		return Contents{State: Foreign, Reason: "the device shows the volume " + guid + " of a disk of ours"}, nil
	}
	size, sector, err := d.geometry()
	if err != nil {
		return Contents{}, err
	}
	if reason := unsuitable(size, sector); reason != "" {
		return Contents{State: Foreign, Reason: reason}, nil
	}
	d.layout = layout{size: size, sector: sector}
	f, err := examine(d, d.layout)
	if err != nil {
		return Contents{}, err
	}
	if f.ours {
		c := Contents{State: Ours, ID: f.current.id}
		switch {
		case f.was.size != 0:
			c.Reason = f.resizing(d.layout)
		case f.needsKnown:
			c.Reason = "the beginning of the disk is lost; only the backup of its partition table is left"
		case f.badPrimary || f.badBackup || f.badMBR:
			c.Reason = "the partition table is damaged in part, and is repaired when the disk is opened"
		}
		return c, nil
	}
	reason, err := d.usedBy()
	if err != nil {
		return Contents{}, err
	}
	if reason != "" {
		return Contents{State: Busy, Reason: reason}, nil
	}
	blank, err := isBlank(d, d.layout)
	if err != nil {
		return Contents{}, err
	}
	// The programs are asked in any case: the name of what is there helps a person.
	found, err := signatures(ctx, d.path)
	switch {
	case f.akin:
		return Contents{State: Foreign, Reason: f.reason}, nil
	case len(found) > 0:
		return Contents{State: Foreign, Reason: "the device holds " + strings.Join(found, ", ")}, nil
	case f.foreign:
		return Contents{State: Foreign, Reason: f.reason}, nil
	case !blank && err == nil:
		return Contents{State: Foreign, Reason: "the first or the last MiB of the device is not zero, though no known signature is there"}, nil
	case err != nil:
		return Contents{}, err
	}
	readOnly, err := unix.IoctlGetUint32(d.fd(), unix.BLKROGET)
	if err != nil {
		return Contents{}, fmt.Errorf("asking whether it is read-only: %w", err)
	}
	if readOnly != 0 {
		return Contents{State: Foreign, Reason: "the device is read-only"}, nil
	}
	return Contents{State: Blank}, nil
}

// usedBy says who uses the device, or nothing.
func (d *blockDevice) usedBy() (string, error) {
	parts, err := d.partitions()
	if err != nil {
		return "", err
	}
	if len(parts) > 0 {
		return fmt.Sprintf("the device has %d partitions", len(parts)), nil
	}
	holders, err := os.ReadDir(filepath.Join(d.sys, "holders"))
	if err != nil {
		return "", fmt.Errorf("holders: %w", err)
	}
	if len(holders) > 0 {
		return "the device is part of " + holders[0].Name(), nil
	}
	if other := otherPath("/sys/block", d.name); other != "" {
		return fmt.Sprintf("%s is another path to the same disk, which belongs to multipath: select its device-mapper device, or remove a path", other), nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd(), &st); err != nil {
		return "", err
	}
	targets, err := mountsOf(st.Rdev)
	if err != nil {
		return "", err
	}
	if len(targets) > 0 {
		return "the device is mounted at " + targets[0], nil
	}
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("swaps: %w", err)
	}
	for line := range strings.Lines(string(swaps)) {
		if file, _, _ := strings.Cut(line, " "); filepath.Base(file) == d.name {
			return "the device is used as swap", nil
		}
	}
	return "", nil
}

// otherPath returns the name of another device below sys, which is /sys/block, that says of
// itself to be the same disk. Multipath may take it at any time, and what is held exclusively
// by one path is not by the other. Devices that say nothing of themselves have no other path.
func otherPath(sys, name string) string {
	identity := func(device string) string {
		for _, file := range []string{"wwid", "device/wwid"} {
			if b, err := os.ReadFile(filepath.Join(sys, device, file)); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return ""
	}
	own := identity(name)
	if own == "" {
		return ""
	}
	devices, err := os.ReadDir(sys)
	if err != nil {
		return ""
	}
	for _, other := range devices {
		// Paths that the kernel itself joins are hidden.
		hidden, err := readNumber(filepath.Join(sys, other.Name(), "hidden"))
		if other.Name() != name && (err != nil || hidden == 0) && identity(other.Name()) == own {
			return other.Name()
		}
	}
	return ""
}

// Mounts returns where the device is mounted, as far as this process can see. It goes
// by the device's number: the name may have been another device's when that was mounted.
func Mounts(path string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("device %s: %w", path, err)
	}
	return mountsOf(st.Rdev)
}

func mountsOf(rdev uint64) ([]string, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Major != int(unix.Major(rdev)) || m.Minor != int(unix.Minor(rdev)), false
	})
	if err != nil {
		return nil, fmt.Errorf("cannot read the mount table: %w", err)
	}
	targets := make([]string, len(mounts))
	for i, m := range mounts {
		targets[i] = m.Mountpoint
	}
	return targets, nil
}

const probeTimeout = 30 * time.Second

// signatures asks blkid and wipefs what they find on a device. "No known signature"
// is an answer of theirs; anything but an answer is an error.
func signatures(ctx context.Context, path string) ([]string, error) {
	var found []string
	out, code, err := probe(ctx, "blkid", "--probe", "--output", "export", path)
	if err != nil {
		return nil, err
	}
	switch code {
	case 0:
		for line := range strings.Lines(string(out)) {
			if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && (key == "TYPE" || key == "PTTYPE") {
				found = append(found, value)
			}
		}
		if len(found) == 0 {
			found = append(found, "something that blkid knows")
		}
	case 2:
	case 8:
		found = append(found, "several signatures that contradict each other")
	default:
		return nil, fmt.Errorf("blkid ended with exit code %d", code)
	}
	out, code, err = probe(ctx, "wipefs", "--json", "--no-act", path)
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("wipefs ended with exit code %d", code)
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

// probe runs a program that looks at a device. A device that hangs can make it
// unkillable: it is left behind then.
func probe(ctx context.Context, name string, args ...string) (out []byte, code int, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
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

// Initialize writes an empty table of ours onto a blank disk and returns the disk's
// GUID. It trusts no earlier Inspect: it looks again while it holds the disk
// exclusively, and refuses with an error that says what is there.
func Initialize(ctx context.Context, path string) (id string, err error) {
	d, err := openDevice(path, os.O_RDWR|unix.O_EXCL)
	if err != nil {
		return "", fmt.Errorf("initializing: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.lock(ctx); err != nil {
		return "", fmt.Errorf("initializing: %w", err)
	}
	c, err := d.inspect(ctx)
	if err != nil {
		return "", fmt.Errorf("initializing %s: %w", path, err)
	}
	if c.State == Ours {
		return "", fmt.Errorf("initializing %s: it already is ours, with the id %s", path, c.ID)
	}
	if c.State != Blank {
		return "", fmt.Errorf("initializing %s: it is not blank: %s", path, c.Reason)
	}
	id, err = format(ctx, d, d.layout)
	if err != nil {
		return "", fmt.Errorf("initializing %s: %w", path, err)
	}
	klog.FromContext(ctx).Info("Initialized disk", "device", path, "disk", id, "bytes", d.size, "sectorBytes", d.sector)
	return id, nil
}
