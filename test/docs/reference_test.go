package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestReference asserts that the pages of docs/reference are those that the code has now. Events are in another test.
func TestReference(t *testing.T) {
	out := t.TempDir()
	generate := exec.Command("go", "run", "./build/reference", "-out", out)
	generate.Dir = root
	if output, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", generate, err, output)
	}
	pages, err := os.ReadDir(out)
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) == 0 {
		t.Fatalf("%v wrote nothing", generate)
	}
	for _, page := range pages {
		want, err := os.ReadFile(filepath.Join(out, page.Name()))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, "docs/reference", page.Name())
		if have, err := os.ReadFile(path); err != nil || string(have) != string(want) {
			t.Errorf("docs/reference/%s is not up to date: run make generate", page.Name())
		}
	}
}
