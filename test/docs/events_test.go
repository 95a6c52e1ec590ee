package docs

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berthdev/berth/pkg/manual"

	"github.com/berthdev/berth/build/source"
)

const (
	repository = "../.."
	// troubleshooting is the page that explains every event and condition.
	troubleshooting = "docs/troubleshoot.md"
)

// elsewhere are the reasons of events that Kubernetes writes and that the page explains, too.
var elsewhere = []string{"FailedScheduling", "FailedMount", "FailedUnmount"}

// TestEvents asserts that the page has a heading for each reason of an event and each type of a condition in the code,
// and no other heading of that form. It also asserts that the page names each reason of a condition, and that events
// point to the heading of their reason.
func TestEvents(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(repository, troubleshooting))
	if err != nil {
		t.Fatal(err)
	}
	found := newNames()
	for _, folder := range []string{"apis", "cmd", "pkg"} {
		if err := found.readFolder(filepath.Join(repository, folder)); err != nil {
			t.Fatal(err)
		}
	}
	// These exist as long as the product does. If one is not found, the rule does not fit the code any more.
	for _, name := range []string{"VolumeWiped", "NodeGone", "DisksForgotten", "Ready"} {
		if found.headed[name] == "" {
			t.Errorf("the rule does not find %s in the code", name)
		}
	}
	for _, problem := range compare(string(page), found) {
		t.Errorf("%s: %s", troubleshooting, problem)
	}
	if !strings.HasSuffix(manual.Troubleshooting, "/"+troubleshooting) {
		t.Errorf("events point to %s, not to %s", manual.Troubleshooting, troubleshooting)
	}
	for _, name := range slices.Sorted(maps.Keys(found.headed)) {
		_, anchor, _ := strings.Cut(manual.Pointer(name), "#")
		if err := exists(t, troubleshooting, anchor); err != nil || anchor == "" {
			t.Errorf("an event of reason %s points to %q: %v", name, anchor, err)
		}
	}
}

