package faults

import (
	"context"
	"testing"
	"time"

	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/test/space/snapshots"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// adopt initializes a blank disk and opens it, like an inventory.
func (n *node) adopt(ctx context.Context) error {
	c, err := disk.Inspect(ctx, n.path)
	if err != nil {
		return err
	}
	if c.State == disk.Blank {
		if _, err := disk.Initialize(ctx, n.path, disk.Owner{}); err != nil {
			return err
		}
	}
	return n.open(ctx)
}

// TestAdoption fails each request of the initialization of a blank disk, or cuts the power there. It asserts that at
// every moment the disk is blank or ours, and nothing else.
func TestAdoption(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		n := &node{faultyDisk: newFaultyDisk(t, diskSize, sector)}
		t.Cleanup(n.close)
		n.call("Save", 0, new(bool))
		n.setFault(Fault{})
		n.must(n.adopt(t.Context()))
		whole := n.heal()
		n.close()
		testenv.RemovePartitions(t, n.path)
		t.Logf("%d byte sectors: %d reads, %d writes, %d flushes", sector, whole.of(Read), whole.of(Write), whole.of(Sync))
		var kinds [][]Fault
		for _, f := range []Fault{
			{Op: Read, Do: Fail, Count: 1}, {Op: Write, Do: Fail, Count: 1}, {Op: Sync, Do: Fail, Count: 1}, {Op: Any, Do: Fail},
			{Op: Write, Do: Drop, Count: 1}, {Op: Write, Do: Drop}, {Op: Change | Sync, Do: PowerOff}, {Op: Change | Sync, Do: PowerOff},
		} {
			var kind []Fault
			for f.At = range whole.of(f.Op) {
				kind = append(kind, f)
			}
			kinds = append(kinds, kind)
		}
		found, hits := map[disk.State]int{}, 0
		tried, all := tryFaults(t, kinds, 1500*time.Millisecond, func(f Fault) {
			n.call("Restore", 0, new(bool))
			n.setFault(f)
			err := n.adopt(t.Context())
			if n.heal().Hits > 0 {
				hits++
			}
			n.close()
			if f.Do == PowerOff {
				testenv.RemovePartitions(t, n.path)
				n.call("PowerOn", Cut{Kept: hits % 4 * 33, Seed: uint64(hits)}, new(int))
			}
			c, inspectErr := disk.Inspect(t.Context(), n.path)
			found[c.State]++
			if inspectErr != nil || err == nil && f.Do != PowerOff && c.State != disk.Ours {
				t.Errorf("%v; then the disk is %+v, %v", err, c, inspectErr)
			}
			if c.State == disk.Busy {
				// The kernel still has the meta partition of a table that the disk dropped.
				testenv.RemovePartitions(t, n.path)
			}
			if again := n.adopt(t.Context()); again != nil {
				t.Errorf("%v; then, of a disk that is %+v: %v", err, c, again)
			} else if s := n.engine.Snapshot(); snapshots.Validate(s) != nil || len(s.Volumes) > 0 || s.Free.Total() != diskSize-3*units.MiB {
				t.Errorf("the disk is %+v", s)
			}
			n.close()
			testenv.RemovePartitions(t, n.path)
		})
		t.Logf("%d of %d faults tried, %d hit; then the disk was: %v", tried, all, hits, found)
		if hits < tried/2 || found[disk.Ours] == 0 {
			t.Error("the faults hit too little")
		}
	}
}

// TestOwnerIsReadOrRefused fails each read with which a disk of ours is inspected and opened. It asserts that the disk
// is refused, or its owner is known. A disk of another node never counts as one without an owner.
func TestOwnerIsReadOrRefused(t *testing.T) {
	owner := disk.Owner{NodeUID: "1c3a4d8e-0000-4000-8000-000000000001", NodeName: "other"}
	for _, sector := range []int64{512, 4096} {
		n := &node{faultyDisk: newFaultyDisk(t, diskSize, sector)}
		t.Cleanup(n.close)
		if _, err := disk.Initialize(t.Context(), n.path, owner); err != nil {
			t.Fatal(err)
		}
		looks := map[string]func() (disk.Owner, error){
			"Inspect": func() (disk.Owner, error) {
				c, err := disk.Inspect(t.Context(), n.path)
				if c.State != disk.Ours {
					return owner, err
				}
				return c.Owner, err
			},
			"Open": func() (disk.Owner, error) {
				err := n.open(t.Context())
				defer n.close()
				if n.engine == nil {
					return disk.Owner{}, err
				}
				// Also for a disk out of service.
				return n.engine.Snapshot().Owner, nil
			},
		}
		for name, look := range looks {
			n.setFault(Fault{})
			if o, err := look(); err != nil || o != owner {
				t.Fatalf("%s of a disk that is well: %+v, %v", name, o, err)
			}
			reads, refused := n.heal().of(Read), 0
			for at := range reads {
				n.setFault(Fault{Op: Read, At: at, Count: 1, Do: Fail})
				o, err := look()
				if err != nil {
					refused++
				} else if o != owner {
					t.Errorf("%s, read %d of %d fails: the owner is %+v", name, at, reads, o)
				}
				n.heal()
			}
			if refused == 0 {
				t.Errorf("%s: none of %d failing reads was noticed", name, reads)
			}
			t.Logf("%d byte sectors, %s: %d of %d failing reads refuse the disk", sector, name, refused, reads)
		}
		n.close()
		testenv.RemovePartitions(t, n.path)
	}
}
