package v1alpha1

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestVolumeIDs asserts that a claim's volume ID is kept as it is, and that any volume's ID can be read back from its
// partition.
func TestVolumeIDs(t *testing.T) {
	claim := uuid.NewString()
	id := ClaimVolumeID("11111111-2222-4333-8444-555555555555")
	if id != "pvc-11111111-2222-4333-8444-555555555555" {
		t.Errorf("a claim's volume is %s", id)
	}
	if got := NamedVolumeID("pvc-" + claim); got != "pvc-"+claim {
		t.Errorf("the name of a claim's volume became %s", got)
	}
	// For every name, the volume's ID can be read back from its partition.
	for _, name := range []string{"pvc-" + claim, "sanity-1", "pvc-", "pvc-" + strings.ToUpper(claim), strings.Repeat("x", 128), "pvc-{" + claim + "}"} {
		id := NamedVolumeID(name)
		if id != NamedVolumeID(name) {
			t.Errorf("%q has two IDs", name)
		}
		partitionName, ok := VolumeUUID(id)
		if !ok || len(partitionName) != 36 {
			t.Errorf("%q: ID %s does not fit into a partition's name", name, id)
		}
		if back, ok := PersistentVolumeID(partitionName, PartitionID(id)); !ok || back != id {
			t.Errorf("%q: ID %s reads back as %s", name, id, back)
		}
	}
	for _, name := range []string{"", "default/web-0/data", claim[:35]} {
		if id, ok := PersistentVolumeID(name, PartitionID("pvc-"+name)); ok {
			t.Errorf("partition name %q was read as volume %s", name, id)
		}
	}
	if _, ok := PersistentVolumeID(claim, PartitionID("pvc-"+uuid.NewString())); ok {
		t.Error("a name was believed that does not belong to the partition")
	}
}

// TestNodeLabel asserts that a short node name is its label, and that a long one becomes a label of valid length.
// TestCopyID asserts that a copy leads to its volume, and to no other.
func TestCopyID(t *testing.T) {
	id, other := ClaimVolumeID("11111111-2222-4333-8444-555555555555"), ClaimVolumeID("11111111-2222-4333-8444-555555555556")
	name, _ := VolumeUUID(id)
	copied := CopyID(PartitionID(id))
	if copied == PartitionID(id) || copied == CopyID(PartitionID(other)) || CopyID(copied) == PartitionID(id) {
		t.Errorf("the copy of %s has the GUID %s", PartitionID(id), copied)
	}
	if got, ok := CopiedVolumeID(name, copied); !ok || got != id {
		t.Errorf("%s with the name %s is a copy of %q: %t", copied, name, got, ok)
	}
	for name, partition := range map[string]string{name: PartitionID(id), "data": copied, "": copied, other[len(volumeIDPrefix):]: copied} {
		if got, ok := CopiedVolumeID(name, partition); ok {
			t.Errorf("%s with the name %q is a copy of %s", partition, name, got)
		}
	}
}

func TestNodeLabel(t *testing.T) {
	if got := NodeLabel("node-1.example.org"); got != "node-1.example.org" {
		t.Errorf("a short name became %s", got)
	}
	long := strings.Repeat("a", 200)
	if got := NodeLabel(long); len(got) > 63 || got == NodeLabel(long+"b") {
		t.Errorf("a long name became %s", got)
	}
}

