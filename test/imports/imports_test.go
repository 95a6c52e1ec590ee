// Package imports asserts which package may import which. These rules keep the arithmetic free of Kubernetes, and the
// scheduler free of disks.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/berthdev/berth"

// rule lists what the packages below a path may depend on, directly or indirectly.
type rule struct {
	// packages is the import path below the module. It includes all packages below it.
	packages string
	// only, if not nil, lists all the packages of this module that are allowed.
	only []string
	// stdlib is true when nothing but the standard library and this module is allowed.
	stdlib bool
	// never lists prefixes of import paths that are forbidden.
	never []string
}

// kubeScheduler is the packages that make up kube-scheduler. Its configuration does not count: plugins read which of
// them a profile has.
var kubeScheduler = []string{"k8s.io/kubernetes/cmd", "k8s.io/kubernetes/pkg/scheduler/backend", "k8s.io/kubernetes/pkg/scheduler/framework", "k8s.io/kubernetes/pkg/features"}

var rules = []rule{
	{packages: "pkg", never: []string{module + "/test"}},
	{packages: "cmd", never: []string{module + "/test"}},
	{packages: "pkg/extent", only: []string{}, stdlib: true},
	{packages: "pkg/placement", only: []string{"pkg/extent"}, stdlib: true},
	{packages: "pkg/ledger", only: []string{"pkg/extent", "pkg/placement"}, stdlib: true},
	{packages: "apis", only: []string{}, never: []string{"k8s.io/client-go", "k8s.io/api/", "k8s.io/kubernetes", "sigs.k8s.io/controller-runtime"}},
	{packages: "apis/disk/partition", only: []string{}, never: []string{"k8s.io"}},
	{packages: "pkg/request", only: []string{"pkg/extent", "pkg/placement", "apis"}, never: []string{"k8s.io/client-go", "k8s.io/kubernetes"}},
	{packages: "pkg/claim", only: []string{"pkg/extent", "pkg/placement", "pkg/request", "apis"}, never: []string{"k8s.io/client-go", "k8s.io/kubernetes"}},
	{packages: "pkg/answer", only: []string{}, never: []string{"k8s.io/api/", "k8s.io/client-go", "k8s.io/kubernetes"}},
	{packages: "pkg/manual", only: []string{}, stdlib: true},
	{packages: "pkg/controller", only: []string{}, never: []string{"k8s.io/kubernetes"}},
	{packages: "pkg/plugins", never: []string{module + "/pkg/agent", "github.com/diskfs"}},
	{packages: "pkg/plugins/diskcapacity", only: []string{"pkg/answer", "pkg/extent", "pkg/placement", "pkg/ledger", "pkg/request", "pkg/claim", "apis"}, never: kubeScheduler},
	{packages: "pkg/plugins/volumebinding", only: []string{"pkg/answer", "pkg/extent", "pkg/placement", "pkg/ledger", "pkg/request", "pkg/claim", "pkg/plugins/diskcapacity", "apis"}},
	{packages: "pkg/capacity", only: []string{"pkg/answer", "pkg/controller", "pkg/extent", "pkg/placement", "pkg/ledger", "pkg/request", "pkg/claim", "pkg/plugins/diskcapacity", "apis"}, never: kubeScheduler},
	{packages: "pkg/provisioner", never: append([]string{module + "/pkg/agent", "github.com/diskfs"}, kubeScheduler...)},
	{packages: "pkg/agent", never: []string{module + "/pkg/plugins", module + "/pkg/ledger", "k8s.io/kubernetes", "k8s.io/kube-scheduler"}},
	{packages: "pkg/agent/disk", only: []string{"apis/disk/partition", "pkg/extent", "pkg/agent/holders", "pkg/agent/mounts", "pkg/agent/signature"}, never: []string{"k8s.io/api", "k8s.io/client-go"}},
	{packages: "cmd/nodeagent", never: []string{module + "/pkg/plugins", "k8s.io/kubernetes", "k8s.io/kube-scheduler"}},
	{packages: "pkg/scheduler", never: []string{module + "/pkg/agent", "github.com/diskfs", "sigs.k8s.io/scheduler-plugins"}},
	{packages: "pkg/scheduler/patch", only: []string{"pkg/answer", "pkg/extent", "pkg/placement", "pkg/ledger", "pkg/request", "pkg/claim", "pkg/plugins/diskcapacity", "apis"}},
	{packages: "pkg/kubectl", never: []string{module + "/pkg/agent", module + "/cmd", "github.com/diskfs"}},
	{packages: "pkg/kubectl/diagram", only: []string{}, stdlib: true},
	{packages: "pkg/kubectl/inventory", only: []string{"apis", "pkg/extent", "pkg/placement", "pkg/kubectl/diagram"}, never: []string{"k8s.io/client-go", "k8s.io/kubernetes"}},
	{packages: "pkg/kubectl/whatif", only: []string{"apis", "pkg/answer", "pkg/claim", "pkg/extent", "pkg/ledger", "pkg/placement", "pkg/plugins", "pkg/request"}, never: []string{"k8s.io/cli-runtime"}},
	{packages: "pkg/kubectl/terminal", only: []string{}, never: []string{"k8s.io"}},
	{packages: "cmd/scheduler", never: []string{module + "/pkg/agent", "github.com/diskfs"}},
}

