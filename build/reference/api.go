package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berthdev/berth/build/source"
)

// argsDirs are the packages of the plugins. Their arguments are the types whose names end in Args.
var argsDirs = []string{"pkg/plugins/diskcapacity", "pkg/plugins/volumebinding"}

// apiPage has every field of the objects and of the plugins' arguments.
func apiPage(root string) (string, error) {
	p := newPage("API")
	p.paragraph("For operators who write a DiskClass, approve devices or configure the scheduler, and for programs that " +
		"read what the nodes publish. `kubectl explain diskclass.spec` shows the same texts. All sizes and positions are " +
		"in bytes if nothing else is said.")
	p.heading(2, "disk.berth.dev/v1alpha1")
	files, err := source.ParseDir(token.NewFileSet(), filepath.Join(root, apiDir))
	if err != nil {
		return "", err
	}
	w := &apiWriter{page: p, types: types(files), constants: constants(files), written: map[string]bool{}}
	for _, name := range []string{"DiskClass", "NodeDiskCapacity"} {
		if err := w.object(name, diskGroupVersion, "required"); err != nil {
			return "", err
		}
	}
	p.heading(2, "Arguments of the scheduler's plugins")
	p.paragraph("`args` of `pluginConfig` in a KubeSchedulerConfiguration, `kubescheduler.config.k8s.io/v1`. " +
		"A field that is not known is an error when the scheduler starts.")
	for _, dir := range argsDirs {
		files, err := source.ParseDir(token.NewFileSet(), filepath.Join(root, dir))
		if err != nil {
			return "", err
		}
		w := &apiWriter{page: p, types: types(files), constants: constants(files), written: map[string]bool{}}
		found := false
		for _, name := range slices.Sorted(maps.Keys(w.types)) {
			if strings.HasSuffix(name, "Args") {
				found = true
				err = errors.Join(err, w.object(name, schedulerGroupVersion, "optional"))
			}
		}
		if !found {
			err = fmt.Errorf("%s has no type of arguments", dir)
		}
		if err != nil {
			return "", err
		}
	}
	return p.String(), nil
}

const (
	diskGroupVersion      = "disk.berth.dev/v1alpha1"
	schedulerGroupVersion = "kubescheduler.config.k8s.io/v1"
)

// apiWriter writes the types of a package: each under a heading, and after it those of its fields.
type apiWriter struct {
	page      *page
	types     map[string]structure
	constants []constant
	written   map[string]bool
}

// object writes a type with apiVersion and kind, and all types that it has. need says whether these two are required.
func (w *apiWriter) object(name, groupVersion, need string) error {
	return w.write(name, []string{
		fmt.Sprintf("`apiVersion` (string, %s): %s.", need, code(groupVersion)),
		fmt.Sprintf("`kind` (string, %s): %s.", need, code(name)),
	})
}

// write writes a type that is not written yet, then the types of its fields.
func (w *apiWriter) write(name string, items []string) error {
	if w.written[name] {
		return nil
	}
	w.written[name] = true
	t := w.types[name]
	w.page.heading(3, name)
	for _, paragraph := range t.doc {
		w.page.paragraph(prose(paragraph))
	}
	about, rules, err := typeMarkers(t)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if about != "" {
		w.page.paragraph(about)
	}
	st, ok := t.expr.(*ast.StructType)
	if !ok {
		w.page.list(w.values(name))
		return nil
	}
	fields, uses, err := w.fields(st)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.page.list(append(items, fields...))
	if len(rules) > 0 {
		w.page.paragraph("The API server refuses other combinations, with one of these messages:")
		w.page.list(rules)
	}
	for _, used := range uses {
		if err := w.write(used, nil); err != nil {
			return err
		}
	}
	return nil
}

// values are the values of an enumeration.
func (w *apiWriter) values(kind string) []string {
	byName := map[string]constant{}
	for _, c := range w.constants {
		byName[c.name] = c
	}
	var items []string
	for _, c := range w.constants {
		switch {
		case c.kind != kind:
		case c.doc == "":
			items = append(items, code(c.value))
		default:
			items = append(items, describe(c.name, c.value, c.doc, byName))
		}
	}
	return items
}

