package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

const (
	// layoutFolder has all images as an OCI layout.
	layoutFolder = "oci"
	// listFile names the images with their digests, for mirrors.
	listFile = "berth-images.txt"
	// refName is the annotation of an OCI layout that has an image's name.
	refName = "org.opencontainers.image.ref.name"
)

// writeAll writes the images: an OCI layout of all, an archive and a list of contents for each platform, and the list
// of images. What an earlier build has left is removed.
func writeAll(out, registry string, images []made) error {
	if err := removeOld(out); err != nil {
		return err
	}
	path, err := layout.Write(filepath.Join(out, layoutFolder), empty.Index)
	if err != nil {
		return err
	}
	var list []string
	for _, m := range images {
		full := qualified(registry, m.name())
		if err := path.AppendIndex(m.index, layout.WithAnnotations(map[string]string{refName: full})); err != nil {
			return err
		}
		for _, v := range m.variants {
			if err := m.writeVariant(out, full, v, path); err != nil {
				return err
			}
		}
		digest, err := m.index.Digest()
		if err != nil {
			return err
		}
		list = append(list, full+"@"+digest.String())
	}
	fmt.Println(strings.Join(list, "\n"))
	return writeList(out, list)
}

func (m made) writeVariant(out, full string, v variant, path layout.Path) error {
	if err := path.AppendImage(v.attached); err != nil {
		return err
	}
	base := filepath.Join(out, m.kind.program+"-"+v.platform.arch)
	if err := os.WriteFile(base+".spdx.json", v.sbom, 0o644); err != nil {
		return err
	}
	tag, err := name.NewTag(full)
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(base+".tar", tag, v.image); err != nil {
		return err
	}
	fmt.Printf("%s.tar  %s for %s\n", base, full, v.platform.name)
	return nil
}

// removeOld removes what a build has written. Compiled programs stay.
func removeOld(out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for _, pattern := range []string{layoutFolder, "*.tar", "*.spdx.json", listFile} {
		found, err := filepath.Glob(filepath.Join(out, pattern))
		if err != nil {
			return err
		}
		for _, path := range found {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// qualified is an image's name with its registry, if there is one.
func qualified(registry, image string) string {
	if registry = strings.Trim(registry, "/"); registry == "" {
		return image
	}
	return registry + "/" + image
}

func writeList(out string, list []string) error {
	return os.WriteFile(filepath.Join(out, listFile), []byte(strings.Join(list, "\n")+"\n"), 0o644)
}
