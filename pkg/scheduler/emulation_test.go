package scheduler

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/version"
	apiservercompatibility "k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/component-base/compatibility"
	baseversion "k8s.io/component-base/version"
)

// TestEmulation asserts that the flags use the version of Kubernetes, while kube-scheduler's own registry uses Berth's.
func TestEmulation(t *testing.T) {
	stock := apiservercompatibility.DefaultComponentGlobalsRegistry.EffectiveVersionFor(compatibility.DefaultKubeComponent).(compatibility.MutableEffectiveVersion)
	emulated := stock.EmulationVersion()
	stock.SetEmulationVersion(version.MustParse("0.5"))
	t.Cleanup(func() { stock.SetEmulationVersion(emulated) })
	want := "(default:" + baseversion.DefaultKubeBinaryVersion + ")"
	if usage := NewCommand().Flags().Lookup("emulated-version").Usage; !strings.Contains(usage, want) {
		t.Errorf("the usage of --emulated-version does not say %q: %s", want, usage)
	}
}

// TestRelease asserts that a release of Berth starts: its version is not used as that of Kubernetes.
func TestRelease(t *testing.T) {
	const release = "v0.5.0"
	program := filepath.Join(t.TempDir(), "scheduler")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion="+release, "-o", program, "../../cmd/scheduler")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := exec.Command(program, "--version").Output()
	if err != nil || strings.TrimSpace(string(out)) != "Kubernetes "+release {
		t.Errorf("--version prints %q, %v", out, err)
	}
	// Versions and feature gates are checked before the configuration is read.
	missing := filepath.Join(t.TempDir(), "config.yaml")
	for _, arguments := range [][]string{nil, {"--emulated-version=1.34"}, {"--feature-gates=GenericWorkload=true"}} {
		out, err := exec.Command(program, append(arguments, "--config="+missing)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "open "+missing) {
			t.Errorf("with %q it ends with %v\n%s", arguments, err, out)
		}
	}
}
