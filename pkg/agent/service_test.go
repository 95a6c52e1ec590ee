package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/client-go/tools/cache"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/discovery"
	"github.com/berthdev/berth/pkg/agent/disk"
)

// TestServiceReports asserts that each change causes one event, and that a disk that never failed has none.
func TestServiceReports(t *testing.T) {
	serves := discovery.Disk{Device: discovery.Device{Name: "sda"}, Class: "ssd", Engine: &disk.Disk{}, Snapshot: disk.Snapshot{ID: "a"}}
	gone, hangs, renamed := serves, serves, serves
	gone.Engine, gone.Problem = nil, "device sda is gone"
	hangs.Problem = "device sda hangs"
	renamed.Device.Name = "sdb"
	other := serves
	other.Snapshot.ID = "b"
	var events []string
	s := newServiceReporter(func(_, reason, message string) {
		events = append(events, fmt.Sprintf("%s %.40s", reason, message))
	})
	for i, step := range []struct {
		disks []discovery.Disk
		event string
	}{
		{[]discovery.Disk{serves, other}, ""},
		{[]discovery.Disk{gone, other}, "DiskOutOfService disk a (sda)"},
		{[]discovery.Disk{gone, other}, ""},
		{[]discovery.Disk{hangs, other}, "DiskOutOfService disk a (sda)"},
		{[]discovery.Disk{renamed, other}, "DiskInService disk a (sdb)"},
		{[]discovery.Disk{other}, ""},
		{[]discovery.Disk{gone, other}, "DiskOutOfService disk a (sda)"},
	} {
		events = nil
		s.report(step.disks, 0)
		if got := strings.Join(events, "; "); (step.event == "") != (got == "") || !strings.HasPrefix(got, step.event) || len(events) > 1 {
			t.Errorf("step %d reports %q, want %q", i, got, step.event)
		}
	}
	if !slices.Equal(s.labels["a"], []string{"a", "sda", "ssd"}) {
		t.Errorf("labels are %v", s.labels["a"])
	}
}

// TestWipingOfClass asserts the wipe settings of each class. An unknown policy means Zero, and a missing class has no
// settings.
func TestWipingOfClass(t *testing.T) {
	store := cache.NewSharedIndexInformer(nil, &diskv1alpha1.DiskClass{}, 0, cache.Indexers{})
	a := &agent{classes: store}
	rate := resource.MustParse("64Mi")
	for name, spec := range map[string]diskv1alpha1.DiskClassSpec{
		"default": {},
		"slow":    {WipePolicy: diskv1alpha1.WipeOverwrite, WipeRate: &rate},
		"secure":  {WipePolicy: diskv1alpha1.WipeSecureDiscard},
		"none":    {WipePolicy: diskv1alpha1.WipeNone},
		"newer":   {WipePolicy: "SomethingNewer"},
	} {
		class := &diskv1alpha1.DiskClass{Spec: spec}
		class.Name = name
		if err := store.GetStore().Add(class); err != nil {
			t.Fatal(err)
		}
	}
	for class, want := range map[string]disk.WipeSettings{
		"default": {Policy: disk.WipeZero},
		"slow":    {Policy: disk.WipeOverwrite, Rate: 64 << 20},
		"secure":  {Policy: disk.WipeSecureDiscard},
		"none":    {Policy: disk.WipeNone},
		"newer":   {Policy: disk.WipeZero},
		"gone":    {},
		"":        {},
	} {
		if got, exists := a.wiping(class); got != want || exists != (want.Policy != "") {
			t.Errorf("class %q: %+v, %v, want %+v", class, got, exists, want)
		}
	}
}
