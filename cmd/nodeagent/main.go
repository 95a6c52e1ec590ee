// Command nodeagent manages the disks of the node it runs on. It takes blank disks that a DiskClass selects into
// service, publishes their free space, and gives pods their partitions. Package agent does the work.
package main

import (
	"os"
	"runtime/debug"

	"k8s.io/component-base/cli"

	"github.com/berthdev/berth/cmd/nodeagent/app"
)

// gcPercent exchanges CPU time, of which the agent needs little, for less memory on every node.
const gcPercent = 50

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	os.Exit(cli.Run(app.NewCommand()))
}
