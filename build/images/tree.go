package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// tree is the files of packages, by their absolute paths. Folders that are links to folders of /usr do not occur.
type tree struct {
	files map[string]*file
	// control is the description of each package.
	control map[string]string
}

// file is a regular file, or a symbolic link if link is not empty.
type file struct {
	mode    fs.FileMode
	link    string
	content []byte
	// owner is the package that has it.
	owner string
}

// mergedUsr are the folders that are links to folders of /usr.
var mergedUsr = []string{"bin", "lib", "lib64", "sbin"}

func newTree() *tree { return &tree{files: map[string]*file{}, control: map[string]string{}} }

// clean makes a path absolute, and leads it around the links of mergedUsr.
func clean(name string) string {
	name = path.Clean("/" + name)
	for _, d := range mergedUsr {
		if rest, ok := strings.CutPrefix(name, "/"+d+"/"); ok {
			return "/usr/" + d + "/" + rest
		}
	}
	return name
}

// unpack adds the files of a package.
func (t *tree) unpack(ctx context.Context, deb string) error {
	control, err := output(ctx, "dpkg-deb", "--field", deb)
	if err != nil {
		return err
	}
	name := controlField(string(control), "Package")
	if name == "" {
		return fmt.Errorf("%s has no name", deb)
	}
	t.control[name] = string(control)
	content, err := output(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	if err != nil {
		return err
	}
	r := tar.NewReader(bytes.NewReader(content))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", deb, err)
		}
		// Without the set-user-ID bit of mount: the agent is root.
		f := &file{owner: name, mode: fs.FileMode(h.Mode).Perm()}
		switch h.Typeflag {
		case tar.TypeReg:
			if f.content, err = io.ReadAll(r); err != nil {
				return fmt.Errorf("%s: %w", deb, err)
			}
		case tar.TypeSymlink:
			f.link = h.Linkname
		case tar.TypeLink:
			f.link = clean(h.Linkname)
		default:
			continue
		}
		t.files[clean(h.Name)] = f
	}
}

// output runs a program and returns what it prints.
func output(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// controlField returns a field of a package's description, or an empty string.
func controlField(control, name string) string {
	for line := range strings.Lines(control) {
		if value, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// selection is the files of a tree that an image has.
type selection struct {
	tree     *tree
	platform platform
	files    map[string]*file
}

func newSelection(t *tree, p platform) *selection {
	return &selection{tree: t, platform: p, files: map[string]*file{}}
}

// packages returns the names of the packages that have a file in the selection.
func (s *selection) packages() []string {
	used := map[string]bool{}
	for _, f := range s.files {
		used[f.owner] = true
	}
	return slices.Sorted(maps.Keys(used))
}

// addProgram adds a program by its name.
func (s *selection) addProgram(name string) error {
	for _, folder := range []string{"/usr/sbin/", "/usr/bin/"} {
		if _, ok := s.tree.files[folder+name]; ok {
			return s.add(folder + name)
		}
	}
	return fmt.Errorf("no package has the program %s", name)
}

// add adds a file with the target of a link, and with all that a program or library needs to be loaded. A path that
// ends in a slash is all files below it.
func (s *selection) add(name string) error {
	if strings.HasSuffix(name, "/") {
		found := false
		for _, below := range slices.Sorted(maps.Keys(s.tree.files)) {
			if strings.HasPrefix(below, name) {
				found = true
				if err := s.add(below); err != nil {
					return err
				}
			}
		}
		if !found {
			return fmt.Errorf("no package has a file in %s", name)
		}
		return nil
	}
	name = clean(name)
	if _, ok := s.files[name]; ok {
		return nil
	}
	f, ok := s.tree.files[name]
	if !ok {
		return s.addBehindLink(name)
	}
	s.files[name] = f
	if f.link != "" {
		return s.add(follow(name, f.link))
	}
	if bytes.HasPrefix(f.content, []byte("#!")) {
		return fmt.Errorf("%s of package %s is a script: the image has no interpreter", name, f.owner)
	}
	if bytes.HasPrefix(f.content, []byte(elf.ELFMAG)) {
		return s.addNeeded(name, f)
	}
	return nil
}

// follow returns where a symbolic link leads.
func follow(name, link string) string {
	if path.IsAbs(link) {
		return clean(link)
	}
	return clean(path.Join(path.Dir(name), link))
}

// addBehindLink adds a file of which a folder in its path is a link, with that link.
func (s *selection) addBehindLink(name string) error {
	for folder := path.Dir(name); folder != "/"; folder = path.Dir(folder) {
		if f, ok := s.tree.files[folder]; ok && f.link != "" {
			s.files[folder] = f
			return s.add(follow(folder, f.link) + strings.TrimPrefix(name, folder))
		}
	}
	return fmt.Errorf("no package has %s", name)
}

// addNeeded adds the loader and the libraries that a program or library names.
func (s *selection) addNeeded(name string, f *file) error {
	e, err := elf.NewFile(bytes.NewReader(f.content))
	if err != nil {
		return fmt.Errorf("%s of package %s: %w", name, f.owner, err)
	}
	if e.Machine.String() != s.platform.machine {
		return fmt.Errorf("%s of package %s is for %s, and not for %s", name, f.owner, e.Machine, s.platform.name)
	}
	for _, p := range e.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		loader, err := io.ReadAll(p.Open())
		if err != nil {
			return fmt.Errorf("%s of package %s: %w", name, f.owner, err)
		}
		if err := s.add(string(bytes.TrimRight(loader, "\x00"))); err != nil {
			return fmt.Errorf("the loader of %s: %w", name, err)
		}
	}
	needed, err := e.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s of package %s: %w", name, f.owner, err)
	}
	for _, library := range needed {
		if err := s.addLibrary(library); err != nil {
			return fmt.Errorf("%s of package %s needs %s: %w", name, f.owner, library, err)
		}
	}
	return nil
}

// addLibrary adds a library from the folders in which the loader looks without a configuration.
func (s *selection) addLibrary(name string) error {
	for _, folder := range []string{"/usr/lib/" + s.platform.triplet + "/", "/usr/lib/", "/usr/lib64/"} {
		if _, ok := s.tree.files[folder+name]; ok {
			return s.add(folder + name)
		}
	}
	return errors.New("no package has it: a package that does is missing in " + contentsPath)
}

// addRecords adds the copyright file of each package, and its description where scanners look for it.
func (s *selection) addRecords() error {
	for done := false; !done; {
		before := len(s.files)
		for _, name := range s.packages() {
			if err := s.add("/usr/share/doc/" + name + "/copyright"); err != nil {
				return fmt.Errorf("the licence of package %s: %w", name, err)
			}
			s.files["/var/lib/dpkg/status.d/"+name] = &file{mode: 0o644, content: []byte(s.tree.control[name]), owner: name}
		}
		done = len(s.files) == before
	}
	return nil
}
