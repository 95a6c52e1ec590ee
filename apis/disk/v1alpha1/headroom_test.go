package v1alpha1

import (
	"math"
	"testing"
)

// TestHeadroomOfLargeVolumes asserts that the headroom of a volume of any size does not overflow.
func TestHeadroomOfLargeVolumes(t *testing.T) {
	for _, percent := range []string{"1%", "50%", "100%"} {
		p, err := ParseParameters(map[string]string{AttributeClass: "ssd", ParameterHeadroom: percent})
		if err != nil {
			t.Fatal(err)
		}
		before := int64(0)
		for _, size := range []int64{Alignment, 1 << 40, 1 << 57, 1 << 60, 5 << 60, math.MaxInt64 / Alignment * Alignment} {
			have := p.Headroom(size)
			if have < before || have%Alignment != 0 || have < Alignment {
				t.Errorf("%s of %d is %d, want a multiple of 1 MiB of at least %d", percent, size, have, before)
			}
			before = have
		}
	}
}
