package faults

import (
	"errors"
	"testing"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
)

func TestThin(t *testing.T) {
	d := newFaulty(t, 64*mib, 512)
	ctx := t.Context()
	c, err := disk.Inspect(ctx, d.path)
	if err != nil || c.State != disk.Blank {
		t.Fatal(c, err)
	}
	if _, err := disk.Initialize(ctx, d.path); err != nil {
		t.Fatal(err)
	}
	engine, err := disk.Open(ctx, d.path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d.set(Fault{Op: Write, Do: Fail})
	_, err = engine.Create(ctx, disk.CreateOptions{Partition: "a0000000-0000-5000-8000-00000000000a", Extent: extent.New(2*mib, 8*mib)})
	if !errors.Is(err, disk.ErrOutOfService) {
		t.Error(err)
	}
	counts := d.heal()
	t.Log(err, counts)
	if counts.Hits == 0 {
		t.Error("no fault hit")
	}
	engine.Close()
	engine, err = disk.Open(ctx, d.path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(engine.Snapshot())
	engine.Close()
}
