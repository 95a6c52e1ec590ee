package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/token"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthdev/berth/build/source"
)

// metric is a metric as the source declares it.
type metric struct {
	name, kind, help string
	labels           []string
}

// alpha is the stability that all metrics have, by the name of its constant.
const alpha = "ALPHA"

// metricsPage has the metrics of Berth's own, read from the options that they are made with. A way of making metrics
// that is not known here is an error, and so is a metric that is not registered.
func metricsPage(root string) (string, error) {
	var agent, scheduler, both []metric
	var queues []string
	for _, part := range []string{"cmd", "pkg"} {
		dirs, err := source.Dirs(filepath.Join(root, part))
		if err != nil {
			return "", err
		}
		for _, dir := range dirs {
			files, err := source.ParseDir(token.NewFileSet(), dir)
			if err != nil {
				return "", err
			}
			r := &metricReader{files: files, known: map[string]string{}}
			for _, c := range constants(files) {
				r.known[c.name] = c.value
			}
			if err := r.read(); err != nil {
				return "", fmt.Errorf("%s: %w", dir, err)
			}
			queues = append(queues, r.queues...)
			for _, m := range r.metrics {
				switch {
				case strings.HasPrefix(m.name, "berth_node_"):
					agent = append(agent, m)
				case strings.HasPrefix(m.name, "berth_scheduler_"):
					scheduler = append(scheduler, m)
				case strings.HasPrefix(m.name, "berth_build_"):
					both = append(both, m)
				default:
					return "", fmt.Errorf("%s: no part of the page has %s", dir, m.name)
				}
			}
		}
	}
	slices.Sort(queues)
	p := newPage("Metrics")
	p.paragraph("For operators who scrape Berth or write alerts. All of them are alpha: names and labels may change with a " +
		"release.")
	p.heading(2, "Both programs")
	writeMetrics(p, both)
	p.heading(2, "Node agent")
	p.paragraph("Served at `/metrics` of `--metrics-address` (see [flags](flags.md)), beside those of the Go runtime and " +
		"of the process.")
	writeMetrics(p, agent)
	p.heading(2, "Scheduler")
	p.paragraph("Served where kube-scheduler serves its own metrics, which are not listed here.")
	p.paragraph("Kubernetes' metrics of work queues, such as `workqueue_depth`, have the queues of Berth's controllers, too. " +
		"The label `name` is " + codes(queues) + ".")
	writeMetrics(p, scheduler)
	return p.String(), nil
}

func writeMetrics(p *page, metrics []metric) {
	slices.SortFunc(metrics, func(a, b metric) int { return cmp.Compare(a.name, b.name) })
	for _, m := range metrics {
		p.heading(3, code(m.name))
		about := strings.ToUpper(m.kind[:1]) + m.kind[1:] + ", " + unitOf(m.name)
		switch len(m.labels) {
		case 0:
			about += ". No labels."
		case 1:
			about += ". Label: " + codes(m.labels) + "."
		default:
			about += ". Labels: " + codes(m.labels) + "."
		}
		p.paragraph(about)
		p.paragraph(prose(m.help))
	}
}

// unitOf is the unit, which the name of a metric ends with.
func unitOf(name string) string {
	name = strings.TrimSuffix(name, "_total")
	for suffix, unit := range map[string]string{"_seconds": "in seconds", "_bytes": "in bytes", "_ratio": "from 0 to 1"} {
		if strings.HasSuffix(name, suffix) {
			return unit
		}
	}
	return "a number"
}

// metricReader reads the metrics of one package.
type metricReader struct {
	files []*ast.File
	known map[string]string

	metrics []metric
	queues  []string
	// registered are the variables that are passed to a registry, or that a collector describes.
	registered map[string]bool
	// helpers are functions that make a Desc, by name: what they put in front of the metric's name.
	helpers map[string]string
}

func (r *metricReader) read() error {
	r.findHelpers()
	r.findRegistered()
	made := 0
	for _, spec := range source.ValueSpecs(r.files, token.VAR) {
		for i, e := range spec.Values {
			call, ok := e.(*ast.CallExpr)
			if !ok {
				continue
			}
			m, ok, err := r.metric(call)
			if err != nil {
				return fmt.Errorf("%s: %w", spec.Names[i].Name, err)
			}
			if !ok {
				continue
			}
			made++
			if !r.registered[spec.Names[i].Name] {
				return fmt.Errorf("%s is not registered", spec.Names[i].Name)
			}
			r.metrics = append(r.metrics, m)
		}
	}
	makes := 0
	r.calls(func(call *ast.CallExpr) {
		pkg, name := callee(call)
		switch {
		case pkg == "metrics" && strings.HasPrefix(name, "New") && kindOf(name) != "":
			makes++
		case pkg == "" && r.helpers[name] != "":
			makes++
		case pkg == "controller" && name == "NewQueue":
			if queue, ok := stringOf(call.Args[0], r.known); ok {
				r.queues = append(r.queues, queue)
			}
		}
	})
	if makes != made {
		return fmt.Errorf("%d metrics are made, and %d are variables of the package", makes, made)
	}
	return nil
}

