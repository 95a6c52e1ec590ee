// Command reference writes the pages of docs/reference from the code: the fields of the API, the flags, the metrics,
// the commands of kubectl-berth, and the attributes, annotations and other names with the prefix disk.berth.dev.
//
// Types, constants and metrics are read from the source with go/ast. Their descriptions are comments, which a program
// does not have at run time, and a metric with labels is in no scrape before it is used. Flags are read from the
// commands themselves, with the defaults that they really have.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// pages are the pages by name. Each is written from the source below a folder, the root of the repository.
var pages = map[string]func(root string) (string, error){
	"api.md":        apiPage,
	"attributes.md": attributesPage,
	"cli.md":        cliPage,
	"flags.md":      flagsPage,
	"metrics.md":    metricsPage,
}

func main() {
	root := flag.String("root", ".", "root of the repository")
	out := flag.String("out", "docs/reference", "folder to write the pages to")
	flag.Parse()
	if err := write(*root, *out); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(root, out string) error {
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	for name, page := range pages {
		text, err := page(root)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(out, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
