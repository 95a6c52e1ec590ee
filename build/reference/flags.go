package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	nodeagent "github.com/berthdev/berth/cmd/nodeagent/app"
	"github.com/berthdev/berth/pkg/scheduler"
)

// nodeNameVariable is where the agent's default of --node-name comes from. It is not that of the machine that writes
// the pages.
const nodeNameVariable = "NODE_NAME"

// flagsPage has the flags of the programs, from the commands themselves.
func flagsPage(string) (string, error) {
	if err := os.Unsetenv(nodeNameVariable); err != nil {
		return "", err
	}
	p := newPage("Flags")
	p.paragraph("For operators who change the manifests in `config`. Programs refuse flags that they do not know.")

	agent := nodeagent.NewCommand()
	logging := pflag.NewFlagSet("logging", pflag.ContinueOnError)
	logsapi.AddFlags(logsapi.NewLoggingConfiguration(), logging)
	p.heading(2, "nodeagent")
	writeFlags(p, agent.Flags(), func(f *pflag.Flag) bool { return logging.Lookup(f.Name) == nil })
	var others []string
	logging.VisitAll(func(f *pflag.Flag) { others = append(others, "--"+f.Name) })
	p.paragraph("The flags of Kubernetes' logging are " + codes(others) + ". `nodeagent --help` describes them.")
	for _, sub := range agent.Commands() {
		if !sub.IsAvailableCommand() {
			continue
		}
		p.heading(2, "nodeagent "+sub.Name())
		writeCommand(p, sub)
	}

	p.heading(2, "scheduler")
	stock := app.NewSchedulerCommand()
	p.paragraph("The scheduler has all flags of [kube-scheduler]" +
		"(https://kubernetes.io/docs/reference/command-line-tools-reference/kube-scheduler/), and these:")
	own := writeFlags(p, scheduler.NewCommand().Flags(), func(f *pflag.Flag) bool { return stock.Flags().Lookup(f.Name) == nil })
	if own == 0 {
		return "", fmt.Errorf("the scheduler has no flag of its own")
	}
	return p.String(), nil
}

// writeCommand writes what a command's help says.
func writeCommand(p *page, c *cobra.Command) {
	for paragraph := range strings.SplitSeq(c.Long, "\n\n") {
		p.paragraph(prose(paragraph))
	}
	if c.Example != "" {
		p.text.WriteString("```console\n" + strings.TrimSpace(c.Example) + "\n```\n\n")
	}
	writeFlags(p, c.Flags(), func(*pflag.Flag) bool { return true })
}

// writeFlags lists the flags that are included, and returns how many these are.
func writeFlags(p *page, set *pflag.FlagSet, included func(*pflag.Flag) bool) int {
	var items []string
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" || !included(f) {
			return
		}
		_, usage := pflag.UnquoteUsage(f)
		name := code("--" + f.Name)
		about := kindOfFlag(f.Value.Type())
		if f.DefValue != "" && f.DefValue != "[]" {
			about += ", default " + code(f.DefValue)
		}
		items = append(items, fmt.Sprintf("%s (%s). %s", name, about, prose(usage)))
	})
	p.list(items)
	return len(items)
}

func kindOfFlag(kind string) string {
	switch kind {
	case "stringSlice":
		return "list of strings, separated by commas"
	case "bool":
		return "boolean"
	case "int":
		return "integer"
	}
	return kind
}
