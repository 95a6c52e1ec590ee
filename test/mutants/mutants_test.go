package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestEntriesApply asserts that each rule of the lists is still in the product.
func TestEntriesApply(t *testing.T) {
	entries, err := load(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) == 0 {
		t.Fatal("no list of rules beside this test")
	}
	if err := check("../..", entries); err != nil {
		t.Fatal(err)
	}
}

// TestMutate asserts which entries are refused.
func TestMutate(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "a/a.go"), "package a\n\nfunc f() int {\n\tg()\n\tg()\n\treturn 1\n}\n")
	for _, test := range []struct {
		entry Entry
		want  string // the mutant's function, or the error
	}{
		{Entry{Name: "r", File: "a/a.go", Delete: "\treturn 1\n", Replace: "\treturn 2\n"}, "return 2"},
		{Entry{Name: "r", File: "a/a.go", Delete: "g()\n\treturn 1\n"}, "g()\n\t}"},
		{Entry{File: "a/a.go", Delete: "1"}, "has no name"},
		{Entry{Name: "r", File: "a/a.go"}, "delete is empty"},
		{Entry{Name: "r", File: "a/a.go", Delete: "1", Replace: "1"}, "nothing changes"},
		{Entry{Name: "r", File: "a/a.go", Delete: "gone"}, "occurs 0 times"},
		{Entry{Name: "r", File: "a/a.go", Delete: "g()"}, "occurs 2 times"},
		{Entry{Name: "r", File: "a/b.go", Delete: "g()"}, "no such file"},
		{Entry{Name: "r", File: "../a.go", Delete: "g()"}, "not a Go file"},
		{Entry{Name: "r", File: "a/a_test.go", Delete: "g()"}, "not a Go file"},
		{Entry{Name: "r", File: "a/a.go", Delete: "int {"}, "makes it parse"},
		{Entry{Name: "r", File: "a/a.go", Delete: "1", Run: "("}, "run: "},
		{Entry{Name: "r", File: "a/a.go", Delete: "1", Tests: "b"}, "tests without run"},
	} {
		got, err := test.entry.mutate(root)
		if err != nil {
			got = []byte(err.Error())
		}
		if !strings.Contains(string(got), test.want) {
			t.Errorf("%+v: %s, want %s", test.entry, got, test.want)
		}
	}
}

// TestLoad asserts that misspelled fields and duplicate names are refused.
func TestLoad(t *testing.T) {
	for content, want := range map[string]string{
		"- name: a\n  fiel: b\n":            "unknown field",
		"- name: a\n- name: a\n":            "already used",
		"- name: a\n- name: b\n":            "",
		"- name: a\n  delete: |\n    \tx\n": "",
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "list.yaml"), content)
		_, err := load(dir)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

// TestOutcomes asserts the outcome of mutants that the tests catch, of others, and of those that prove nothing.
func TestOutcomes(t *testing.T) {
	root := t.TempDir()
	write(t, filepath.Join(root, "go.mod"), "module example\n\ngo 1.26\n")
	write(t, filepath.Join(root, "a/a.go"), "package a\n\nfunc F() int {\n\tx := 1\n\tfor false {\n\t}\n\treturn x // one\n}\n")
	write(t, filepath.Join(root, "a/a_test.go"), "package a\n\nimport \"testing\"\n\n"+
		"func TestF(t *testing.T) {\n\tif F() != 1 {\n\t\tt.Fatal(\"red\")\n\t}\n}\n")
	write(t, filepath.Join(root, "b/b.go"), "package b\n\nfunc F() int { return 1 }\n")
	write(t, filepath.Join(root, "b/b_test.go"), "package b\n\nimport \"testing\"\n\nfunc TestF(t *testing.T) { t.Fatal(\"red\") }\n")
	r := &runner{root: root, dir: t.TempDir(), timeout: 2 * time.Second}
	entries := []Entry{
		{Name: "caught", File: "a/a.go", Delete: "x := 1", Replace: "x := 2"},
		{Name: "hangs", File: "a/a.go", Delete: "for false", Replace: "for", Run: "TestF"},
		{Name: "survives", File: "a/a.go", Delete: " // one"},
		{Name: "does not compile", File: "a/a.go", Delete: "x := 1"},
		{Name: "no test", File: "a/a.go", Delete: "x := 1", Replace: "x := 2", Run: "TestNone"},
		{Name: "red without it", File: "b/b.go", Delete: "1", Replace: "2"},
	}
	want := map[string]string{
		"caught": "caught TestF", "hangs": "caught by the timeout", "survives": "SURVIVED its package",
		"does not compile": "BROKEN the mutant does not compile", "no test": "BROKEN run \"TestNone\"",
		"red without it": "BROKEN the package's tests fail without a mutant: TestF",
	}
	for _, entries := range byPackage(entries) {
		err := r.tryPackage(t.Context(), entries, func(res result) {
			if got := string(res.outcome) + " " + res.detail; !strings.HasPrefix(got, want[res.entry.Name]) {
				t.Errorf("%s: %s, want %s", res.entry.Name, got, want[res.entry.Name])
			}
			delete(want, res.entry.Name)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(want) > 0 {
		t.Errorf("no result of %v", want)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
