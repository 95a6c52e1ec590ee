package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/berthdev/berth/pkg/kubectl"
)

// cliPage has the commands of kubectl-berth with their flags, from the commands themselves.
func cliPage(string) (string, error) {
	p := newPage("kubectl berth")
	p.paragraph("For operators: all commands of the kubectl plugin `kubectl-berth`, with their flags. " +
		"[operate/kubectl-berth.md](../operate/kubectl-berth.md) shows what they are for.")
	root := kubectl.NewCommand(genericiooptions.NewTestIOStreamsDiscard())
	p.heading(2, "Flags of all commands")
	theirs := pflag.NewFlagSet("kubectl", pflag.ContinueOnError)
	genericclioptions.NewConfigFlags(true).AddFlags(theirs)
	var names []string
	theirs.VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	p.paragraph("The flags for the connection are kubectl's: " + codes(names) + ". Berth's own are:")
	writeFlags(p, root.PersistentFlags(), func(f *pflag.Flag) bool { return theirs.Lookup(f.Name) == nil })
	p.paragraph("The exit code is 0, 1 after an error, and 2 if a command found something that needs an operator.")
	writeTree(p, root)
	return p.String(), nil
}

// writeTree writes the commands below a command.
func writeTree(p *page, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if !c.IsAvailableCommand() {
			continue
		}
		p.heading(2, strings.Replace(c.CommandPath(), "kubectl-berth", "kubectl berth", 1))
		if c.HasSubCommands() {
			p.paragraph(prose(c.Short + "."))
			writeTree(p, c)
			continue
		}
		if c.Long == "" {
			c.Long = c.Short + "."
		}
		// The block is no console block: its names are examples.
		p.text.WriteString("```\n" + strings.Replace(c.UseLine(), "kubectl-berth", "kubectl berth", 1) + "\n```\n\n")
		example := c.Example
		c.Example = ""
		writeCommand(p, c)
		if example != "" {
			p.text.WriteString("```\n" + strings.ReplaceAll(strings.TrimSpace(example), "\n  ", "\n") + "\n```\n\n")
		}
	}
}
