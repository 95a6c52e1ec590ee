// Package chart checks the Helm chart, charts/berth, without installing it: lint, values, golden files, and the
// schemas of a real API server. test/e2e/chart installs it.
package chart

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/berthdev/berth/build/helm"
	"github.com/berthdev/berth/test/cluster"
)

var update = flag.Bool("update", false, "write the golden files")

// registry is a value with which the chart renders.
const registry = "--set=image.registry=registry.example.com"

// chart are the programs, and the values files of platforms by name.
func chart(t *testing.T) (programs *helm.Programs, platforms map[string]string) {
	t.Helper()
	root, err := cluster.Repository()
	if err != nil {
		t.Fatal(err)
	}
	if programs, err = helm.Build(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(programs.Chart(), "values", "*.yaml"))
	if err != nil || len(files) < 8 {
		t.Fatalf("found the values files %v: %v", files, err)
	}
	platforms = map[string]string{}
	for _, file := range files {
		platforms[strings.TrimSuffix(filepath.Base(file), ".yaml")] = file
	}
	return programs, platforms
}

// render returns the manifests that the chart renders.
func render(t *testing.T, programs *helm.Programs, args ...string) string {
	t.Helper()
	out, err := template(t, programs, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func template(t *testing.T, programs *helm.Programs, args ...string) (string, error) {
	t.Helper()
	all := []string{"template", "berth", programs.Chart(), "--namespace=berth-system"}
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--kube-version") }) {
		all = append(all, "--kube-version=1.36.0")
	}
	return programs.Helm(t.Context(), append(all, args...)...)
}

// TestLint asserts that helm lint --strict finds nothing, with the defaults and with the values of each platform.
func TestLint(t *testing.T) {
	programs, platforms := chart(t)
	for name, file := range platforms {
		if out, err := programs.Helm(t.Context(), "lint", "--strict", "--kube-version=1.36.0", registry, "--values="+file, programs.Chart()); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if out, err := programs.Helm(t.Context(), "lint", "--strict", "--kube-version=1.36.0", registry, programs.Chart()); err != nil {
		t.Errorf("defaults: %v\n%s", err, out)
	}
}

// TestRefusedValues asserts which values are refused, and that the message says what to do.
func TestRefusedValues(t *testing.T) {
	programs, _ := chart(t)
	for name, test := range map[string]struct {
		values []string
		want   string
	}{
		"no registry":           {nil, "image.registry is missing"},
		"unknown key":           {[]string{registry, "--set=nodeagent.kubeletDirectory=/k"}, "kubeletDirectory"},
		"unknown key at top":    {[]string{registry, "--set=agent.kubeletDir=/k"}, "agent"},
		"relative kubelet dir":  {[]string{registry, "--set=nodeagent.kubeletDir=kubelet"}, "kubeletDir"},
		"a class of no disk":    {[]string{registry, "--set=storageClasses.fast.fsType=xfs"}, "class"},
		"another file system":   {[]string{registry, "--set=storageClasses.fast.class=ssd", "--set=storageClasses.fast.fsType=btrfs"}, "fsType"},
		"memory limit in bytes": {[]string{registry, "--set-string=scheduler.resources.limits.memory=500000000"}, "write it in Mi or Gi"},
		"digest without sha256": {[]string{registry, "--set=image.digest.scheduler=abc"}, "digest"},
		"devices outside /dev":  {[]string{registry, "--set=nodeagent.devices={/tmp/x}"}, "devices"},
		"Kubernetes too old":    {[]string{registry, "--kube-version=1.33.0"}, "1.33"},
	} {
		if out, err := template(t, programs, test.values...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got error %v, want %q\n%.300s", name, err, test.want, out)
		}
	}
}

var imageLine = regexp.MustCompile(`(?m)^\s*image: (\S+)$`)

// TestImages asserts the names of images: of a registry, of a digest, and of those that were imported on each node.
func TestImages(t *testing.T) {
	programs, _ := chart(t)
	digest := "sha256:" + strings.Repeat("a", 64)
	for name, test := range map[string]struct {
		values []string
		want   string
	}{
		"registry":            {[]string{registry, "--set=image.tag=v1"}, "registry.example.com/berth/scheduler:v1"},
		"registry with path":  {[]string{"--set=image.registry=registry.example.com/team/", "--set=image.tag=v1"}, "registry.example.com/team/berth/scheduler:v1"},
		"another repository":  {[]string{registry, "--set=image.repository=storage", "--set=image.tag=v1"}, "registry.example.com/storage/scheduler:v1"},
		"digest":              {[]string{registry, "--set=image.digest.scheduler=" + digest}, "registry.example.com/berth/scheduler@" + digest},
		"imported":            {[]string{"--set=image.pullPolicy=Never", "--set=image.tag=v1"}, "berth/scheduler:v1"},
		"version of programs": {[]string{registry}, "registry.example.com/berth/scheduler:" + appVersion(t, programs)},
	} {
		out := render(t, programs, append(test.values, "--set=diskClasses.ssd.devices.rotational=false")...)
		var images []string
		for _, match := range imageLine.FindAllStringSubmatch(out, -1) {
			images = append(images, match[1])
		}
		// The DaemonSet, the Deployment, the hook, and the two containers of the test.
		if len(images) != 5 || !slices.Contains(images, test.want) {
			t.Errorf("%s: the images are %v, want %s among five", name, images, test.want)
		}
		for _, image := range images {
			if !strings.HasPrefix(image, "registry.example.com/") && !strings.Contains(out, "imagePullPolicy: Never") {
				t.Errorf("%s: %s would be pulled from a default registry", name, image)
			}
		}
	}
}

func appVersion(t *testing.T, programs *helm.Programs) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(programs.Chart(), "Chart.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var c struct{ AppVersion string }
	if err := yaml.Unmarshal(data, &c); err != nil {
		t.Fatal(err)
	}
	return c.AppVersion
}

// TestGolden asserts what the chart renders: with the defaults and a registry, and of each platform the objects that
// differ. `go test ./test/chart -run TestGolden -update` writes the files.
func TestGolden(t *testing.T) {
	programs, platforms := chart(t)
	options := []string{registry, "--set=crds.enabled=false"}
	defaults := render(t, programs, options...)
	golden(t, "defaults.yaml", defaults)
	usual := map[string]bool{}
	for _, document := range strings.Split(defaults, "\n---\n") {
		usual[strings.TrimSpace(document)] = true
	}
	for name, file := range platforms {
		var differ []string
		for _, document := range strings.Split(render(t, programs, append(options, "--values="+file)...), "\n---\n") {
			if !usual[strings.TrimSpace(document)] {
				differ = append(differ, strings.TrimSpace(document))
			}
		}
		golden(t, name+".yaml", strings.Join(differ, "\n---\n")+"\n")
	}
	golden(t, "everything.yaml", render(t, programs, append(options, "--values=testdata/everything-values.yaml")...))
}

func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", "golden", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("the chart does not render what is in %s: look at the difference after -update", path)
	}
}

