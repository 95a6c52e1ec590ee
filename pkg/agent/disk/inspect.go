package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/utils/clock"

	"github.com/berthdev/berth/pkg/agent/holders"
	"github.com/berthdev/berth/pkg/agent/signature"
)

// State says what Inspect found on a device.
type State string

const (
	// Blank means that nothing is on the device and it is not in use.
	Blank State = "Blank"
	// Ours means that the device has a table of ours.
	Ours State = "Ours"
	// Foreign means that the device holds something else, or may, or cannot be used.
	Foreign State = "Foreign"
	// Busy means that the device is in use.
	Busy State = "Busy"
)

// Contents is what Inspect found on a device.
type Contents struct {
	State State
	// ID is the disk's GUID in lower case, if it is ours.
	ID string
	// Owner is the node that a disk of ours belongs to. It is zero if the disk has none.
	Owner Owner
	// Reasons are sentences for operators: every reason against the device, or what is wrong with a disk of ours.
	Reasons []string
	// Reason is all Reasons in one text.
	Reason string
	// Unchecked lists what Inspect could not look at, such as the processes of the host.
	Unchecked []string
}

func newContents(state State, reasons ...string) Contents {
	return Contents{State: state, Reasons: reasons, Reason: strings.Join(reasons, "; ")}
}

// DefaultKubeletDir is where the kubelet keeps its files by default.
const DefaultKubeletDir = "/var/lib/kubelet"

// Inspector inspects devices before anything is written to them. The zero Inspector is ready.
type Inspector struct {
	// KubeletDir is the kubelet's folder, by default DefaultKubeletDir.
	KubeletDir string
	// Holders is what holds the devices of this node: mounts, processes, and devices on top of them. One System serves
	// for many devices. If it is nil, Inspect reads it. Initialize always reads it again.
	Holders *holders.System
	// SkipExclusive leaves out the exclusive open, which would make another program's mkfs fail. Then a device that is
	// reported as Blank may be open exclusively.
	SkipExclusive bool

	// clock is the real one if it is nil.
	clock clock.Clock
}

// ReadHolders finds what holds the devices of this node, for the field Holders.
func (i Inspector) ReadHolders(ctx context.Context) (*holders.System, error) {
	const timeout = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return holders.ReadSystemWithKubelet(ctx, i.kubeletDir())
}

// after is a channel that gets a value after that time.
func (i Inspector) after(d time.Duration) <-chan time.Time {
	if i.clock == nil {
		return time.After(d)
	}
	return i.clock.After(d)
}

func (i Inspector) kubeletDir() string { return cmp.Or(i.KubeletDir, DefaultKubeletDir) }

// Inspect is Inspector.Inspect with the defaults.
func Inspect(ctx context.Context, path string) (Contents, error) {
	return Inspector{}.Inspect(ctx, path)
}

// Inspect returns what is on a device. It only reads, and never returns Blank for a device that it could not inspect in
// every way it knows.
func (i Inspector) Inspect(ctx context.Context, path string) (Contents, error) {
	d, err := openDevice(path, os.O_RDONLY)
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting: %w", err)
	}
	defer d.Close()
	c, err := d.inspect(ctx, i)
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting %s: %w", path, err)
	}
	if c.State != Blank || i.SkipExclusive {
		return c, nil
	}
	// The last check: even a short exclusive open disturbs other programs.
	exclusive, err := openDevice(path, os.O_RDONLY|unix.O_EXCL)
	if errors.Is(err, ErrInUse) {
		return newContents(Busy, "another program or the kernel holds the device open exclusively"), nil
	}
	if err != nil {
		return Contents{}, fmt.Errorf("inspecting: %w", err)
	}
	return c, exclusive.Close()
}

// inspect is all of Inspect but the exclusive open.
func (d *blockDevice) inspect(ctx context.Context, i Inspector) (Contents, error) {
	// These are not read: they are no disks, or their bytes are a tenant's.
	if reason, err := d.whyNoDisk(i); err != nil || reason != "" {
		return newContents(Foreign, reason), err
	}
	size, sector, err := d.geometry()
	if err != nil {
		return Contents{}, err
	}
	if reason := unsuitable(size, sector); reason != "" {
		return newContents(Foreign, reason), nil
	}
	d.layout = layout{size: size, sector: sector}
	claims, err := d.claimedBy()
	if err != nil {
		return Contents{}, err
	}
	if len(claims) > 0 {
		// Reading from a path of multipath may move the disk to another path.
		return newContents(Busy, claims...), nil
	}
	f, err := examine(d, d.layout)
	if err != nil {
		return Contents{}, err
	}
	if f.ours {
		c := describeOurs(f, d.layout)
		c.Owner, err = ownerOf(d, d.path, d.layout, f.current)
		return c, err
	}
	return d.describeOthers(ctx, i, f)
}

