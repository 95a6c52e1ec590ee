package docs

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestFileMaps asserts that package comments that are a map of their files have all of them, and no other.
func TestFileMaps(t *testing.T) {
	maps := 0
	for _, file := range files(t, "doc.go") {
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ParseComments|parser.PackageClauseOnly)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(root, filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		isMap, err := checkMap(parsed.Doc.Text(), names)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if isMap {
			maps++
		}
	}
	if maps == 0 {
		t.Error("no package has a map of its files")
	}
}

var fileName = regexp.MustCompile(`(?:^|[^\w/.])(\w+\.go)\b`)

// checkMap returns whether a package comment is a map, and what is wrong with it: files that it names and that are not
// among the folder's, and files that it does not name. It is a map if it names two of them.
func checkMap(comment string, folder []string) (isMap bool, err error) {
	named := map[string]bool{}
	ours := 0
	for _, match := range fileName.FindAllStringSubmatch(comment, -1) {
		name := match[1]
		if named[name] {
			continue
		}
		named[name] = true
		if slices.Contains(folder, name) {
			ours++
		} else {
			err = errors.Join(err, fmt.Errorf("it names %s, which is not there", name))
		}
	}
	if ours < 2 {
		return false, err
	}
	for _, name := range folder {
		if filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "zz_") || name == "doc.go" {
			continue
		}
		if !named[name] {
			err = errors.Join(err, fmt.Errorf("it does not name %s", name))
		}
	}
	return true, err
}

// TestCheckMap asserts that what is missing in a map, and what is too much, is found.
func TestCheckMap(t *testing.T) {
	folder := []string{"a.go", "a_test.go", "b.go", "doc.go", "README.md", "zz_generated.deepcopy.go"}
	for comment, want := range map[string]struct {
		isMap bool
		wrong string
	}{
		"Files: a.go and b.go.":                  {true, ""},
		"Files: a.go, b.go, see pkg/other/c.go.": {true, ""},
		"One file, a.go, is named.":              {false, ""},
		"Files: a.go, a_test.go.":                {true, "it does not name b.go"},
		"Files: a.go, b.go and c.go.":            {true, "it names c.go, which is not there"},
		"c.go":                                   {false, "it names c.go, which is not there"},
		"No file.":                               {false, ""},
	} {
		isMap, err := checkMap(comment, folder)
		wrong := ""
		if err != nil {
			wrong = err.Error()
		}
		if isMap != want.isMap || wrong != want.wrong {
			t.Errorf("%q: %v, %q, want %v, %q", comment, isMap, wrong, want.isMap, want.wrong)
		}
	}
}
