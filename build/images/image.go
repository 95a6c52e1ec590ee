package main

import (
	"fmt"
	"maps"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// kind is an image for all platforms.
type kind struct {
	program     string
	title       string
	description string
	// hasPackages says that the image has programs of packages.
	hasPackages bool
}

var (
	schedulerImage = kind{
		program: "scheduler", title: "Berth scheduler",
		description: "kube-scheduler that gives out the space of local disks",
	}
	agentImage = kind{
		program: "nodeagent", title: "Berth node agent",
		description: "CSI driver that makes, mounts and wipes volumes on the local disks of a node", hasPackages: true,
	}
)

// repositoryName is the image's name without registry and tag.
func (k kind) repositoryName() string { return "berth/" + k.program }

// variant is an image for one platform.
type variant struct {
	platform platform
	image    v1.Image
	// sbom is its list of contents, in SPDX.
	sbom []byte
	// attached is the list as an image whose subject is this one.
	attached v1.Image
}

// made is an image for several platforms.
type made struct {
	kind     kind
	source   source
	variants []variant
	index    v1.ImageIndex
}

// name is the image's name with its tag.
func (m made) name() string { return m.kind.repositoryName() + ":" + m.source.version }

const (
	labelUnpinned = "dev.berth.unpinned"
	labelPrefix   = "dev.berth."
)

// labels describe an image. Those of packages have the version without what Debian appends to it.
func labels(k kind, src source, declared contents, s *selection) map[string]string {
	l := map[string]string{
		"org.opencontainers.image.title":       k.title,
		"org.opencontainers.image.description": k.description,
		"org.opencontainers.image.source":      "https://github.com/berthdev/berth",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.version":     src.version,
	}
	if src.revision != "" {
		l["org.opencontainers.image.revision"] = src.revision
	}
	if src.unpinned != "" {
		l[labelUnpinned] = src.unpinned
	}
	if k.hasPackages {
		for _, name := range declared.Labels {
			l[labelPrefix+name] = controlField(s.tree.control[name], "Version")
		}
	}
	return l
}

// assemble makes the image for one platform. The packages are a layer of their own: it stays the same from one version
// to the next, so that nodes load it once.
func assemble(k kind, p platform, src source, declared contents, program string, s *selection) (variant, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return variant{}, err
	}
	created := v1.Time{Time: src.created}
	var layers []mutate.Addendum
	if k.hasPackages {
		files := usrLinks()
		maps.Copy(files, s.files)
		l, err := layer(files, "/run", "/tmp", "/var")
		if err != nil {
			return variant{}, err
		}
		layers = append(layers, mutate.Addendum{Layer: l, History: v1.History{Created: created, CreatedBy: "packages of " + contentsPath}})
	}
	entry := "/usr/local/bin/" + k.program
	l, err := layer(map[string]*file{entry: {mode: 0o755, content: content}}, "/etc", "/tmp")
	if err != nil {
		return variant{}, err
	}
	layers = append(layers, mutate.Addendum{Layer: l, History: v1.History{Created: created, CreatedBy: "go build ./cmd/" + k.program}})

	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS:           "linux",
		Architecture: p.arch,
		Created:      created,
		RootFS:       v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Labels:     labels(k, src, declared, s),
			Entrypoint: []string{entry},
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
	}); err != nil {
		return variant{}, err
	}
	if image, err = mutate.Append(image, layers...); err != nil {
		return variant{}, err
	}
	v := variant{platform: p, image: image}
	if v.sbom, err = describe(k, v, src, program, s); err != nil {
		return variant{}, fmt.Errorf("list of contents: %w", err)
	}
	v.attached, err = attach(v, src)
	return v, err
}

// join makes the index of the variants.
func (m *made) join() error {
	notes := labels(m.kind, m.source, contents{}, nil)
	delete(notes, "org.opencontainers.image.title")
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, v := range m.variants {
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: v.image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: v.platform.arch}},
		})
	}
	annotated, ok := mutate.Annotations(index, notes).(v1.ImageIndex)
	if !ok {
		return fmt.Errorf("the index of %s cannot be annotated", m.name())
	}
	m.index = annotated
	return nil
}
