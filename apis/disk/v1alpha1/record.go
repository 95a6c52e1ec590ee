package v1alpha1

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
)

// AnnotationAllocation is the annotation of a bound pod that records where the scheduler placed its inline volumes. The
// Binding sets it in the transaction that sets the node, so that a reservation exists exactly as long as its pod. It is
// a placement, never a permission: the agent checks it. The value is JSON such as
// `{"v":1,"volumes":[{"name":"data","disk":"6ae1…","start":2097152,"length":10737418240}]}`, with positions in bytes.
const AnnotationAllocation = GroupName + "/allocation"

// recordVersion is the version of the record's format that this package writes and reads.
const recordVersion = 1

// MaxVolumes is how many volumes of Berth a pod can have.
const MaxVolumes = 256

// maxRecordBytes limits the length of a record, against annotations that are written to exhaust a reader. It is ample
// for MaxVolumes.
const maxRecordBytes = 64 << 10

// SchedulerName is the schedulerName of pods with volumes in the configuration that is shipped. It is the profile with
// Berth's plugins.
const SchedulerName = "berth"

// Record is the value of AnnotationAllocation.
//
// Invariants, checked by Validate:
//  1. v is 1.
//  2. Volumes have names, and no two the same.
//  3. Every disk is a GUID in its canonical form.
//  4. Starts and lengths are multiples of Alignment. Starts are at least one Alignment, lengths are positive, and their
//     sum does not overflow.
type Record struct {
	Version int            `json:"v"`
	Volumes []RecordVolume `json:"volumes"`
}

// RecordVolume is the place of one volume.
type RecordVolume struct {
	// Name of the volume in the pod.
	Name string `json:"name"`
	// Disk is the id of the disk, as in NodeDiskCapacity.
	Disk string `json:"disk"`

	Extent `json:",inline"`
}

// EncodeRecord writes the record of the given places as an annotation's value.
func EncodeRecord(volumes []RecordVolume) (string, error) {
	r := Record{Version: recordVersion, Volumes: volumes}
	if err := r.Validate(); err != nil {
		return "", err
	}
	out, err := json.Marshal(r)
	return string(out), err
}

// DecodeRecord reads an annotation's value. For any value it returns either a valid record or an error, and never
// panics.
func DecodeRecord(value string) (Record, error) {
	if len(value) > maxRecordBytes {
		return Record{}, fmt.Errorf("annotation %s is %d bytes long, at most %d are allowed", AnnotationAllocation, len(value), maxRecordBytes)
	}
	var r Record
	decoder := json.NewDecoder(bytes.NewReader([]byte(value)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("annotation %s is not a record: %w", AnnotationAllocation, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Record{}, fmt.Errorf("annotation %s has text behind the record", AnnotationAllocation)
	}
	if err := r.Validate(); err != nil {
		return Record{}, fmt.Errorf("annotation %s: %w", AnnotationAllocation, err)
	}
	return r, nil
}

// Validate checks the invariants.
func (r Record) Validate() error {
	if r.Version != recordVersion {
		return fmt.Errorf("record has version %d, this release reads version %d", r.Version, recordVersion)
	}
	if len(r.Volumes) > MaxVolumes {
		return fmt.Errorf("record has %d volumes, at most %d are allowed", len(r.Volumes), MaxVolumes)
	}
	seen := make(map[string]bool, len(r.Volumes))
	for _, v := range r.Volumes {
		if v.Name == "" {
			return errors.New("record has a volume without a name")
		}
		if seen[v.Name] {
			return fmt.Errorf("record names volume %q twice", v.Name)
		}
		seen[v.Name] = true
		if id, err := uuid.Parse(v.Disk); err != nil || id.String() != v.Disk {
			return fmt.Errorf("volume %q: disk %q is not a GUID in lower case", v.Name, v.Disk)
		}
		if err := v.validate(); err != nil {
			return fmt.Errorf("volume %q: %w", v.Name, err)
		}
	}
	return nil
}

// Volume returns the place of the named volume.
func (r Record) Volume(name string) (RecordVolume, bool) {
	for _, v := range r.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return RecordVolume{}, false
}

// validate checks invariant 4 of Record.
func (e Extent) validate() error {
	switch {
	case e.Start < Alignment || e.Start%Alignment != 0:
		return fmt.Errorf("start %d is not a positive multiple of %d", e.Start, Alignment)
	case e.Length < Alignment || e.Length%Alignment != 0:
		return fmt.Errorf("length %d is not a positive multiple of %d", e.Length, Alignment)
	case e.Start+e.Length < 0:
		return fmt.Errorf("start %d and length %d add up to more than a disk can have", e.Start, e.Length)
	}
	return nil
}
