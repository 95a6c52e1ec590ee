package discovery

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

func TestMatch(t *testing.T) {
	quantity := func(s string) *resource.Quantity { q := resource.MustParse(s); return &q }
	yes, no := true, false
	ssd := Device{Name: "nvme0n1", Path: "/dev/nvme0n1", Links: []string{"/dev/disk/by-id/nvme-one"}, Size: 100 << 30, Model: "Fast 9000"}
	hdd := Device{Name: "sda", Path: "/dev/sda", Size: 4 << 40, Rotational: true, Model: "Slow"}
	loop := Device{Name: "loop0", Path: "/dev/loop0", Size: 1 << 30, Explicit: true}
	for _, tc := range []struct {
		name     string
		selector diskv1alpha1.DeviceSelector
		selects  []Device
	}{
		{"nothing given", diskv1alpha1.DeviceSelector{}, nil},
		{"rotational", diskv1alpha1.DeviceSelector{Rotational: &yes}, []Device{hdd}},
		{"not rotational spares loop devices", diskv1alpha1.DeviceSelector{Rotational: &no}, []Device{ssd}},
		{"model", diskv1alpha1.DeviceSelector{Models: []string{"Other", "Fast*"}}, []Device{ssd}},
		{"path", diskv1alpha1.DeviceSelector{Paths: []string{"/dev/loop?", "/dev/sda"}}, []Device{hdd, loop}},
		{"link", diskv1alpha1.DeviceSelector{Paths: []string{"/dev/disk/by-id/nvme-*"}}, []Device{ssd}},
		{"a pattern does not cross folders", diskv1alpha1.DeviceSelector{Paths: []string{"/dev/*/nvme-one"}}, nil},
		{"malformed path", diskv1alpha1.DeviceSelector{Paths: []string{"/dev/["}}, nil},
		{"at least its size", diskv1alpha1.DeviceSelector{MinSize: quantity("100Gi")}, []Device{ssd, hdd}},
		{"at least a byte more", diskv1alpha1.DeviceSelector{MinSize: quantity("107374182401")}, []Device{hdd}},
		{"at most its size", diskv1alpha1.DeviceSelector{MaxSize: quantity("100Gi")}, []Device{ssd}},
		{"all must hold", diskv1alpha1.DeviceSelector{Rotational: &no, MinSize: quantity("1Ti")}, nil},
		{"size and path", diskv1alpha1.DeviceSelector{Paths: []string{"/dev/*"}, MaxSize: quantity("1Gi")}, []Device{loop}},
	} {
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: diskv1alpha1.DiskClassSpec{Devices: tc.selector}}
		want := map[string]bool{}
		for _, d := range tc.selects {
			want[d.Name] = true
		}
		for _, d := range []Device{ssd, hdd, loop} {
			if got := Match([]*diskv1alpha1.DiskClass{class}, nil, d) != nil; got != want[d.Name] {
				t.Errorf("%s: %s selected: %v", tc.name, d.Name, got)
			}
		}
	}
}

func TestMatchChoosesByNameAndNode(t *testing.T) {
	any := diskv1alpha1.DeviceSelector{Paths: []string{"/dev/*"}}
	class := func(name string, selector *metav1.LabelSelector) *diskv1alpha1.DiskClass {
		return &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: diskv1alpha1.DiskClassSpec{NodeSelector: selector, Devices: any}}
	}
	west := &metav1.LabelSelector{MatchLabels: map[string]string{"zone": "west"}}
	broken := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "zone", Operator: "Nonsense"}}}
	d := Device{Name: "sda", Path: "/dev/sda", Size: 1}
	classes := []*diskv1alpha1.DiskClass{class("c", nil), class("b", nil), class("a", west), class("0", broken)}
	if got := Match(classes, map[string]string{"zone": "east"}, d); got == nil || got.Name != "b" {
		t.Errorf("in the east the class is %v, want b", got)
	}
	if got := Match(classes, map[string]string{"zone": "west"}, d); got == nil || got.Name != "a" {
		t.Errorf("in the west the class is %v, want a", got)
	}
	if got := Match(nil, nil, d); got != nil {
		t.Errorf("without classes the class is %v", got)
	}
}
