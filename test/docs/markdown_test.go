package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// markdown is a parsed page.
type markdown struct {
	// path is from the root.
	path   string
	source []byte
	root   ast.Node
}

var parsed = map[string]*markdown{}

// parse parses the page at a path from the root.
func parse(t *testing.T, path string) *markdown {
	t.Helper()
	if m := parsed[path]; m != nil {
		return m
	}
	source, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	parsed[path] = parseSource(path, source)
	return parsed[path]
}

func parseSource(path string, source []byte) *markdown {
	parser := goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser()
	return &markdown{path: path, source: source, root: parser.Parse(text.NewReader(source))}
}

// walk visits the nodes of a page before their children. visit returns whether it wants the children.
func (m *markdown) walk(visit func(ast.Node) bool) {
	_ = ast.Walk(m.root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if entering && !visit(n) {
			return ast.WalkSkipChildren, nil
		}
		return ast.WalkContinue, nil
	})
}

// plain is the text of a node. What spans maps a code span to is in its place.
func (m *markdown) plain(n ast.Node, span func(code string) string) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.CodeSpan:
			var code strings.Builder
			for c := n.FirstChild(); c != nil; c = c.NextSibling() {
				if t, ok := c.(*ast.Text); ok {
					code.Write(t.Segment.Value(m.source))
				}
			}
			b.WriteString(span(code.String()))
			return ast.WalkSkipChildren, nil
		case *ast.Image:
			return ast.WalkSkipChildren, nil
		case *ast.AutoLink:
			b.WriteString(span(string(n.Label(m.source))))
		case *ast.String:
			b.Write(n.Value)
		case *ast.Text:
			b.Write(n.Segment.Value(m.source))
			if n.SoftLineBreak() || n.HardLineBreak() {
				b.WriteByte(' ')
			}
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}
