package partition

import (
	"fmt"
	"testing"

	"github.com/google/uuid"
)

// TestGUIDs asserts the GUIDs of one volume. Disks bear them, so they must never change.
func TestGUIDs(t *testing.T) {
	const volume = "pvc-0f0c8f4e-6d5b-4f5b-8d3e-2f8f7d1f4a11"
	id := ID(volume)
	for _, test := range []struct{ name, got, want string }{
		{"volume", id, "e19e3caa-a040-56bc-a406-568c396ba928"},
		{"copy", CopyID(id), "15021c91-c53c-5b7e-96ad-122d385fd53f"},
		{"place that was left", LeftID(id), "c124fc76-40f7-5cc0-aa1e-deb4636fb123"},
		{"first piece", PieceID(id, 0), id},
		{"piece 1", PieceID(id, 1), "6869ecd4-8bd0-5916-8855-dcfcc2681341"},
		{"piece 15", PieceID(id, MaxPieces-1), "9a4cdf81-32f0-5bff-8ee7-6d9504d50986"},
		{"piece 1 of the earlier place", PieceID(CopyID(id), 1), "fd4890da-1a4e-5521-a8ed-6e19b538da99"},
	} {
		if test.got != test.want {
			t.Errorf("%s: %s, want %s", test.name, test.got, test.want)
		}
	}
}

// TestDistinct asserts that no two partitions of two volumes share a GUID, copies and their pieces included.
func TestDistinct(t *testing.T) {
	seen := map[string]string{}
	for _, volume := range []string{"a", "b"} {
		for _, first := range []string{ID(volume), CopyID(ID(volume)), LeftID(ID(volume))} {
			for number := range MaxPieces {
				guid, what := PieceID(first, number), fmt.Sprintf("piece %d of %s of %s", number, first, volume)
				if parsed, err := uuid.Parse(guid); err != nil || parsed.String() != guid {
					t.Errorf("%s: %q is not a GUID in lower case", what, guid)
				}
				if other, taken := seen[guid]; taken {
					t.Errorf("%s and %s share the GUID %s", what, other, guid)
				}
				seen[guid] = what
			}
		}
	}
}
