package volumes

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/placement"
	"github.com/berthdev/berth/pkg/request"
	"github.com/berthdev/berth/test/units"
)

// extentMiB is the extent of n MiB from the MiB at.
func extentMiB(at, n int64) extent.Extent { return extent.New(at*units.MiB, n*units.MiB) }

// unplaced is a volume of n MiB of class ssd, recorded at the given place if disk is not empty.
func unplaced(name string, n int64, disk string, at int64) unplacedVolume {
	w := unplacedVolume{Volume: request.Volume{Name: name, Partition: name, Request: placement.Request{Class: "ssd", Size: n * units.MiB}}}
	if disk == "" {
		w.noRecordReason = "no record"
		return w
	}
	w.recorded = &diskv1alpha1.RecordVolume{Name: name, Disk: disk, Extent: diskv1alpha1.Extent{Start: at * units.MiB, Length: n * units.MiB}}
	return w
}

func apart(w unplacedVolume) unplacedVolume  { w.Request.Apart = true; return w }
func spread(w unplacedVolume) unplacedVolume { w.Request.Policy = placement.Spread; return w }

// TestDecide asserts the places of volumes with and without valid records, and the error if they do not fit.
func TestDecide(t *testing.T) {
	// Disk a has 10 and 50 MiB free, b 100; on a 20 MiB more are being wiped.
	a := diskSpace{id: "a", class: "ssd", free: extent.NewSet(extentMiB(1, 10), extentMiB(50, 50)), wiping: extent.NewSet(extentMiB(20, 20))}
	b := diskSpace{id: "b", class: "ssd", free: extent.NewSet(extentMiB(1, 100))}
	hdd := diskSpace{id: "h", class: "hdd", free: extent.NewSet(extentMiB(1, 1000))}
	none := diskSpace{id: "n", class: "", free: extent.NewSet(extentMiB(1, 1000))}
	sized := func(w unplacedVolume, length int64) unplacedVolume { w.recorded.Length = length * units.MiB; return w }

	for _, tc := range []struct {
		name     string
		disks    []diskSpace
		occupied map[string]bool
		volumes  []unplacedVolume
		places   []string // disk and MiB
		why      string   // part of the first deviation
		err      error
		noFit    bool
	}{
		{name: "record followed, though it is not the best fit", disks: []diskSpace{a, b}, volumes: []unplacedVolume{unplaced("v", 10, "b", 41)}, places: []string{"b 41"}},
		{name: "exactly what is left", disks: []diskSpace{a, b}, volumes: []unplacedVolume{unplaced("v", 10, "a", 1)}, places: []string{"a 1"}},
		{name: "no record", disks: []diskSpace{a, b}, volumes: []unplacedVolume{unplaced("v", 10, "", 0)}, places: []string{"a 1"}, why: "no record"},
		{name: "no record, of a class that spreads", disks: []diskSpace{a, b}, volumes: []unplacedVolume{spread(unplaced("v", 10, "", 0))}, places: []string{"b 1"}, why: "no record"},
		{name: "record followed, though another disk is emptier", disks: []diskSpace{a, b}, volumes: []unplacedVolume{spread(unplaced("v", 10, "a", 50))}, places: []string{"a 50"}},
		{name: "unknown disk", disks: []diskSpace{a}, volumes: []unplacedVolume{unplaced("v", 10, "x", 1)}, places: []string{"a 1"}, why: "not in service"},
		{name: "other class", disks: []diskSpace{a, hdd}, volumes: []unplacedVolume{unplaced("v", 10, "h", 1)}, places: []string{"a 1"}, why: `class "hdd"`},
		{name: "class gone", disks: []diskSpace{a, none}, volumes: []unplacedVolume{unplaced("v", 10, "n", 1)}, places: []string{"a 1"}, why: `class ""`},
		{name: "too short", disks: []diskSpace{a}, volumes: []unplacedVolume{sized(unplaced("v", 10, "a", 50), 9)}, places: []string{"a 1"}, why: "asks for"},
		{name: "too long", disks: []diskSpace{a}, volumes: []unplacedVolume{sized(unplaced("v", 10, "a", 50), 11)}, places: []string{"a 1"}, why: "asks for"},
		{name: "taken", disks: []diskSpace{a}, volumes: []unplacedVolume{unplaced("v", 10, "a", 11)}, places: []string{"a 1"}, why: "not free"},
		{name: "half taken", disks: []diskSpace{a}, volumes: []unplacedVolume{unplaced("v", 10, "a", 5)}, places: []string{"a 1"}, why: "not free"},
		{name: "behind the disk", disks: []diskSpace{a}, volumes: []unplacedVolume{unplaced("v", 10, "a", 1<<30)}, places: []string{"a 1"}, why: "not free"},
		{name: "over a wipe, and room elsewhere", disks: []diskSpace{a}, volumes: []unplacedVolume{unplaced("v", 10, "a", 20)}, places: []string{"a 1"}, why: "not free"},
		{name: "over a wipe, and no room", disks: []diskSpace{{id: "a", class: "ssd", wiping: a.wiping}}, volumes: []unplacedVolume{unplaced("v", 10, "a", 20)}, err: errWaiting},
		{name: "no record, and room after a wipe", disks: []diskSpace{{id: "a", class: "ssd", free: extent.NewSet(extentMiB(10, 10)), wiping: a.wiping}}, volumes: []unplacedVolume{unplaced("v", 30, "", 0)}, err: errWaiting},
		{name: "never", disks: []diskSpace{a, b, hdd, none}, volumes: []unplacedVolume{unplaced("v", 101, "", 0)}, noFit: true},
		{name: "two records on one place", disks: []diskSpace{a, b}, volumes: []unplacedVolume{unplaced("v", 10, "a", 1), unplaced("w", 10, "a", 1)}, places: []string{"a 1", "a 50"}},
		{name: "a record in the way of the other volume", disks: []diskSpace{b}, volumes: []unplacedVolume{unplaced("v", 10, "b", 50), unplaced("w", 90, "", 0)}, places: []string{"b 91", "b 1"}, why: "fit only if"},
		{name: "all or none", disks: []diskSpace{b}, volumes: []unplacedVolume{unplaced("v", 10, "b", 1), unplaced("w", 100, "", 0)}, noFit: true},
		{name: "records that are not apart", disks: []diskSpace{a, b}, volumes: []unplacedVolume{apart(unplaced("v", 10, "b", 1)), apart(unplaced("w", 10, "b", 20))}, places: []string{"b 1", "a 1"}},
		{name: "apart from what is there", disks: []diskSpace{a, b}, occupied: map[string]bool{"a": true}, volumes: []unplacedVolume{apart(unplaced("v", 10, "", 0)), unplaced("w", 10, "", 0)}, places: []string{"b 1", "a 1"}, why: "no record"},
		{name: "no disk to be apart on", disks: []diskSpace{a}, occupied: map[string]bool{"a": true}, volumes: []unplacedVolume{apart(unplaced("v", 10, "a", 1))}, noFit: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			places, err := decide(tc.disks, tc.occupied, tc.volumes)
			var noFit *placement.NoFit
			switch {
			case tc.noFit:
				if !errors.As(err, &noFit) {
					t.Fatalf("places %v, error %v, want no fit", places, err)
				}
				return
			case tc.err != nil:
				if !errors.Is(err, tc.err) {
					t.Fatalf("places %v, error %v, want %v", places, err, tc.err)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			if len(places) != len(tc.places) {
				t.Fatalf("places are %v", places)
			}
			for i, p := range places {
				if p.Name != tc.volumes[i].Name || !slices.Contains([]string{tc.places[i]}, p.disk+" "+mibs(p.extent.Start)) {
					t.Errorf("%s is at %s %s, want %s", p.Name, p.disk, mibs(p.extent.Start), tc.places[i])
				}
			}
			if !strings.Contains(places[0].deviation, tc.why) || tc.why == "" && places[0].deviation != "" {
				t.Errorf("deviation is %q, want %q", places[0].deviation, tc.why)
			}
		})
	}
}

func mibs(bytes int64) string {
	digits := ""
	for n := bytes / units.MiB; n > 0; n /= 10 {
		digits = string(rune('0'+n%10)) + digits
	}
	return digits
}

// TestDecideNeverUsesTakenSpace asserts that for random records places are free, disjoint, and of the right size and
// class. Volumes with Apart are on different disks.
func TestDecideNeverUsesTakenSpace(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ids := []string{"a", "b", "c", "x"}
	placed := 0
	for range 20000 {
		var disks []diskSpace
		for _, id := range ids[:1+r.IntN(3)] {
			s := diskSpace{id: id, class: []string{"ssd", "ssd", "hdd", ""}[r.IntN(4)]}
			for range r.IntN(4) {
				s.free = s.free.Add(extentMiB(1+r.Int64N(30), 1+r.Int64N(8)))
			}
			s.wiping = extent.NewSet(extentMiB(1+r.Int64N(30), 1+r.Int64N(8))).Subtract(s.free)
			disks = append(disks, s)
		}
		var volumes []unplacedVolume
		for i := range 1 + r.IntN(3) {
			w := unplaced(string(rune('v'+i)), 1+r.Int64N(6), []string{"", "a", "b", "x"}[r.IntN(4)], 1+r.Int64N(40))
			w.Request.Apart = r.IntN(3) == 0
			if w.recorded != nil && r.IntN(4) == 0 {
				w.recorded.Length = (1 + r.Int64N(6)) * units.MiB
			}
			volumes = append(volumes, w)
		}
		occupied := map[string]bool{ids[r.IntN(4)]: true}
		places, err := decide(disks, occupied, volumes)
		if err != nil {
			continue
		}
		placed++
		left := slices.Clone(disks)
		apartOn := map[string]bool{}
		for i, p := range places {
			at := slices.IndexFunc(left, func(s diskSpace) bool { return s.id == p.disk })
			w := volumes[i]
			if p.Name != w.Name || at < 0 || left[at].class != w.Request.Class || p.extent.Len() != w.Request.Size || !left[at].free.Contains(p.extent) {
				t.Fatalf("disks %+v, volumes %+v: place %+v", disks, volumes, p)
			}
			left[at].free = left[at].free.Remove(p.extent)
			if w.Request.Apart {
				if occupied[p.disk] || apartOn[p.disk] {
					t.Fatalf("disks %+v, volumes %+v: %s is not apart", disks, volumes, p.Name)
				}
				apartOn[p.disk] = true
			}
		}
	}
	if placed < 1000 {
		t.Errorf("only %d of the cases had places", placed)
	}
}
