package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// fakeImages are images of both kinds and platforms with one small program, and an agent with one file of a package.
func fakeImages(t *testing.T, unpinned string) []made {
	t.Helper()
	folder := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module github.com/berthdev/berth\n\ngo 1.26.0\n", "main.go": program} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	compiled := filepath.Join(folder, "program")
	build := exec.Command("go", "build", "-o", compiled, ".")
	build.Dir = folder
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	src := source{version: "v1.2.3", created: time.Unix(0, 0).UTC(), unpinned: unpinned}
	var images []made
	for _, k := range []kind{schedulerImage, agentImage} {
		m := made{kind: k, source: src}
		for _, p := range platforms {
			tree := newTree()
			tree.control["e2fsprogs"] = "Package: e2fsprogs\nVersion: 1.47.0-2\nArchitecture: " + p.arch + "\n"
			s := newSelection(tree, p)
			s.files["/etc/mke2fs.conf"] = &file{content: []byte("[defaults]\n"), owner: "e2fsprogs"}
			v, err := assemble(k, p, src, contents{}, compiled, s)
			if err != nil {
				t.Fatal(err)
			}
			m.variants = append(m.variants, v)
		}
		if err := m.join(); err != nil {
			t.Fatal(err)
		}
		images = append(images, m)
	}
	return images
}

// newRegistry serves a registry that asks for a password, and returns its address.
func newRegistry(t *testing.T) string {
	t.Helper()
	r := registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, ok := q.BasicAuth(); !ok || user != "ann" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// logIn writes credentials to where docker login and podman login keep them.
func logIn(t *testing.T, host, password string) {
	t.Helper()
	folder := t.TempDir()
	text := fmt.Sprintf(`{"auths": {%q: {"username": "ann", "password": %q}}}`, host, password)
	if err := os.WriteFile(filepath.Join(folder, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", folder)
}

// TestPush asserts that a registry has the images with the digests of the build, both platforms, and for each a list of
// contents that refers to it.
func TestPush(t *testing.T) {
	out, host := t.TempDir(), newRegistry(t)
	images := fakeImages(t, "")
	if err := writeAll(out, "", images); err != nil {
		t.Fatal(err)
	}
	logIn(t, host, "secret")
	if err := pushAll(t.Context(), out, host+"/mirror", false); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadFile(filepath.Join(out, listFile))
	if err != nil {
		t.Fatal(err)
	}
	options := pusherOptions(t.Context())
	for i, line := range strings.Fields(string(list)) {
		m := images[i]
		ref, err := name.ParseReference(host + "/mirror/" + m.name())
		if err != nil {
			t.Fatal(err)
		}
		index, err := remote.Index(ref, options...)
		if err != nil {
			t.Fatal(err)
		}
		digest, want := must(t, index.Digest), must(t, m.index.Digest)
		if digest != want || line != ref.String()+"@"+want.String() {
			t.Errorf("%s has the digest %s, want %s; the list says %s", ref, digest, want, line)
		}
		for _, v := range m.variants {
			pulled, err := remote.Image(ref, append(slices.Clone(options), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: v.platform.arch}))...)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := must(t, pulled.Digest), must(t, v.image.Digest); got != want {
				t.Errorf("%s for %s has the digest %s, want %s", ref, v.platform.name, got, want)
			}
			checkReferrer(t, ref.Context(), v, options)
		}
	}
}

// checkReferrer asserts that a registry finds the list of contents by the image.
func checkReferrer(t *testing.T, repository name.Repository, v variant, options []remote.Option) {
	t.Helper()
	found, err := remote.Referrers(repository.Digest(must(t, v.image.Digest).String()), options...)
	if err != nil {
		t.Fatal(err)
	}
	manifest := must(t, found.IndexManifest)
	if len(manifest.Manifests) != 1 || manifest.Manifests[0].ArtifactType != spdxType {
		t.Fatalf("the image for %s has the referrers %+v", v.platform.name, manifest.Manifests)
	}
	attached, err := remote.Image(repository.Digest(manifest.Manifests[0].Digest.String()), options...)
	if err != nil {
		t.Fatal(err)
	}
	content := must(t, must(t, attached.Layers)[0].Compressed)
	defer content.Close()
	text, err := io.ReadAll(content)
	if err != nil || string(text) != string(v.sbom) {
		t.Errorf("the list of contents for %s is not the one that was made: %v", v.platform.name, err)
	}
}

func must[T any](t *testing.T, f func() (T, error)) T {
	t.Helper()
	v, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestPushRefused asserts that a push needs the registry's password, images, and images that are made of what is
// declared.
func TestPushRefused(t *testing.T) {
	host := newRegistry(t)
	good, unpinned := t.TempDir(), t.TempDir()
	for folder, why := range map[string]string{good: "", unpinned: "go1.99"} {
		if err := writeAll(folder, "", fakeImages(t, why)); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ name, out, password, want string }{
		{"a wrong password", good, "wrong", "UNAUTHORIZED"},
		{"no images", t.TempDir(), "secret", "run make images first"},
		{"another Go", unpinned, "secret", "not made of what is declared (go1.99)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			logIn(t, host, test.password)
			err := pushAll(t.Context(), test.out, host, false)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(test.want)) {
				t.Errorf("got %v, want …%s…", err, test.want)
			}
		})
	}
}

// TestCompare asserts that a second build with another digest is an error.
func TestCompare(t *testing.T) {
	images := fakeImages(t, "")
	var list []string
	for _, m := range images {
		list = append(list, "registry.example.com/"+m.name()+"@"+must(t, m.index.Digest).String())
	}
	if err := compare(list, images); err != nil {
		t.Error(err)
	}
	list[0] = list[0][:len(list[0])-1] + "x"
	if err := compare(list, images); err == nil || !strings.Contains(err.Error(), images[0].name()) {
		t.Errorf("a list with another digest: %v", err)
	}
}
