package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// apt is this machine's apt for packages of one architecture. It has its own state, as if nothing were installed. It
// changes nothing on the machine and needs no root.
type apt struct {
	// dir keeps its state.
	dir  string
	arch string
	// sources is a file of package sources, or empty for those of the machine.
	sources string
	// distribution and release choose packages by their origin. If they are empty, all sources count.
	distribution, release string
	log                   io.Writer

	updated bool
	// updateErr is why some sources could not be read. Those with the packages may still have been read.
	updateErr error
}

// run runs one of apt's programs in folder and returns its output.
func (a *apt) run(ctx context.Context, folder, program string, args ...string) (string, error) {
	at := func(name string) string { return filepath.Join(a.dir, name) }
	options := []string{
		"Dir::State=" + a.dir, "Dir::State::lists=" + at("lists"), "Dir::State::status=" + at("status"), "Dir::Cache=" + at("cache"),
		"Dir::Cache::pkgcache=pkgcache.bin", "Dir::Cache::srcpkgcache=srcpkgcache.bin",
		"Dir::Etc::preferences=" + at("preferences"), "Dir::Etc::preferencesparts=/dev/null",
		"APT::Architecture=" + a.arch, "APT::Architectures=" + a.arch, "APT::Sandbox::User=",
		"Acquire::Languages=none", "Acquire::Retries=3", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
		"APT::Install-Recommends=false",
	}
	if a.sources != "" {
		options = append(options, "Dir::Etc::sourcelist="+a.sources, "Dir::Etc::sourceparts=/dev/null")
	}
	var all []string
	for _, o := range options {
		all = append(all, "-o", o)
	}
	cmd := exec.CommandContext(ctx, program, append(all, args...)...)
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not on this machine: build the images on Debian or Ubuntu", program)
		}
		return "", fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// update reads the lists of the package sources, once, and checks that they have the release.
func (a *apt) update(ctx context.Context) error {
	if a.updated {
		return nil
	}
	for _, folder := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, folder), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"status": "", "preferences": a.preferences()} {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(a.log, "  reading the package sources for %s\n", a.arch)
	_, a.updateErr = a.run(ctx, "", "apt-get", "update", "-q")
	policy, err := a.run(ctx, "", "apt-cache", "policy")
	if err != nil {
		return err
	}
	if err := a.hasRelease(policy); err != nil {
		return errors.Join(err, a.updateErr)
	}
	a.updated = true
	return nil
}

// preferences make apt ignore packages of other distributions and releases.
func (a *apt) preferences() string {
	if a.release == "" {
		return ""
	}
	return fmt.Sprintf("Package: *\nPin: release o=%s,n=%s*\nPin-Priority: 900\n\nPackage: *\nPin: release *\nPin-Priority: -1\n", a.distribution, a.release)
}

var origin = regexp.MustCompile(`release .*\bo=([^,]*).*\bn=([^,]*).*\bb=(\w+)`)

// hasRelease returns nil if the output of `apt-cache policy` names the release, for this architecture.
func (a *apt) hasRelease(policy string) error {
	var there []string
	for line := range strings.Lines(policy) {
		m := origin.FindStringSubmatch(line)
		if m == nil || m[3] != a.arch {
			continue
		}
		if a.release == "" || m[1] == a.distribution && m[2] == a.release {
			return nil
		}
		if name := m[1] + " " + m[2]; !slices.Contains(there, name) {
			there = append(there, name)
		}
	}
	if len(there) == 0 {
		there = []string{"none"}
	}
	wanted := strings.TrimSpace(a.distribution + " " + a.release)
	if wanted == "" {
		wanted = "any distribution"
	}
	return fmt.Errorf("the package sources of this machine have no packages of %s for %s (they have: %s). The agent's image is built from them. "+
		"Build on such a machine, or give a file of package sources with them (make images IMAGES=\"--sources FILE\"), "+
		"or declare another release in %s and run make images-lock", wanted, a.arch, strings.Join(there, ", "), contentsPath)
}

var installed = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) `)

// resolve returns the newest versions of the packages and of all that they depend on.
func (a *apt) resolve(ctx context.Context, names []string) ([]lockedPackage, error) {
	if err := a.update(ctx); err != nil {
		return nil, err
	}
	plan, err := a.run(ctx, "", "apt-get", append([]string{"install", "--simulate", "-q"}, names...)...)
	if err != nil {
		return nil, errors.Join(err, a.updateErr)
	}
	var found []lockedPackage
	for _, m := range installed.FindAllStringSubmatch(plan, -1) {
		name, _, _ := strings.Cut(m[1], ":")
		found = append(found, lockedPackage{Name: name, Version: m[2]})
	}
	return found, nil
}

// describe returns the entries that the package sources have of these versions.
func (a *apt) describe(ctx context.Context, packages []lockedPackage) (map[lockedPackage]string, error) {
	args := []string{"show"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	out, err := a.run(ctx, "", "apt-cache", args...)
	if err != nil {
		return nil, err
	}
	entries := map[lockedPackage]string{}
	for entry := range strings.SplitSeq(out, "\n\n") {
		entries[lockedPackage{Name: controlField(entry, "Package"), Version: controlField(entry, "Version")}] = entry
	}
	return entries, nil
}

// errNotOffered is the error of a version that no package source has.
var errNotOffered = errors.New("no package source of this machine has all of these versions")

// download brings packages into a folder.
func (a *apt) download(ctx context.Context, packages []lockedPackage, folder string) error {
	if err := a.update(ctx); err != nil {
		return err
	}
	args := []string{"download", "-q"}
	for _, p := range packages {
		args = append(args, p.Name+"="+p.Version)
	}
	fmt.Fprintf(a.log, "  downloading %d packages for %s\n", len(packages), a.arch)
	if _, err := a.run(ctx, folder, "apt-get", args...); err != nil {
		return errors.Join(errNotOffered, err, a.updateErr)
	}
	return nil
}
