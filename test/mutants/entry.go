package main

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Entry is one rule of the product, and the code that implements it.
type Entry struct {
	// Name is the rule as a sentence.
	Name string `json:"name"`
	// File is the path of the Go file in the repository.
	File string `json:"file"`
	// Delete is the text to delete. It occurs exactly once in the file.
	Delete string `json:"delete"`
	// Replace is the text that replaces it.
	Replace string `json:"replace"`
	// Tests is the directory of the package whose tests catch the mutant; empty is that of File. Only rules that no
	// single package can show name another one.
	Tests string `json:"tests"`
	// Run selects the package's tests that catch the mutant; empty selects all.
	Run string `json:"run"`

	list string // the file that has the entry
}

// blocks are the block scalars of an entry. YAML requires their indentation (|2) if they begin with a tab, as Go code
// does. It is always two spaces more than the key's.
var blocks = regexp.MustCompile(`(?m)^(  (?:delete|replace): \|)$`)

// load reads all lists below dir.
func load(dir string) ([]Entry, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, err
	}
	var entries []Entry
	listedIn := map[string]string{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var list []Entry
		if err := yaml.UnmarshalStrict(blocks.ReplaceAll(data, []byte("${1}2")), &list); err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		for _, e := range list {
			e.list = filepath.Base(file)
			if other, ok := listedIn[e.Name]; ok {
				return nil, fmt.Errorf("%s: the name %q is already used in %s: give each rule a name of its own", e.list, e.Name, other)
			}
			listedIn[e.Name] = e.list
			entries = append(entries, e)
		}
	}
	return entries, nil
}

// mutate returns the text of the entry's file without the rule.
func (e Entry) mutate(root string) ([]byte, error) {
	switch {
	case e.Name == "":
		return nil, fmt.Errorf("%s: an entry has no name: write the rule as a sentence", e.list)
	case e.Delete == "":
		return nil, e.errorf("delete is empty: name the text that makes the rule")
	case e.Delete == e.Replace:
		return nil, e.errorf("replace equals delete: nothing changes")
	case !filepath.IsLocal(e.File) || !strings.HasSuffix(e.File, ".go") || strings.HasSuffix(e.File, "_test.go"):
		return nil, e.errorf("file %q is not a Go file of the product, named by its path in the repository", e.File)
	}
	if e.Tests != "" && e.Run == "" {
		return nil, e.errorf("tests without run: name the tests of %s that catch it", e.Tests)
	}
	if _, err := regexp.Compile(e.Run); err != nil {
		return nil, e.errorf("run: %v", err)
	}
	data, err := os.ReadFile(filepath.Join(root, e.File))
	if err != nil {
		return nil, e.errorf("%v: update the entry", err)
	}
	if n := strings.Count(string(data), e.Delete); n != 1 {
		return nil, e.errorf("the text to delete occurs %d times in %s, not once: update the entry", n, e.File)
	}
	mutant := strings.Replace(string(data), e.Delete, e.Replace, 1)
	if _, err := parser.ParseFile(token.NewFileSet(), e.File, mutant, parser.SkipObjectResolution); err != nil {
		return nil, e.errorf("without the text, %v: set replace to what makes it parse", err)
	}
	return []byte(mutant), nil
}

// errorf returns an error that names the entry.
func (e Entry) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: %q: %s", e.list, e.Name, fmt.Sprintf(format, args...))
}

// pkg is the directory of the package whose tests are run.
func (e Entry) pkg() string {
	if e.Tests != "" {
		return e.Tests
	}
	return filepath.Dir(e.File)
}

// check returns an error that names each entry that does not apply.
func check(root string, entries []Entry) error {
	var stale []error
	for _, e := range entries {
		if _, err := e.mutate(root); err != nil {
			stale = append(stale, err)
		}
	}
	return errors.Join(stale...)
}