// fields are the items for the fields of a struct, and the types of the package that they have.
func (w *apiWriter) fields(st *ast.StructType) (items, uses []string, err error) {
	for _, f := range st.Fields.List {
		tag := ""
		if f.Tag != nil {
			unquoted, err := strconv.Unquote(f.Tag.Value)
			if err != nil {
				return nil, nil, err
			}
			tag = reflect.StructTag(unquoted).Get("json")
		}
		name, options, _ := strings.Cut(tag, ",")
		if len(f.Names) == 0 && name == "" {
			// The fields of an embedded type; those of TypeMeta are apiVersion and kind.
			if id, ok := f.Type.(*ast.Ident); ok {
				more, used, err := w.fields(w.types[id.Name].expr.(*ast.StructType))
				if err != nil {
					return nil, nil, err
				}
				items, uses = append(items, more...), append(uses, used...)
			}
			continue
		}
		if name == "" {
			return nil, nil, fmt.Errorf("the field %s has no name in JSON", f.Names[0].Name)
		}
		item, used, err := w.field(name, strings.Contains(options, "omitempty"), f)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		items = append(items, item)
		if used != "" {
			uses = append(uses, used)
		}
	}
	return items, uses, nil
}

func (w *apiWriter) field(name string, optional bool, f *ast.Field) (item, uses string, err error) {
	kind, uses, err := w.typeName(f.Type)
	if err != nil {
		return "", "", err
	}
	doc, markers := splitDoc(f.Doc)
	limits, err := limitsOf(markers)
	if err != nil {
		return "", "", err
	}
	need := "required"
	switch {
	case limits.byDefault != "":
		need = "default " + code(limits.byDefault)
	case optional || limits.optional:
		need = "optional"
	}
	sentences := []string{fmt.Sprintf("%s (%s, %s).", code(name), kind, need)}
	for _, paragraph := range doc {
		sentences = append(sentences, prose(paragraph))
	}
	return strings.Join(append(sentences, limits.sentences()...), " "), uses, nil
}

// foreignTypes are the types of Kubernetes that fields have.
var foreignTypes = map[string]string{
	"metav1.ObjectMeta":    "[ObjectMeta](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/object-meta/)",
	"metav1.LabelSelector": "[LabelSelector](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/label-selector/)",
	"metav1.Duration":      "duration such as `10m`",
	"metav1.Time":          "time",
	"metav1.Condition":     "Condition",
	"resource.Quantity":    "[quantity](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/)",
	"types.UID":            "string",
}

var basicTypes = map[string]string{"string": "string", "bool": "boolean", "int32": "integer", "int64": "integer"}

// typeName is the type of a field in words, and the type of the package that it is made of.
func (w *apiWriter) typeName(e ast.Expr) (name, uses string, err error) {
	switch e := e.(type) {
	case *ast.StarExpr:
		return w.typeName(e.X)
	case *ast.ArrayType:
		name, uses, err = w.typeName(e.Elt)
		return "list of " + name, uses, err
	case *ast.SelectorExpr:
		if pkg, ok := e.X.(*ast.Ident); ok {
			if name, ok := foreignTypes[pkg.Name+"."+e.Sel.Name]; ok {
				return name, "", nil
			}
		}
	case *ast.Ident:
		if name, ok := basicTypes[e.Name]; ok {
			return name, "", nil
		}
		if _, ok := w.types[e.Name]; ok {
			return fmt.Sprintf("[%s](#%s)", e.Name, strings.ToLower(e.Name)), e.Name, nil
		}
	}
	return "", "", fmt.Errorf("the type %v is not known to the generator", e)
}

var (
	ruleMessage = regexp.MustCompile(`message="([^"]*)"$`)
	shortName   = regexp.MustCompile(`shortName=([a-z]+)`)
)