// describeOthers describes a device that has no table of ours, with every reason against it.
func (d *blockDevice) describeOthers(ctx context.Context, i Inspector, f findings) (Contents, error) {
	busy, unchecked, err := d.usedBy(ctx, i)
	if err != nil {
		return Contents{}, err
	}
	foreign, err := d.foreignContent(ctx, f)
	if err != nil && len(busy) == 0 {
		return Contents{}, err
	}
	unable, err := d.unusableReasons()
	if err != nil {
		return Contents{}, err
	}
	reasons := slices.Concat(busy, foreign, unable)
	if len(foreign) > 0 && len(unable) == 0 && !f.unusable {
		clearing, err := d.howToClear(busy)
		if err != nil {
			return Contents{}, err
		}
		reasons = append(reasons, clearing...)
	}
	c := newContents(Blank, reasons...)
	c.Unchecked = unchecked
	switch {
	case len(busy) > 0:
		c.State = Busy
	case len(c.Reasons) > 0:
		c.State = Foreign
	}
	return c, nil
}

// describeOurs describes a disk of ours, with what is wrong with it.
func describeOurs(f findings, l layout) Contents {
	c := newContents(Ours)
	switch {
	case f.madeFor.size != 0:
		c = newContents(Ours, f.describeResize(l))
	case f.mustBeSeenBefore:
		c = newContents(Ours, "the beginning of the disk is lost; only the backup of its partition table is left")
	case f.badPrimary || f.badBackup || f.badMBR:
		c = newContents(Ours, "the partition table is damaged in part, and is repaired when the disk is opened")
	}
	c.ID = f.current.id
	return c
}

// foreignContent returns the reasons why the content of a device makes it foreign.
func (d *blockDevice) foreignContent(ctx context.Context, f findings) (reasons []string, err error) {
	if f.unusable || f.foreign {
		reasons = append(reasons, f.reason)
	}
	// The programs run in any case: the name of what is there helps an operator.
	found, err := signature.Find(ctx, d.path)
	if len(found) > 0 {
		reasons = append(reasons, "the device holds "+strings.Join(found, ", "))
	}
	blank, readErr := isBlank(d, d.layout)
	if readErr != nil {
		return nil, readErr
	}
	if len(reasons) > 0 {
		return reasons, nil
	}
	if err != nil {
		return nil, err
	}
	if !blank {
		reasons = append(reasons, "the first or the last MiB of the device is not zero, though no known signature is there")
	}
	return reasons, nil
}

// clearHint is how the reason begins that ends in the command to clear a device.
const clearHint = "if nothing on it is needed, clear it: "

// howToClear returns the command that makes a device blank. There is none while anything but its partitions uses the
// device: that may be the node's own disk.
func (d *blockDevice) howToClear(busy []string) ([]string, error) {
	parts, err := d.partitions()
	if err != nil || len(busy) > 1 || len(busy) == 1 && len(parts) == 0 {
		return nil, err
	}
	zero := fmt.Sprintf("blkdiscard --zeroout --length %d", Alignment)
	return []string{fmt.Sprintf("%swipefs --all %s && %s %s && %s --offset %d %s", clearHint, d.path, zero, d.path, zero, d.layout.size-Alignment, d.path)}, nil
}

// unusableReasons returns the reasons why the device cannot serve, for any content.
func (d *blockDevice) unusableReasons() (reasons []string, err error) {
	readOnly, err := unix.IoctlGetUint32(d.fd(), unix.BLKROGET)
	if err != nil {
		return nil, fmt.Errorf("asking whether it is read-only: %w", err)
	}
	if readOnly != 0 {
		reasons = append(reasons, "the device is read-only")
	}
	if zoned, err := os.ReadFile(filepath.Join(d.sys, "queue/zoned")); err == nil && strings.TrimSpace(string(zoned)) == "host-managed" {
		reasons = append(reasons, "the device is zoned and managed by the host (SMR or ZNS): it cannot be written in place")
	}
	if d.lacksPartitions() {
		control, err := openMapper()
		if err != nil {
			return append(reasons, fmt.Sprintf("the kernel gives this device no partitions, and the device mapper that would replace them is missing: %v", err)), nil
		}
		return reasons, control.Close()
	}
	return reasons, nil
}

// Initialize is Inspector.Initialize with the defaults.
func Initialize(ctx context.Context, path string, owner Owner) (id string, err error) {
	return Inspector{}.Initialize(ctx, path, owner)
}

// Initialize writes an empty table of ours onto a blank disk, and returns the disk's GUID. The disk belongs to owner
// from then on, or to no node if that is zero. Initialize does not rely on an earlier Inspect: it inspects again while
// it holds the disk exclusively. If it refuses, the error says what is on the disk.
func (i Inspector) Initialize(ctx context.Context, path string, owner Owner) (id string, err error) {
	i.Holders = nil
	d, err := openDevice(path, os.O_RDWR|unix.O_EXCL)
	if err != nil {
		return "", fmt.Errorf("initializing: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := d.lock(ctx); err != nil {
		return "", fmt.Errorf("initializing: %w", err)
	}
	c, err := d.inspect(ctx, i)
	if err != nil {
		return "", fmt.Errorf("initializing %s: %w", path, err)
	}
	if c.State == Ours {
		return "", fmt.Errorf("initializing %s: it already is ours, with the id %s", path, c.ID)
	}
	if c.State != Blank {
		return "", fmt.Errorf("initializing %s: it is not blank: %s", path, c.Reason)
	}
	id, err = format(ctx, d, d.layout, owner)
	if err != nil {
		return "", fmt.Errorf("initializing %s: %w", path, err)
	}
	klog.FromContext(ctx).Info("Initialized disk", "device", path, "disk", id, "bytes", d.size, "sectorBytes", d.sector)
	return id, nil
}