// TestNamespace asserts that nothing but what belongs into kube-system is there, and that the lease, the accounts and
// the parameters of the policies follow the release.
func TestNamespace(t *testing.T) {
	programs, _ := chart(t)
	out := render(t, programs, registry, "--set=scheduler.serviceAccount=a", "--set=nodeagent.serviceAccount=b")
	if n := strings.Count(out, "kube-system"); n != 1 {
		t.Errorf("%d lines name kube-system, want that of extension-apiserver-authentication-reader", n)
	}
	for _, want := range []string{"resourceNamespace: berth-system", "serviceAccountName: a\n", "serviceAccountName: b\n", "name: a\n  namespace: berth-system", "name: b\n  namespace: berth-system"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

// TestKept asserts that CRDs and DiskClasses outlive the release. Without the CRDs in the cluster a hook makes the
// DiskClasses, because Helm reads all kinds before it makes the first object.
func TestKept(t *testing.T) {
	programs, _ := chart(t)
	class := "--set=diskClasses.ssd.devices.rotational=false"
	first := render(t, programs, registry, class)
	later := render(t, programs, registry, class, "--api-versions=disk.berth.dev/v1alpha1")
	for name, out := range map[string]string{"first": first, "later": later} {
		kept := 0
		for document := range strings.SplitSeq(out, "\n---\n") {
			if strings.Contains(document, "\nkind: CustomResourceDefinition\n") || strings.Contains(document, "\nkind: DiskClass\n") {
				if !strings.Contains(document, "\n    helm.sh/resource-policy: keep\n") {
					t.Errorf("%s: helm uninstall would delete\n%.400s", name, document)
				}
				kept++
			}
		}
		if kept != 3 {
			t.Errorf("%s: found %d CRDs and DiskClasses, want 3", name, kept)
		}
	}
	if !strings.Contains(first, "helm.sh/hook: post-install,post-upgrade") || strings.Contains(later, "helm.sh/hook: post-install") {
		t.Error("the DiskClass must be a hook only while the API server does not know the kind")
	}
}

// TestMemory asserts that GOMEMLIMIT is the part of the limit that goMemoryPercent says.
func TestMemory(t *testing.T) {
	programs, _ := chart(t)
	for limit, want := range map[string]string{"1Gi": "819MiB", "500Mi": "400MiB"} {
		if out := render(t, programs, registry, "--set=scheduler.resources.limits.memory="+limit); !strings.Contains(out, "value: "+want) {
			t.Errorf("with a limit of %s GOMEMLIMIT is not %s", limit, want)
		}
	}
	if strings.Contains(render(t, programs, registry), "GOMEMLIMIT") {
		t.Error("GOMEMLIMIT is set without a limit")
	}
}

// TestSchemas asserts that the API server would take all that the chart renders: for each supported version of
// Kubernetes, with the defaults, the values of each platform and all options. The schemas are made from the OpenAPI of
// a real API server with Berth's CRDs. It does not serve PodMonitors, PrometheusRules and
// SecurityContextConstraints.
func TestSchemas(t *testing.T) {
	programs, platforms := chart(t)
	c, err := cluster.Start(t.Context(), cluster.Options{Name: "chart-schemas", Log: os.Stderr, Manifests: []string{"config/crd"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	kinds, err := writeSchemas(t.Context(), c.RESTConfig(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(kinds, "diskclass-disk-v1alpha1") || !slices.Contains(kinds, "deployment-apps-v1") {
		t.Fatalf("the API server has the kinds %v", kinds)
	}
	conform := func(manifests string) (string, error) {
		return programs.Kubeconform(t.Context(), manifests, "-strict", "-summary", "-skip=PodMonitor,PrometheusRule,SecurityContextConstraints",
			"-schema-location="+dir+"/{{ .ResourceKind }}{{ .KindSuffix }}.json")
	}
	values := maps.Clone(platforms)
	values["everything"] = "testdata/everything-values.yaml"
	for _, version := range []string{"1.34.0", "1.35.0", "1.36.0", "1.37.0"} {
		if out, err := conform(render(t, programs, registry, "--kube-version="+version)); err != nil {
			t.Errorf("Kubernetes %s: %v\n%s", version, err, out)
		}
	}
	for name, file := range values {
		if out, err := conform(render(t, programs, registry, "--values="+file)); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	// The schemas are strict.
	if out, err := conform(strings.Replace(render(t, programs, registry), "hostPID: true", "hostPid: true", 1)); err == nil || !strings.Contains(out, "hostPid") {
		t.Errorf("a misspelled field is accepted: %v\n%s", err, out)
	}
}
