// Package reference reads docs/reference, so that tests compare it with what the programs do and other files name.
package reference

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Metric is a metric as docs/reference/metrics.md has it.
type Metric struct {
	// Kind is gauge, counter or histogram.
	Kind string
	// Labels are sorted.
	Labels []string
}

// heading is the beginning of what the page says of a metric: its name, kind, unit and labels.
var heading = regexp.MustCompile("(?m)^### `(berth_[a-z_]+)`\n\n([A-Z][a-z]+), [^.]*\\.(?: No labels\\.| Labels?: ([^.]*)\\.)")

// Metrics are the metrics of the page below root, by name.
func Metrics(root string) (map[string]Metric, error) {
	page, err := os.ReadFile(filepath.Join(root, "docs/reference/metrics.md"))
	if err != nil {
		return nil, err
	}
	metrics := map[string]Metric{}
	for _, m := range heading.FindAllStringSubmatch(string(page), -1) {
		labels := strings.FieldsFunc(m[3], func(r rune) bool { return strings.ContainsRune("`, \n", r) })
		slices.Sort(labels)
		metrics[m[1]] = Metric{strings.ToLower(m[2]), labels}
	}
	if want := strings.Count(string(page), "\n### "); len(metrics) != want || want == 0 {
		return nil, fmt.Errorf("docs/reference/metrics.md has %d metrics, and %d of them are understood", want, len(metrics))
	}
	return metrics, nil
}