// calls visits the calls of the package.
func (r *metricReader) calls(visit func(*ast.CallExpr)) {
	for _, file := range r.files {
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				visit(call)
			}
			return true
		})
	}
}

// callee is the function of a call. pkg is empty for one of the package.
func callee(call *ast.CallExpr) (pkg, name string) {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return "", f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name, f.Sel.Name
		}
	}
	return "", ""
}

// kindOf is the kind of metric that a function of component-base makes.
func kindOf(function string) string {
	kind := strings.ToLower(strings.TrimSuffix(strings.TrimSuffix(strings.TrimPrefix(function, "New"), "Func"), "Vec"))
	if slices.Contains([]string{"counter", "gauge", "histogram", "summary", "timinghistogram"}, kind) {
		return kind
	}
	return ""
}

// findHelpers finds functions such as
//
//	func gauge(name, help string, labels ...string) *metrics.Desc {
//		return metrics.NewDesc("prefix_"+name, help, labels, …)
//	}
func (r *metricReader) findHelpers() {
	r.helpers = map[string]string{}
	for _, file := range r.files {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Body == nil {
				continue
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				if pkg, name := callee(call); pkg != "metrics" || name != "NewDesc" {
					return true
				}
				if sum, ok := call.Args[0].(*ast.BinaryExpr); ok {
					if prefix, ok := stringOf(sum.X, r.known); ok {
						r.helpers[f.Name.Name] = prefix
					}
				}
				return true
			})
		}
	}
}

func (r *metricReader) findRegistered() {
	r.registered = map[string]bool{}
	mark := func(exprs []ast.Expr) {
		for _, e := range exprs {
			if id, ok := e.(*ast.Ident); ok {
				r.registered[id.Name] = true
			}
		}
	}
	r.calls(func(call *ast.CallExpr) {
		if pkg, name := callee(call); pkg == "legacyregistry" && name == "MustRegister" {
			mark(call.Args)
		}
	})
	for _, file := range r.files {
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Name.Name != "DescribeWithStability" {
				continue
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if list, ok := n.(*ast.CompositeLit); ok {
					mark(list.Elts)
				}
				return true
			})
		}
	}
}

// metric reads the call that makes a metric; ok is false if it makes none.
func (r *metricReader) metric(call *ast.CallExpr) (m metric, ok bool, err error) {
	pkg, name := callee(call)
	if prefix := r.helpers[name]; pkg == "" && prefix != "" {
		return r.described(name, prefix, call.Args)
	}
	if pkg != "metrics" || kindOf(name) == "" {
		return metric{}, false, nil
	}
	m.kind = kindOf(name)
	options, err := r.options(call.Args[0])
	if err != nil {
		return metric{}, false, err
	}
	m.name = strings.Join([]string{options["Namespace"], options["Subsystem"], options["Name"]}, "_")
	m.help = options["Help"]
	if strings.HasSuffix(name, "Vec") {
		if m.labels, err = r.strings(call.Args[1]); err != nil {
			return metric{}, false, err
		}
	}
	return m, true, nil
}

// described reads the call of a helper. Its name is the kind of the metric.
func (r *metricReader) described(kind, prefix string, args []ast.Expr) (metric, bool, error) {
	if kindOf(kind) == "" {
		return metric{}, false, fmt.Errorf("the name of %s is not a kind of metric", kind)
	}
	var texts []string
	for _, a := range args {
		text, ok := stringOf(a, r.known)
		if !ok {
			return metric{}, false, fmt.Errorf("an argument of %s is not a string", kind)
		}
		texts = append(texts, text)
	}
	return metric{name: prefix + texts[0], kind: kind, help: texts[1], labels: texts[2:]}, true, nil
}

// options are the strings of &metrics.…Opts{…}.
func (r *metricReader) options(e ast.Expr) (map[string]string, error) {
	if u, ok := e.(*ast.UnaryExpr); ok {
		e = u.X
	}
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil, fmt.Errorf("its options are not a literal")
	}
	options := map[string]string{}
	for _, element := range literal.Elts {
		kv, ok := element.(*ast.KeyValueExpr)
		if !ok {
			return nil, fmt.Errorf("its options have no keys")
		}
		key := kv.Key.(*ast.Ident).Name
		options[key], _ = stringOf(kv.Value, r.known)
		if s, ok := kv.Value.(*ast.SelectorExpr); ok {
			options[key] = s.Sel.Name
		}
	}
	for _, key := range []string{"Namespace", "Subsystem", "Name", "Help"} {
		if options[key] == "" {
			return nil, fmt.Errorf("its option %s is not a string", key)
		}
	}
	if options["StabilityLevel"] != alpha {
		return nil, fmt.Errorf("its stability is %q, and the page says that all are alpha", options["StabilityLevel"])
	}
	return options, nil
}

func (r *metricReader) strings(e ast.Expr) ([]string, error) {
	literal, ok := e.(*ast.CompositeLit)
	if !ok {
		return nil, fmt.Errorf("its labels are not a literal")
	}
	var all []string
	for _, element := range literal.Elts {
		s, ok := stringOf(element, r.known)
		if !ok {
			return nil, fmt.Errorf("a label is not a string")
		}
		all = append(all, s)
	}
	return all, nil
}
