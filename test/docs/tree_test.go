// Package docs checks the documentation: that its links resolve, that its reference is up to date, that it is short
// enough to read, and that the maps of files in package comments have every file.
package docs

import (
	"io/fs"
	"path/filepath"
	"slices"
	"testing"
)

// root is the root of the repository.
const root = "../.."

// files are the files of the tree whose names match one of the patterns, with paths from the root. What is built or
// made by tools is left out.
func files(t *testing.T, patterns ...string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{".git", ".build", "testdata"}, d.Name()) {
				return filepath.SkipDir
			}
			return nil
		}
		for _, pattern := range patterns {
			matches, err := filepath.Match(pattern, d.Name())
			if err != nil {
				return err
			}
			if matches {
				relative, err := filepath.Rel(root, path)
				all = append(all, relative)
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("no file matches %v", patterns)
	}
	return all
}
