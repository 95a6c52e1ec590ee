package rules

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/berthdev/berth/test/reference"
	"github.com/berthdev/berth/test/testenv"
)

// ruleFile is what of a rules file of Prometheus is looked at here.
type ruleFile struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Record, Expr string
			Labels, Annotations map[string]string
		}
	}
}

// targetLabels are what the scrape configuration adds.
var targetLabels = []string{"job", "instance", "node"}

// repository is the root of the repository.
func repository(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func rulesPath(t *testing.T) string {
	t.Helper()
	return filepath.Join(repository(t), "charts/berth/files/rules.yaml")
}

func readRules(t *testing.T) ruleFile {
	t.Helper()
	text, err := os.ReadFile(rulesPath(t))
	if err != nil {
		t.Fatal(err)
	}
	var rules ruleFile
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	return rules
}

// promtool runs promtool, and returns what it prints.
func promtool(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	testenv.NeedProgram(t, "apt-get", "dpkg-deb")
	program, err := Promtool(t.Context(), filepath.Join(repository(t), ".build/promtool"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, arguments...).CombinedOutput()
	return string(out), err
}

// TestRules asserts that Prometheus understands the rules, and that each alert has what an operator needs.
func TestRules(t *testing.T) {
	if out, err := promtool(t, "check", "rules", "--lint-fatal", rulesPath(t)); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	page, err := os.ReadFile(filepath.Join(repository(t), "docs/operate/alerts.md"))
	if err != nil {
		t.Fatal(err)
	}
	alerts := 0
	for _, group := range readRules(t).Groups {
		for _, r := range group.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
				t.Errorf("%s has severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s has no summary or description", r.Alert)
			}
			if want := "https://github.com/berthdev/berth/blob/main/docs/operate/alerts.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s has the runbook %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
			}
			if !strings.Contains(string(page), "\n## "+r.Alert+"\n") {
				t.Errorf("docs/operate/alerts.md has no heading ## %s", r.Alert)
			}
		}
	}
	if headings := strings.Count(string(page), "\n## Berth"); headings != alerts || alerts < 20 {
		t.Errorf("%d alerts, and %d headings in docs/operate/alerts.md", alerts, headings)
	}
}

var (
	identifier = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*`)
	ourMetric  = regexp.MustCompile(`berth[_:][a-zA-Z0-9_:]*`)
	grouping   = regexp.MustCompile(`\b(?:by|on|group_left)\s*\(([^)]*)\)`)
	matchers   = regexp.MustCompile(`\{([^}]*)\}`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)`)
	inText     = regexp.MustCompile(`\$labels\.([a-z_]+)`)
)

// checkNames asserts that each metric of a query exists, and each label of the query or of a text about its result.
func checkNames(query, text string, metrics map[string]reference.Metric, recorded []string) error {
	labels := slices.Clone(targetLabels)
	for _, name := range ourMetric.FindAllString(query, -1) {
		m, ok := metrics[strings.TrimSuffix(name, "_bucket")]
		if !ok && !slices.Contains(recorded, name) {
			return fmt.Errorf("there is no metric %s", name)
		}
		labels = append(labels, m.Labels...)
		if slices.Contains(recorded, name) {
			// A recording rule has labels of what it is made of, and was checked itself.
			for _, m := range metrics {
				labels = append(labels, m.Labels...)
			}
		}
	}
	var used []string
	for _, m := range grouping.FindAllStringSubmatch(query, -1) {
		used = append(used, identifier.FindAllString(m[1], -1)...)
	}
	for _, m := range matchers.FindAllStringSubmatch(query, -1) {
		for _, l := range matcher.FindAllStringSubmatch(m[1], -1) {
			used = append(used, l[1])
		}
	}
	for _, m := range inText.FindAllStringSubmatch(text, -1) {
		used = append(used, m[1])
	}
	for _, label := range used {
		if label != "le" && !slices.Contains(labels, label) {
			return fmt.Errorf("no metric of %s has the label %s", query, label)
		}
	}
	return nil
}

