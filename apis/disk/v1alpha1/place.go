package v1alpha1

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/berthdev/berth/apis/disk/partition"
)

// Place is where a volume lies, or will lie.
type Place struct {
	// Disk is the id of the disk, as in NodeDiskCapacity.
	Disk string
	Extent
}

// Attributes writes the place as attributes of a PersistentVolume.
func (p Place) Attributes() map[string]string {
	return map[string]string{
		AttributeDisk:   p.Disk,
		AttributeStart:  strconv.FormatInt(p.Start, 10),
		AttributeLength: strconv.FormatInt(p.Length, 10),
	}
}

// ParsePlace reads the place from a PersistentVolume's attributes.
func ParsePlace(attributes map[string]string) (Place, error) {
	p := Place{Disk: attributes[AttributeDisk]}
	if id, err := uuid.Parse(p.Disk); err != nil || id.String() != p.Disk {
		return Place{}, fmt.Errorf("attribute %s is %.64q: it must be a GUID in lower case", AttributeDisk, p.Disk)
	}
	var err error
	if p.Start, err = parseBytes(attributes, AttributeStart); err != nil {
		return Place{}, err
	}
	if p.Length, err = parseBytes(attributes, AttributeLength); err != nil {
		return Place{}, err
	}
	return p, p.validate()
}

// String writes the place as AnnotationMoveTo and AnnotationPieces have it.
func (p Place) String() string {
	return p.Disk + "/" + strconv.FormatInt(p.Start, 10) + "/" + strconv.FormatInt(p.Length, 10)
}

// parsePlace reads what String writes, and nothing else.
func parsePlace(value string) (Place, error) {
	parts := strings.Split(value, "/")
	if len(parts) != 3 {
		return Place{}, errors.New("it must be DISK/START/LENGTH")
	}
	p, err := ParsePlace(map[string]string{AttributeDisk: parts[0], AttributeStart: parts[1], AttributeLength: parts[2]})
	if err == nil && p.String() != value {
		err = fmt.Errorf("it must be written %s", p)
	}
	return p, err
}

// ParseMoveTo reads the value of AnnotationMoveTo.
func ParseMoveTo(value string) (Place, error) {
	p, err := parsePlace(value)
	if err != nil {
		return Place{}, fmt.Errorf("annotation %s is %.128q: %w", AnnotationMoveTo, value, err)
	}
	return p, nil
}

// MaxPieces is of how many pieces a volume consists at most, the first one included.
const MaxPieces = partition.MaxPieces

// JoinPieces writes places as the value of AnnotationPieces.
func JoinPieces(pieces []Place) string {
	values := make([]string, len(pieces))
	for i := range pieces {
		values[i] = pieces[i].String()
	}
	return strings.Join(values, ",")
}

// maxPieceBytes limits the length of one place in AnnotationPieces, against values that are written to exhaust a
// reader.
const maxPieceBytes = 96

// ParsePieces reads the value of AnnotationPieces. For any value it returns either all pieces or an error. No two of
// them share a byte, and their sum is at most MaxVolumeSize.
func ParsePieces(value string) ([]Place, error) {
	if len(value) > (MaxPieces-1)*maxPieceBytes {
		return nil, fmt.Errorf("annotation %s is %d bytes long: it has at most %d places", AnnotationPieces, len(value), MaxPieces-1)
	}
	parts := strings.Split(value, ",")
	if len(parts) > MaxPieces-1 {
		return nil, fmt.Errorf("annotation %s has %d places, at most %d are allowed", AnnotationPieces, len(parts), MaxPieces-1)
	}
	pieces, sum := make([]Place, len(parts)), int64(0)
	for i, part := range parts {
		p, err := parsePlace(part)
		if err != nil {
			return nil, fmt.Errorf("annotation %s, piece %d is %.128q: %w", AnnotationPieces, i+1, part, err)
		}
		if sum += p.Length; p.Length > MaxVolumeSize || sum > MaxVolumeSize {
			return nil, fmt.Errorf("annotation %s: no disk is as large as all pieces", AnnotationPieces)
		}
		for j, other := range pieces[:i] {
			if p.Overlaps(other) {
				return nil, fmt.Errorf("annotation %s: pieces %d and %d share bytes of disk %s", AnnotationPieces, j+1, i+1, p.Disk)
			}
		}
		pieces[i] = p
	}
	return pieces, nil
}

// Overlaps reports whether the places share a byte.
func (p Place) Overlaps(other Place) bool {
	return p.Disk == other.Disk && p.Start < other.Start+other.Length && other.Start < p.Start+p.Length
}

func parseBytes(attributes map[string]string, key string) (int64, error) {
	n, err := strconv.ParseInt(attributes[key], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("attribute %s is %.64q: it must be a number of bytes", key, attributes[key])
	}
	return n, nil
}
