package csi

import (
	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// sizes are the parsed form of a CSI capacity range.
type sizes struct {
	// required is in bytes, a multiple of Alignment. It is 0 if nothing is required.
	required int64
	// limit is in bytes. It is 0 for none.
	limit int64
}

// sizesOf reads a capacity range, which may be nil. The error has a code.
func sizesOf(c *csispec.CapacityRange) (sizes, error) {
	s := sizes{required: c.GetRequiredBytes(), limit: c.GetLimitBytes()}
	switch {
	case s.required < 0:
		return s, invalid("capacity_range: required_bytes is %d", s.required)
	case s.limit < 0:
		return s, invalid("capacity_range: limit_bytes is %d", s.limit)
	case s.limit > 0 && s.limit < s.required:
		return s, invalid("capacity_range: limit_bytes is %d, less than required_bytes, %d", s.limit, s.required)
	case s.required > diskv1alpha1.MaxVolumeSize:
		return s, status.Errorf(codes.OutOfRange, "capacity_range: required_bytes is %d, and no disk is larger than %d", s.required, diskv1alpha1.MaxVolumeSize)
	}
	s.required = diskv1alpha1.AlignUp(s.required)
	if s.limit > 0 && s.limit < s.required {
		return s, status.Errorf(codes.OutOfRange, "capacity_range: sizes are multiples of %d bytes, and none is between required_bytes and limit_bytes, %d", diskv1alpha1.Alignment, s.limit)
	}
	return s, nil
}

// expansionOf reads the range of sizes to which a volume is expanded. The capability, which may be nil, must be a
// supported one. The error has a code.
func expansionOf(c *csispec.VolumeCapability, r *csispec.CapacityRange) (sizes, error) {
	if c != nil {
		if _, err := accessOf(c); err != nil {
			return sizes{}, invalid("%v", err)
		}
	}
	return sizesOf(r)
}
