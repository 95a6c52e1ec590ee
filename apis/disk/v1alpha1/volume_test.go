package v1alpha1

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berthdev/berth/test/units"
)

// TestParseAttributes asserts how sizes are rounded and limited, and what the error about other attributes says.
func TestParseAttributes(t *testing.T) {
	with := func(pairs ...string) map[string]string {
		m := map[string]string{AttributeSize: "10Gi", AttributeClass: "ssd"}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = pairs[i+1]
		}
		return m
	}
	size := func(value string) map[string]string { return with(AttributeSize, value) }

	for _, test := range []struct {
		name       string
		attributes map[string]string
		want       Attributes
		err        string
	}{
		{"size and class", with(), Attributes{Class: "ssd", Size: 10 * units.GiB}, ""},
		{"on disks of their own", with(AttributeSpread, "disk"), Attributes{Class: "ssd", Size: 10 * units.GiB, Spread: true}, ""},
		{"what the kubelet adds is passed over", with("csi.storage.k8s.io/pod.name", "p", "csi.storage.k8s.io/ephemeral", "true"),
			Attributes{Class: "ssd", Size: 10 * units.GiB}, ""},

		{"rounded up to 1 MiB, never down", size("1"), Attributes{Class: "ssd", Size: units.MiB}, ""},
		{"just above a multiple", size("1048577"), Attributes{Class: "ssd", Size: 2 * units.MiB}, ""},
		{"a multiple stays", size("500Mi"), Attributes{Class: "ssd", Size: 500 * units.MiB}, ""},
		{"decimal units", size("1G"), Attributes{Class: "ssd", Size: 954 * units.MiB}, ""},
		{"a fraction of a unit is whole bytes", size("1.5Gi"), Attributes{Class: "ssd", Size: 1536 * units.MiB}, ""},
		{"a fraction of a byte", size("100m"), Attributes{Class: "ssd", Size: units.MiB}, ""},
		{"a fraction of a byte above a multiple", size("1048576.5"), Attributes{Class: "ssd", Size: 2 * units.MiB}, ""},
		{"an exponent", size("1e9"), Attributes{Class: "ssd", Size: 954 * units.MiB}, ""},
		{"the largest there is", size("9223372036852678656"), Attributes{Class: "ssd", Size: 9223372036852678656}, ""},

		{"size missing", map[string]string{AttributeClass: "ssd"}, Attributes{}, "attribute disk.berth.dev/size is missing"},
		{"size empty", size(""), Attributes{}, "attribute disk.berth.dev/size is missing"},
		{"zero", size("0"), Attributes{}, "larger than zero"},
		{"zero with a unit", size("0Gi"), Attributes{}, "larger than zero"},
		{"negative", size("-10Gi"), Attributes{}, "larger than zero"},
		{"negative, less than a byte", size("-1m"), Attributes{}, "larger than zero"},
		{"a unit that does not exist", size("10Gib"), Attributes{}, `"10Gib", which is not a size`},
		{"a word", size("large"), Attributes{}, "not a size"},
		{"a space", size("10 Gi"), Attributes{}, "not a size"},
		{"a unit alone", size("Gi"), Attributes{}, "not a size"},
		{"not a number", size("NaN"), Attributes{}, "not a size"},
		{"2^63-1", size("9223372036854775807"), Attributes{}, "no disk is that large"},
		{"2^63", size("9223372036854775808"), Attributes{}, "no disk is that large"},
		{"2^64", size("18446744073709551616"), Attributes{}, "no disk is that large"},
		{"8Ei is 2^63", size("8Ei"), Attributes{}, "no disk is that large"},
		{"1e30", size("1e30"), Attributes{}, "no disk is that large"},
		{"a huge exponent", size("1e999999999999"), Attributes{}, "not a size"},

		{"class missing", map[string]string{AttributeSize: "1Gi"}, Attributes{}, "attribute disk.berth.dev/class is missing"},
		{"class empty", with(AttributeClass, ""), Attributes{}, "attribute disk.berth.dev/class is missing"},
		{"spread over something else", with(AttributeSpread, "node"), Attributes{}, `can only be "disk"`},
		{"an unknown attribute of ours", with("disk.berth.dev/sice", "1Gi"), Attributes{}, `unknown attribute "disk.berth.dev/sice"`},
		{"an unknown attribute", with("size", "1Gi"), Attributes{}, `unknown attribute "size"`},
		{"nothing at all", nil, Attributes{}, "is missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := ParseAttributes(test.attributes)
			if got != test.want {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
			switch {
			case test.err == "" && err != nil:
				t.Error(err)
			case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
				t.Errorf("got error %v, want %q", err, test.err)
			}
		})
	}
}

// FuzzParseAttributes asserts that an accepted size is a positive multiple of Alignment.
func FuzzParseAttributes(f *testing.F) {
	for _, seed := range []string{"10Gi", "1e30", "-1", "1.5Gi", "100m", "9223372036854775808", "1E", "0x10", "1e-30"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, size string) {
		got, err := ParseAttributes(map[string]string{AttributeSize: size, AttributeClass: "c"})
		if err == nil && (got.Size < Alignment || got.Size%Alignment != 0) {
			t.Fatalf("%q is read as %d", size, got.Size)
		}
	})
}

// TestValidateFSType asserts which file systems volumes can have.
func TestValidateFSType(t *testing.T) {
	for fsType, ok := range map[string]bool{"": true, "ext4": true, "xfs": true, "btrfs": false, "EXT4": false, "ext4 ": false, "-t": false} {
		if err := ValidateFSType(fsType); (err == nil) != ok {
			t.Errorf("%q: %v", fsType, err)
		}
	}
}

// kubeletVolumeHandle is makeVolumeHandle of k8s.io/kubernetes v1.36.3, pkg/volume/csi/csi_mounter.go, which is not
// exported.
func kubeletVolumeHandle(podUID, volSourceSpecName string) string {
	result := sha256.Sum256([]byte(fmt.Sprintf("%s%s", podUID, volSourceSpecName)))
	return fmt.Sprintf("csi-%x", result)
}

// TestInlineVolumeID asserts that the volume ID is the one that the kubelet passes, and differs for each volume of a
// pod.
func TestInlineVolumeID(t *testing.T) {
	const uid, name = "4a2fd8e2-8c1b-4b0d-9f0e-0d5f3c5a9b11", "data"
	got := InlineVolumeID(types.UID(uid), name)
	if want := kubeletVolumeHandle(uid, name); got != want {
		t.Errorf("got %s, the kubelet says %s", got, want)
	}
	if !regexp.MustCompile(`^csi-[0-9a-f]{64}$`).MatchString(got) {
		t.Errorf("got %s", got)
	}
	if got == InlineVolumeID(types.UID(uid), "data2") {
		t.Error("two volumes of a pod have one ID")
	}
}

// TestPartitionIDStays asserts the formula of the GUIDs on disks: another one in a later release would orphan every
// volume.
func TestPartitionIDStays(t *testing.T) {
	for volume, want := range map[string]string{
		"csi-0000000000000000000000000000000000000000000000000000000000000000": "c63b745f-18fc-5071-959c-9444ff50c711",
		"pvc-1": "6c154726-dd01-57b1-8d44-0bcb215e6f24",
	} {
		if got := PartitionID(volume); got != want {
			t.Errorf("%s: got %s, want %s", volume, got, want)
		}
	}
}
