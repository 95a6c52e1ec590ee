package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// pushAll pushes what writeAll has written, byte for byte: the images under their tags, and the lists of contents as
// referrers. Credentials are those of docker login or podman login. The list of images then names the registry.
func pushAll(ctx context.Context, out, registry string, plainHTTP bool) error {
	index, err := layout.ImageIndexFromPath(filepath.Join(out, layoutFolder))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s has no images: run make images first", out)
	}
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	p := pusher{registry: registry, options: pusherOptions(ctx)}
	if plainHTTP {
		p.naming = append(p.naming, name.Insecure)
	}
	if err := p.check(index, manifest); err != nil {
		return err
	}
	// An image comes before the lists of its contents, which belong to the same repository.
	var repository name.Repository
	for _, d := range manifest.Manifests {
		if full := d.Annotations[refName]; full != "" {
			tag, err := p.pushIndex(index, d, full)
			if err != nil {
				return err
			}
			repository = tag.Context()
			continue
		}
		attached, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := remote.Write(repository.Digest(d.Digest.String()), attached, p.options...); err != nil {
			return fmt.Errorf("push the list of contents of %s: %w", repository, err)
		}
	}
	fmt.Println(strings.Join(p.pushed, "\n"))
	return writeList(out, p.pushed)
}

func pusherOptions(ctx context.Context) []remote.Option {
	return []remote.Option{remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain)}
}

type pusher struct {
	registry string
	naming   []name.Option
	options  []remote.Option
	// pushed are the names of the images in the registry, with digests.
	pushed []string
}

// check refuses images that are not made of what is declared.
func (p *pusher) check(index v1.ImageIndex, manifest *v1.IndexManifest) error {
	for _, d := range manifest.Manifests {
		if d.Annotations[refName] == "" {
			continue
		}
		image, err := index.ImageIndex(d.Digest)
		if err != nil {
			return err
		}
		m, err := image.IndexManifest()
		if err != nil {
			return err
		}
		if why := m.Annotations[labelUnpinned]; why != "" {
			return fmt.Errorf("%s is not made of what is declared (%s): run make images without --allow-unpinned", d.Annotations[refName], why)
		}
	}
	return nil
}

func (p *pusher) pushIndex(index v1.ImageIndex, d v1.Descriptor, full string) (name.Tag, error) {
	// The layout may have been written for another registry.
	image := full[strings.LastIndex(full, "berth/"):]
	tag, err := name.NewTag(qualified(p.registry, image), append([]name.Option{name.StrictValidation}, p.naming...)...)
	if err != nil {
		return name.Tag{}, err
	}
	child, err := index.ImageIndex(d.Digest)
	if err != nil {
		return name.Tag{}, err
	}
	if err := remote.WriteIndex(tag, child, p.options...); err != nil {
		return name.Tag{}, fmt.Errorf("push %s: %w", tag, err)
	}
	p.pushed = append(p.pushed, tag.String()+"@"+d.Digest.String())
	return tag, nil
}
