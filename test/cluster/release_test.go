package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestReleases asserts that the module of each release pins it, and builds what a control plane runs.
func TestReleases(t *testing.T) {
	for minor, r := range releases {
		if !strings.HasPrefix(r.version, "v"+minor+".") {
			t.Errorf("%s is %s", minor, r.version)
		}
		data, err := os.ReadFile(filepath.Join(r.module, "go.mod"))
		if err != nil {
			t.Error(err)
			continue
		}
		module := strings.Split(string(data), "\n")
		staging := strings.Replace(r.version, "v1.", "v0.", 1)
		has := func(line string) {
			t.Helper()
			if !slices.ContainsFunc(module, func(l string) bool { return strings.TrimSpace(l) == line }) {
				t.Errorf("%s/go.mod has no line %q", r.module, line)
			}
		}
		has("k8s.io/kubernetes " + r.version + " // indirect")
		has("k8s.io/apiserver => k8s.io/apiserver " + staging)
		for _, p := range r.serverPrograms(true) {
			has(p.pkg)
		}
		for _, line := range module {
			if of, to, ok := strings.Cut(line, " => "); ok && to != strings.TrimSpace(of)+" "+staging {
				t.Errorf("%s/go.mod replaces %s by %s", r.module, strings.TrimSpace(of), to)
			}
		}
	}
	if len(KubernetesVersions()) != len(releases) || !slices.IsSorted(KubernetesVersions()) {
		t.Errorf("versions are %v", KubernetesVersions())
	}
}

// TestChooseRelease asserts that no other version is taken than the one that is asked for.
func TestChooseRelease(t *testing.T) {
	of := func(minor string) Options { return Options{KubernetesVersion: minor} }
	for name, test := range map[string]struct {
		options     Options
		environment string
		want        string // the version
		refused     string // part of the error
	}{
		"default":                    {want: kubernetesVersion},
		"option":                     {options: of("1.34"), want: releases["1.34"].version},
		"environment":                {environment: "1.37", want: releases["1.37"].version},
		"the option is the stronger": {options: of("1.36"), environment: "1.34", want: kubernetesVersion},
		"unknown": {
			options: of("1.2"), refused: `Options.KubernetesVersion is "1.2": use one of 1.34, 1.35, `,
		},
		"unknown in the environment": {
			environment: "v1.34.4", refused: `BERTH_KUBERNETES is "v1.34.4": use one of`,
		},
		"kubelets of another version": {
			options: Options{Kubelets: true}, environment: "1.34", refused: "kubelets are of " + kubernetesVersion,
		},
		"kubelets of this version": {
			options: Options{Kubelets: true, KubernetesVersion: "1.36"}, want: kubernetesVersion,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(VersionVariable, test.environment)
			got, err := test.options.chooseRelease()
			switch {
			case test.refused == "" && err != nil:
				t.Error(err)
			case test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)):
				t.Errorf("got %v, want an error with %q", err, test.refused)
			case got.version != test.want:
				t.Errorf("chose %q, want %q", got.version, test.want)
			}
		})
	}
}
