package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// build is one build of the images.
type build struct {
	repository, cache, sources string
	// version is the tag, and what the programs say. revision is the commit. Both are found out if they are empty.
	version, revision string
	// created is the time of the commit. It is found out if it is zero.
	created   time.Time
	platforms []string
	// allowUnpinned takes what this machine has, if what is declared cannot be had.
	allowUnpinned bool
	log           io.Writer
}

// source describes the sources that images are built from.
type source struct {
	version, revision string
	// created is the time of the commit.
	created time.Time
	// unpinned says what is not as declared, or is empty.
	unpinned string
}

// images builds the images of all programs. Compiled programs stay in bin.
func (b build) images(ctx context.Context, bin string) ([]made, error) {
	declared, err := readContents(b.repository)
	if err != nil {
		return nil, err
	}
	wanted, err := platformsOf(b.platforms)
	if err != nil {
		return nil, err
	}
	src, err := b.source(ctx)
	if err != nil {
		return nil, err
	}
	var unpinned []string
	toolchain := declared.Go
	if local, err := localGo(ctx); err != nil {
		return nil, err
	} else if b.allowUnpinned && local != declared.Go {
		toolchain = "local"
		unpinned = append(unpinned, local)
	}
	layers, why, err := b.packageLayers(ctx, declared, wanted)
	if err != nil {
		return nil, err
	}
	if why != "" {
		unpinned = append(unpinned, why)
	}
	if src.unpinned = strings.Join(unpinned, ", "); src.unpinned != "" {
		fmt.Fprintf(b.log, "  the images are not made of what is declared, and cannot be pushed: %s\n", src.unpinned)
	}
	c := compiler{repository: b.repository, toolchain: toolchain, version: src.version, log: b.log}
	var all []made
	for _, k := range []kind{schedulerImage, agentImage} {
		m := made{kind: k, source: src}
		for _, p := range wanted {
			if layers[p.name] == nil {
				continue
			}
			program, err := c.compile(ctx, bin, k.program, p)
			if err != nil {
				return nil, err
			}
			one, err := assemble(k, p, src, declared, program, layers[p.name])
			if err != nil {
				return nil, fmt.Errorf("image of %s for %s: %w", k.program, p.name, err)
			}
			m.variants = append(m.variants, one)
		}
		if err := m.join(); err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// packageLayers chooses the files of the agent's packages for each platform. It says what is not as declared: then a
// platform that is not this machine's own may be left out, because other distributions do not offer it everywhere.
func (b build) packageLayers(ctx context.Context, declared contents, wanted []platform) (map[string]*selection, string, error) {
	locked, err := readLock(b.repository, declared)
	if err != nil {
		return nil, "", err
	}
	store := archive{dir: b.cache, log: b.log}
	chosen := map[string]*selection{}
	why := ""
	for _, p := range wanted {
		t, err := store.openAll(ctx, b.apt(p, declared.Distribution, declared.Release), locked.Platforms[p.name])
		if err != nil && b.allowUnpinned {
			fmt.Fprintf(b.log, "  taking this machine's packages: %v\n", err)
			why = "packages of the build machine"
			t, err = b.machinePackages(ctx, store, declared, p)
			if err != nil && p.arch != runtime.GOARCH {
				fmt.Fprintf(b.log, "  %s is left out: %v\n", p.name, err)
				continue
			}
		}
		if err != nil {
			return nil, "", advice(err)
		}
		s, err := t.chosen(declared, p)
		if err != nil {
			return nil, "", fmt.Errorf("packages for %s: %w", p.name, err)
		}
		chosen[p.name] = s
	}
	return chosen, why, nil
}

// machinePackages opens the newest packages that this machine's sources have, whatever distribution it is.
func (b build) machinePackages(ctx context.Context, store archive, declared contents, p platform) (*tree, error) {
	a := b.apt(p, "", "")
	newest, err := store.newest(ctx, a, declared, p)
	if err != nil {
		return nil, err
	}
	return store.openAll(ctx, a, newest)
}

func (b build) apt(p platform, distribution, release string) *apt {
	dir := filepath.Join(b.cache, "apt-"+p.arch)
	if release == "" {
		dir += "-any"
	}
	return &apt{dir: dir, arch: p.arch, sources: b.sources, distribution: distribution, release: release, log: b.log}
}

// writeLock writes packages.lock.yaml with the newest versions, and prints what changes.
func (b build) writeLock(ctx context.Context) error {
	declared, err := readContents(b.repository)
	if err != nil {
		return err
	}
	path := filepath.Join(b.repository, lockPath)
	var before lockFile
	if err := readYAML(path, &before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	after := lockFile{Distribution: declared.Distribution, Release: declared.Release, Platforms: map[string][]lockedPackage{}}
	for _, p := range platforms {
		newest, err := archive{dir: b.cache, log: b.log}.newest(ctx, b.apt(p, declared.Distribution, declared.Release), declared, p)
		if err != nil {
			return err
		}
		after.Platforms[p.name] = newest
		for _, change := range changes(before.Platforms[p.name], newest) {
			fmt.Fprintf(b.log, "%s: %s\n", p.name, change)
		}
	}
	return after.write(path)
}

// changes says which packages are new, gone or of another version.
func changes(before, after []lockedPackage) []string {
	var text []string
	versions := map[string]string{}
	for _, p := range before {
		versions[p.Name] = p.Version
	}
	for _, p := range after {
		switch old := versions[p.Name]; old {
		case p.Version:
		case "":
			text = append(text, fmt.Sprintf("%s %s", p.Name, p.Version))
		default:
			text = append(text, fmt.Sprintf("%s %s, was %s", p.Name, p.Version, old))
		}
		delete(versions, p.Name)
	}
	for _, p := range before {
		if _, gone := versions[p.Name]; gone {
			text = append(text, fmt.Sprintf("%s is not needed any more", p.Name))
		}
	}
	return text
}

// source finds out the version, the commit and its time. SOURCE_DATE_EPOCH says the time if it is set. Sources that are
// not in git have the time zero.
func (b build) source(ctx context.Context) (source, error) {
	s := source{version: b.version, revision: b.revision, created: time.Unix(0, 0).UTC()}
	if s.version == "" {
		text, err := os.ReadFile(filepath.Join(b.repository, "VERSION"))
		if err != nil {
			return s, err
		}
		s.version = strings.TrimSpace(string(text))
	}
	seconds := os.Getenv("SOURCE_DATE_EPOCH")
	if !b.created.IsZero() {
		s.created = b.created
		return s, nil
	}
	git := func(args ...string) string {
		out, err := output(ctx, "git", append([]string{"-C", b.repository}, args...)...)
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(out))
	}
	if s.revision == "" {
		if s.revision = git("rev-parse", "HEAD"); s.revision != "" && git("status", "--porcelain", "--untracked-files=no") != "" {
			s.revision += "-dirty"
		}
	}
	if seconds == "" && s.revision != "" {
		seconds = git("log", "-1", "--format=%ct", strings.TrimSuffix(s.revision, "-dirty"))
	}
	if seconds != "" {
		n, err := strconv.ParseInt(seconds, 10, 64)
		if err != nil {
			return s, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		s.created = time.Unix(n, 0).UTC()
	}
	return s, nil
}
