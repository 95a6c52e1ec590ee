package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	spdxjson "github.com/spdx/tools-golang/json"
)

// program is a program that is compiled in no time. It stands for those of Berth, whose size shows nothing here.
const program = "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(\"berth\") }\n"

// tagged is compiled if the tag is set.
const tagged = "//go:build other\n\npackage main\n\nfunc init() { panic(\"other\") }\n"

// copyOfSources is a folder of sources with what is declared in this repository.
func copyOfSources(t *testing.T, folder string) string {
	t.Helper()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{contentsPath, lockPath} {
		text, err := os.ReadFile(filepath.Join("../..", name))
		if err != nil {
			t.Fatal(err)
		}
		write(name, string(text))
	}
	write("go.mod", "module github.com/berthdev/berth\n\ngo 1.26.0\n")
	write("cmd/scheduler/main.go", program)
	write("cmd/nodeagent/main.go", program)
	write("cmd/nodeagent/other.go", tagged)
	return folder
}

func cacheFolder(t *testing.T) string {
	t.Helper()
	folder, err := filepath.Abs("../../.build/packages")
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// testBuild builds images of small programs, with the packages of this repository if this machine can have them.
func testBuild(t *testing.T, folder string) []made {
	t.Helper()
	b := build{
		repository: copyOfSources(t, filepath.Join(folder, "sources")), cache: cacheFolder(t), version: "v1.2.3", revision: "0123abc",
		created: time.Unix(1_700_000_000, 0).UTC(), platforms: allPlatforms(), allowUnpinned: true, log: t.Output(),
	}
	images, err := b.images(t.Context(), filepath.Join(folder, "bin"))
	if err != nil {
		t.Fatal(err)
	}
	return images
}

// built is a build that tests share. Nothing changes it.
var built []made

func builtImages(t *testing.T) []made {
	t.Helper()
	if built == nil {
		built = testBuild(t, t.TempDir())
	}
	return built
}

// TestSameBytes asserts that two builds in different folders, of users with different settings, write the same bytes.
func TestSameBytes(t *testing.T) {
	outputs := [2]string{t.TempDir(), t.TempDir()}
	if err := writeAll(outputs[0], "", builtImages(t)); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"GOFLAGS": "-tags=other", "GOAMD64": "v3", "GOARM64": "v8.1", "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8"} {
		t.Setenv(name, value)
	}
	defer syscall.Umask(syscall.Umask(0o77))
	if err := writeAll(outputs[1], "", testBuild(t, filepath.Join(t.TempDir(), "deep", "deeper"))); err != nil {
		t.Fatal(err)
	}
	first, second := filesBelow(t, outputs[0]), filesBelow(t, outputs[1])
	if len(first) < 8 {
		t.Errorf("only %d files were written: %v", len(first), slices.Sorted(maps.Keys(first)))
	}
	if a, b := slices.Sorted(maps.Keys(first)), slices.Sorted(maps.Keys(second)); !slices.Equal(a, b) {
		t.Errorf("other files were written:\n%v\n%v", a, b)
	}
	for name, content := range first {
		if !bytes.Equal(content, second[name]) {
			t.Errorf("%s differs", name)
		}
	}
}

