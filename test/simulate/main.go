package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	seed := flag.Uint64("seed", 1, "of the random numbers; the same gives the same output")
	plots := flag.String("svg", "", "directory to write plots to; none if empty")
	parallel := flag.Int("parallel", 2, "how many policies are simulated at once")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "simulate: unknown argument %q, see -help\n", flag.Arg(0))
		os.Exit(2)
	}
	s := study
	s.seed, s.plots, s.parallel, s.progress = *seed, *plots, *parallel, os.Stderr
	if err := s.report(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}
