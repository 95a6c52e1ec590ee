package pages

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strings"
	"testing"
)

// anyText stands for any text in a line, and as a line of its own for any lines.
const anyText = "..."

// kinds are the words that differ from run to run. Where a page has the same chosen word twice, a run must print the
// same one twice. Nothing is asked of others.
var kinds = []struct {
	pattern string
	chosen  bool
}{
	{`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`, true},
	{`\b[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\b`, true},
	{`\bloop[0-9]+`, true},
	// The ends of names of pods.
	{`-(?:[bcdf-hj-np-tv-z2456789]{7,10}-)?[bcdf-hj-np-tv-z2456789]{5}\b`, true},
	{`\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z`, false},
	{`\b(?:[0-9]+(?:\.[0-9]+)?(?:ms|[dhms]))+\b(?: \(x[0-9]+ over [0-9dhms]+\))?`, false},
}

// special matches the words of all kinds, and anyText as the last group.
var special = func() *regexp.Regexp {
	var all []string
	for _, k := range kinds {
		all = append(all, "("+k.pattern+")")
	}
	return regexp.MustCompile(strings.Join(append(all, `(\.\.\.)`), "|"))
}()

// match compares what a command printed with what its page shows. Blanks are not compared, and a line of the page that
// ends with a backslash goes on in the next. names has the run's word for each chosen word of the page so far. match
// returns them with those of this output.
func match(shown, printed string, names map[string]string) (map[string]string, error) {
	want, have := shownLines(shown), strings.Join(trimmed(printed), "\n")
	if have != "" {
		have += "\n"
	}
	all, err := matchStart(want, have, `\z`, names)
	if err == nil {
		return all, nil
	}
	for n := range want {
		if _, err := matchStart(want[:n+1], have, "", names); err != nil {
			return nil, fmt.Errorf("%q: %w", want[n], err)
		}
	}
	return nil, fmt.Errorf("there is more than the page shows: %w", err)
}

