package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	s := settings{log: os.Stderr}
	nodes := flag.String("nodes", "1000,5000", "sizes of the cluster, in turn")
	flag.IntVar(&s.rounds, "rounds", 2, "how often the workloads take turns")
	flag.IntVar(&s.pods, "pods", 2000, "pods of a burst")
	flag.IntVar(&s.claims, "claims", 1000, "pods of a burst with a claim each")
	flag.IntVar(&s.capacityPods, "capacity-pods", 20, "the same with CSIStorageCapacity, where a pod can take a second")
	flag.Float64Var(&s.rate, "rate", 100, "pods that arrive a second; at most half of what the burst did a second")
	flag.DurationVar(&s.arrivals, "arrivals", 10*time.Second, "how long pods arrive; at least 10 do")
	flag.DurationVar(&s.after, "after", 10*time.Second, "how long after a burst its effects still count")
	flag.StringVar(&s.only, "only", "", "letters of the workloads to run, such as ab; all if empty")
	flag.StringVar(&s.plots, "svg", "", "directory to write plots to; none if empty")
	flag.Parse()
	if flag.NArg() > 0 {
		fail(2, fmt.Errorf("unknown argument %q, see -help", flag.Arg(0)))
	}
	for n := range strings.SplitSeq(*nodes, ",") {
		size, err := strconv.Atoi(n)
		if err != nil || size < 1 {
			fail(2, fmt.Errorf("-nodes is %q: write it like 1000,5000", *nodes))
		}
		s.nodes = append(s.nodes, size)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := s.report(ctx, os.Stdout)
	cancel()
	if err != nil {
		fail(1, err)
	}
}

func fail(code int, err error) {
	fmt.Fprintln(os.Stderr, "scale:", err)
	os.Exit(code)
}
