package kubectl

import (
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/component-base/version"
)

func newVersion(s *session) *cobra.Command {
	var client bool
	cmd := &cobra.Command{
		Use: "version", Short: "Print the versions of this program and of the API server", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if _, err := fmt.Fprintln(s.Out, "kubectl-berth", version.Get().GitVersion); err != nil || client {
				return err
			}
			a, err := s.connect()
			if err != nil {
				return err
			}
			server, err := a.core.Discovery().ServerVersion()
			if err != nil {
				return fmt.Errorf("reading the API server's version: %w", err)
			}
			_, err = fmt.Fprintln(s.Out, "API server   ", server.GitVersion)
			return err
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "Print only the version of this program.")
	return cmd
}
