package placement

import (
	"errors"
	"math"
	"testing"
)

const gi = 1024 // MiB

func TestNoFitSays(t *testing.T) {
	tests := []struct {
		name      string
		disks     []Disk
		requests  []Request
		want      string
		reason    string
		shortfall int64 // MiB
	}{
		{"no disk of the class",
			[]Disk{disk("a", "hdd", 100)}, want(10 * gi),
			"no disk of class ssd on the node", "no disk of class ssd", 10 * gi},
		{"too small",
			[]Disk{disk("a", "ssd", 60*gi, 30*gi)}, want(100 * gi),
			"largest free extent of class ssd is 60Gi, wants 100Gi", "largest free extent of class ssd is below 100Gi", 40 * gi},
		{"short by a hair does not read as enough",
			[]Disk{disk("a", "ssd", 10*gi-1)}, want(10 * gi),
			"largest free extent of class ssd is 10239Mi, wants 10Gi", "largest free extent of class ssd is below 10Gi", 1},
		{"nor when the figures are rounded",
			[]Disk{disk("a", "ssd", 1024*gi-1)}, want(1024 * gi),
			"largest free extent of class ssd is 1023.9Gi, wants 1Ti", "largest free extent of class ssd is below 1Ti", 1},
		{"nothing free",
			[]Disk{disk("a", "ssd")}, want(1),
			"no free space of class ssd, wants 1Mi", "no free space of class ssd", 1},
		{"the largest of several is what lacks room",
			[]Disk{disk("a", "ssd", 60*gi)}, want(1, 100*gi),
			"largest free extent of class ssd is 60Gi, wants 100Gi", "largest free extent of class ssd is below 100Gi", 40 * gi},
		{"too little in all",
			[]Disk{disk("a", "ssd", 100*gi)}, want(60*gi, 60*gi),
			"free space of class ssd is 100Gi, 2 volumes (60Gi + 60Gi) want 120Gi",
			"not enough free space of class ssd, 2 volumes (60Gi + 60Gi) want 120Gi", 20 * gi},
		{"enough in all, but in pieces",
			[]Disk{disk("a", "ssd", 100*gi, 30*gi)}, want(60*gi, 60*gi),
			"2 volumes of class ssd (60Gi + 60Gi) don't fit together: 2 free extents, the largest 100Gi, 130Gi in all",
			"2 volumes of class ssd (60Gi + 60Gi) don't fit together", 0},
		{"many volumes are not all listed",
			[]Disk{disk("a", "ssd", 9, 9, 9)}, want(5, 5, 5, 5, 5, 1),
			"6 volumes of class ssd (5Mi + 5Mi + 5Mi + 5Mi + 2 more) don't fit together: 3 free extents, the largest 9Mi, 27Mi in all",
			"6 volumes of class ssd (5Mi + 5Mi + 5Mi + 5Mi + 2 more) don't fit together", 0},
		{"too few disks",
			[]Disk{disk("a", "ssd", 100), disk("b", "ssd", 100)}, wantApart(1, 1, 1),
			"wants 3 different disks of class ssd, the node has 2 that could hold them",
			"too few disks of class ssd have room for 3 volumes on different disks", 0},
		{"disks enough, but not large enough",
			[]Disk{disk("a", "ssd", 100), disk("b", "ssd", 9)}, wantApart(10, 20),
			"wants 2 different disks of class ssd, the node has 1 that could hold them",
			"too few disks of class ssd have room for 2 volumes on different disks", 0},
		{"of two classes, the one that fails",
			[]Disk{disk("a", "fast", 100), disk("b", "ssd", 9)},
			append(want(10), Request{Class: "fast", Size: Alignment}),
			"largest free extent of class ssd is 9Mi, wants 10Mi", "largest free extent of class ssd is below 10Mi", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			node := &Node{Disks: test.disks}
			_, err := Plan(nil, node, test.requests)
			checkNoFit(t, node, test.requests, err)
			var e *NoFit
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Error() != test.want {
				t.Errorf("got  %s\nwant %s", e.Error(), test.want)
			}
			if e.Reason() != test.reason {
				t.Errorf("reason: got  %s\nwant %s", e.Reason(), test.reason)
			}
			if got := e.Shortfall() / Alignment; got != test.shortfall {
				t.Errorf("shortfall: got %d, want %d MiB", got, test.shortfall)
			}
		})
	}
}

// checkNoFit asserts what is true of every refusal.
func checkNoFit(t *testing.T, node *Node, requests []Request, err error) {
	t.Helper()
	var e *NoFit
	if !errors.As(err, &e) {
		t.Fatalf("refused with %v, which is no NoFit", err)
	}
	if e.Error() == "" || e.Reason() == "" || len(e.Sizes) == 0 || e.Shortfall() < 0 || e.Wanted() <= 0 {
		t.Fatalf("%+v says too little", e)
	}
	if (e.Cause == TooSmall || e.Cause == TooLittle) && e.Shortfall() == 0 {
		t.Fatalf("%+v names no shortfall", e)
	}
	// The class of the error is the one that fails.
	var own []Request
	for _, r := range requests {
		if r.Class == e.Class {
			own = append(own, r)
		}
	}
	if _, err := Plan(nil, node, own); err == nil {
		t.Fatalf("%+v, but the class fits by itself", e)
	}
}