func filesBelow(t *testing.T, folder string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(folder, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(name)
		files[strings.TrimPrefix(name, folder)] = content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestContents asserts that the images have what programs need to run, the licences, and nothing that depends on the
// machine. It reads the layers, and does not trust what chose the files.
func TestContents(t *testing.T) {
	images := builtImages(t)
	declared, err := readContents("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range images {
		for _, v := range m.variants {
			t.Run(m.kind.program+"-"+v.platform.arch, func(t *testing.T) {
				checkConfig(t, m, v)
				files := layersOf(t, v.image)
				if !m.kind.hasPackages {
					if got := regular(files); !slices.Equal(got, []string{"usr/local/bin/" + m.kind.program}) {
						t.Errorf("the image has %v", got)
					}
					return
				}
				for _, name := range declared.Programs {
					if find(files, "usr/sbin/"+name) == nil && find(files, "usr/bin/"+name) == nil {
						t.Errorf("the image has no %s", name)
					}
				}
				for _, name := range []string{"etc/mke2fs.conf", "etc/os-release", "usr/share/common-licenses/GPL-2"} {
					if find(files, name) == nil {
						t.Errorf("the image has no %s", name)
					}
				}
				checkLibraries(t, files, v.platform)
				checkPackages(t, files, v)
			})
		}
	}
}

// checkConfig asserts that an image says what it is.
func checkConfig(t *testing.T, m made, v variant) {
	t.Helper()
	config, err := v.image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != v.platform.arch || config.Created.Unix() != 1_700_000_000 {
		t.Errorf("the image is for %s/%s and of %s", config.OS, config.Architecture, config.Created)
	}
	if want := []string{"/usr/local/bin/" + m.kind.program}; !slices.Equal(config.Config.Entrypoint, want) {
		t.Errorf("entrypoint %v, want %v", config.Config.Entrypoint, want)
	}
	wanted := map[string]string{"org.opencontainers.image.version": "v1.2.3", "org.opencontainers.image.revision": "0123abc"}
	if m.kind.hasPackages {
		maps.Copy(wanted, map[string]string{"dev.berth.e2fsprogs": "1.", "dev.berth.xfsprogs": "6.", "dev.berth.util-linux": "2."})
	}
	for label, prefix := range wanted {
		if got := config.Config.Labels[label]; !strings.HasPrefix(got, prefix) {
			t.Errorf("label %s is %q, want %s…", label, got, prefix)
		}
	}
	if len(config.History) != len(config.RootFS.DiffIDs) {
		t.Errorf("%d layers have %d lines of history", len(config.RootFS.DiffIDs), len(config.History))
	}
	for _, h := range config.History {
		if !h.Created.Equal(config.Created.Time) {
			t.Errorf("a layer is of %s, and the image of %s", h.Created, config.Created)
		}
	}
}

// entry is a file of an image.
type entry struct {
	tar.Header
	content []byte
}

// layersOf returns the files of an image, and asserts that their headers say nothing of the machine.
func layersOf(t *testing.T, image v1.Image) map[string]*entry {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*entry{}
	for _, l := range layers {
		content, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		defer content.Close()
		last := ""
		for r := tar.NewReader(content); ; {
			h, err := r.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Uid != 0 || h.Gid != 0 || h.Uname+h.Gname != "" || h.ModTime.Unix() != 0 || h.Mode&0o6000 != 0 || h.Name <= last {
				t.Errorf("after %s: %+v", last, h)
			}
			e := &entry{Header: *h}
			if e.content, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
			last, files[strings.TrimSuffix(h.Name, "/")] = h.Name, e
		}
	}
	return files
}

func regular(files map[string]*entry) []string {
	var names []string
	for name, e := range files {
		if e.Typeflag == tar.TypeReg {
			names = append(names, name)
		}
	}
	return slices.Sorted(slices.Values(names))
}

// find follows symbolic links, also in the folders of a path, as a kernel does.
func find(files map[string]*entry, name string) *entry {
	for range 20 {
		at, rest, more := "", name, true
		for more {
			var part string
			part, rest, more = strings.Cut(rest, "/")
			at = path.Join(at, part)
			if e, ok := files[at]; ok && e.Typeflag == tar.TypeSymlink {
				if path.IsAbs(e.Linkname) {
					name = path.Join(e.Linkname[1:], rest)
				} else {
					name = path.Join(path.Dir(at), e.Linkname, rest)
				}
				break
			} else if !more {
				return e
			}
		}
	}
	return nil
}

// checkLibraries asserts that each program and library is of the platform, and that the loader finds all it names.
func checkLibraries(t *testing.T, files map[string]*entry, p platform) {
	t.Helper()
	linked := 0
	for _, name := range regular(files) {
		e, err := elf.NewFile(bytes.NewReader(files[name].content))
		if err != nil {
			continue
		}
		if e.Machine.String() != p.machine {
			t.Errorf("%s is for %s", name, e.Machine)
		}
		needed, err := e.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		for _, library := range needed {
			linked++
			if find(files, "lib/"+p.triplet+"/"+library) == nil && find(files, "lib64/"+library) == nil && find(files, "lib/"+library) == nil {
				t.Errorf("%s needs %s", name, library)
			}
		}
		for _, segment := range e.Progs {
			if segment.Type != elf.PT_INTERP {
				continue
			}
			loader, err := io.ReadAll(segment.Open())
			if err != nil {
				t.Fatal(err)
			}
			if find(files, strings.Trim(string(loader), "/\x00")) == nil {
				t.Errorf("%s needs %s", name, loader)
			}
		}
	}
	if linked < 30 {
		t.Errorf("programs and libraries name only %d libraries", linked)
	}
}

// checkPackages asserts that each package is described where scanners look, with its licence, and listed in the SBOM.
func checkPackages(t *testing.T, files map[string]*entry, v variant) {
	t.Helper()
	doc, err := spdxjson.Read(bytes.NewReader(v.sbom))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		listed[p.PackageName] = p.PackageExternalReferences[0].Locator
		if id := string(p.PackageSPDXIdentifier); ids[id] {
			t.Errorf("%s is twice in the list of contents", id)
		} else {
			ids[id] = true
		}
	}
	described := 0
	for name, e := range files {
		of, ok := strings.CutPrefix(name, "var/lib/dpkg/status.d/")
		if !ok {
			continue
		}
		described++
		if !bytes.HasPrefix(e.content, []byte("Package: "+of+"\n")) {
			t.Errorf("%s is %.40q", name, e.content)
		}
		if licence := find(files, "usr/share/doc/"+of+"/copyright"); licence == nil || len(licence.content) == 0 {
			t.Errorf("package %s has no copyright file", of)
		}
		if url := listed[of]; !strings.HasPrefix(url, "pkg:deb/") || !strings.Contains(url, "arch="+v.platform.arch) && !strings.Contains(url, "arch=all") {
			t.Errorf("package %s is %q in the list of contents", of, url)
		}
	}
	if described < 10 {
		t.Errorf("only %d packages are described", described)
	}
	for _, part := range []string{"github.com/berthdev/berth", "stdlib"} {
		if !strings.HasPrefix(listed[part], "pkg:golang/") {
			t.Errorf("%s is %q in the list of contents", part, listed[part])
		}
	}
}

// TestMissingLibrary asserts that a program is refused if no package has a library that it names, or that this one
// names.
func TestMissingLibrary(t *testing.T) {
	images := builtImages(t)
	agent := images[slices.IndexFunc(images, func(m made) bool { return m.kind.hasPackages })]
	for _, v := range agent.variants {
		files := layersOf(t, v.image)
		for _, missing := range []string{"libmount.so.1", "libc.so.6", "libpcre2-8.so.0"} {
			tree := newTree()
			for name, e := range files {
				if path.Base(name) != missing && e.Typeflag != tar.TypeDir {
					tree.files["/"+name] = &file{link: e.Linkname, content: e.content}
				}
			}
			err := newSelection(tree, v.platform).addProgram("mount")
			if err == nil || !strings.Contains(err.Error(), "needs "+missing) {
				t.Errorf("mount for %s without %s: %v", v.platform.name, missing, err)
			}
		}
	}
}

// needRoot skips the test without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		skipOrFail(t, "SKIP-NEEDS-ROOT: run this test as root: it changes the root folder of a process")
	}
}

