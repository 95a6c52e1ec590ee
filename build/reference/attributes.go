package main

import (
	"fmt"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/build/source"
)

// apiDir is the package of the API.
const apiDir = "apis/disk/v1alpha1"

// nameSection is a part of the page of names: which constants it has, by their names or by a prefix.
type nameSection struct {
	title  string
	intro  string
	names  []string
	prefix string
}

var nameSections = []nameSection{
	{
		title: "Attributes of inline volumes",
		intro: "Keys of `volumeAttributes` in a pod's volume with `csi.driver: disk.berth.dev`. Any other key is refused.",
		names: []string{"AttributeSize", "AttributeClass", "AttributeSpread"},
	},
	{
		title: "Parameters of a StorageClass",
		intro: "Keys of `parameters` in a StorageClass with `provisioner: disk.berth.dev`. Any other key is refused.",
		names: []string{"AttributeClass", "AttributeSpread", "ParameterFSType", "ParameterHeadroom"},
	},
	{
		title: "Attributes of a PersistentVolume",
		intro: "Keys of `spec.csi.volumeAttributes`. They say where the scheduler placed the volume. They are a placement, " +
			"never a permission: once the volume is on a disk, the disk is authoritative.",
		names: []string{"AttributeDisk", "AttributeStart", "AttributeLength"},
	},
	{title: "Annotations", prefix: "Annotation"},
	{title: "Labels", prefix: "Label"},
	{title: "Finalizers", prefix: "Finalizer"},
	{title: "Taints", prefix: "Taint"},
	{
		title: "Condition types",
		intro: "Conditions in `status.conditions` of a NodeDiskCapacity. A DiskClass has Ready alone, which is True when a disk of the " +
			"class is in service.",
		prefix: "Condition",
	},
}

// attributesPage has the names that users, operators and other programs meet in objects. A constant with such a name
// that no section has is an error, and so is one without a comment.
func attributesPage(root string) (string, error) {
	files, err := source.ParseDir(token.NewFileSet(), filepath.Join(root, apiDir))
	if err != nil {
		return "", err
	}
	all := constants(files)
	byName := map[string]constant{}
	for _, c := range all {
		byName[c.name] = c
	}
	p := newPage("Attributes, annotations and other names")
	p.paragraph("For users and operators who meet one of these names in an object. The prefix of them all, " +
		code(diskv1alpha1.GroupName) + ", is also the name of the CSI driver and the group of the API.")
	shown := map[string]bool{}
	for _, s := range nameSections {
		p.heading(2, s.title)
		if s.intro != "" {
			p.paragraph(s.intro)
		}
		names := slices.Clone(s.names)
		for _, c := range all {
			if s.prefix != "" && strings.HasPrefix(c.name, s.prefix) {
				names = append(names, c.name)
			}
		}
		var items []string
		for _, name := range names {
			c, ok := byName[name]
			if !ok {
				return "", fmt.Errorf("%s has no string constant %s", apiDir, name)
			}
			if c.doc == "" {
				return "", fmt.Errorf("%s: %s has no comment", apiDir, name)
			}
			shown[name] = true
			items = append(items, describe(c.name, c.value, c.doc, byName))
		}
		if len(items) == 0 {
			return "", fmt.Errorf("%s has no constant for the section %q", apiDir, s.title)
		}
		p.list(items)
	}
	for _, c := range all {
		if !shown[c.name] && userFacing.MatchString(c.name) {
			return "", fmt.Errorf("%s: no section of the page has %s", apiDir, c.name)
		}
	}
	return p.String(), nil
}

var userFacing = regexp.MustCompile(`^(Attribute|Parameter|Annotation|Label|Finalizer|Taint|Condition)[A-Z]`)

var identifier = regexp.MustCompile(`\b[A-Z][A-Za-z0-9]+\b`)

// describe is the comment of a constant with its value in place of its name, and with the values of the other
// constants that it names.
func describe(name, value, doc string, byName map[string]constant) string {
	rest, named := strings.CutPrefix(strings.Join(strings.Fields(doc), " "), name)
	rest = identifier.ReplaceAllStringFunc(prose(rest), func(id string) string {
		if c, ok := byName[id]; ok {
			return code(c.value)
		}
		if id == "Alignment" {
			return fmt.Sprintf("%d MiB", diskv1alpha1.Alignment>>20)
		}
		return id
	})
	if named {
		return code(value) + rest
	}
	return code(value) + ": " + rest
}
