package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compiler compiles Berth's programs so that the same sources give the same bytes, whatever this machine is.
type compiler struct {
	// repository is the folder of the sources.
	repository string
	// toolchain is the Go to use, such as go1.26.8, or "local" for the one that is installed.
	toolchain string
	version   string
	log       io.Writer
}

// compile builds ./cmd/NAME for a platform into folder, and returns its path. A program that is up to date is kept.
func (c compiler) compile(ctx context.Context, folder, name string, p platform) (string, error) {
	path := filepath.Join(folder, strings.ReplaceAll(p.name, "/", "-"), name)
	fmt.Fprintf(c.log, "  compiling %s for %s\n", name, p.name)
	// Paths of this machine and the state of its checkout are left out. GOFLAGS cannot be empty: the go command would
	// take what its configuration file has.
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags=-s -w -X k8s.io/component-base/version.gitVersion="+c.version, "-o", path, "./cmd/"+name)
	cmd.Dir = c.repository
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+p.arch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off",
		"GOTOOLCHAIN="+c.toolchain, "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=", "GOFIPS140=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s for %s with %s: %w\n%s", name, p.name, c.toolchain, err, out)
	}
	return path, nil
}

// localGo returns the version of the Go that is installed, whatever toolchain go.mod asks for.
func localGo(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOVERSION")
	cmd.Dir = os.TempDir()
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOFLAGS=")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go env GOVERSION: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
