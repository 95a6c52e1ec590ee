//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/space/snapshots"
	"github.com/berthdev/berth/test/vm/wire"
)

// guest keeps the disks that are open.
type guest struct {
	mu    sync.Mutex
	disks map[string]*disk.Disk    // by path
	stop  map[string]chan struct{} // by path: ends the burst
}

func newGuest() *guest {
	return &guest{disks: map[string]*disk.Disk{}, stop: map[string]chan struct{}{}}
}

// do serves one request. event sends an event before the result.
func (g *guest) do(ctx context.Context, r wire.Request, event func(any)) (any, error) {
	var v wire.Volume
	var path string
	switch r.Do {
	case "hello":
		return nil, nil
	case "exec":
		var e wire.Exec
		if err := json.Unmarshal(r.Args, &e); err != nil {
			return nil, err
		}
		return run(ctx, e)
	case "burst":
		var b wire.Burst
		if err := json.Unmarshal(r.Args, &b); err != nil {
			return nil, err
		}
		return nil, g.burst(ctx, b, event)
	case "adopt":
		var a wire.Adopt
		if err := json.Unmarshal(r.Args, &a); err != nil {
			return nil, err
		}
		return disk.Initialize(ctx, a.Disk, ownerOf(a.Node))
	case "discover":
		var w wire.Discover
		if err := json.Unmarshal(r.Args, &w); err != nil {
			return nil, err
		}
		return discover(ctx, w)
	case "find", "paths", "zero", "inspect", "initialize", "open", "close", "check", "state", "stop":
		if err := json.Unmarshal(r.Args, &path); err != nil {
			return nil, err
		}
		return g.doDisk(ctx, r.Do, path)
	}
	if err := json.Unmarshal(r.Args, &v); err != nil {
		return nil, err
	}
	return g.doVolume(ctx, r.Do, v)
}

func (g *guest) doDisk(ctx context.Context, do, path string) (any, error) {
	switch do {
	case "find":
		return find(ctx, path)
	case "paths":
		return paths(ctx, path)
	case "zero":
		return nil, zero(path)
	case "inspect":
		return disk.Inspect(ctx, path)
	case "initialize":
		return disk.Initialize(ctx, path, disk.Owner{})
	case "open":
		d, err := disk.Open(ctx, path, disk.Options{})
		if err != nil {
			return nil, err
		}
		g.mu.Lock()
		g.disks[path] = d
		g.mu.Unlock()
		return state(d), nil
	}
	d, err := g.disk(path)
	if err != nil {
		return nil, err
	}
	switch do {
	case "close":
		g.mu.Lock()
		delete(g.disks, path)
		g.mu.Unlock()
		return nil, d.Close()
	case "stop":
		g.mu.Lock()
		defer g.mu.Unlock()
		close(g.stop[path])
		return nil, nil
	case "check":
		err := d.Check(ctx)
		return nil, err
	}
	return state(d), nil
}

func (g *guest) disk(path string) (*disk.Disk, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d, ok := g.disks[path]
	if !ok {
		return nil, fmt.Errorf("%s is not open", path)
	}
	return d, nil
}

func (g *guest) doVolume(ctx context.Context, do string, v wire.Volume) (any, error) {
	if do == "unmount" {
		return nil, unmount(ctx, v.Partition)
	}
	d, err := g.disk(v.Disk)
	if err != nil {
		return nil, err
	}
	at := extent.New(v.Start, v.Length)
	switch do {
	case "create":
		return d.Create(ctx, disk.CreateOptions{Partition: v.Partition, Extent: at})
	case "format":
		return nil, formatted(ctx, d, v.Partition)
	case "grow":
		return d.Grow(ctx, v.Partition, v.Length)
	case "wipe":
		return nil, wipe(ctx, d, v.Partition)
	case "mount":
		return nil, mount(d, v.Partition)
	case "fill":
		return nil, fill(v.Partition)
	case "verify":
		return nil, verify(ctx, d, v.Partition, v.More)
	case "soiled":
		return soiled(v.Disk, at)
	}
	return nil, fmt.Errorf("%q is not known", do)
}

// state is a snapshot in the test's format.
func state(d *disk.Disk) wire.State {
	s := d.Snapshot()
	w := wire.State{ID: s.ID, SectorSize: s.SectorSize, Size: s.Size}
	if s.Err != nil {
		w.OutOf = s.Err.Error()
	}
	if err := snapshots.Validate(s); err != nil {
		w.Invalid = err.Error()
	}
	for _, e := range s.Free.All() {
		w.Free = append(w.Free, wire.Span{Start: e.Start, End: e.End})
	}
	for _, v := range s.Volumes {
		var pieces []int64
		for _, p := range v.Pieces {
			pieces = append(pieces, p.Extent.Start)
		}
		w.Volumes = append(w.Volumes, wire.Found{
			Partition: v.Partition, Start: v.Extent.Start, Length: v.Length(), Pieces: pieces, Wrong: v.Incomplete,
			Phase: string(v.Phase), Index: v.Index, Device: v.Device,
		})
	}
	return w
}

// find returns the device with that serial number as soon as it exists.
func find(ctx context.Context, serial string) (string, error) {
	return awaited(ctx, func() (string, error) {
		files, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, path := range files {
			found, err := os.ReadFile(path)
			if err == nil && string(found) == serial {
				return "/dev/" + filepath.Base(filepath.Dir(path)), nil
			}
		}
		return "", fmt.Errorf("no disk has the serial number %s", serial)
	})
}

// paths returns the SCSI disks with that world wide name, as soon as there are two.
func paths(ctx context.Context, wwn string) (found []string, err error) {
	_, err = awaited(ctx, func() (string, error) {
		files, err := filepath.Glob("/sys/block/sd*/device/wwid")
		if err != nil {
			return "", err
		}
		found = nil
		for _, path := range files {
			if wwid, err := os.ReadFile(path); err == nil && strings.Contains(string(wwid), wwn) {
				found = append(found, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(path))))
			}
		}
		if len(found) < 2 {
			return "", fmt.Errorf("the disk %s has the paths %v", wwn, found)
		}
		return "", nil
	})
	return found, err
}

func run(ctx context.Context, e wire.Exec) (wire.Exited, error) {
	cmd := exec.CommandContext(ctx, e.Argv[0], e.Argv[1:]...)
	cmd.Env = append(os.Environ(), e.Env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return wire.Exited{}, err
	}
	return wire.Exited{Code: cmd.ProcessState.ExitCode(), Output: string(out)}, nil
}