// TestNames asserts that the rules name only metrics and labels that the programs serve.
func TestNames(t *testing.T) {
	metrics, err := reference.Metrics(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	for _, group := range readRules(t).Groups {
		for _, r := range group.Rules {
			if err := checkNames(r.Expr, r.Annotations["summary"]+r.Annotations["description"], metrics, recorded); err != nil {
				t.Errorf("%s%s: %v", r.Alert, r.Record, err)
			}
			if r.Record != "" {
				recorded = append(recorded, r.Record)
			}
		}
	}
	for query, bad := range map[string]bool{
		`sum by (class) (berth_scheduler_free_bytes)`: false, `sum by (state) (berth_scheduler_free_bytes)`: true,
		`berth_node_missing`: true, `berth_node_orphaned_volumes{kind="a"}`: false, `berth_node_orphaned_volumes{class="a"}`: true,
	} {
		if err := checkNames(query, "", metrics, nil); (err != nil) != bad {
			t.Errorf("%s: %v", query, err)
		}
	}
}

// TestBoard asserts that the queries of the Grafana board name only metrics and labels that the programs serve.
// Prometheus must understand them.
func TestBoard(t *testing.T) {
	metrics, err := reference.Metrics(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	var recorded []string
	for _, group := range readRules(t).Groups {
		for _, r := range group.Rules {
			if r.Record != "" {
				recorded = append(recorded, r.Record)
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(repository(t), "charts/berth/files/board.json"))
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := yaml.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	var queries []any
	for _, p := range board.Panels {
		for _, q := range p.Targets {
			// The legend names labels like a text about the result.
			legend := strings.ReplaceAll(q.LegendFormat, "{{", "$labels.")
			if err := checkNames(q.Expr, legend, metrics, recorded); err != nil {
				t.Errorf("%s: %v", p.Title, err)
			}
			queries = append(queries, map[string]any{"record": fmt.Sprintf("board:%d", len(queries)), "expr": strings.ReplaceAll(q.Expr, "$__rate_interval", "5m")})
		}
	}
	if len(queries) < 40 {
		t.Fatalf("the board has %d queries", len(queries))
	}
	// As rules, because promtool checks those without a server.
	rules, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "board", "rules": queries}}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "board.yaml")
	if err := os.WriteFile(path, rules, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "check", "rules", path); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// TestAlerts asserts that each alert fires, and no other with it, and that it does not fire when it should not.
func TestAlerts(t *testing.T) {
	metrics, err := reference.Metrics(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	var tests []any
	tested := map[string]bool{}
	for _, c := range cases {
		tested[c.name] = true
		for _, fires := range []bool{true, false} {
			series, samples := c.quiet, []any{}
			if fires {
				series, samples = c.fires, []any{map[string]any{"labels": fmt.Sprintf("{alertname=%q}", c.name), "value": 1}}
			}
			var input []any
			for line := range strings.Lines(series) {
				line = strings.TrimSpace(line)
				end := strings.LastIndex(line, "}") + 1
				if err := checkSeries(line[:end], metrics); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
				input = append(input, map[string]any{"series": line[:end], "values": strings.TrimSpace(line[end:])})
			}
			tests = append(tests, map[string]any{
				"name": fmt.Sprintf("%s fires: %v", c.name, fires), "interval": "1m", "input_series": input,
				"promql_expr_test": []any{map[string]any{
					// Without any scheduler the alert about it fires as well.
					"expr": `group by (alertname) (ALERTS{alertstate="firing",alertname!="BerthSchedulerDown"} or ALERTS{alertstate="firing",alertname="` + c.name + `"})`, "eval_time": c.at, "exp_samples": samples,
				}},
			})
		}
	}
	for _, group := range readRules(t).Groups {
		for _, r := range group.Rules {
			if r.Alert != "" && !tested[r.Alert] {
				t.Errorf("%s has no case", r.Alert)
			}
		}
	}
	text, err := yaml.Marshal(map[string]any{"rule_files": []string{rulesPath(t)}, "evaluation_interval": "1m", "tests": tests})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cases.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "test", "rules", path); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// checkSeries asserts that a series of a case is one that the programs serve, with all its labels and those of the
// scrape configuration.
func checkSeries(series string, metrics map[string]reference.Metric) error {
	name, rest, _ := strings.Cut(series, "{")
	var labels []string
	for _, l := range matcher.FindAllStringSubmatch(rest, -1) {
		if !slices.Contains(targetLabels, l[1]) || slices.Contains(metrics[name].Labels, l[1]) {
			labels = append(labels, l[1])
		}
	}
	slices.Sort(labels)
	if m, ok := metrics[name]; name != "up" && (!ok || !slices.Equal(labels, m.Labels)) {
		return fmt.Errorf("%s is not served with these labels: they are %v", series, m.Labels)
	}
	return nil
}
