// Package faults breaks disks on purpose, below everything that Berth calls a disk: each
// is a file of a FUSE file system, a direct-I/O loop device shows it to the kernel, and
// package disk, mkfs and mounts work on that as they do on a node.
//
// The file system lives in a process of its own, which is this test binary once more. A
// thread that waits for a block device cannot be killed, and it keeps all file descriptors
// of its process open: if the file system were served by that process as well, neither
// could be ended. So whatever happens to the tests, the server goes, and with it the
// disk: the kernel fails what waits for it.
package faults

import (
	"flag"
	"fmt"
	"io"
	"os"
	"testing"

	"k8s.io/klog/v2"
)

// serverVariable has the folder in which a process of this binary serves a disk.
const serverVariable = "BERTH_FAULTY_DISK"

func TestMain(m *testing.M) {
	if dir := os.Getenv(serverVariable); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, "serving a faulty disk:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// The engine reports each fault. There are thousands.
	flags := flag.NewFlagSet("klog", flag.PanicOnError)
	klog.InitFlags(flags)
	for name, value := range map[string]string{"logtostderr": "false", "stderrthreshold": "FATAL"} {
		if err := flags.Set(name, value); err != nil {
			panic(err)
		}
	}
	klog.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// torture reports whether the long form of the tests is wanted.
func torture() bool { return os.Getenv("BERTH_TORTURE") != "" }
