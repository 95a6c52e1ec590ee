// Package source reads the Go source of the project, for the pages that are made of it and the tests of the others.
package source

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Dirs are the folders below dir that have Go files, dir among them, without testdata.
func Dirs(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "testdata":
			return filepath.SkipDir
		case !d.IsDir() && strings.HasSuffix(path, ".go") && !slices.Contains(dirs, filepath.Dir(path)):
			dirs = append(dirs, filepath.Dir(path))
		}
		return nil
	})
	if err == nil && len(dirs) == 0 {
		err = fmt.Errorf("%s has no Go files", dir)
	}
	return dirs, err
}

// ParseDir parses the files of a package in the order of their names, without tests and generated ones.
func ParseDir(fset *token.FileSet, dir string) ([]*ast.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	for _, e := range entries {
		name := e.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "zz_") {
			continue
		}
		file, err := parser.ParseFile(fset, filepath.Join(dir, name), nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// ValueSpecs are the declarations of constants or of variables. One that stands alone has the comment of its
// declaration.
func ValueSpecs(files []*ast.File, tok token.Token) []*ast.ValueSpec {
	var specs []*ast.ValueSpec
	for _, file := range files {
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != tok {
				continue
			}
			for _, s := range gen.Specs {
				spec := *s.(*ast.ValueSpec)
				if spec.Doc == nil && !gen.Lparen.IsValid() {
					spec.Doc = gen.Doc
				}
				specs = append(specs, &spec)
			}
		}
	}
	return specs
}