// TestNoFitTogether asserts that of nodes with the same reason, the nearest one says how much there is.
func TestNoFitTogether(t *testing.T) {
	usable := func(mib int64, free ...int64) []Disk {
		d := disk("a", "ssd", free...)
		d.Usable = mib * Alignment
		return []Disk{d}
	}
	tests := []struct {
		name     string
		near     []Disk
		far      []Disk
		requests []Request
		alike    bool
		best     string
	}{
		{"the larger extent", usable(200*gi, 60*gi), usable(200*gi, 50*gi, 50*gi), want(100 * gi), true, "60Gi"},
		{"nothing free is another reason", usable(200*gi, 60*gi), usable(200 * gi), want(100 * gi), false, "60Gi"},
		{"no amount would do", usable(90*gi, 60*gi), usable(90*gi, 50*gi), want(100 * gi), true, ""},
		{"a disk too small for ever is another reason", usable(200*gi, 60*gi), usable(90*gi, 60*gi), want(100 * gi), false, "60Gi"},
		{"more in all", usable(200*gi, 60*gi, 30*gi), usable(200*gi, 80*gi), want(50*gi, 50*gi), true, "90Gi in all"},
		{"larger pieces", usable(200*gi, 70*gi, 30*gi), usable(200*gi, 60*gi, 40*gi), want(50*gi, 50*gi), true, "2 free extents, the largest 70Gi, 100Gi in all"},
		{"more disks", []Disk{disk("a", "ssd", 9), disk("b", "ssd", 9)}, []Disk{disk("a", "ssd", 99)}, wantApart(1, 1, 1), true, "2 of 3 disks"},
		{"no disk", []Disk{disk("a", "hdd", 9)}, nil, want(1), true, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			why := func(disks []Disk) *NoFit {
				_, err := Plan(nil, &Node{Disks: disks}, test.requests)
				var e *NoFit
				if !errors.As(err, &e) {
					t.Fatalf("got %v", err)
				}
				return e
			}
			near, far := why(test.near), why(test.far)
			if alike := near.Alike(far); alike != test.alike || alike != (near.Reason() == far.Reason()) {
				t.Errorf("alike is %v of %q and %q", alike, near.Reason(), far.Reason())
			}
			if test.alike && test.best != "" && (!near.Nearer(far) || far.Nearer(near) || near.Nearer(near)) {
				t.Errorf("%q is not nearer than %q", near, far)
			}
			if near.Best() != test.best {
				t.Errorf("the best is %q, want %q", near.Best(), test.best)
			}
		})
	}
}

func TestNoFitNever(t *testing.T) {
	usable := func(d Disk, mib int64) Disk {
		d.Usable = mib * Alignment
		return d
	}
	tests := []struct {
		name     string
		disks    []Disk
		requests []Request
		want     bool
	}{
		{"no disk of the class", []Disk{disk("a", "hdd", 9)}, want(1), true},
		{"full now", []Disk{usable(disk("a", "ssd", 9), 100)}, want(50), false},
		{"larger than any disk", []Disk{usable(disk("a", "ssd", 9), 100)}, want(101), true},
		{"as large as the disk", []Disk{usable(disk("a", "ssd", 9), 100)}, want(100), false},
		{"more than all disks", []Disk{usable(disk("a", "ssd", 9), 100)}, want(60, 60), true},
		{"more disks than there are", []Disk{usable(disk("a", "ssd", 9), 100)}, wantApart(1, 1), true},
		{"sizes of disks not known", []Disk{disk("a", "ssd", 9)}, want(101), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Plan(nil, &Node{Disks: test.disks}, test.requests)
			var e *NoFit
			if !errors.As(err, &e) || e.Never != test.want {
				t.Errorf("got %+v, %v", e, err)
			}
		})
	}
}

func TestFormatSize(t *testing.T) {
	tests := []struct {
		mib      int64
		down, up string
	}{
		{0, "0", "0"},
		{1, "1Mi", "1Mi"},
		{1024, "1Gi", "1Gi"},
		{1536, "1536Mi", "1536Mi"},
		{99999, "99999Mi", "99999Mi"},
		{100001, "97.6Gi", "97.7Gi"},
		{1024*1024 - 1, "1023.9Gi", "1024Gi"},
		{1024 * 1024, "1Ti", "1Ti"},
		{1024*1024 + 1, "1Ti", "1.1Ti"},
		{math.MaxInt64 / Alignment, "7.9Ei", "8Ei"},
	}
	for _, test := range tests {
		if got := sizeDown(test.mib * Alignment); got != test.down {
			t.Errorf("%d MiB down: got %s, want %s", test.mib, got, test.down)
		}
		if got := sizeUp(test.mib * Alignment); got != test.up {
			t.Errorf("%d MiB up: got %s, want %s", test.mib, got, test.up)
		}
	}
}
