package kubectl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// Exit codes.
const (
	exitFine = iota
	exitError
	// exitNeedsOperator is for scripts: the command worked, and found something that an operator must look at.
	exitNeedsOperator
)

// errNeedsOperator is returned by a command that has already printed what it found.
var errNeedsOperator = errors.New("something needs an operator")

// completionName is the name under which kubectl calls the plugin to complete a command line.
const completionName = "kubectl_complete-berth"

// Run runs a command line, with the program's name as its first word, and returns the exit code.
func Run(ctx context.Context, args []string, streams genericiooptions.IOStreams) int {
	s := newSession(streams)
	root := newCommand(s)
	root.SetArgs(args[1:])
	if filepath.Base(args[0]) == completionName {
		root.SetArgs(append([]string{cobra.ShellCompRequestCmd}, args[1:]...))
	}
	return exitCode(ctx, s, root)
}

// exitCode runs the command, prints its error, and returns the exit code.
func exitCode(ctx context.Context, s *session, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitFine
	case errors.Is(err, errNeedsOperator):
		return exitNeedsOperator
	case ctx.Err() == nil:
		// Otherwise the user has ended it.
		fmt.Fprintln(s.ErrOut, "error: "+explainError(err).Error())
	}
	return exitError
}

// session is one run of the program.
type session struct {
	genericiooptions.IOStreams
	config *genericclioptions.ConfigFlags
	// flags for all commands.
	color     string
	ascii     bool
	chunkSize int64

	now    func() time.Time
	getenv func(string) string
	// width is that of the terminal; 0 to ask it.
	width int
	// interactive is true if the user can be asked although standard input is no terminal.
	interactive bool
}

func newSession(streams genericiooptions.IOStreams) *session {
	return &session{IOStreams: streams, config: genericclioptions.NewConfigFlags(true), now: time.Now, getenv: os.Getenv}
}

// NewCommand returns the command with all its subcommands.
func NewCommand(streams genericiooptions.IOStreams) *cobra.Command {
	return newCommand(newSession(streams))
}

func newCommand(s *session) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-berth",
		Short: "Look at the disks of Berth, and operate them",
		Long: "Look at the disks of Berth, and operate them.\n\n" +
			"All commands read and write objects of the Kubernetes API; none runs anything on a node.\n" +
			"The exit code is 0, 1 after an error, and 2 if a command found something that needs an operator.",
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl berth"},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.ErrOut)
	flags := root.PersistentFlags()
	s.config.AddFlags(flags)
	flags.StringVar(&s.color, "color", terminal.ColorAuto, "When to use colors: auto, always or never. With auto, NO_COLOR and a dumb terminal prevent them.")
	flags.BoolVar(&s.ascii, "ascii", false, "Use only ASCII characters, as on a dumb terminal.")
	flags.Int64Var(&s.chunkSize, "chunk-size", 500, "Read long lists in parts of this many objects; 0 reads them at once.")
	root.AddCommand(newStatus(s), newMap(s), newGet(s), newExplain(s), newFit(s), newTop(s), newDoctor(s), newCollect(s), newCordon(s), newUncordon(s), newDrain(s), newCompact(s), newForget(s), newRelease(s), newAdopt(s), newOrphans(s), newVersion(s))
	return root
}

// terminal is where the command writes to.
func (s *session) terminal() (terminal.Terminal, error) {
	to, err := terminal.Of(s.Out, s.color, s.ascii, s.getenv)
	if s.width > 0 {
		to.Width, to.Limited = s.width, true
	}
	return to, err
}

// splitPath splits node/device.
func splitPath(path string) (node, device string) {
	node, device, _ = strings.Cut(path, "/")
	return node, strings.TrimPrefix(device, "dev/")
}