// compare returns what the page lacks, and which headings it has of what the code does not have.
func compare(page string, found *names) (problems []string) {
	headings := headingsOf(page)
	for _, name := range slices.Sorted(maps.Keys(found.headed)) {
		if !slices.Contains(headings, name) {
			problems = append(problems, fmt.Sprintf("no heading \"### %s\", which %s has", name, found.headed[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found.conditionReasons)) {
		if !strings.Contains(page, "`"+name+"`") {
			problems = append(problems, fmt.Sprintf("no `%s`, a reason of a condition, which %s has", name, found.conditionReasons[name]))
		}
	}
	for _, heading := range headings {
		if found.headed[heading] == "" && !slices.Contains(elsewhere, heading) {
			problems = append(problems, fmt.Sprintf("heading \"### %s\": the code has no event and no condition of that name", heading))
		}
	}
	return problems
}

// headingForm matches the headings that are a name in the code.
var headingForm = regexp.MustCompile(`(?m)^### ([A-Z][A-Za-z]+)$`)

func headingsOf(page string) []string {
	var all []string
	for _, match := range headingForm.FindAllStringSubmatch(page, -1) {
		all = append(all, match[1])
	}
	return all
}

var (
	// nameForm matches reasons and types. Constants with other values are messages or metrics.
	nameForm = regexp.MustCompile(`^[A-Z][A-Za-z]+$`)
	// constantForm matches the identifiers of the constants of reasons and types.
	constantForm = regexp.MustCompile(`^(event|[rR]eason|Condition)[A-Z]`)
	// reporterForm matches the functions that write events and do not take the event's type.
	reporterForm = regexp.MustCompile(`^warn[A-Z]?`)
)

// names are what the code calls its events and conditions, each with the place where it stands.
type names struct {
	files *token.FileSet
	// headed are the reasons of events and the types of conditions. conditionReasons are the reasons of conditions.
	headed, conditionReasons map[string]string
}

func newNames() *names {
	return &names{files: token.NewFileSet(), headed: map[string]string{}, conditionReasons: map[string]string{}}
}

// readFolder reads all packages in and below a folder.
func (n *names) readFolder(folder string) error {
	dirs, err := source.Dirs(folder)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		files, err := source.ParseDir(n.files, dir)
		if err != nil {
			return err
		}
		n.readPackage(files)
	}
	return nil
}

// readPackage reads the files of one package. The rule has three parts:
//
//  1. A constant that is named event…, reason… or Condition… and whose value has the form of a name is the reason of an
//     event, or the type of a condition.
//  2. A constant that stands where a condition gets its reason is none of these. It is the reason of a condition, like
//     any literal there.
//  3. A literal with the form of a name, among the arguments of a call that writes an event, is the reason of an event.
func (n *names) readPackage(files []*ast.File) {
	constants := map[string]*ast.BasicLit{}
	for _, spec := range source.ValueSpecs(files, token.CONST) {
		addConstants(constants, spec)
	}
	ofConditions := map[string]bool{}
	for _, file := range files {
		ast.Inspect(file, func(node ast.Node) bool {
			for _, value := range conditionReasons(node) {
				if identifier, ok := value.(*ast.Ident); ok && constants[identifier.Name] != nil {
					ofConditions[identifier.Name] = true
					value = constants[identifier.Name]
				}
				n.note(n.conditionReasons, value)
			}
			if call, ok := node.(*ast.CallExpr); ok && writesEvent(call) {
				for _, argument := range call.Args {
					n.note(n.headed, argument)
				}
			}
			return true
		})
	}
	for identifier, value := range constants {
		if !ofConditions[identifier] {
			n.note(n.headed, value)
		}
	}
}

// addConstants adds the strings of a declaration that the rule is about, by their identifiers.
func addConstants(to map[string]*ast.BasicLit, spec *ast.ValueSpec) {
	for i, identifier := range spec.Names {
		if i < len(spec.Values) && constantForm.MatchString(identifier.Name) {
			if value, ok := spec.Values[i].(*ast.BasicLit); ok && value.Kind == token.STRING {
				to[identifier.Name] = value
			}
		}
	}
}

// conditionReasons are the values of fields named Reason that a statement or an expression sets.
func conditionReasons(node ast.Node) (values []ast.Expr) {
	switch node := node.(type) {
	case *ast.KeyValueExpr:
		if key, ok := node.Key.(*ast.Ident); ok && key.Name == "Reason" {
			values = append(values, node.Value)
		}
	case *ast.AssignStmt:
		for i, left := range node.Lhs {
			if field, ok := left.(*ast.SelectorExpr); ok && field.Sel.Name == "Reason" && i < len(node.Rhs) {
				values = append(values, node.Rhs[i])
			}
		}
	}
	return values
}

// writesEvent reports whether a call has the type of an event among its arguments, or is of a function that only warns.
func writesEvent(call *ast.CallExpr) bool {
	if slices.ContainsFunc(call.Args, func(argument ast.Expr) bool {
		selector, ok := argument.(*ast.SelectorExpr)
		return ok && strings.HasPrefix(selector.Sel.Name, "EventType")
	}) {
		return true
	}
	switch function := call.Fun.(type) {
	case *ast.Ident:
		return reporterForm.MatchString(function.Name)
	case *ast.SelectorExpr:
		return reporterForm.MatchString(function.Sel.Name)
	}
	return false
}

// note notes a literal that has the form of a name.
func (n *names) note(in map[string]string, value ast.Expr) {
	literal, ok := value.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return
	}
	if text, err := strconv.Unquote(literal.Value); err == nil && nameForm.MatchString(text) {
		position := n.files.Position(literal.Pos())
		in[text] = fmt.Sprintf("%s:%d", filepath.Base(position.Filename), position.Line)
	}
}

// TestEventRule asserts which names the rule finds, and that a page without one of them, or with one too many, fails.
func TestEventRule(t *testing.T) {
	const source = `package p
const (
	eventLost   = "VolumeLost"
	reasonGone  = "NodeGone"
	reasonTwice = "PublishedTwice"
	reasonSlow  = "the node is slow"
	eventRate   = 5
	ConditionReady = "Ready"
	actionWatch = "Watching"
)
func f() {
	r.Eventf(pod, corev1.EventTypeNormal, "Literal", actionWatch, "a message")
	r.warnPod(pod, "AlsoLiteral", "a message")
	log.Info("Nothing")
	c := metav1.Condition{Type: ConditionReady, Reason: "NoDisks"}
	c.Status, c.Reason = metav1.ConditionTrue, reasonTwice
}`
	found := newNames()
	file, err := parser.ParseFile(found.files, "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	found.readPackage([]*ast.File{file})
	if have, want := slices.Sorted(maps.Keys(found.headed)), []string{"AlsoLiteral", "Literal", "NodeGone", "Ready", "VolumeLost"}; !slices.Equal(have, want) {
		t.Errorf("events and conditions: %q, want %q", have, want)
	}
	if have, want := slices.Sorted(maps.Keys(found.conditionReasons)), []string{"NoDisks", "PublishedTwice"}; !slices.Equal(have, want) {
		t.Errorf("reasons of conditions: %q, want %q", have, want)
	}
	const page = "## Reclaim\n### AlsoLiteral\n### Literal\n### NodeGone\n### Ready\n### VolumeLost\n### FailedMount\n### A claim\n`NoDisks` `PublishedTwice`\n"
	if problems := compare(page, found); len(problems) > 0 {
		t.Errorf("a complete page: %q", problems)
	}
	for _, line := range []string{"### VolumeLost", "### Ready", "`NoDisks`"} {
		if problems := compare(strings.Replace(page, line, "", 1), found); len(problems) != 1 {
			t.Errorf("without %s: %q", line, problems)
		}
	}
	if problems := compare(page+"### VolumeFound\n", found); len(problems) != 1 {
		t.Errorf("with a heading too many: %q", problems)
	}
}
