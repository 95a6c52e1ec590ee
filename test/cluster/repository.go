package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
)

// Repository returns the root of the repository that the working directory is in.
func Repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; dir = filepath.Dir(dir) {
		module, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(module, []byte("module github.com/berthdev/berth\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("%s is not inside Berth's repository: run this from a checkout", start)
		}
	}
}

// clustersDir is where the clusters of a checkout are registered.
func clustersDir(repository string) string { return filepath.Join(repository, ".build", "clusters") }

// binDir is where built programs are kept.
func binDir(repository string) string { return filepath.Join(repository, ".build", "bin") }
