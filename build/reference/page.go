package main

import (
	"fmt"
	"regexp"
	"strings"
)

// columns is the width of the pages.
const columns = 120

// page is a Markdown page in the making.
type page struct {
	text strings.Builder
}

// newPage begins a page: its title, and a comment for those who would edit it.
func newPage(title string) *page {
	p := &page{}
	p.heading(1, title)
	p.text.WriteString("<!-- Written by `make generate` from the code: change it there. -->\n\n")
	return p
}

func (p *page) heading(level int, text string) {
	fmt.Fprintf(&p.text, "%s %s\n\n", strings.Repeat("#", level), text)
}

func (p *page) paragraph(text string) {
	p.text.WriteString(wrap(text, "", "") + "\n")
}

// list writes the items, each a paragraph.
func (p *page) list(items []string) {
	for _, item := range items {
		p.text.WriteString(wrap(item, "- ", "  "))
	}
	p.text.WriteString("\n")
}

// String ends with one newline.
func (p *page) String() string {
	return strings.TrimRight(p.text.String(), "\n") + "\n"
}

// wrap breaks a paragraph into lines. The first begins with first, the others with rest.
func wrap(text, first, rest string) string {
	var b strings.Builder
	line := first
	empty := true
	for _, w := range words(text) {
		if !empty && len(line)+1+len(w) > columns {
			b.WriteString(line + "\n")
			line, empty = rest, true
		}
		if !empty {
			line += " "
		}
		line += w
		empty = false
	}
	return b.String() + line + "\n"
}

// blockStart matches what would begin a list, a heading or a quotation at the start of a line.
var blockStart = regexp.MustCompile(`^([-+*>=]|#+|[0-9]+[.)])$`)

// words are the parts between which a line may end. A code span is not broken, and what has a meaning at the start of
// a line stays with the word before it.
func words(text string) []string {
	var all []string
	open := false
	for _, field := range strings.Fields(text) {
		if len(all) > 0 && (open || blockStart.MatchString(field)) {
			all[len(all)-1] += " " + field
		} else {
			all = append(all, field)
		}
		if strings.Count(field, "`")%2 == 1 {
			open = !open
		}
	}
	return all
}

// code is a code span.
func code(text string) string { return "`" + text + "`" }

// codes are code spans with commas between them.
func codes(texts []string) string {
	spans := make([]string, len(texts))
	for i, t := range texts {
		spans[i] = code(t)
	}
	return strings.Join(spans, ", ")
}

var docsPath = regexp.MustCompile(`\bdocs/([a-z0-9/-]+\.md)(#[a-z0-9-]+)?`)

// prose makes the text of a comment Markdown: what is special there is escaped, and pages become links.
func prose(text string) string {
	spans := strings.Split(text, "`")
	for i := 0; i < len(spans); i += 2 {
		s := strings.NewReplacer("*", `\*`, "<", `\<`).Replace(spans[i])
		spans[i] = docsPath.ReplaceAllString(s, "[docs/$1](../$1$2)")
	}
	return strings.Join(spans, "`")
}