// matchStart matches lines of a page with the first lines that were printed, up to an end.
func matchStart(want []string, have, end string, names map[string]string) (map[string]string, error) {
	var pattern strings.Builder
	var words []string // of the page, one for each group
	pattern.WriteString(`\A`)
	for _, line := range want {
		if line == anyText {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		at := 0
		for _, found := range special.FindAllStringSubmatchIndex(line, -1) {
			pattern.WriteString(regexp.QuoteMeta(line[at:found[0]]))
			at = found[1]
			word := line[found[0]:found[1]]
			switch i := kindOf(found); {
			case i == len(kinds):
				pattern.WriteString(`.*`)
			case kinds[i].chosen:
				pattern.WriteString("(" + kinds[i].pattern + ")")
				words = append(words, word)
			default:
				pattern.WriteString(kinds[i].pattern)
			}
		}
		pattern.WriteString(regexp.QuoteMeta(line[at:]) + `\n`)
	}
	groups := regexp.MustCompile(pattern.String() + end).FindStringSubmatch(have)
	if groups == nil {
		return nil, errors.New("that was not printed")
	}
	all := maps.Clone(names)
	for i, word := range words {
		printed := groups[i+1]
		for page, run := range all {
			if (page == word) != (run == printed) {
				return nil, fmt.Errorf("%s stands for %s here, and %s for %s before", word, printed, page, run)
			}
		}
		all[word] = printed
	}
	return all, nil
}

// kindOf is the index of the group that special matched.
func kindOf(found []int) int {
	for i := 2; ; i += 2 {
		if found[i] >= 0 {
			return i/2 - 1
		}
	}
}

// shownLines are the lines of a page, with those joined that a backslash continues.
func shownLines(shown string) []string {
	var lines []string
	goesOn := false
	for _, line := range trimmed(shown) {
		if goesOn {
			lines[len(lines)-1] += line
		} else {
			lines = append(lines, line)
		}
		if line, goesOn = strings.CutSuffix(lines[len(lines)-1], `\`); goesOn {
			lines[len(lines)-1] = line
		}
	}
	return lines
}

// trimmed are the lines of a text that are not empty, with single blanks.
func trimmed(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.Join(strings.Fields(line), " "); line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestMatch asserts what may differ from the page, and that nothing else may.
func TestMatch(t *testing.T) {
	const (
		guid  = "aa7ed4ba-fb05-50cf-b2ac-79c864516948"
		other = "b959eb0d-ef03-4930-b949-264f1e83cb17"
	)
	for name, test := range map[string]struct{ shown, printed, wrong string }{
		"the same":              {"a b\nc\n", "a b\nc\n", ""},
		"nothing":               {"", "", ""},
		"blanks":                {"  a b\n\n  c", "a    b\nc\n", ""},
		"another word":          {"a b\nc\n", "a x\nc\n", `"a b"`},
		"a line less":           {"a\nb\nc\n", "a\nc\n", `"b"`},
		"the last line less":    {"a\nb\n", "a\n", `"b"`},
		"a line more":           {"a\n", "a\nb\n", "more than the page"},
		"a word more":           {"a\n", "a b\n", `"a"`},
		"output":                {"", "b\n", "more than the page"},
		"another size":          {"1900Mi 1.8G 2097152\n", "1901Mi 1.8G 2097152\n", "1900Mi"},
		"another number":        {"1900Mi 1.8G 2097152\n", "1900Mi 1.8G 2097153\n", "2097152"},
		"no pattern":            {"a.c (x)\n", "abc (x)\n", "a.c"},
		"an age":                {"Running 5s\n", "Running 2m10s\n", ""},
		"a duration":            {"took 4.003s, 1.5x\n", "took 900ms, 1.5x\n", ""},
		"a repeated event":      {"5s Created\n", "3s (x2 over 4s) Created\n", ""},
		"no age":                {"Running 5s\n", "Running\n", "Running 5s"},
		"another GUID":          {guid + "\n", other + "\n", ""},
		"the same GUID":         {guid + " " + guid + "\n", other + " " + other + "\n", ""},
		"two GUIDs for one":     {guid + "\n" + guid + "\n", guid + "\n" + other + "\n", "stands for"},
		"one GUID for two":      {guid + "\n" + other + "\n", guid + "\n" + guid + "\n", "stands for"},
		"no GUID":               {guid + "\n", "none\n", guid},
		"a loop device":         {"/dev/loop3p1\n", "/dev/loop14p1\n", ""},
		"another partition":     {"/dev/loop3p1\n", "/dev/loop3p2\n", "loop3p1"},
		"a pod of a Deployment": {"cache-b4dd54bf-shlp6 10.1.2.3\n", "cache-b4dd54bf-jx4rg 10.1.0.9\n", ""},
		"another Deployment":    {"cache-b4dd54bf-shlp6\n", "stash-b4dd54bf-shlp6\n", "cache"},
		"any lines":             {"a\n...\nd\n", "a\nb\nc\nd\n", ""},
		"any lines, none":       {"a\n...\n", "a\n", ""},
		"any lines, no end":     {"a\n...\nd\n", "a\nb\n", `"d"`},
		"any text":              {"a ... d\n", "a b c d\n", ""},
		"any text, no end":      {"a ... d\n", "a b c\nd\n", "a ... d"},
		"a folded line":         {"a \\\n    b\\\n  c\n", "a bc\n", ""},
		"before":                {"before " + guid, "before " + guid, "stands for"},
	} {
		names := map[string]string{"x": "y"}
		if name == "before" {
			names[guid] = other
		}
		all, err := match(test.shown, test.printed, names)
		if have := fmt.Sprint(err); err == nil && test.wrong != "" || err != nil && (test.wrong == "" || !strings.Contains(have, test.wrong)) {
			t.Errorf("%s: %v, want %q", name, err, test.wrong)
		}
		if err == nil && all["x"] != "y" {
			t.Errorf("%s: the names of before are lost", name)
		}
	}
}
