package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// verifyImages builds the images again, from a copy of the sources in another folder, and compares the digests with
// those that were written to out.
func verifyImages(ctx context.Context, b build, out string) error {
	text, err := os.ReadFile(filepath.Join(out, listFile))
	if err != nil {
		return fmt.Errorf("%w: run make images first", err)
	}
	// The copy has no history.
	src, err := b.source(ctx)
	if err != nil {
		return err
	}
	elsewhere, err := os.MkdirTemp("", "berth-images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(elsewhere)
	if err := copySources(ctx, b.repository, filepath.Join(elsewhere, "sources")); err != nil {
		return err
	}
	again := b
	again.repository, again.version, again.revision = filepath.Join(elsewhere, "sources"), src.version, src.revision
	again.created = src.created
	images, err := again.images(ctx, filepath.Join(elsewhere, "bin"))
	if err != nil {
		return err
	}
	return compare(strings.Fields(string(text)), images)
}

// compare returns an error for each image whose digest is not in the list.
func compare(list []string, images []made) error {
	var differ []error
	for _, m := range images {
		digest, err := m.index.Digest()
		if err != nil {
			return err
		}
		isIt := func(line string) bool { return strings.HasSuffix(line, m.name()+"@"+digest.String()) }
		if !slices.ContainsFunc(list, isIt) {
			differ = append(differ, fmt.Errorf("%s has the digest %s in the second build, and not in the first one:%s", m.name(), digest, lines(list)))
			continue
		}
		fmt.Printf("%s@%s: the same in both builds\n", m.name(), digest)
	}
	return errors.Join(differ...)
}

// copySources copies the files that git knows, as they are in the folder now.
func copySources(ctx context.Context, from, to string) error {
	listed, err := output(ctx, "git", "-C", from, "ls-files", "-z")
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(listed), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(target, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