// skipOrFail skips the test, and fails it with CI=true. Package testenv, which does so for the other tests, is in
// another module.
func skipOrFail(t *testing.T, message string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(message)
	}
	t.Skip(message)
}

// TestPrograms runs the programs of the agent's image with nothing but its own files. Those of other architectures run
// by emulation.
func TestPrograms(t *testing.T) {
	needRoot(t)
	images := builtImages(t)
	declared, err := readContents("../..")
	if err != nil {
		t.Fatal(err)
	}
	agent := images[slices.IndexFunc(images, func(m made) bool { return m.kind.hasPackages })]
	if len(declared.Programs) == 0 || len(agent.variants) < 2 {
		t.Fatalf("%d programs of %d platforms", len(declared.Programs), len(agent.variants))
	}
	for _, v := range agent.variants {
		t.Run(v.platform.arch, func(t *testing.T) {
			emulator := emulatorOf(t, v.platform)
			root := t.TempDir()
			lay(t, root, layersOf(t, v.image))
			if emulator != "" {
				content, err := os.ReadFile(emulator)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, "qemu"), content, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range declared.Programs {
				tryProgram(t, root, emulator != "", v.platform, name)
			}
		})
	}
}

// emulatorOf returns the program that runs those of another architecture. It is empty for this machine's own. It is
// that of Debian's qemu-user-static, which is downloaded and not installed.
func emulatorOf(t *testing.T, p platform) string {
	t.Helper()
	if p.arch == runtime.GOARCH {
		return ""
	}
	machine, _, _ := strings.Cut(p.triplet, "-")
	name := "qemu-" + machine + "-static"
	if emulator, err := exec.LookPath(name); err == nil {
		return emulator
	}
	cache := filepath.Join(cacheFolder(t), "emulators")
	emulator := filepath.Join(cache, name)
	if _, err := os.Stat(emulator); err == nil {
		return emulator
	}
	if err := fetchEmulator(t, cache, name); err != nil {
		skipOrFail(t, fmt.Sprintf("SKIP-UNFIT: %s, which runs programs for %s, cannot be had: %v", name, p.name, err))
	}
	return emulator
}

