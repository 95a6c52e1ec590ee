package main

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	tests := []coreTest{{"TestA", []string{"one plan", "killed"}}, {"TestB", nil}}
	if got, want := pattern(tests), `^TestA$/^(one_plan|killed)$|^TestB$`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, want := names(tests), []string{"TestA", "TestA/one_plan", "TestA/killed", "TestB"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := only(tests, regexp.MustCompile("B")); len(got) != 1 || got[0].name != "TestB" || len(tests) != 2 {
		t.Errorf("got %v of %v", got, tests)
	}
}

// TestSummary asserts that a version passes only if each of the tests ran and passed.
func TestSummary(t *testing.T) {
	const pass = `{"Action":"pass","Test":"TestA/x"}
{"Action":"pass","Test":"TestA","Elapsed":1.5}
{"Action":"pass"}
`
	wanted := []string{"TestA", "TestA/x"}
	for name, test := range map[string]struct {
		events string
		err    error
		want   string // in the output; empty if all passed
	}{
		"passed":         {events: pass},
		"nothing ran":    {events: `{"Action":"pass"}`, want: "TestA: did not run"},
		"one is missing": {events: `{"Action":"pass","Test":"TestA"}`, want: "TestA/x: did not run"},
		"one failed":     {events: pass + `{"Action":"fail","Test":"TestA/y/z"}`, want: "TestA/y/z: fail"},
		"one is skipped": {events: pass + `{"Action":"skip","Test":"TestA/y"}`, want: "TestA/y: skip"},
		"go test failed": {events: pass, err: errors.New("exit status 1"), want: "exit status 1"},
		"not built":      {events: "FAIL\tpackage [build failed]\n", want: "TestA: did not run"},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			good, r := &result{version: "v1.2.3"}, &result{version: "v1.2.4", err: test.err}
			err := errors.Join(good.read(strings.NewReader(pass), &out), r.read(strings.NewReader(test.events), &out))
			if err != nil {
				t.Fatal(err)
			}
			out.Reset()
			passed := summary(&out, []*result{good, r}, wanted)
			if passed != (test.want == "") {
				t.Errorf("passed: %t", passed)
			}
			if !strings.Contains(out.String(), "v1.2.4  "+test.want) {
				t.Errorf("the summary is\n%s", out.String())
			}
		})
	}
	if summary(&bytes.Buffer{}, nil, wanted) {
		t.Error("no version at all passes")
	}
}

// TestFailures asserts that the output of what failed is shown, and no other.
func TestFailures(t *testing.T) {
	var r result
	if err := r.read(strings.NewReader(`{"Action":"output","Test":"TestA","Output":"of A\n"}
{"Action":"output","Test":"TestB","Output":"of B\n"}
no JSON
{"Action":"pass","Test":"TestA"}
{"Action":"fail","Test":"TestB"}
`), &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	if got, want := r.failures(), "no JSON\nof B\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
