// Mutants deletes one safety rule of the product at a time and expects the tests of the rule's own package to fail, or
// those that the rule names.
//
// The lists of rules are the YAML files beside this program. A rule whose deletion no test notices is a survivor. The
// mutants exist only as overlays of the build: no file of the tree is changed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

// lists is the directory of the lists of rules, below the repository.
const lists = "test/mutants"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	clean, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
	}
	if err != nil || !clean {
		os.Exit(1)
	}
}

// run tries the mutants that the command line selects. It is true when the tests catch all of them.
func run(ctx context.Context) (bool, error) {
	name := flag.String("name", "", "try only rules whose name matches this regular expression")
	file := flag.String("file", "", "try only rules whose file matches this regular expression")
	timeout := flag.Duration("timeout", 3*time.Minute, "the time that the tests of one mutant may take; twice that in another package")
	parallel := flag.Int("p", 1, "packages tried at the same time")
	verbose := flag.Bool("v", false, "print what the tests of each mutant say")
	flag.Parse()

	entries, err := load(lists)
	if err != nil {
		return false, err
	}
	if err := check(".", entries); err != nil {
		return false, err
	}
	if entries, err = selected(entries, *name, *file); err != nil {
		return false, err
	}
	r, err := newRunner(ctx, *timeout, *verbose)
	if err != nil {
		return false, err
	}
	defer r.close()

	var mu sync.Mutex
	var results []result
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(*parallel, 1))
	for _, entries := range byPackage(entries) {
		group.Go(func() error {
			return r.tryPackage(ctx, entries, func(res result) {
				mu.Lock()
				defer mu.Unlock()
				results = append(results, res)
				fmt.Println(res)
			})
		})
	}
	err = group.Wait()
	return summarize(results), err
}

// selected returns the entries that match both patterns.
func selected(entries []Entry, name, file string) ([]Entry, error) {
	names, err := regexp.Compile(name)
	if err != nil {
		return nil, fmt.Errorf("-name: %w", err)
	}
	files, err := regexp.Compile(file)
	if err != nil {
		return nil, fmt.Errorf("-file: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e Entry) bool {
		return !names.MatchString(e.Name) || !files.MatchString(e.File)
	})
	if len(entries) == 0 {
		return nil, fmt.Errorf("no rule matches -name=%q -file=%q", name, file)
	}
	return entries, nil
}

// byPackage splits the entries by package, in the order of first appearance.
func byPackage(entries []Entry) [][]Entry {
	var split [][]Entry
	index := map[string]int{}
	for _, e := range entries {
		i, ok := index[e.pkg()]
		if !ok {
			i = len(split)
			index[e.pkg()] = i
			split = append(split, nil)
		}
		split[i] = append(split[i], e)
	}
	return split
}

// summarize prints a table of the packages. It is true when all mutants are caught.
func summarize(results []result) bool {
	counts := map[string]map[outcome]int{}
	total := map[outcome]int{}
	for _, r := range results {
		if counts[r.entry.pkg()] == nil {
			counts[r.entry.pkg()] = map[outcome]int{}
		}
		counts[r.entry.pkg()][r.outcome]++
		total[r.outcome]++
	}
	packages := make([]string, 0, len(counts))
	for p := range counts {
		packages = append(packages, p)
	}
	slices.Sort(packages)
	fmt.Println()
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, n map[outcome]int) {
		fmt.Fprintf(table, "%d\t%d\t%d\t  %s\n", n[caught], n[survived], n[broken], name)
	}
	fmt.Fprintln(table, "caught\tsurvived\tbroken\t  package")
	for _, p := range packages {
		line(p, counts[p])
	}
	line("all", total)
	table.Flush()
	for _, r := range results {
		if r.outcome != caught {
			fmt.Printf("\n%s\n  %s of %s\n  go run ./%s -v -name %q\n", r, r.entry.File, r.entry.list, lists, "^"+regexp.QuoteMeta(r.entry.Name)+"$")
		}
	}
	return total[caught] == len(results)
}