func fetchEmulator(t *testing.T, cache, name string) error {
	t.Helper()
	work := t.TempDir()
	a := (build{cache: cacheFolder(t), log: t.Output()}).apt(platform{arch: runtime.GOARCH}, "", "")
	if err := a.update(t.Context()); err != nil {
		return err
	}
	if _, err := a.run(t.Context(), work, "apt-get", "download", "-q", "qemu-user-static"); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("apt-get download wrote %d packages", len(found))
	}
	tree := newTree()
	if err := tree.unpack(t.Context(), found[0]); err != nil {
		return err
	}
	f := tree.files["/usr/bin/"+name]
	if f == nil {
		return fmt.Errorf("%s has no %s", found[0], name)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	// An interrupted test leaves no half of it.
	whole := filepath.Join(work, name)
	if err := os.WriteFile(whole, f.content, 0o755); err != nil {
		return err
	}
	return exec.Command("mv", whole, filepath.Join(cache, name)).Run()
}

// lay writes the files of an image into a folder.
func lay(t *testing.T, root string, files map[string]*entry) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		e, at := files[name], filepath.Join(root, name)
		var err error
		switch e.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(at, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(e.Linkname, at)
		default:
			err = os.WriteFile(at, e.content, os.FileMode(e.Mode))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// tryProgram asserts that a program can say its version.
func tryProgram(t *testing.T, root string, emulated bool, p platform, name string) {
	t.Helper()
	flag := "-V"
	if slices.Contains([]string{"mount", "umount", "wipefs", "blkid"}, name) {
		flag = "--version"
	}
	at := "/usr/sbin/" + name
	if _, err := os.Stat(filepath.Join(root, "usr/bin", name)); err == nil {
		at = "/usr/bin/" + name
	}
	args := []string{at, flag}
	if emulated {
		args = append([]string{"/qemu"}, args...)
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	// The program is looked up in the other root folder, and not here.
	cmd.Path, cmd.Err, cmd.Dir = args[0], nil, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	out, err := cmd.CombinedOutput()
	text := strings.Join(strings.Fields(string(out)), " ")
	// resize2fs has no flag for its version: it prints it before it complains about the flag.
	if !slices.ContainsFunc([]string{"1.", "2.", "6."}, func(v string) bool { return strings.Contains(text, " "+v) }) || strings.Contains(text, "error while loading") {
		t.Errorf("%s for %s: %v: %s", name, p.name, err, text)
	}
	t.Logf("%s %s: %.60s", p.name, name, text)
}

// TestLayout asserts that the OCI layout has both images with their names, and for each platform a list of contents.
func TestLayout(t *testing.T) {
	out := t.TempDir()
	if err := writeAll(out, "registry.example.com", fakeImages(t, "")); err != nil {
		t.Fatal(err)
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(out, layoutFolder))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	subjects := 0
	for _, d := range manifest.Manifests {
		if name := d.Annotations[refName]; name != "" {
			names = append(names, name)
			continue
		}
		attached, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		m, err := attached.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject != nil && string(m.Config.MediaType) == spdxType {
			subjects++
		}
	}
	want := []string{"registry.example.com/berth/scheduler:v1.2.3", "registry.example.com/berth/nodeagent:v1.2.3"}
	if !slices.Equal(names, want) || subjects != 4 {
		t.Errorf("images %v with %d lists of contents, want %v with 4", names, subjects, want)
	}
	list, err := os.ReadFile(filepath.Join(out, listFile))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Fields(string(list)) {
		if wanted := fmt.Sprintf("%s@%s", want[i], manifest.Manifests[3*i].Digest); line != wanted {
			t.Errorf("line %d of %s is %s, want %s", i, listFile, line, wanted)
		}
	}
}

// TestTags asserts that manifests name the images by the version.
func TestTags(t *testing.T) {
	version, err := os.ReadFile("../../VERSION")
	if err != nil {
		t.Fatal(err)
	}
	image := regexp.MustCompile(`image: \S*berth/(?:scheduler|nodeagent):([^\s@]+)`)
	for name, content := range filesBelow(t, "../../config") {
		for _, m := range image.FindAllStringSubmatch(string(content), -1) {
			if m[1] != strings.TrimSpace(string(version)) {
				t.Errorf("config%s: %s, and VERSION has %s", name, m[0], version)
			}
		}
	}
}
