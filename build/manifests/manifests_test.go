package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthdev/berth/build/helm"
)

const root = "../.."

// TestConfig asserts that config is what the chart renders, that the chart has the CRDs and the version of the
// repository, and that config has no other manifest.
func TestConfig(t *testing.T) {
	programs, err := helm.Build(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	files, err := intoChart(root)
	if err != nil {
		t.Fatal(err)
	}
	rendered, err := render(t.Context(), programs)
	if err != nil {
		t.Fatal(err)
	}
	if len(rendered) < 10 {
		t.Errorf("the chart renders %d files of config only", len(rendered))
	}
	for name, text := range rendered {
		files[name] = text
	}
	for name, text := range files {
		have, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || string(have) != text {
			t.Errorf("%s is not what the chart renders: run make generate (%v)", name, err)
		}
	}
	for _, folder := range folders {
		entries, err := os.ReadDir(filepath.Join(root, "config", folder))
		if err != nil {
			t.Fatal(err)
		}
		kustomization, err := os.ReadFile(filepath.Join(root, "config", folder, "kustomization.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := "config/" + folder + "/" + e.Name()
			if e.Name() == "kustomization.yaml" {
				continue
			}
			if files[name] == "" {
				t.Errorf("%s is not rendered from the chart", name)
			}
			if !strings.Contains(string(kustomization), e.Name()) && e.Name() != "kube-scheduler-config.yaml" {
				t.Errorf("config/%s/kustomization.yaml does not have %s", folder, e.Name())
			}
		}
	}
}

// TestOwnLines asserts that what belongs to Helm is not in config.
func TestOwnLines(t *testing.T) {
	const chart = "metadata:\n  labels:\n    app.kubernetes.io/part-of: berth\n    app.kubernetes.io/managed-by: Helm\n    helm.sh/chart: berth-1\n" +
		"      annotations:\n        checksum/config: 123\n    spec: {}\n"
	const want = "metadata:\n  labels:\n    app.kubernetes.io/part-of: berth\n    spec: {}\n"
	if have := ownLines(chart); have != want {
		t.Errorf("got\n%s\nwant\n%s", have, want)
	}
}

// TestBySource asserts that documents of one file stay together, in their order.
func TestBySource(t *testing.T) {
	have := bySource("---\n# Source: berth/templates/a/x.yaml\na: 1\n---\n# Source: berth/templates/y.yaml\nb: 1\n---\n# Source: berth/templates/a/x.yaml\nc: 1\n")
	if len(have) != 2 || !slices.Equal(strings.Split(have["a/x.yaml"], "---\n"), []string{"a: 1\n", "c: 1\n"}) {
		t.Errorf("got %q", have)
	}
}
