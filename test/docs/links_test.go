package docs

import (
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/yuin/goldmark/ast"
)

// TestLinks asserts that every relative link of a page leads to a file of the tree, and every anchor to a heading.
func TestLinks(t *testing.T) {
	for _, page := range files(t, "*.md") {
		m := parse(t, page)
		for _, link := range m.links() {
			if err := resolve(t, page, link); err != nil {
				t.Errorf("%s: the link %s: %v", page, link, err)
			}
		}
	}
}

// htmlLink matches the links of HTML in a page.
var htmlLink = regexp.MustCompile(`\b(?:href|src|srcset)="([^"]+)"`)

// links are the destinations of the links and images of a page.
func (m *markdown) links() []string {
	var all []string
	html := func(lines string) {
		for _, match := range htmlLink.FindAllStringSubmatch(lines, -1) {
			all = append(all, match[1])
		}
	}
	m.walk(func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Link:
			all = append(all, string(n.Destination))
		case *ast.Image:
			all = append(all, string(n.Destination))
		case *ast.HTMLBlock:
			html(string(n.Lines().Value(m.source)))
		case *ast.RawHTML:
			html(string(n.Segments.Value(m.source)))
		}
		return true
	})
	return all
}

// resolve returns why a link of a page does not resolve. Links to other servers are not followed.
func resolve(t *testing.T, page, link string) error {
	t.Helper()
	to, err := url.Parse(link)
	if err != nil {
		return err
	}
	if to.Scheme != "" {
		return nil
	}
	if to.Host != "" || strings.HasPrefix(to.Path, "/") {
		return fmt.Errorf("it is not relative")
	}
	target := page
	if to.Path != "" {
		target = path.Join(path.Dir(page), to.Path)
	}
	return exists(t, target, to.Fragment)
}

// exists returns why the tree does not have a path, or its page not the anchor.
func exists(t *testing.T, target, anchor string) error {
	t.Helper()
	if target == ".." || strings.HasPrefix(target, "../") {
		return fmt.Errorf("%s is outside of the tree", target)
	}
	if _, err := os.Stat(filepath.Join(root, target)); err != nil {
		return fmt.Errorf("there is no %s", target)
	}
	if anchor == "" {
		return nil
	}
	if path.Ext(target) != ".md" {
		return fmt.Errorf("%s is no page with anchors", target)
	}
	if !slices.Contains(parse(t, target).anchors(), anchor) {
		return fmt.Errorf("%s has no heading with the anchor %s", target, anchor)
	}
	return nil
}

// htmlAnchor matches the anchors of HTML in a page.
var htmlAnchor = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)

// anchors are those that GitHub gives the headings of a page, and those of HTML.
func (m *markdown) anchors() []string {
	var all []string
	seen := map[string]int{}
	m.walk(func(n ast.Node) bool {
		if h, ok := n.(*ast.Heading); ok {
			anchor := anchorOf(m.plain(h, func(code string) string { return code }))
			if count := seen[anchor]; count > 0 {
				all = append(all, fmt.Sprintf("%s-%d", anchor, count))
			} else {
				all = append(all, anchor)
			}
			seen[anchor]++
		}
		return true
	})
	for _, match := range htmlAnchor.FindAllSubmatch(m.source, -1) {
		all = append(all, string(match[1]))
	}
	return all
}

// anchorOf is GitHub's anchor for the text of a heading: in lower case, a dash for each blank, and nothing for what is
// neither a letter, a digit, a dash nor an underscore.
func anchorOf(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) || unicode.IsMark(r):
			return unicode.ToLower(r)
		}
		return -1
	}, strings.TrimSpace(heading))
}

// mention matches the path of a page in source and messages. It begins where no longer path or address does.
var mention = regexp.MustCompile(`(?:^|[^\w/.-])(docs/[\w/.-]*\w\.md)(?:#([\w-]+))?`)

// TestMentions asserts that the pages exist that comments, messages and manifests name.
func TestMentions(t *testing.T) {
	found := 0
	for _, file := range files(t, "*.go", "*.yaml", "*.yml", "Makefile", "run") {
		source, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		number := 0
		for line := range strings.Lines(string(source)) {
			number++
			for _, match := range mention.FindAllStringSubmatch(line, -1) {
				found++
				if err := exists(t, match[1], match[2]); err != nil {
					t.Errorf("%s:%d: %v", file, number, err)
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d mentions are found: does the pattern still match?", found)
	}
}

// TestResolve asserts that links that lead nowhere are found.
func TestResolve(t *testing.T) {
	const page = "docs/README.md"
	for link, resolves := range map[string]bool{
		"../README.md":                 true,
		"../pkg/placement":             true,
		"development.md#no-such-title": false,
		"#no-such-title":               false,
		"no-such-page.md":              false,
		"/docs/README.md":              false,
		"../../outside.md":             false,
		"../go.mod#L1":                 false,
		"https://example.com/x#y":      true,
	} {
		if err := resolve(t, page, link); (err == nil) != resolves {
			t.Errorf("%s: %v, want it to resolve: %v", link, err, resolves)
		}
	}
}

// TestAnchors asserts that anchors are those of GitHub.
func TestAnchors(t *testing.T) {
	m := parseSource("", []byte("# A `b_c` & D-e: [f](x)\n\n## Twice\n\n## Twice\n\n### What's \"ours\"?\n\n```\n# no heading\n```\n\n<a id=\"own\"></a>\n"))
	want := []string{"a-b_c--d-e-f", "twice", "twice-1", "whats-ours", "own"}
	if have := m.anchors(); !slices.Equal(have, want) {
		t.Errorf("%q, want %q", have, want)
	}
}

// TestMentionPattern asserts which texts are mentions of a page.
func TestMentionPattern(t *testing.T) {
	// The folder is apart, so that these are no mentions themselves.
	const folder = "docs"
	for line, want := range map[string]string{
		`// see ` + folder + `/a/b.md#c-d.`:            folder + "/a/b.md c-d",
		`"` + folder + `/a.md lists them"`:             folder + "/a.md ",
		`https://example.com/` + folder + `/a.md`:      "",
		`the folder docs, and README.md`:               "",
		`(` + folder + `/a.md)`:                        folder + "/a.md ",
		`message: ` + folder + `/operate/x-y.md#z, or`: folder + "/operate/x-y.md z",
	} {
		have := ""
		if match := mention.FindStringSubmatch(line); match != nil {
			have = match[1] + " " + match[2]
		}
		if have != want {
			t.Errorf("%s: %q, want %q", line, have, want)
		}
	}
}
