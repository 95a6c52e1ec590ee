package docs

import (
	_ "embed"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/yuin/goldmark/ast"
	extast "github.com/yuin/goldmark/extension/ast"
	"sigs.k8s.io/yaml"
)

const (
	maxColumns = 120
	maxWords   = 25
)

// TestColumns asserts that lines fit into 120 columns, but for code, tables and what cannot be broken.
func TestColumns(t *testing.T) {
	for _, page := range files(t, "*.md") {
		for _, line := range parse(t, page).longLines() {
			t.Errorf("%s:%d: the line has more than %d columns", page, line, maxColumns)
		}
	}
}

// TestSentences asserts that sentences have at most 25 words, but for those in tables and code.
func TestSentences(t *testing.T) {
	for _, page := range files(t, "*.md") {
		for _, p := range parse(t, page).paragraphs() {
			for _, sentence := range sentences(p.text) {
				if n := wordCount(sentence); n > maxWords {
					t.Errorf("%s:%d: %d words: %s", page, p.line, n, sentence)
				}
			}
		}
	}
}

// TestWords asserts that the pages have none of the words in words.txt and in .golangci.yml.
func TestWords(t *testing.T) {
	banned := bannedWords(t)
	for _, page := range files(t, "*.md") {
		for _, p := range parse(t, page).texts() {
			for _, b := range banned {
				if found := b.pattern.FindString(p.text); found != "" {
					t.Errorf("%s:%d: %q: %s", page, p.line, found, b.instead)
				}
			}
		}
	}
}

// longLines are the numbers of the lines that are too long.
func (m *markdown) longLines() []int {
	exempt := map[int]bool{}
	m.walk(func(n ast.Node) bool {
		switch n.(type) {
		case *ast.FencedCodeBlock, *ast.CodeBlock, *ast.HTMLBlock, *extast.Table:
			first, last := m.lineRange(n)
			for line := first; line <= last; line++ {
				exempt[line] = true
			}
			return false
		}
		return true
	})
	var long []int
	number := 0
	for line := range strings.Lines(string(m.source)) {
		number++
		line = strings.TrimRight(line, "\n")
		if utf8.RuneCountInString(line) > maxColumns && !exempt[number] && breakable(line) {
			long = append(long, number)
		}
	}
	return long
}

// reference matches the definition of a link.
var reference = regexp.MustCompile(`^\[[^\]]+\]: `)

// breakable reports whether a line is more than one address, one code span, or a definition of a link.
func breakable(line string) bool {
	line = strings.TrimLeft(line, " -*>")
	if reference.MatchString(line) {
		return false
	}
	if strings.HasPrefix(line, "`") && strings.Count(line, "`") == 2 {
		return false
	}
	return strings.Contains(strings.TrimSpace(line), " ")
}

// lineRange is the first and the last line of a block.
func (m *markdown) lineRange(n ast.Node) (first, last int) {
	start, end := -1, -1
	extend := func(from, to int) {
		if start < 0 || from < start {
			start = from
		}
		end = max(end, to)
	}
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		if n.Type() == ast.TypeBlock {
			lines := n.Lines()
			for i := range lines.Len() {
				extend(lines.At(i).Start, lines.At(i).Stop-1)
			}
		}
		if text, ok := n.(*ast.Text); ok {
			extend(text.Segment.Start, text.Segment.Stop)
		}
		return ast.WalkContinue, nil
	})
	if start < 0 {
		return 0, -1
	}
	return m.line(start), m.line(end)
}

// line is the number of the line that has a byte.
func (m *markdown) line(offset int) int {
	return 1 + strings.Count(string(m.source[:min(offset, len(m.source))]), "\n")
}

// paragraph is the text of a block, with the number of its first line.
type paragraph struct {
	line int
	text string
}

