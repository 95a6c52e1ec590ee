package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// TestWrap asserts that lines fit, that code spans are whole, and that no line begins a list by accident.
func TestWrap(t *testing.T) {
	text := strings.Repeat("word ", 21) + "size = overhead + free `a b c d e f g h i j k l m n o p q r s` end 1. here - there"
	wrapped := wrap(text, "- ", "  ")
	for i, line := range strings.Split(strings.TrimSuffix(wrapped, "\n"), "\n") {
		if len(line) > columns {
			t.Errorf("line %d has %d columns", i, len(line))
		}
		if strings.Count(line, "`")%2 != 0 {
			t.Errorf("line %d breaks a code span: %s", i, line)
		}
		if first := strings.Fields(line)[0]; i > 0 && blockStart.MatchString(first) {
			t.Errorf("line %d begins with %s", i, first)
		}
	}
	if have, want := strings.Fields(wrapped)[1:], strings.Fields(text); !slices.Equal(have, want) {
		t.Errorf("%q, want %q", have, want)
	}
}

// TestProse asserts that comments become Markdown.
func TestProse(t *testing.T) {
	// The folder is apart, so that these are no mentions of a page themselves.
	const folder = "docs"
	have := prose("A pattern (*, ?) of <node>, `a*b`: " + folder + "/operate/x.md#y has more.")
	want := "A pattern (\\*, ?) of \\<node>, `a*b`: [" + folder + "/operate/x.md](../operate/x.md#y) has more."
	if have != want {
		t.Errorf("%s, want %s", have, want)
	}
}

// TestMetricReader asserts that each way of making a metric is read, and that the others are errors.
func TestMetricReader(t *testing.T) {
	const options = `&metrics.CounterOpts{Namespace: "berth", Subsystem: "node", Name: "x_bytes_total", StabilityLevel: metrics.ALPHA, Help: "Some help."}`
	for source, want := range map[string]string{
		`var x = metrics.NewCounterVec(` + options + `, []string{"a", "b"})
		func f() { legacyregistry.MustRegister(x) }`: "counter berth_node_x_bytes_total a,b",
		`func gauge(name, help string, labels ...string) *metrics.Desc { return metrics.NewDesc("berth_"+name, help, labels, nil, 0, "") }
		var x = gauge("nodes", "Some help.", "a")
		func (c *collector) DescribeWithStability() { for _, d := range []*metrics.Desc{x} { _ = d } }`: "gauge berth_nodes a",
		`var x = metrics.NewCounter(` + options + `)`:                                                              "x is not registered",
		`func f() { x := metrics.NewCounter(` + options + `); legacyregistry.MustRegister(x) }`:                    "1 metrics are made, and 0 are variables of the package",
		`var x = metrics.NewCounter(o); func f() { legacyregistry.MustRegister(x) }`:                               "x: its options are not a literal",
		`var x = metrics.NewCounter(&metrics.CounterOpts{Name: "x"}); func f() { legacyregistry.MustRegister(x) }`: "x: its option Namespace is not a string",
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n"+source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		r := &metricReader{files: []*ast.File{file}, known: map[string]string{}}
		have := ""
		if err := r.read(); err != nil {
			have = err.Error()
		} else if m := r.metrics[0]; m.help == "Some help." {
			have = m.kind + " " + m.name + " " + strings.Join(m.labels, ",")
		}
		if have != want {
			t.Errorf("%s:\n%s, want %s", source, have, want)
		}
	}
}

// TestUnits asserts that the unit is that of the name's end.
func TestUnits(t *testing.T) {
	for name, want := range map[string]string{"a_bytes_total": "in bytes", "a_seconds": "in seconds", "a_total": "a number", "a_ratio": "from 0 to 1"} {
		if have := unitOf(name); have != want {
			t.Errorf("%s: %s, want %s", name, have, want)
		}
	}
}

// TestLimits asserts that validations are sentences, and that a marker that is not known is an error.
func TestLimits(t *testing.T) {
	for markers, want := range map[string]string{
		"kubebuilder:validation:MinLength=1 kubebuilder:validation:MaxLength=64":                                "1 to 64 characters.",
		"listType=set kubebuilder:validation:MaxItems=16 kubebuilder:validation:items:MaxLength=8":              "At most 16 items, each of at most 8 characters, without duplicates.",
		"listType=map listMapKey=id kubebuilder:validation:MaxItems=16":                                         "At most 16 items, one for each `id`.",
		"kubebuilder:validation:Minimum=1 kubebuilder:validation:Maximum=8 kubebuilder:validation:MultipleOf=2": "1 to 8, a multiple of 2.",
		"kubebuilder:validation:Enum=a;b":                                                                       "One of `a`, `b`.",
		"kubebuilder:validation:UniqueItems=true":                                                               "the marker kubebuilder:validation:UniqueItems is not known to the generator",
	} {
		var all []marker
		for _, m := range strings.Fields(markers) {
			name, value, _ := strings.Cut(m, "=")
			all = append(all, marker{name, value})
		}
		var have string
		if l, err := limitsOf(all); err != nil {
			have = err.Error()
		} else {
			have = strings.Join(l.sentences(), " ")
		}
		if have != want {
			t.Errorf("%s: %s, want %s", markers, have, want)
		}
	}
}
