package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/package-url/packageurl-go"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// spdxType is the media type of a list of contents.
const spdxType = "application/spdx+json"

const noAssertion = "NOASSERTION"

// describe lists what a variant contains: the Go modules that its program says it is linked from, and the packages.
func describe(k kind, v variant, src source, program string, s *selection) ([]byte, error) {
	digest, err := v.image.Digest()
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return nil, err
	}
	name := k.repositoryName()
	root := component(name, src.version, packageurl.NewPackageURL(packageurl.TypeOCI, "", k.program, digest.String(),
		packageurl.QualifiersFromMap(map[string]string{"arch": v.platform.arch, "tag": src.version}), ""))
	root.PrimaryPackagePurpose = "CONTAINER"
	root.PackageLicenseDeclared = "Apache-2.0"
	root.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: digest.Hex}}

	parts := []*spdx.Package{
		component(info.Main.Path, src.version, modulePURL(info.Main.Path, src.version)),
		component("stdlib", strings.TrimPrefix(info.GoVersion, "go"), modulePURL("stdlib", strings.TrimPrefix(info.GoVersion, "go"))),
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		parts = append(parts, component(m.Path, m.Version, modulePURL(m.Path, m.Version)))
	}
	if k.hasPackages {
		parts = append(parts, debianParts(s, v.platform)...)
	}
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      fmt.Sprintf("%s:%s for %s", name, src.version, v.platform.name),
		DocumentNamespace: fmt.Sprintf("https://github.com/berthdev/berth/spdx/%s-%s", k.program, digest.Hex),
		CreationInfo: &spdx.CreationInfo{
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "berth-images-" + src.version}},
			Created:  src.created.Format(time.RFC3339),
		},
		Packages:      append([]*spdx.Package{root}, parts...),
		Relationships: []*spdx.Relationship{relation("DOCUMENT", "DESCRIBES", root.PackageSPDXIdentifier)},
	}
	for _, p := range parts {
		doc.Relationships = append(doc.Relationships, relation(root.PackageSPDXIdentifier, "CONTAINS", p.PackageSPDXIdentifier))
	}
	var out bytes.Buffer
	if err := spdxjson.Write(doc, &out, spdxjson.Indent("  ")); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// debianParts are the packages of a selection.
func debianParts(s *selection, p platform) []*spdx.Package {
	var parts []*spdx.Package
	release := osRelease(s)
	for _, name := range s.packages() {
		control := s.tree.control[name]
		version := controlField(control, "Version")
		qualifiers := map[string]string{"arch": controlField(control, "Architecture")}
		if release["VERSION_CODENAME"] != "" {
			qualifiers["distro"] = release["VERSION_CODENAME"]
		}
		if source, _, _ := strings.Cut(controlField(control, "Source"), " "); source != "" {
			qualifiers["upstream"] = source
		}
		part := component(name, version, packageurl.NewPackageURL(packageurl.TypeDebian, release["ID"], name, version,
			packageurl.QualifiersFromMap(qualifiers), ""))
		part.PackageHomePage = controlField(control, "Homepage")
		part.PackageComment = "licence: /usr/share/doc/" + name + "/copyright in the image for " + p.name
		parts = append(parts, part)
	}
	return parts
}

// osRelease is the file os-release of a selection.
func osRelease(s *selection) map[string]string {
	values := map[string]string{}
	if f, ok := s.files["/usr/lib/os-release"]; ok {
		for line := range strings.Lines(string(f.content)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			values[key] = strings.Trim(value, `"`)
		}
	}
	return values
}

func modulePURL(module, version string) *packageurl.PackageURL {
	namespace, name := path.Split(module)
	return packageurl.NewPackageURL(packageurl.TypeGolang, strings.TrimSuffix(namespace, "/"), name, version, nil, "")
}

var noIdentifier = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// component is a part of an image, identified by its package URL.
func component(name, version string, url *packageurl.PackageURL) *spdx.Package {
	id := url.Type + "-" + noIdentifier.ReplaceAllString(name, "-")
	if version != "" {
		id += "-" + noIdentifier.ReplaceAllString(version, "-")
	}
	return &spdx.Package{
		PackageName: name, PackageVersion: version, PackageSPDXIdentifier: common.ElementID("Package-" + id),
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion,
		PackageCopyrightText: noAssertion, IsFilesAnalyzedTagPresent: true,
		PackageExternalReferences: []*spdx.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: url.ToString(),
		}},
	}
}

func relation(from common.ElementID, what string, to common.ElementID) *spdx.Relationship {
	return &spdx.Relationship{
		RefA: common.MakeDocElementID("", string(from)), RefB: common.MakeDocElementID("", string(to)), Relationship: what,
	}
}

// attach makes the list of contents an image whose subject is the variant: registries list it as a referrer.
func attach(v variant, src source) (v1.Image, error) {
	subject, err := partial.Descriptor(v.image)
	if err != nil {
		return nil, err
	}
	// The type of the config is the type of the artifact.
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), spdxType)
	if image, err = mutate.Append(image, mutate.Addendum{Layer: static.NewLayer(v.sbom, spdxType), MediaType: spdxType}); err != nil {
		return nil, err
	}
	notes := map[string]string{"org.opencontainers.image.created": src.created.Format(time.RFC3339)}
	attached, ok := mutate.Subject(mutate.Annotations(image, notes).(v1.Image), v1.Descriptor{
		MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest,
	}).(v1.Image)
	if !ok {
		return nil, fmt.Errorf("the list of contents cannot be attached to %s", subject.Digest)
	}
	return attached, nil
}
