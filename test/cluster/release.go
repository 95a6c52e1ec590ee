package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/client-go/discovery"
)

// VersionVariable is the environment variable that chooses a control plane where Options.KubernetesVersion is empty.
const VersionVariable = "BERTH_KUBERNETES"

// release is a version of Kubernetes that a module below test/cluster pins, and the directory of .build that its
// programs are kept in.
type release struct{ version, module, bin string }

// today is the one that Berth is built with. Nodes, kubectl and the stock scheduler are always of it.
var today = release{kubernetesVersion, "kubernetes", "bin"}

// releases are those that a control plane can have, by their minor versions.
var releases = map[string]release{
	"1.34": {"v1.34.4", "kubernetes-1.34", "bin-1.34"},
	"1.35": {"v1.35.4", "kubernetes-1.35", "bin-1.35"},
	"1.36": today,
	"1.37": {"v1.37.2", "kubernetes-1.37", "bin-1.37"},
}

// KubernetesVersions are the minor versions that Options.KubernetesVersion takes, the oldest first.
func KubernetesVersions() []string { return slices.Sorted(maps.Keys(releases)) }

// chooseRelease returns the release of a control plane: of the minor version that is asked for, else of the
// environment's, else today's.
func (o *Options) chooseRelease() (release, error) {
	minor, by := o.KubernetesVersion, "Options.KubernetesVersion"
	if minor == "" {
		minor, by = os.Getenv(VersionVariable), VersionVariable
	}
	if minor == "" {
		return today, nil
	}
	r, ok := releases[minor]
	switch {
	case !ok:
		return release{}, fmt.Errorf("%s is %q: use one of %s", by, minor, strings.Join(KubernetesVersions(), ", "))
	case r != today && o.Kubelets:
		return release{}, fmt.Errorf("%s is %q: kubelets are of %s, and run with an API server of that version only",
			by, minor, today.version)
	}
	return r, nil
}

// serverPrograms are what a control plane runs of its release. kube-controller-manager is left out if it does not run.
func (r release) serverPrograms(controllerManager bool) []program {
	names := []string{"kube-apiserver"}
	if controllerManager {
		names = append(names, "kube-controller-manager")
	}
	var programs []program
	for _, name := range names {
		programs = append(programs, kubernetesProgram(r, name, "k8s.io/kubernetes/cmd/"+name))
	}
	return programs
}

// BuildControlPlane brings the programs of a control plane of a minor version up to date, and returns the whole
// version. The first time takes minutes, and says so on log.
func BuildControlPlane(ctx context.Context, log io.Writer, minor string) (version string, err error) {
	r, err := (&Options{KubernetesVersion: minor}).chooseRelease()
	if err != nil {
		return "", err
	}
	repository, err := Repository()
	if err != nil {
		return "", err
	}
	return r.version, r.build(ctx, log, repository, true)
}

func (r release) build(ctx context.Context, log io.Writer, repository string, controllerManager bool) error {
	bin := filepath.Join(repository, ".build", r.bin)
	unlock, err := lockBuild(bin)
	if err != nil {
		return err
	}
	defer unlock()
	for _, p := range r.serverPrograms(controllerManager) {
		if err := buildModule(ctx, log, repository, bin, p); err != nil {
			return err
		}
	}
	return nil
}

// checkRelease fails if the API server is not of the release that was asked for, so that no test passes against
// another one.
func (c *Cluster) checkRelease() error {
	client, err := discovery.NewDiscoveryClientForConfig(c.config)
	if err != nil {
		return err
	}
	served, err := client.ServerVersion()
	if err != nil {
		return fmt.Errorf("ask the API server for its version: %w", err)
	}
	if served.GitVersion != c.release.version {
		return errors.New("the API server is " + served.GitVersion + ", not " + c.release.version)
	}
	return nil
}

// serverProgram is the path of a program of the control plane's release.
func (c *Cluster) serverProgram(name string) string {
	return filepath.Join(c.repository, ".build", c.release.bin, name)
}
