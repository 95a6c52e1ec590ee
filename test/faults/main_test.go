// Package faults injects faults into disks, below everything that Berth calls a disk. Each disk is a file of a FUSE
// file system, which a direct-I/O loop device shows to the kernel. Package disk, mkfs and mounts work on that like on a
// node.
//
// The file system runs in its own process, which executes this test binary. A thread that waits for a block device
// cannot be killed, and it keeps all file descriptors of its process open. If the test process also served the file
// system, it could not be ended. So the server ends in any case, and its disk with it: the kernel fails the requests
// that wait for it.
//
// server_test.go and medium_test.go are the disk with faults, fuse_test.go shows it as a file, and disk_test.go is the
// test's handle on it. life_test.go has the steps of two volumes' lives, which the tests run with faults.
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
	// The engine logs each fault, and there are thousands.
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

// torture reports whether the long form of the tests is requested.
func torture() bool { return os.Getenv("BERTH_TORTURE") != "" }