// listed is the output of `go list -json` for a package.
type listed struct {
	ImportPath string
	Standard   bool
	Deps       []string
}

func list(t *testing.T, arguments ...string) []listed {
	t.Helper()
	command := exec.Command("go", append([]string{"list", "-json=ImportPath,Standard,Deps"}, arguments...)...)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, stderr.String())
	}
	var packages []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

// below reports whether the import path is prefix or lies below it.
func below(path, prefix string) bool {
	return path == prefix || strings.HasPrefix(path, strings.TrimSuffix(prefix, "/")+"/")
}

func TestImports(t *testing.T) {
	standard := map[string]bool{}
	for _, p := range list(t, "-deps", module+"/...") {
		standard[p.ImportPath] = p.Standard
	}
	ours := list(t, module+"/...")
	for _, r := range rules {
		t.Run(r.packages, func(t *testing.T) {
			checked := 0
			for _, p := range ours {
				if !below(p.ImportPath, module+"/"+r.packages) {
					continue
				}
				checked++
				for _, dep := range p.Deps {
					if why := r.violation(dep, standard[dep]); why != "" {
						t.Errorf("%s depends on %s: %s", p.ImportPath, dep, why)
					}
				}
			}
			if checked == 0 {
				t.Errorf("no package below %s: the rule checks nothing", r.packages)
			}
		})
	}
}

func (r rule) violation(dep string, standard bool) string {
	for _, prefix := range r.never {
		if below(dep, prefix) {
			return "never allowed for " + r.packages
		}
	}
	inModule := below(dep, module)
	if r.stdlib && !standard && !inModule {
		return r.packages + " uses the standard library only"
	}
	if r.only != nil && inModule && !below(dep, module+"/"+r.packages) &&
		!slices.ContainsFunc(r.only, func(allowed string) bool { return below(dep, module+"/"+allowed) }) {
		return r.packages + " may use of this module only " + strings.Join(r.only, ", ")
	}
	return ""
}

// TestViolation asserts that the rules can fail.
func TestViolation(t *testing.T) {
	r := rule{packages: "pkg/x", only: []string{"pkg/y"}, stdlib: true, never: []string{"example.com/bad"}}
	for _, tc := range []struct {
		dep      string
		standard bool
		allowed  bool
	}{
		{"fmt", true, true},
		{"example.com/bad/inner", false, false},
		{"example.com/other", false, false},
		{module + "/pkg/y", false, true},
		{module + "/pkg/yy", false, false},
		{module + "/pkg/x/inner", false, true},
		{module + "/pkg/z", false, false},
	} {
		if got := r.violation(tc.dep, tc.standard) == ""; got != tc.allowed {
			t.Errorf("violation(%q): allowed %v, want %v", tc.dep, got, tc.allowed)
		}
	}
}