// typeMarkers are what the markers of a type say: of the object, and the messages of its rules.
func typeMarkers(t structure) (about string, rules []string, err error) {
	for _, m := range t.markers {
		switch m.name {
		case "kubebuilder:object:root", "kubebuilder:subresource:status", "kubebuilder:printcolumn", "kubebuilder:validation:Enum":
		case "kubebuilder:resource":
			if !strings.Contains(m.value, "scope=Cluster") {
				return "", nil, fmt.Errorf("the scope of %q is not known to the generator", m.value)
			}
			about = "It is cluster-scoped."
			if short := shortName.FindStringSubmatch(m.value); short != nil {
				about = "It is cluster-scoped. Its short name for kubectl is " + code(short[1]) + "."
			}
		case "kubebuilder:validation:XValidation":
			message := ruleMessage.FindStringSubmatch(m.value)
			if message == nil {
				return "", nil, fmt.Errorf("the rule %q has no message at its end", m.value)
			}
			rules = append(rules, prose(message[1])+".")
		default:
			return "", nil, fmt.Errorf("the marker %s is not known to the generator", m.name)
		}
	}
	return about, rules, nil
}

// limits are what the markers of a field say.
type limits struct {
	optional  bool
	byDefault string
	enum      []string
	of        map[string]string
	list      string
}

// ofField are the validations of a field that limits.sentences has.
var ofField = []string{"MinLength", "MaxLength", "MinItems", "MaxItems", "items:MinLength", "items:MaxLength", "items:Pattern",
	"Minimum", "Maximum", "MultipleOf", "Pattern"}

func limitsOf(markers []marker) (limits, error) {
	l := limits{of: map[string]string{}}
	known := map[string]bool{}
	for _, name := range ofField {
		known[name] = true
	}
	for _, m := range markers {
		validation, isValidation := strings.CutPrefix(m.name, "kubebuilder:validation:")
		switch {
		case m.name == "optional":
			l.optional = true
		case m.name == "listType":
			l.list = m.value
		case m.name == "listMapKey":
			l.list = m.value
		case m.name == "kubebuilder:default":
			l.byDefault = strings.Trim(m.value, `"`)
		case validation == "Enum":
			l.enum = strings.Split(m.value, ";")
		case isValidation && known[validation]:
			l.of[validation] = strings.Trim(m.value, "`")
		default:
			return limits{}, fmt.Errorf("the marker %s is not known to the generator", m.name)
		}
	}
	return l, nil
}

// sentences say what values are allowed.
func (l limits) sentences() []string {
	var all []string
	add := func(text string) {
		if text != "" {
			all = append(all, text+".")
		}
	}
	if len(l.enum) > 0 {
		add("One of " + codes(l.enum))
	}
	items := bounds(l.of["MinItems"], l.of["MaxItems"], "items")
	if each := bounds(l.of["items:MinLength"], l.of["items:MaxLength"], "characters"); each != "" {
		items += ", each of " + lowerFirst(each)
	}
	switch l.list {
	case "", "atomic":
	case "set":
		items += ", without duplicates"
	default:
		items += ", one for each " + code(l.list)
	}
	add(items)
	if p := l.of["items:Pattern"]; p != "" {
		add("Each matches " + code(p))
	}
	add(bounds(l.of["MinLength"], l.of["MaxLength"], "characters"))
	if p := l.of["Pattern"]; p != "" {
		add("It matches " + code(p))
	}
	switch number := bounds(l.of["Minimum"], l.of["Maximum"], ""); {
	case l.of["MultipleOf"] != "":
		add(strings.TrimSpace(number) + ", a multiple of " + l.of["MultipleOf"])
	default:
		add(strings.TrimSpace(number))
	}
	return all
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// bounds says between what something is.
func bounds(least, most, unit string) string {
	switch {
	case least != "" && most != "":
		return strings.TrimSpace(least + " to " + most + " " + unit)
	case most != "":
		return strings.TrimSpace("At most " + most + " " + unit)
	case least != "":
		return strings.TrimSpace("At least " + least + " " + unit)
	}
	return ""
}
