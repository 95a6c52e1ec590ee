package pages

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/text"
)

// step is something of a page that a reader can try: a command of a console block, or a file.
type step struct {
	// line of the page.
	line int
	// node is empty for a command on the reader's machine.
	node    string
	command string
	// shown is what the page says that the command prints.
	shown string
	// file is the name of a YAML block whose first line is a comment with it, and content is the block.
	file, content string
}

var (
	prompt   = regexp.MustCompile(`^(\$|[a-z0-9-]+#) (.*)$`)
	document = regexp.MustCompile(`<<-?\s*['"]?(\w+)['"]?`)
	fileName = regexp.MustCompile(`^# ([\w./-]+\.yaml)\n`)
)

// readPage reads a Markdown file.
func readPage(path string) ([]step, error) {
	source, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	steps, err := parsePage(source)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return steps, nil
}

// parsePage returns the steps of a page, and none if no command is among them.
func parsePage(source []byte) ([]step, error) {
	var all []step
	commands := 0
	root := goldmark.DefaultParser().Parse(text.NewReader(source))
	err := ast.Walk(root, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		block, ok := n.(*ast.FencedCodeBlock)
		if !ok || !entering || block.Lines().Len() == 0 {
			return ast.WalkContinue, nil
		}
		content := string(block.Lines().Value(source))
		line := 1 + strings.Count(string(source[:block.Lines().At(0).Start]), "\n")
		switch string(block.Language(source)) {
		case "yaml":
			if name := fileName.FindStringSubmatch(content); name != nil {
				all = append(all, step{line: line, file: name[1], content: content})
			}
		case "console":
			steps, err := parseConsole(content, line)
			if err != nil {
				return ast.WalkStop, err
			}
			all = append(all, steps...)
			commands += len(steps)
		}
		return ast.WalkSkipChildren, nil
	})
	if commands == 0 {
		all = nil
	}
	return all, err
}

// parseConsole reads the lines of a console block. A command goes on in the next line after a backslash, and up to the
// end of its here-document. What follows is what it prints.
func parseConsole(content string, first int) ([]step, error) {
	var steps []step
	lines := strings.SplitAfter(strings.TrimSuffix(content, "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		match := prompt.FindStringSubmatch(strings.TrimSuffix(lines[i], "\n"))
		if match == nil {
			if len(steps) == 0 {
				return nil, fmt.Errorf("line %d: a console block begins with a command", first+i)
			}
			steps[len(steps)-1].shown += lines[i]
			continue
		}
		s := step{line: first + i, node: strings.Trim(match[1], "$#"), command: match[2]}
		more := func() bool {
			i++
			if i < len(lines) {
				s.command += "\n" + strings.TrimSuffix(lines[i], "\n")
			}
			return i < len(lines)
		}
		for strings.HasSuffix(s.command, `\`) && more() {
		}
		if end := document.FindStringSubmatch(s.command); end != nil {
			for !strings.HasSuffix(s.command, "\n"+end[1]) {
				if !more() {
					return nil, fmt.Errorf("line %d: the here-document has no end", s.line)
				}
			}
		}
		steps = append(steps, s)
	}
	return steps, nil
}

// TestParse asserts which blocks of a page count, and what belongs to a command.
func TestParse(t *testing.T) {
	have, err := parsePage([]byte("# Page\n" +
		"```yaml\n# a/pod.yaml\nkind: Pod\n```\n" +
		"```yaml\nkind: Other\n```\n" +
		"```sh\n$ not run\n```\n" +
		"1. Item\n\n   ```console\n   $ cat <<EOF |\n   $ text\n   EOF\n   out\n     two\n   node1# one \\\n     more\n   ```\n" +
		"```console\n$ true\n$ false\nno\n```\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []step{
		{line: 3, file: "a/pod.yaml", content: "# a/pod.yaml\nkind: Pod\n"},
		{line: 15, command: "cat <<EOF |\n$ text\nEOF", shown: "out\n  two\n"},
		{line: 20, node: "node1", command: "one \\\n  more"},
		{line: 24, command: "true"},
		{line: 25, command: "false", shown: "no"},
	}
	if !slices.Equal(have, want) {
		t.Errorf("%+v, want %+v", have, want)
	}
	if have, err := parsePage([]byte("```yaml\n# pod.yaml\n```\n")); len(have) > 0 || err != nil {
		t.Errorf("a page without commands: %+v, %v", have, err)
	}
	for _, bad := range []string{"```console\nout\n```\n", "```console\n$ cat <<END\nout\n```\n"} {
		if _, err := parsePage([]byte(bad)); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}