// texts are the texts of a page: paragraphs, items, headings and cells. A code span is the word that code is.
func (m *markdown) texts() []paragraph {
	return m.collect(func(n ast.Node) bool {
		switch n.(type) {
		case *ast.Paragraph, *ast.TextBlock, *ast.Heading, *extast.TableCell:
			return true
		}
		return false
	})
}

// paragraphs are the texts that have sentences.
func (m *markdown) paragraphs() []paragraph {
	return m.collect(func(n ast.Node) bool {
		switch n.(type) {
		case *ast.Paragraph, *ast.TextBlock:
			return true
		}
		return false
	})
}

// codeWord stands for a code span. It is one word.
const codeWord = "CODE"

func (m *markdown) collect(wanted func(ast.Node) bool) []paragraph {
	var all []paragraph
	m.walk(func(n ast.Node) bool {
		if !wanted(n) {
			return true
		}
		first, _ := m.lineRange(n)
		text := m.plain(n, func(string) string { return codeWord })
		all = append(all, paragraph{line: first, text: strings.Join(strings.Fields(text), " ")})
		return false
	})
	return all
}

// abbreviations end with a period that ends no sentence.
var abbreviations = []string{"e.g.", "i.e.", "etc.", "vs.", "cf.", "approx.", "no.", "incl.", "fig.", "st."}

// sentences splits a text where a period, a question mark or an exclamation mark ends a word. What follows may begin
// with a small letter: names such as xfs do.
func sentences(text string) []string {
	var all []string
	var current []string
	for word := range strings.FieldsSeq(text) {
		current = append(current, word)
		bare := strings.TrimRight(word, `"')”’*_`)
		ends := strings.HasSuffix(bare, ".") || strings.HasSuffix(bare, "?") || strings.HasSuffix(bare, "!")
		if !ends || slices.Contains(abbreviations, strings.ToLower(strings.TrimLeft(bare, `("'“‘`))) {
			continue
		}
		all = append(all, strings.Join(current, " "))
		current = nil
	}
	if len(current) > 0 {
		all = append(all, strings.Join(current, " "))
	}
	return all
}

// enumeration matches a list of code spans or of numbers.
var enumeration = regexp.MustCompile(`\b(?:CODE|[0-9][0-9.,]*)(?:,? (?:(?:and|or) )?(?:CODE|[0-9][0-9.,]*))+\b`)

// wordCount counts what has a letter or a digit. A list of code spans or numbers is read at a glance: it is one word.
func wordCount(sentence string) int {
	sentence = enumeration.ReplaceAllString(sentence, codeWord)
	n := 0
	for word := range strings.FieldsSeq(sentence) {
		if strings.ContainsFunc(word, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			n++
		}
	}
	return n
}

//go:embed words.txt
var wordList string

// bannedWord is a word of one of the lists, in all its forms.
type bannedWord struct {
	pattern *regexp.Regexp
	instead string
}

func newBannedWord(instead string, forms ...string) bannedWord {
	for i, w := range forms {
		forms[i] = regexp.QuoteMeta(w)
	}
	// With a capital it counts only where a sentence begins: elsewhere it is part of a name, such as a title.
	either := strings.Join(forms, "|")
	pattern := regexp.MustCompile(fmt.Sprintf(`\b(?:%s)\b|(?:^|[.?!:] )["(]?(?i:%s)\b`, either, either))
	return bannedWord{pattern: pattern, instead: instead}
}

// bannedWords are those that lint refuses in Go, and those of words.txt.
func bannedWords(t *testing.T) []bannedWord {
	t.Helper()
	all := lintWords(t)
	if len(all) == 0 {
		t.Fatal(".golangci.yml has no extra-words of misspell")
	}
	for line := range strings.Lines(wordList) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words, instead, ok := strings.Cut(line, ": ")
		if !ok {
			t.Fatalf("words.txt: %q says not what to write instead", line)
		}
		all = append(all, newBannedWord(instead, strings.Split(words, ", ")...))
	}
	return all
}

