// Command images writes the container images of the scheduler and the node agent, for several architectures, without a
// container engine. The same commit gives the same bytes on any machine: images.yaml and packages.lock.yaml declare
// what goes in.
//
//	declared.go    what is declared: the release, the packages and their versions
//	apt.go         the package sources of this machine, for any architecture
//	packages.go    packages by their checksums, and their choice for the lock file
//	tree.go        files of packages, and the libraries that programs need
//	layer.go       files as a layer, always with the same bytes
//	programs.go    Berth's programs, always compiled to the same bytes
//	build.go       from what is declared to images
//	image.go       one image and its index
//	sbom.go        what an image contains, as SPDX
//	output.go      OCI layout, archives and the list of images
//	push.go        images to a registry
//	verify.go      a second build elsewhere, for comparison
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "images",
		Short:         "Write, push and compare the container images of Berth.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	var b build
	var out, registry string
	root.PersistentFlags().StringVar(&b.repository, "repository", ".", "folder of Berth's sources")
	root.PersistentFlags().StringVar(&out, "out", ".build/images", "folder that the images are written to")
	root.PersistentFlags().StringVar(&b.cache, "cache", ".build/packages", "folder that keeps downloaded packages")
	root.PersistentFlags().StringVar(&b.sources, "sources", "", "a file of apt package sources, instead of the machine's own")

	flagsOf := func(c *cobra.Command) {
		c.Flags().StringVar(&b.version, "version", "", "version and tag (default: the file VERSION)")
		c.Flags().StringVar(&b.revision, "revision", "", "the commit (default: what git says)")
		c.Flags().StringSliceVar(&b.platforms, "platforms", allPlatforms(), "what the images run on")
		c.Flags().BoolVar(&b.allowUnpinned, "allow-unpinned", false,
			"take this machine's Go and packages if those that are declared cannot be had; such images are not pushed")
	}
	write := &cobra.Command{
		Use: "write", Short: "Write the images.", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			made, err := b.images(c.Context(), filepath.Join(out, "bin"))
			if err != nil {
				return err
			}
			return writeAll(out, registry, made)
		},
	}
	flagsOf(write)
	write.Flags().StringVar(&registry, "registry", "", "registry in the names of the images, for archives that nodes import")

	verify := &cobra.Command{
		Use: "verify", Short: "Build the images again, elsewhere, and compare them with those that were written.", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return verifyImages(c.Context(), b, out) },
	}
	flagsOf(verify)

	var plainHTTP bool
	push := &cobra.Command{
		Use: "push REGISTRY", Short: "Push the images that were written, with their lists of contents.", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return pushAll(c.Context(), out, args[0], plainHTTP) },
	}
	push.Flags().BoolVar(&plainHTTP, "plain-http", false, "the registry has no TLS")

	lock := &cobra.Command{
		Use: "lock", Short: "Write packages.lock.yaml with the newest versions of the packages.", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return b.writeLock(c.Context()) },
	}
	root.AddCommand(write, verify, push, lock)
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		for _, path := range []*string{&b.repository, &out, &b.cache, &b.sources} {
			if *path == "" {
				continue
			}
			absolute, err := filepath.Abs(*path)
			if err != nil {
				return err
			}
			*path = absolute
		}
		b.log = os.Stdout
		return nil
	}
	return root
}

// lines joins lines with an indentation, for messages.
func lines(text []string) string { return "\n  " + strings.Join(text, "\n  ") }
