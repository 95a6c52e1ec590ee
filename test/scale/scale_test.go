package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/units"
)

// TestReport runs a small workload of each kind once. So the program keeps working between the rare long runs.
func TestReport(t *testing.T) {
	directory := t.TempDir()
	s := settings{
		nodes: []int{150}, rounds: 1, only: "abde", pods: 60, claims: 20, capacityPods: 3,
		rate: 50, arrivals: 400 * time.Millisecond, after: 200 * time.Millisecond,
		plots: directory, log: t.Output(),
	}
	var out bytes.Buffer
	if err := s.report(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	t.Logf("it printed:\n%s", out.String())
	for _, want := range []string{
		"| (a) stock, no volumes |", "| (b) ", "| (d) ", "| (e) ", "\n| (b) | ", "| over-commitments | 0.00 | 0 | met |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it did not print %q", want)
		}
	}
	for _, name := range []string{"scale-burst.svg", "scale-arrivals.svg"} {
		svg, err := os.ReadFile(filepath.Join(directory, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(svg, []byte(">(b)</text>")) || bytes.Contains(svg, []byte("NaN")) {
			t.Errorf("%s has no line for (b), or one that is none:\n%s", name, svg)
		}
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	for _, tc := range []struct {
		values []time.Duration
		per    int
		want   time.Duration
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred[:1], 50, 100},
		{[]time.Duration{3, 1, 2}, 50, 2},
		{[]time.Duration{3, 1, 2}, 99, 3},
	} {
		if got := percentile(tc.values, tc.per); got != tc.want {
			t.Errorf("percentile(%v, %d) = %d, want %d", tc.values, tc.per, got, tc.want)
		}
	}
}

// TestTargets asserts that a missed target is reported.
func TestTargets(t *testing.T) {
	turn := func(podsPerSecond float64, memory int64, overCommits int) []figures {
		return []figures{{podsPerSecond: podsPerSecond, memory: memory * units.MiB, overCommits: overCommits}}
	}
	for _, tc := range []struct {
		name   string
		b      []figures
		missed []string
	}{
		{"all met", turn(500, 130, 0), nil},
		{"slow", turn(499, 130, 0), []string{"pods a second"}},
		{"large", turn(500, 131, 0), []string{"memory"}},
		{"over-committed", turn(500, 130, 1), []string{"over-commitments"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			writeTargets(&out, []*result{
				{workload: workload{letter: "a", scheduler: scheduler{process: stockProcess}}, turns: turn(500, 100, 0)},
				{workload: workload{letter: "b"}, turns: tc.b},
			})
			var missed []string
			for line := range strings.Lines(out.String()) {
				if strings.Contains(line, "missed") {
					missed = append(missed, line)
				}
			}
			if len(missed) != len(tc.missed) || !slices.EqualFunc(missed, tc.missed, strings.Contains) {
				t.Errorf("missed are %q, want %q", missed, tc.missed)
			}
		})
	}
}
