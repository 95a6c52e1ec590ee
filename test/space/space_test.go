package space

import (
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/extent"
)

// TestValidate asserts that each invariant is checked.
func TestValidate(t *testing.T) {
	const mib = alignment
	valid := func() Disk {
		return Disk{Size: 10 * mib, Overhead: 2 * mib, Free: extent.NewSet(extent.New(1*mib, 4*mib)), Volumes: []Volume{
			{Partition: "a", Index: 1, Extent: extent.New(5*mib, 1*mib)},
			{Partition: "b", Index: 2, Extent: extent.New(6*mib, 3*mib)},
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
		"volume in free space":  {func(d *Disk) { d.Volumes[0].Extent = extent.New(4*mib, 1*mib) }, "not alone"},
		"volumes overlap":       {func(d *Disk) { d.Volumes[1].Extent = extent.New(5*mib, 3*mib) }, "not alone"},
		"volume is not aligned": {func(d *Disk) { d.Volumes[1].Extent = extent.New(6*mib+512, 2*mib) }, "not aligned"},
		"free is not aligned":   {func(d *Disk) { d.Free = extent.NewSet(extent.New(1*mib, 4*mib-512)) }, "free extent"},
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
