package main

import (
	"go/ast"
	"go/token"
	"strconv"
	"strings"

	"github.com/berthdev/berth/build/source"
)

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
	// The files are read twice, because a constant may use one of a later file.
	for range 2 {
		all = nil
		for _, spec := range source.ValueSpecs(files, token.CONST) {
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
	// doc are the paragraphs of its comment without the markers, and markers are these.
	doc     []string
	markers []marker
}

// types are the type declarations of a package by their names.
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
	endParagraph := func() {
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
			endParagraph()
		default:
			current = append(current, line)
		}
	}
	endParagraph()
	return paragraphs, markers
}
