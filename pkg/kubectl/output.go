package kubectl

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// Outputs of commands beside those of kubectl's printers.
const (
	outputWide = "wide"
	outputName = "name"
)

// output is the flags -o and --no-headers of a command that lists things.
type output struct {
	print     *genericclioptions.PrintFlags
	noHeaders bool
	// one is true for a command that writes a document: it has no columns.
	one bool
}

func newOutput() *output {
	o := &output{print: genericclioptions.NewPrintFlags("")}
	// kubectl's printer of names writes kinds that no API server has.
	o.print.NamePrintFlags = nil
	// Nothing that is listed has managed fields.
	o.print.JSONYamlPrintFlags.ShowManagedFields = false
	return o
}

func (o *output) add(cmd *cobra.Command) {
	o.print.AddFlags(cmd)
	flag := cmd.Flags().Lookup("output")
	flag.Usage = "Output format: " + strings.Join(o.formats(), ", ") + "."
	if !o.one {
		cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "Leave out the names of the columns.")
	}
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(o.formats(), cobra.ShellCompDirectiveNoFileComp))
}

func (o *output) formats() []string {
	if o.one {
		return o.print.AllowedFormats()
	}
	return append([]string{outputWide, outputName}, o.print.AllowedFormats()...)
}

// listing is what a command lists, in all forms.
type listing struct {
	// kind of the items, such as Disk.
	kind string
	// names and items are parallel.
	names []string
	items []any
	table *terminal.Table
	// none is said on standard error if there are no items.
	none string
}

// write writes the listing in the form that the user asked for.
func (o *output) write(s *session, l *listing) error {
	switch format := *o.print.OutputFormat; format {
	case "", outputWide:
		if len(l.items) == 0 {
			fmt.Fprintln(s.ErrOut, l.none)
			return nil
		}
		to, err := s.terminal()
		if err != nil {
			return err
		}
		l.table.NoHeaders, l.table.Wide = o.noHeaders, format == outputWide
		return l.table.Write(s.Out, to)
	case outputName:
		for _, name := range l.names {
			if _, err := fmt.Fprintln(s.Out, name); err != nil {
				return err
			}
		}
		return nil
	}
	printer, err := o.print.ToPrinter()
	if err != nil {
		return err
	}
	return l.print(printer, s.Out)
}

// groupVersion is in the items of a listing. They are no objects of the API.
const groupVersion = "kubectl.berth.dev/v1alpha1"

func (l *listing) print(printer printers.ResourcePrinter, out io.Writer) error {
	list := &unstructured.UnstructuredList{Object: map[string]any{"apiVersion": groupVersion, "kind": l.kind + "List"}}
	for i, item := range l.items {
		object, err := toObject(item)
		if err != nil {
			return err
		}
		object["apiVersion"], object["kind"] = groupVersion, l.kind
		object["metadata"] = map[string]any{"name": l.names[i]}
		list.Items = append(list.Items, unstructured.Unstructured{Object: object})
	}
	return printer.PrintObj(list, out)
}

// toObject is the JSON of a value, as a map.
func toObject(value any) (map[string]any, error) {
	text, err := json.Marshal(value)
	if err != nil {
		return nil, err
	}
	var object unstructured.Unstructured
	// Numbers stay integers this way.
	wrapped := append([]byte(`{"apiVersion":"v1","kind":"Item","item":`), append(text, '}')...)
	if err := object.UnmarshalJSON(wrapped); err != nil {
		return nil, err
	}
	item, _, err := unstructured.NestedMap(object.Object, "item")
	return item, err
}
