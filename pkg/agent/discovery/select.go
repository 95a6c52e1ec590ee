package discovery

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// automaticTransports are those from which a class with adoption Automatic takes devices if it names neither a path nor
// transports.
var automaticTransports = []diskv1alpha1.Transport{diskv1alpha1.TransportPCIe, diskv1alpha1.TransportSATA, diskv1alpha1.TransportSAS}

// selection is the classes of the node that select a device, sorted by name, and why the others do not.
type selection struct {
	classes    []*diskv1alpha1.DiskClass
	objections []string
}

// selectClasses checks all classes for a node with those labels. Of several classes that select a device the first by
// name has it, so the order of arrival does not matter.
func selectClasses(classes []*diskv1alpha1.DiskClass, nodeLabels map[string]string, d Device) selection {
	var s selection
	classes = slices.SortedFunc(slices.Values(classes), func(a, b *diskv1alpha1.DiskClass) int { return cmp.Compare(a.Name, b.Name) })
	for _, class := range classes {
		if !selectsNode(class.Spec.NodeSelector, nodeLabels) {
			continue
		}
		objections := findObjections(&class.Spec, d)
		if len(objections) == 0 {
			s.classes = append(s.classes, class)
			continue
		}
		s.objections = append(s.objections, fmt.Sprintf("class %s: %s", class.Name, strings.Join(objections, "; ")))
	}
	if len(s.classes) == 0 && len(s.objections) == 0 {
		s.objections = []string{"no DiskClass selects this node"}
	}
	return s
}

func (s selection) class(name string) *diskv1alpha1.DiskClass {
	for _, class := range s.classes {
		if class.Name == name {
			return class
		}
	}
	return nil
}

func selectsNode(selector *metav1.LabelSelector, nodeLabels map[string]string) bool {
	if selector == nil {
		return true
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	// An invalid selector selects nothing: otherwise it would hand over disks.
	return err == nil && s.Matches(labels.Set(nodeLabels))
}

// findObjections returns all reasons why the class does not select the device.
//
//nolint:gocyclo // One independent check for each field of the class: together they can be compared with the API.
func findObjections(spec *diskv1alpha1.DiskClassSpec, d Device) []string {
	s := &spec.Devices
	// The API server refuses a selector without criteria. Without that check it still selects nothing.
	if s.Rotational == nil && len(s.Models)+len(s.Paths)+len(s.Serials)+len(s.WWNs) == 0 && s.MinSize == nil && s.MaxSize == nil {
		return []string{"it names no criterion"}
	}
	named := len(s.Paths) > 0 && d.matchesPath(s.Paths)
	var reasons []string
	object := func(format string, arguments ...any) { reasons = append(reasons, fmt.Sprintf(format, arguments...)) }
	if pattern := excludingPattern(s.Exclude, d); pattern != "" {
		object("%q is in devices.exclude", pattern)
	}
	if len(s.Paths) > 0 && !named {
		object("no path matches")
	}
	if len(s.Models) > 0 && !matches(s.Models, d.Model) {
		object("no model matches %q", d.Model)
	}
	if len(s.Serials) > 0 && !matches(s.Serials, d.Serial) {
		object("no serial matches %q", d.Serial)
	}
	if len(s.WWNs) > 0 && !matches(s.WWNs, d.WWN) {
		object("no wwn matches %q", d.WWN)
	}
	if s.Rotational != nil && *s.Rotational != d.Rotational {
		object("rotational is %t, and the kernel says %t; if the kernel is wrong, leave rotational out and name a path", *s.Rotational, d.Rotational)
	}
	if s.MinSize != nil && compare(s.MinSize, d.Size) > 0 {
		object("it is smaller than %s", s.MinSize)
	}
	if s.MaxSize != nil && compare(s.MaxSize, d.Size) < 0 {
		object("it is larger than %s", s.MaxSize)
	}
	if len(s.Transports) > 0 && !slices.Contains(s.Transports, d.Transport) {
		object("no transport matches %s", d.Transport)
	}
	if !named {
		reasons = append(reasons, pathOnlyObjections(spec, d)...)
	}
	return reasons
}

// pathOnlyObjections returns the reasons why only a class that names a path selects the device.
func pathOnlyObjections(spec *diskv1alpha1.DiskClassSpec, d Device) []string {
	var reasons []string
	object := func(format string, arguments ...any) {
		reasons = append(reasons, fmt.Sprintf(format, arguments...)+": only a class that names its path selects it")
	}
	if kind := d.virtualKind(); kind != "" {
		object("it is %s", kind)
	}
	if what := findVolumeModel(d, otherVolumeModels); what != "" {
		object("its model %q is that of %s", d.Model, what)
	}
	if d.Removable {
		object("the kernel says that it is removable")
	}
	if d.Zoned != "" {
		object("it is zoned (%s)", d.Zoned)
	}
	if spec.Adoption == diskv1alpha1.AdoptAutomatic && len(spec.Devices.Transports) == 0 && !slices.Contains(automaticTransports, d.Transport) && d.virtualKind() == "" {
		reasons = append(reasons, fmt.Sprintf("its transport is %s: with adoption Automatic devices.transports must list it, or a path name the device", d.Transport))
	}
	return reasons
}

// excludingPattern returns the pattern of devices.exclude that matches, if there is one.
func excludingPattern(patterns []string, d Device) string {
	values := append([]string{d.Path, d.Model, d.Serial, d.WWN}, d.Links...)
	for _, pattern := range patterns {
		// An invalid pattern excludes everything: otherwise it would hand over disks.
		if _, err := path.Match(pattern, ""); err != nil || matches([]string{pattern}, values...) {
			return pattern
		}
	}
	return ""
}

func compare(q *resource.Quantity, size int64) int { return q.CmpInt64(size) }
