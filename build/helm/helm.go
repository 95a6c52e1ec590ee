// Package helm runs the programs that render and check the chart, charts/berth: Helm and kubeconform, of the versions
// in tools/chart/go.mod.
package helm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// packages of the programs.
var packages = []string{"helm.sh/helm/v4/cmd/helm", "github.com/yannh/kubeconform/cmd/kubeconform"}

// Programs are the programs, in a checkout of the repository.
type Programs struct {
	root string
}

// Build brings the programs in .build/bin up to date. The first time takes minutes.
func Build(ctx context.Context, root string) (*Programs, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	p := &Programs{root}
	args := append([]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(root, ".build", "bin") + "/"}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(root, "tools", "chart")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build helm and kubeconform: %w\n%s", err, out)
	}
	return p, nil
}

// Chart is the folder of the chart.
func (p *Programs) Chart() string { return filepath.Join(p.root, "charts", "berth") }

// Helm runs helm and returns what it printed. The error has what it printed as an error.
func (p *Programs) Helm(ctx context.Context, args ...string) (string, error) {
	return p.run(ctx, nil, "helm", args...)
}

// Kubeconform runs kubeconform on manifests.
func (p *Programs) Kubeconform(ctx context.Context, manifests string, args ...string) (string, error) {
	return p.run(ctx, []byte(manifests), "kubeconform", args...)
}

// Command is helm with an environment of its own: it reads no configuration and no cache of the user.
func (p *Programs) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.root, ".build", "bin", name), args...)
	home := filepath.Join(p.root, ".build", "helm")
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	return cmd
}

func (p *Programs) run(ctx context.Context, input []byte, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := p.Command(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", name, err, stderr.Bytes())
	}
	return stdout.String(), err
}