// TestParseParameters asserts which StorageClass parameters are accepted, and what the error about the others says.
func TestParseParameters(t *testing.T) {
	const class = AttributeClass
	tests := map[string]struct {
		parameters map[string]string
		headroom   int64 // of 10 GiB
		says       string
	}{
		"class only":        {map[string]string{class: "ssd"}, 0, ""},
		"all":               {map[string]string{class: "ssd", ParameterFSType: "xfs", AttributeSpread: "disk", ParameterHeadroom: "5Gi"}, 5 << 30, ""},
		"percent":           {map[string]string{class: "ssd", ParameterHeadroom: "50%"}, 5 << 30, ""},
		"rounded up":        {map[string]string{class: "ssd", ParameterHeadroom: "1"}, 1 << 20, ""},
		"no class":          {map[string]string{}, 0, "disk.berth.dev/class is missing"},
		"unknown":           {map[string]string{class: "ssd", "disk.berth.dev/size": "1Gi"}, 0, `unknown parameter "disk.berth.dev/size"`},
		"bad fs":            {map[string]string{class: "ssd", ParameterFSType: "ntfs"}, 0, `"ntfs" is not supported`},
		"bad spread":        {map[string]string{class: "ssd", AttributeSpread: "node"}, 0, `can only be "disk"`},
		"negative headroom": {map[string]string{class: "ssd", ParameterHeadroom: "-1Gi"}, 0, "write it like 20Gi or 50%"},
		"huge headroom":     {map[string]string{class: "ssd", ParameterHeadroom: "1e999999999"}, 0, "write it like 20Gi or 50%"},
		"large headroom":    {map[string]string{class: "ssd", ParameterHeadroom: "8Ei"}, 0, "write it like 20Gi or 50%"},
		"negative percent":  {map[string]string{class: "ssd", ParameterHeadroom: "-5%"}, 0, "whole number from 0%"},
		"percent overflow":  {map[string]string{class: "ssd", ParameterHeadroom: "99999999999999999999%"}, 0, "whole number from 0%"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := ParseParameters(test.parameters)
			if test.says != "" {
				if err == nil || !strings.Contains(err.Error(), test.says) {
					t.Fatalf("error %v, want one that says %q", err, test.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Headroom(10 << 30); got != test.headroom || p.Class != "ssd" {
				t.Errorf("class %q, headroom %d, want %d", p.Class, got, test.headroom)
			}
			if got := p.Headroom(MaxVolumeSize); got < 0 {
				t.Errorf("headroom of the largest volume is %d", got)
			}
		})
	}
}

// TestPlace asserts that a place survives being written as attributes, and that impossible attributes are refused.
func TestPlace(t *testing.T) {
	place := Place{Disk: uuid.NewString(), Extent: Extent{Start: 3 << 20, Length: 5 << 30}}
	if back, err := ParsePlace(place.Attributes()); err != nil || back != place {
		t.Errorf("%+v reads back as %+v: %v", place, back, err)
	}
	if back, err := ParseMoveTo(place.String()); err != nil || back != place {
		t.Errorf("%s reads back as %+v: %v", place, back, err)
	}
	for _, value := range []string{"", "elsewhere", place.Disk, place.String() + "/1", "/3145728/5368709120", place.Disk + "/3145729/1048576", place.Disk + "/x/1048576"} {
		if got, err := ParseMoveTo(value); err == nil || !strings.Contains(err.Error(), AnnotationMoveTo) {
			t.Errorf("%q is read as %+v: %v", value, got, err)
		}
	}
	for name, change := range map[string]map[string]string{
		"no disk":       {AttributeDisk: ""},
		"upper case":    {AttributeDisk: strings.ToUpper(place.Disk[:35]) + "A"},
		"no number":     {AttributeStart: "x"},
		"unaligned":     {AttributeStart: "3145729"},
		"head":          {AttributeStart: "0"},
		"empty":         {AttributeLength: "0"},
		"negative":      {AttributeLength: "-1048576"},
		"overflow":      {AttributeLength: "9223372036853727232"},
		"out of bounds": {AttributeLength: "99999999999999999999"},
	} {
		attributes := place.Attributes()
		for key, value := range change {
			attributes[key] = value
		}
		if got, err := ParsePlace(attributes); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

// TestParsePieces asserts which lists of pieces are read, and that none is read by half.
func TestParsePieces(t *testing.T) {
	disk, other := uuid.NewString(), uuid.NewString()
	piece := func(disk string, start, length int64) Place {
		return Place{Disk: disk, Extent: Extent{Start: start << 20, Length: length << 20}}
	}
	many := make([]Place, MaxPieces-1)
	for i := range many {
		many[i] = piece(disk, int64(1+2*i), 2)
	}
	for _, pieces := range [][]Place{
		{piece(disk, 3, 5)}, {piece(disk, 3, 5), piece(disk, 1, 2)}, {piece(disk, 3, 5), piece(other, 3, 5)}, many,
	} {
		if back, err := ParsePieces(JoinPieces(pieces)); err != nil || !slices.Equal(back, pieces) {
			t.Errorf("%+v reads back as %+v: %v", pieces, back, err)
		}
	}
	one, huge := piece(disk, 3, 5).String(), Place{Disk: disk, Extent: Extent{Start: 1 << 20, Length: MaxVolumeSize}}
	for name, test := range map[string]struct{ value, says string }{
		"empty":       {"", "DISK/START/LENGTH"},
		"no last one": {one + ",", "DISK/START/LENGTH"},
		"a blank":     {one + ", " + piece(disk, 9, 1).String(), "GUID in lower case"},
		"a sign":      {disk + "/+3145728/1048576", "must be written"},
		"unaligned":   {one + "," + disk + "/1048577/1048576", "not a positive multiple"},
		"overlapping": {one + "," + piece(disk, 7, 1).String(), "pieces 1 and 2 share bytes"},
		"twice":       {one + "," + one, "pieces 1 and 2 share bytes"},
		"too many":    {JoinPieces(append(many, piece(disk, 99, 1))), "at most 15"},
		"too long":    {strings.Repeat("x", 2000), "bytes long"},
		"too large":   {JoinPieces([]Place{huge, piece(other, 1, 1)}), "no disk is as large"},
		"overflowing": {disk + "/1048576/9223372036852678656", "no disk is as large"},
	} {
		if got, err := ParsePieces(test.value); err == nil || got != nil || !strings.Contains(err.Error(), AnnotationPieces) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: read as %+v: %v, want an error that says %q", name, got, err, test.says)
		}
	}
}

// FuzzParsePieces asserts that any value is refused, or read as valid pieces that are written as the same value.
func FuzzParsePieces(f *testing.F) {
	const one, two = "6f2d9c1e-0000-4000-8000-000000000001/2097152/3145728", "6f2d9c1e-0000-4000-8000-000000000001/9437184/1048576"
	for _, seed := range []string{"", one, one + "," + two, two + "," + one, one + "," + one, one + ",", "/1048576/1048576", strings.ReplaceAll(one, "2097152", "02097152")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		pieces, err := ParsePieces(value)
		if err != nil {
			return
		}
		if again := JoinPieces(pieces); again != value {
			t.Fatalf("%q is read as %q", value, again)
		}
		var sum int64
		for i, p := range pieces {
			if sum += p.Length; p.validate() != nil || sum < p.Length {
				t.Fatalf("%q has the piece %+v", value, p)
			}
			for _, other := range pieces[:i] {
				if p.Overlaps(other) {
					t.Fatalf("%q has pieces that overlap", value)
				}
			}
		}
	})
}
