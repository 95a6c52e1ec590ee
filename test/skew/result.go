package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// result is what go test says of one version.
type result struct {
	minor, version string
	took           time.Duration
	outcomes       map[string]string // pass, fail or skip, by test
	output         map[string]*bytes.Buffer
	err            error // of go test itself
}

// event is what go test -json prints, one a line.
type event struct {
	Action  string
	Test    string
	Elapsed float64
	Output  string
}

// read follows go test's output, and prints the tests that have ended.
func (r *result) read(from io.Reader, out io.Writer) error {
	r.outcomes, r.output = map[string]string{}, map[string]*bytes.Buffer{}
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				// Not of a test: a build that fails, for example.
				e = event{Action: "output", Output: string(line)}
			}
			r.add(e, out)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *result) add(e event, out io.Writer) {
	switch e.Action {
	case "output", "build-output":
		if r.output[e.Test] == nil {
			r.output[e.Test] = &bytes.Buffer{}
		}
		r.output[e.Test].WriteString(e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			return
		}
		r.outcomes[e.Test] = e.Action
		if strings.Count(e.Test, "/") <= 1 {
			fmt.Fprintf(out, "%s  %-4s  %s (%.1fs)\n", r.minor, e.Action, e.Test, e.Elapsed)
		}
	}
}

// troubles say what did not pass: tests that failed, were skipped or did not run, and go test itself.
func (r *result) troubles(wanted []string) []string {
	var all []string
	for name, outcome := range r.outcomes {
		if outcome != "pass" {
			all = append(all, name+": "+outcome)
		}
	}
	for _, name := range wanted {
		if _, ran := r.outcomes[name]; !ran {
			all = append(all, name+": did not run")
		}
	}
	slices.Sort(all)
	if r.err != nil {
		all = append(all, r.err.Error())
	}
	return all
}

// failures is the output of the tests that failed, and of the run itself.
func (r *result) failures() string {
	var b strings.Builder
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range r.output {
			if (name == "" || r.outcomes[name] != "pass") && !yield(name) {
				return
			}
		}
	}) {
		b.Write(r.output[name].Bytes())
	}
	return b.String()
}
