package v1alpha1

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const testDisk = "6f1d7c52-2b7a-4c5e-9d61-0a4b8e3f7c10"

func recordVolume(name string, start, length int64) RecordVolume {
	return RecordVolume{Name: name, Disk: testDisk, Extent: Extent{Start: start * Alignment, Length: length * Alignment}}
}

// TestEncodeRecordFormat asserts the exact format: it is on pods that outlive a release, so it must not change
// unnoticed.
func TestEncodeRecordFormat(t *testing.T) {
	got, err := EncodeRecord([]RecordVolume{recordVolume("data", 2, 10)})
	want := `{"v":1,"volumes":[{"name":"data","disk":"6f1d7c52-2b7a-4c5e-9d61-0a4b8e3f7c10","start":2097152,"length":10485760}]}`
	if err != nil || got != want {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
}

// TestRecordRoundTrip asserts that a record reads back as it was written.
func TestRecordRoundTrip(t *testing.T) {
	volumes := []RecordVolume{recordVolume("data", 1, 1), recordVolume("log", 2, 1<<30)}
	value, err := EncodeRecord(volumes)
	if err != nil {
		t.Fatal(err)
	}
	record, err := DecodeRecord(value)
	if err != nil || !reflect.DeepEqual(record.Volumes, volumes) {
		t.Errorf("got %+v, %v", record, err)
	}
	if got, ok := record.Volume("log"); !ok || got != volumes[1] {
		t.Errorf("log: got %+v, %v", got, ok)
	}
	if _, ok := record.Volume("other"); ok {
		t.Error("found a volume that is not there")
	}
}

// TestEncodeRecordRefuses asserts that an invalid record is not written.
func TestEncodeRecordRefuses(t *testing.T) {
	for name, volumes := range map[string][]RecordVolume{
		"no name":      {recordVolume("", 1, 1)},
		"a name twice": {recordVolume("a", 1, 1), recordVolume("a", 2, 1)},
		"no length":    {recordVolume("a", 1, 0)},
		"no disk":      {{Name: "a", Extent: Extent{Start: Alignment, Length: Alignment}}},
	} {
		if got, err := EncodeRecord(volumes); err == nil || got != "" {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
}

// TestDecodeRecordRefuses asserts that any value but a valid record is an error that names the annotation, and yields
// no part of a record.
func TestDecodeRecordRefuses(t *testing.T) {
	volume := func(disk, start, length string) string {
		return fmt.Sprintf(`{"v":1,"volumes":[{"name":"a","disk":%q,"start":%s,"length":%s}]}`, disk, start, length)
	}
	for _, test := range []struct{ name, value, want string }{
		{"empty", "", "not a record"},
		{"garbage", "yes please", "not a record"},
		{"half", `{"v":1,"volumes":[`, "not a record"},
		{"null", "null", "version 0"},
		{"a list", "[]", "not a record"},
		{"no version", `{"volumes":[]}`, "version 0"},
		{"a later version", `{"v":2,"volumes":[]}`, "version 2"},
		{"unknown field", `{"v":1,"volumes":[],"more":1}`, "unknown field"},
		{"text behind", `{"v":1,"volumes":[]} {}`, "text behind"},
		{"disk in upper case", volume(strings.ToUpper(testDisk), "1048576", "1048576"), "not a GUID"},
		{"disk in braces", volume("{"+testDisk+"}", "1048576", "1048576"), "not a GUID"},
		{"disk is a path", volume("/dev/sda", "1048576", "1048576"), "not a GUID"},
		{"start zero, where the table is", volume(testDisk, "0", "1048576"), "start 0"},
		{"start negative", volume(testDisk, "-1048576", "1048576"), "start -1048576"},
		{"start not aligned", volume(testDisk, "1048577", "1048576"), "start 1048577"},
		{"length zero", volume(testDisk, "1048576", "0"), "length 0"},
		{"length negative", volume(testDisk, "1048576", "-1048576"), "length -1048576"},
		{"length not aligned", volume(testDisk, "1048576", "1048575"), "length 1048575"},
		{"end overflows", volume(testDisk, "9223372036853727232", "9223372036853727232"), "more than a disk can have"},
		{"end is 2^63", volume(testDisk, "9223372036853727232", "1048576"), "more than a disk can have"},
		{"start is 2^63", volume(testDisk, "9223372036854775808", "1048576"), "not a record"},
		{"start is a fraction", volume(testDisk, "1048576.5", "1048576"), "not a record"},
		{"too long to look at", `{"v":1,"volumes":[` + strings.Repeat(" ", maxRecordBytes) + `]}`, "at most"},
		{"too deep", strings.Repeat("[", maxRecordBytes), "not a record"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := DecodeRecord(test.value)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if err != nil && !strings.Contains(err.Error(), AnnotationAllocation) {
				t.Errorf("%v does not name the annotation", err)
			}
			if !reflect.DeepEqual(got, Record{}) {
				t.Errorf("got %+v with an error", got)
			}
		})
	}
}

// TestDecodeRecordTooManyVolumes asserts that a record has at most MaxVolumes volumes.
func TestDecodeRecordTooManyVolumes(t *testing.T) {
	r := Record{Version: recordVersion}
	for i := range MaxVolumes + 1 {
		r.Volumes = append(r.Volumes, recordVolume(fmt.Sprint("v", i), int64(i+1), 1))
	}
	if err := r.Validate(); err == nil {
		t.Error("accepted")
	}
	r.Volumes = r.Volumes[1:]
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
}

// FuzzDecodeRecord asserts that an accepted record is valid, and encodes and decodes to itself.
func FuzzDecodeRecord(f *testing.F) {
	good, err := EncodeRecord([]RecordVolume{recordVolume("data", 2, 10), recordVolume("log", 12, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(`{"v":1,"volumes":null}`)
	f.Add(`{"v":1,"volumes":[{"name":"a","Start":1e6}]}`)
	f.Fuzz(func(t *testing.T, value string) {
		record, err := DecodeRecord(value)
		if err != nil {
			return
		}
		// An accepted record is valid, and encodes and decodes to itself.
		if err := record.Validate(); err != nil {
			t.Fatal(err)
		}
		for _, v := range record.Volumes {
			if v.Start+v.Length <= v.Start {
				t.Fatalf("%+v ends before it starts", v)
			}
		}
		again, err := EncodeRecord(record.Volumes)
		if err != nil {
			t.Fatal(err)
		}
		if second, err := DecodeRecord(again); err != nil || len(second.Volumes) != len(record.Volumes) {
			t.Fatalf("written again: %+v, %v", second, err)
		}
	})
}
