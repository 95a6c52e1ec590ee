package space

import (
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestValidate asserts that each invariant is checked.
func TestValidate(t *testing.T) {
	valid := func() Disk {
		return Disk{Size: 10 * units.MiB, Overhead: 2 * units.MiB, Free: extent.NewSet(extent.New(1*units.MiB, 4*units.MiB)), Volumes: []Volume{
			{Partition: "a", Index: 1, Extent: extent.New(5*units.MiB, 1*units.MiB)},
			{Partition: "b", Index: 2, Extent: extent.New(6*units.MiB, 3*units.MiB)},
		}}
	}
	if err := valid().Validate(); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		change func(d *Disk)
		says   string
	}{
		"bytes are missing":     {func(d *Disk) { d.Overhead-- }, "the disk has"},
		"volume in free space":  {func(d *Disk) { d.Volumes[0].Extent = extent.New(4*units.MiB, 1*units.MiB) }, "not alone"},
		"volumes overlap":       {func(d *Disk) { d.Volumes[1].Extent = extent.New(5*units.MiB, 3*units.MiB) }, "not alone"},
		"volume is not aligned": {func(d *Disk) { d.Volumes[1].Extent = extent.New(6*units.MiB+512, 2*units.MiB) }, "not aligned"},
		"free is not aligned":   {func(d *Disk) { d.Free = extent.NewSet(extent.New(1*units.MiB, 4*units.MiB-512)) }, "free extent"},
		"same partition":        {func(d *Disk) { d.Volumes[1].Partition = "a" }, "are the same"},
		"same index":            {func(d *Disk) { d.Volumes[1].Index = 1 }, "are the same"},
		"out of order":          {func(d *Disk) { d.Volumes[0], d.Volumes[1] = d.Volumes[1], d.Volumes[0] }, "out of order"},
	} {
		d := valid()
		tc.change(&d)
		if err := d.Validate(); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
