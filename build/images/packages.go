package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// archive is a folder of packages. They stay there, and are found by their checksums.
type archive struct {
	dir string
	log io.Writer
}

// path is where a package is, or will be.
func (c archive) path(p lockedPackage, arch string) string {
	return filepath.Join(c.dir, fmt.Sprintf("%s_%s_%s.deb", p.Name, strings.ReplaceAll(p.Version, ":", "%3a"), arch))
}

// fill downloads the packages that the archive does not have with the right checksum.
func (c archive) fill(ctx context.Context, a *apt, packages []lockedPackage) error {
	missing := map[string]lockedPackage{}
	for _, p := range packages {
		if sum, err := checksum(c.path(p, a.arch)); err != nil || sum != p.SHA256 {
			missing[p.SHA256] = p
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(c.dir, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := a.download(ctx, slices.Collect(maps.Values(missing)), work); err != nil {
		return err
	}
	return c.keep(work, a.arch, missing)
}

// keep moves downloaded packages into the archive, and returns an error for those that are not the ones expected.
func (c archive) keep(work, arch string, expected map[string]lockedPackage) error {
	found, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	for _, path := range found {
		sum, err := checksum(path)
		if err != nil {
			return err
		}
		p, ok := expected[sum]
		if !ok {
			return fmt.Errorf("%s for %s has the SHA-256 %s, which %s does not have: the package sources are not those that the lock was made from",
				filepath.Base(path), arch, sum, lockPath)
		}
		if err := os.Rename(path, c.path(p, arch)); err != nil {
			return err
		}
		delete(expected, sum)
	}
	if len(expected) > 0 {
		return fmt.Errorf("apt-get download did not write %v for %s", slices.Collect(maps.Values(expected)), arch)
	}
	return nil
}

func checksum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// openAll returns the files of all packages.
func (c archive) openAll(ctx context.Context, a *apt, packages []lockedPackage) (*tree, error) {
	if err := c.fill(ctx, a, packages); err != nil {
		return nil, err
	}
	t := newTree()
	for _, p := range packages {
		if err := t.unpack(ctx, c.path(p, a.arch)); err != nil {
			return nil, fmt.Errorf("package %s: %w", p.Name, err)
		}
	}
	return t, nil
}

// chosen is what the image has of the packages.
func (t *tree) chosen(c contents, p platform) (*selection, error) {
	s := newSelection(t, p)
	for _, program := range c.Programs {
		if err := s.addProgram(program); err != nil {
			return nil, err
		}
	}
	for _, library := range c.Libraries {
		if err := s.addLibrary(library); err != nil {
			return nil, fmt.Errorf("library %s: %w", library, err)
		}
	}
	for _, path := range c.Files {
		if err := s.add(path); err != nil {
			return nil, err
		}
	}
	return s, s.addRecords()
}

// newest resolves the packages of a platform to the newest versions, and keeps those of which the image has files.
func (c archive) newest(ctx context.Context, a *apt, want contents, p platform) ([]lockedPackage, error) {
	all, err := a.resolve(ctx, want.Packages)
	if err != nil {
		return nil, err
	}
	entries, err := a.describe(ctx, all)
	if err != nil {
		return nil, err
	}
	var candidates []lockedPackage
	for _, q := range all {
		entry := entries[q]
		q.SHA256 = controlField(entry, "SHA256")
		// Programs of other packages are not in the image, so only libraries can be needed.
		if isLibrary := controlField(entry, "Section") == "libs"; isLibrary || slices.Contains(want.Packages, q.Name) {
			candidates = append(candidates, q)
		}
	}
	t, err := c.openAll(ctx, a, candidates)
	if err != nil {
		return nil, err
	}
	s, err := t.chosen(want, p)
	if err != nil {
		return nil, err
	}
	used := s.packages()
	kept := slices.DeleteFunc(candidates, func(q lockedPackage) bool { return !slices.Contains(used, q.Name) })
	slices.SortFunc(kept, func(a, b lockedPackage) int { return strings.Compare(a.Name, b.Name) })
	return kept, nil
}

// advice is what to do about a version that is not offered any more.
func advice(err error) error {
	if !errors.Is(err, errNotOffered) {
		return err
	}
	return fmt.Errorf("%w\nDistributions offer only the newest versions of their packages. Run make images-lock, and commit %s; "+
		"or give package sources that still have it: make images IMAGES=\"--sources FILE\"", err, lockPath)
}
