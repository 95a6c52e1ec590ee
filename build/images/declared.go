package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"sigs.k8s.io/yaml"
)

// contents is images.yaml.
type contents struct {
	Go           string   `json:"go"`
	Distribution string   `json:"distribution"`
	Release      string   `json:"release"`
	Packages     []string `json:"packages"`
	Programs     []string `json:"programs"`
	Libraries    []string `json:"libraries"`
	Files        []string `json:"files"`
	Labels       []string `json:"labels"`
}

// lockFile is packages.lock.yaml.
type lockFile struct {
	Distribution string                     `json:"distribution"`
	Release      string                     `json:"release"`
	Platforms    map[string][]lockedPackage `json:"platforms"`
}

// lockedPackage is a package of which the image has files.
type lockedPackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  string `json:"sha256"`
}

const (
	contentsPath = "build/images/images.yaml"
	lockPath     = "build/images/packages.lock.yaml"
)

// platform is what an image runs on.
type platform struct {
	// name is how container runtimes call it, such as linux/amd64.
	name string
	// arch is the name of the architecture, the same for Go, Debian and container runtimes.
	arch string
	// triplet is the name of Debian's folder of libraries.
	triplet string
	// machine is what ELF files say.
	machine string
}

var platforms = []platform{
	{name: "linux/amd64", arch: "amd64", triplet: "x86_64-linux-gnu", machine: "EM_X86_64"},
	{name: "linux/arm64", arch: "arm64", triplet: "aarch64-linux-gnu", machine: "EM_AARCH64"},
}

func allPlatforms() []string {
	var names []string
	for _, p := range platforms {
		names = append(names, p.name)
	}
	return names
}

// platformsOf returns the platforms with these names, in the order of platforms.
func platformsOf(names []string) ([]platform, error) {
	var found []platform
	for _, p := range platforms {
		if slices.Contains(names, p.name) {
			found = append(found, p)
		}
	}
	for _, name := range names {
		if !slices.Contains(allPlatforms(), name) {
			return nil, fmt.Errorf("no images for platform %q: there are %v", name, allPlatforms())
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no platform is named: there are %v", allPlatforms())
	}
	return found, nil
}

func readYAML(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func readContents(repository string) (contents, error) {
	var c contents
	return c, readYAML(filepath.Join(repository, contentsPath), &c)
}

// readLock reads packages.lock.yaml, which must be of the release that images.yaml names.
func readLock(repository string, c contents) (lockFile, error) {
	var l lockFile
	path := filepath.Join(repository, lockPath)
	if err := readYAML(path, &l); err != nil {
		return l, fmt.Errorf("%w: run make images-lock", err)
	}
	if l.Distribution != c.Distribution || l.Release != c.Release {
		return l, fmt.Errorf("%s is of %s %s and %s names %s %s: run make images-lock",
			lockPath, l.Distribution, l.Release, contentsPath, c.Distribution, c.Release)
	}
	return l, nil
}

const lockHead = `# The Debian packages of which the agent's image has files, for each architecture. Written by: make images-lock
# A security update of one of them is taken by running it again.
`

func (l lockFile) write(path string) error {
	text, err := yaml.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append([]byte(lockHead), text...), 0o644)
}
