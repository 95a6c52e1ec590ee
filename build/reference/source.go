package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// parseDir parses the files of a package in the order of their names, without tests and generated ones.
func parseDir(dir string) ([]*ast.File, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []*ast.File
	fset := token.NewFileSet()
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

// constant is a string constant.
type constant struct {
	name  string
	value string
	// kind is the name of its type; empty for one without.
	kind string
	// doc is its comment, or the one at the end of its line.
	doc string
}

// constants are the string constants of a package, in the order of the source. Each is a literal, or the sum of
// literals and other constants of the package.
func constants(files []*ast.File) []constant {
	values := map[string]string{}
	var all []constant
	// Twice, because a constant may use one of a later file.
	for range 2 {
		all = nil
		for _, spec := range valueSpecs(files, token.CONST) {
			kind := ""
			if id, ok := spec.Type.(*ast.Ident); ok {
				kind = id.Name
			}
			for i, name := range spec.Names {
				if i >= len(spec.Values) {
					continue
				}
				value, ok := stringOf(spec.Values[i], values)
				if !ok {
					continue
				}
				values[name.Name] = value
				doc := spec.Doc.Text()
				if doc == "" {
					doc = spec.Comment.Text()
				}
				all = append(all, constant{name: name.Name, value: value, kind: kind, doc: strings.TrimSpace(doc)})
			}
		}
	}
	return all
}

// valueSpecs are the declarations of constants or of variables. One that stands alone has the comment of its
// declaration.
func valueSpecs(files []*ast.File, tok token.Token) []*ast.ValueSpec {
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

// stringOf evaluates a string expression.
func stringOf(e ast.Expr, known map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "", false
		}
		value, err := strconv.Unquote(e.Value)
		return value, err == nil
	case *ast.Ident:
		value, ok := known[e.Name]
		return value, ok
	case *ast.BinaryExpr:
		x, okX := stringOf(e.X, known)
		y, okY := stringOf(e.Y, known)
		return x + y, e.Op == token.ADD && okX && okY
	}
	return "", false
}

// structure is a type declaration.
type structure struct {
	name string
	expr ast.Expr
	// doc is its comment without markers.
	doc     []string
	markers []marker
}

func types(files []*ast.File) map[string]structure {
	all := map[string]structure{}
	for _, file := range files {
		for _, decl := range file.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.TYPE {
				continue
			}
			for _, s := range gen.Specs {
				spec := s.(*ast.TypeSpec)
				doc := spec.Doc
				if doc == nil {
					doc = gen.Doc
				}
				paragraphs, markers := splitDoc(doc)
				all[spec.Name.Name] = structure{name: spec.Name.Name, expr: spec.Type, doc: paragraphs, markers: markers}
			}
		}
	}
	return all
}

// marker is a line of a comment for a generator, such as +kubebuilder:validation:MaxItems=16.
type marker struct {
	name, value string
}

// splitDoc separates a comment's paragraphs from its markers.
func splitDoc(doc *ast.CommentGroup) (paragraphs []string, markers []marker) {
	var current []string
	end := func() {
		if len(current) > 0 {
			paragraphs = append(paragraphs, strings.Join(current, " "))
		}
		current = nil
	}
	for line := range strings.Lines(doc.Text()) {
		line = strings.TrimSpace(line)
		switch text, isMarker := strings.CutPrefix(line, "+"); {
		case isMarker:
			name, value, _ := strings.Cut(text, "=")
			// The arguments of these begin with a colon.
			for _, long := range []string{"kubebuilder:validation:XValidation", "kubebuilder:printcolumn", "kubebuilder:resource"} {
				if rest, ok := strings.CutPrefix(text, long+":"); ok {
					name, value = long, rest
				}
			}
			markers = append(markers, marker{name, value})
		case line == "":
			end()
		default:
			current = append(current, line)
		}
	}
	end()
	return paragraphs, markers
}

// sourceDirs are the folders below dir that have Go files, dir among them, without testdata.
func sourceDirs(dir string) ([]string, error) {
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