// lintWords are the words that .golangci.yml adds to misspell.
func lintWords(t *testing.T) (all []bannedWord) {
	t.Helper()
	var config struct {
		Linters struct {
			Settings struct {
				Misspell struct {
					ExtraWords []struct{ Typo, Correction string } `json:"extra-words"`
				} `json:"misspell"`
			} `json:"settings"`
		} `json:"linters"`
	}
	data, err := os.ReadFile("../../.golangci.yml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	for _, w := range config.Linters.Settings.Misspell.ExtraWords {
		all = append(all, newBannedWord(fmt.Sprintf("write %q", w.Correction), w.Typo))
	}
	return all
}

// TestSentencesOf asserts where sentences end, and what is counted.
func TestSentencesOf(t *testing.T) {
	m := parseSource("", []byte("See `a.b. C` in v1.2. Then e.g. This one, i.e. the [second one. Yes](x.md). \"Third?\" (Fourth.) It\nis 5 GiB. xfs is. `x` – 2.\n"))
	want := []string{"See CODE in v1.2.", "Then e.g. This one, i.e. the second one.", "Yes.", "\"Third?\"", "(Fourth.)", "It is 5 GiB.", "xfs is.", "CODE – 2."}
	have := sentences(m.paragraphs()[0].text)
	if !slices.Equal(have, want) {
		t.Errorf("%q, want %q", have, want)
	}
	for sentence, n := range map[string]int{
		"CODE – 2.": 2, "one-word, and/or = more": 3, "": 0, "One of CODE, CODE, CODE or CODE.": 3, "It is 1.5, 2 and 3 ms, CODE it is": 7,
	} {
		if have := wordCount(sentence); have != n {
			t.Errorf("%q has %d words, want %d", sentence, have, n)
		}
	}
}

// TestLongLines asserts which lines count as too long.
func TestLongLines(t *testing.T) {
	long := strings.Repeat("word ", 30)
	unbroken := strings.Repeat("x", 130)
	m := parseSource("", []byte(strings.Join([]string{
		"# Title",              // 1
		"",                     // 2
		long,                   // 3
		"",                     // 4
		"```",                  // 5
		long,                   // 6
		"```",                  // 7
		"",                     // 8
		"| a | b |",            // 9
		"|---|---|",            // 10
		"| " + long + " | x |", // 11
		"",                     // 12
		"- " + long,            // 13
		"- https://" + unbroken,
		"- `" + long + "`",
		"[x]: https://" + unbroken,
		"",
		"end", "",
	}, "\n")))
	if have, want := m.longLines(), []int{3, 13}; !slices.Equal(have, want) {
		t.Errorf("%v, want %v", have, want)
	}
}

// TestBannedWords asserts that only whole words outside of code are found, and that both lists are read.
func TestBannedWords(t *testing.T) {
	word := newBannedWord("", "widget")
	for source, want := range map[string]bool{
		"Widget us see.":                  true,
		"It is **widget** so.":            true,
		"\"Scheduling with Widget Use\"":  false,
		"Yes. Widget did.":                true,
		"| a |\n|---|\n| widget |\n":      true,
		"# Widget\n":                      true,
		"Some widgets, a_widget, widget_": false,
		"`widget`":                        false,
		"```\nwidget\n```\n":              false,
		"[a](https://widget.example)":     false,
	} {
		have := slices.ContainsFunc(parseSource("", []byte(source)).texts(), func(p paragraph) bool { return word.pattern.MatchString(p.text) })
		if have != want {
			t.Errorf("%q: %v, want %v", source, have, want)
		}
	}
	all := bannedWords(t)
	for list, text := range map[string]string{".golangci.yml": "one per" + "son", "words.txt": "two sites"} {
		if !slices.ContainsFunc(all, func(b bannedWord) bool { return b.pattern.MatchString(text) }) {
			t.Errorf("%q is not found with the words of %s", text, list)
		}
	}
}
