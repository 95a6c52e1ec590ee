// Reaper removes a local cluster when the process that started it has gone without
// doing so: after a panic, a test's timeout, SIGKILL or Ctrl-C.
//
// Its standard input is a pipe whose other end only the owner holds. The owner
// dismisses it by writing a byte; the end of the input without one means that the
// owner is gone.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/berthdev/berth/test/cluster/host"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reaper STATE-DIRECTORY, with a pipe from the cluster's owner as standard input")
		os.Exit(2)
	}
	state, err := host.Load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if n, _ := os.Stdin.Read(make([]byte, 1)); n == 1 {
		return
	}
	if err := state.Remove(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
