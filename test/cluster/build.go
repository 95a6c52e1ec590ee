package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthdev/berth/test/cluster/host"
)

// Versions of what the modules below test/cluster build.
const (
	kubernetesVersion  = "v1.36.3"
	provisionerVersion = "v6.3.0"
)

// program is one that is built from a module below test/cluster, with a version that the
// linker sets.
type program struct {
	name, pkg string
	module    string
	version   string
}

var kubernetesPrograms = []program{
	kubernetesProgram(today, "etcd", "go.etcd.io/etcd/server/v3"),
	kubernetesProgram(today, "kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
	kubernetesProgram(today, "kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
	kubernetesProgram(today, "kubelet", "k8s.io/kubernetes/cmd/kubelet"),
	kubernetesProgram(today, "kubectl", "k8s.io/kubernetes/cmd/kubectl"),
	kubernetesProgram(today, "kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
}

func kubernetesProgram(r release, name, pkg string) program {
	const version = "k8s.io/component-base/version."
	return program{name, pkg, r.module, "" +
		" -X " + version + "gitVersion=" + r.version +
		" -X " + version + "gitMajor=1" +
		" -X " + version + "gitMinor=" + strings.Split(r.version, ".")[1]}
}

// provisionerProgram is built for the clusters that run it only.
var provisionerProgram = program{
	"csi-provisioner", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner",
	"sidecar", " -X main.version=" + provisionerVersion,
}

// Build brings Kubernetes' and etcd's programs in .build/bin up to date, and the
// named ones of this repository (directories, such as cmd/scheduler). The first time
// takes minutes, and says so on log.
func Build(ctx context.Context, log io.Writer, own ...string) error {
	repository, err := Repository()
	if err != nil {
		return err
	}
	bin := binDir(repository)
	unlock, err := lockBuild(bin)
	if err != nil {
		return err
	}
	defer unlock()
	for _, p := range kubernetesPrograms {
		if err := buildModule(ctx, log, repository, bin, p); err != nil {
			return err
		}
	}
	return buildOwn(ctx, log, repository, bin, append([]string{reaperProgram, pauseProgram}, own...))
}

// The programs of this repository that a cluster runs.
const (
	reaperProgram    = "test/cluster/reaper"
	pauseProgram     = "test/cluster/pause"
	agentProgram     = "cmd/nodeagent"
	schedulerProgram = "cmd/scheduler"
)

// program builds a program of this repository unless this process has done so
// already, and returns its path.
func (c *Cluster) program(ctx context.Context, pkg string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	path := filepath.Join(c.bin, filepath.Base(pkg))
	if c.built[pkg] {
		return path, nil
	}
	unlock, err := lockBuild(c.bin)
	if err != nil {
		return "", err
	}
	defer unlock()
	if err := buildOwn(ctx, c.log, c.repository, c.bin, []string{pkg}); err != nil {
		return "", err
	}
	c.built[pkg] = true
	return path, nil
}

// buildProvisioner is Build for the external-provisioner, which few clusters run.
func buildProvisioner(ctx context.Context, log io.Writer, repository string) error {
	bin := binDir(repository)
	unlock, err := lockBuild(bin)
	if err != nil {
		return err
	}
	defer unlock()
	return buildModule(ctx, log, repository, bin, provisionerProgram)
}

// lockBuild keeps test packages that run at the same time from building the same things.
func lockBuild(bin string) (unlock func(), err error) {
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return nil, err
	}
	return host.LockFile(bin + ".lock")
}

// buildModule builds a program unless it was built from the same module files
// with the same flags. Only `go build` knows for certain, but takes seconds to find
// out for programs of this size, and the module cache does not change.
func buildModule(ctx context.Context, log io.Writer, repository, bin string, p program) error {
	dir := filepath.Join(repository, "test", "cluster", p.module)
	args := []string{"build", "-trimpath", "-ldflags", "-s -w" + p.version, "-o", filepath.Join(bin, p.name), p.pkg}
	want, err := stamp(dir, args)
	if err != nil {
		return err
	}
	stampFile := filepath.Join(bin, "."+p.name+".stamp")
	have, err := os.ReadFile(stampFile)
	if err == nil && string(have) == want {
		if _, err := os.Stat(filepath.Join(bin, p.name)); err == nil {
			return nil
		}
	}
	if err := goBuild(ctx, log, dir, p.name, args); err != nil {
		return err
	}
	return os.WriteFile(stampFile, []byte(want), 0o644)
}

// stamp identifies what a program is built from.
func stamp(dir string, args []string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d\n", len(data))
		h.Write(data)
	}
	fmt.Fprintf(h, "%q", args)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// buildOwn builds programs of this repository; whether they are up to date, go itself
// decides. The flags are those of the Makefile, so that neither rebuilds what the
// other has built. Only Berth's own programs bear its version: kube-scheduler's command,
// which the example runs, takes the program's version for one of Kubernetes.
func buildOwn(ctx context.Context, log io.Writer, repository, bin string, packages []string) error {
	version, err := os.ReadFile(filepath.Join(repository, "VERSION"))
	if err != nil {
		return err
	}
	own, others := []string{}, []string{}
	for _, pkg := range packages {
		if strings.HasPrefix(pkg, "cmd/") {
			own = append(own, pkg)
		} else {
			others = append(others, pkg)
		}
	}
	const small = "-s -w"
	for _, b := range []struct {
		flags    string
		packages []string
	}{
		{small + " -X k8s.io/component-base/version.gitVersion=" + strings.TrimSpace(string(version)), own},
		{small, others},
	} {
		if len(b.packages) == 0 {
			continue
		}
		args := []string{"build", "-trimpath", "-ldflags", b.flags, "-o", bin + "/"}
		var names []string
		for _, pkg := range b.packages {
			args = append(args, "./"+pkg)
			names = append(names, filepath.Base(pkg))
		}
		if err := goBuild(ctx, log, repository, strings.Join(names, ", "), args); err != nil {
			return err
		}
	}
	return nil
}

// quietFor is how long a build may take without a word.
const quietFor = 3 * time.Second

// goBuild runs go and shows that it is still at it.
func goBuild(ctx context.Context, log io.Writer, dir, name string, args []string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return fmt.Errorf("build %s: the go command is missing: install Go 1.26 (https://go.dev/dl) and add it to PATH", name)
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	cmd.Stdout, cmd.Stderr = &output, &output
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- cmd.Run() }()
	wait := quietFor
	said := false
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("build %s: %w\n%s", name, errors.Join(err, ctx.Err()), output.Bytes())
			}
			if said {
				fmt.Fprintf(log, "  built %s in %s\n", name, elapsed(start))
			}
			return nil
		case <-time.After(wait):
			if !said {
				fmt.Fprintf(log, "  building %s (minutes the first time, kept in .build)\n", name)
			} else {
				fmt.Fprintf(log, "  building %s, %s so far\n", name, elapsed(start))
			}
			said, wait = true, 20*time.Second
		}
	}
}

func elapsed(start time.Time) time.Duration { return time.Since(start).Round(100 * time.Millisecond) }
