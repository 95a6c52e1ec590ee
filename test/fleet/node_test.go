package fleet

import (
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/objects"
	"github.com/berthdev/berth/test/units"
)

// TestHold asserts that every kind of over-commitment is noticed.
func TestHold(t *testing.T) {
	disks := disksOf(0)
	first := disks[0].Free[0]
	at := func(disk string, start, length int64) diskv1alpha1.Place {
		return diskv1alpha1.Place{Disk: disk, Extent: diskv1alpha1.Extent{Start: start, Length: length}}
	}
	for _, tc := range []struct {
		name  string
		place diskv1alpha1.Place
		want  string
	}{
		{"behind the first", at(disks[0].ID, first.Start+10*units.GiB, units.GiB), ""},
		{"on the other disk", at(disks[1].ID, first.Start, units.GiB), ""},
		{"the same extent", at(disks[0].ID, first.Start, 10*units.GiB), "there is one of default/first"},
		{"its last MiB", at(disks[0].ID, first.Start+10*units.GiB-diskv1alpha1.Alignment, units.GiB), "there is one of default/first"},
		{"around it", at(disks[0].ID, first.Start, first.Length), "there is one of default/first"},
		{"what was never free", at(disks[0].ID, first.Start+first.Length, diskv1alpha1.Alignment), "no volume can be there"},
		{"across the end of a free extent", at(disks[0].ID, first.Start+first.Length-units.GiB, 2*units.GiB), "no volume can be there"},
		{"behind the disk", at(disks[0].ID, disks[0].Size, units.GiB), "no volume can be there"},
		{"a disk of another node", at(disksOf(1)[0].ID, first.Start, units.GiB), "does not have"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(0)
			if err := n.hold("one", "default/first", at(disks[0].ID, first.Start, 10*units.GiB)); err != nil {
				t.Fatal(err)
			}
			err := n.hold("two", "default/second", tc.place)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("the error is %v, want %q", err, tc.want)
			}
			want := 1
			if tc.want == "" {
				want = 2
			}
			if len(n.where) != want {
				t.Errorf("there are %d volumes, want %d", len(n.where), want)
			}
		})
	}
}

// TestStatus asserts that the bytes of a disk always add up, and that a node without volumes is as before.
func TestStatus(t *testing.T) {
	n := newNode(7)
	before := n.status()
	for i, v := range []string{"one", "two", "three"} {
		d := before.Disks[i%2]
		e := d.Free[i]
		if err := n.hold(v, "default/"+v, diskv1alpha1.Place{Disk: d.ID, Extent: diskv1alpha1.Extent{Start: e.Start + units.GiB, Length: 3 * units.GiB}}); err != nil {
			t.Fatal(err)
		}
	}
	held := n.status()
	if held.Summary.Volumes != 3 {
		t.Errorf("the summary says %d volumes, want 3", held.Summary.Volumes)
	}
	for _, status := range []diskv1alpha1.NodeDiskCapacityStatus{before, held} {
		for i := range status.Disks {
			if err := objects.CheckSpace(&status.Disks[i]); err != nil {
				t.Error(err)
			}
		}
	}
	for _, v := range []string{"three", "one", "two"} {
		if !n.release(v) || n.release(v) {
			t.Errorf("%s was not there once", v)
		}
	}
	after := n.status()
	for i, d := range after.Disks {
		if len(d.Allocations) != 0 || len(d.Free) != len(before.Disks[i].Free) || d.Free[3] != before.Disks[i].Free[3] {
			t.Errorf("disk %s is not as it was: %+v", d.ID, d)
		}
	}
}
