package cluster

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// requirement is something that nodes or tests need from the machine's distribution.
type requirement struct {
	what    string // for people
	present func() bool
	debian  string // the package that has it
}

func programRequirement(name, debian string) requirement {
	return requirement{name, func() bool { _, err := exec.LookPath(name); return err == nil }, debian}
}

var nodeRequirements = []requirement{
	programRequirement("containerd", "containerd"),
	programRequirement("ctr", "containerd"),
	programRequirement("runc", "runc"),
	programRequirement("ip", "iproute2"),
	programRequirement("nsenter", "util-linux"),
	programRequirement("unshare", "util-linux"),
	programRequirement("mount", "mount"),
	programRequirement("mkfs.ext4", "e2fsprogs"),
	programRequirement("mkfs.xfs", "xfsprogs"),
	{"CNI plugins (ptp, host-local, loopback)", func() bool { return cniDir() != "" }, "containernetworking-plugins"},
	{"a statically linked busybox", func() bool { return staticBusybox() != "" }, "busybox-static"},
}

// testRequirements are the programs by which the tests of disks judge what Berth wrote.
var testRequirements = []requirement{
	programRequirement("sgdisk", "gdisk"),
	programRequirement("parted", "parted"),
	programRequirement("sfdisk", "fdisk"),
	programRequirement("losetup", "mount"),
	programRequirement("delpart", "util-linux"),
	programRequirement("mkswap", "util-linux"),
	programRequirement("strace", "strace"),
}

// machineRequirements are the programs for virtual machines, and those of the distribution that run in them.
var machineRequirements = []requirement{
	programRequirement("qemu-system-x86_64", "qemu-system-x86"),
	programRequirement("cryptsetup", "cryptsetup-bin"),
	programRequirement("dmsetup", "dmsetup"),
}

// InstallMachinePackages installs what virtual machines need, as InstallPackages does.
func InstallMachinePackages(ctx context.Context, log io.Writer) error {
	return install(ctx, log, slices.Concat(nodeRequirements, testRequirements, machineRequirements))
}

// InstallPackages installs what nodes need, when this is root on Debian or Ubuntu;
// elsewhere the error says what is missing.
func InstallPackages(ctx context.Context, log io.Writer) error {
	return install(ctx, log, nodeRequirements)
}

// InstallTestPackages installs what nodes and tests need, as InstallPackages does.
func InstallTestPackages(ctx context.Context, log io.Writer) error {
	return install(ctx, log, slices.Concat(nodeRequirements, testRequirements))
}

func install(ctx context.Context, log io.Writer, requirements []requirement) error {
	what, packages := missingRequirements(requirements)
	if len(what) == 0 {
		return nil
	}
	missing := strings.Join(what, ", ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("missing: %s; install what Debian calls %s", missing, strings.Join(packages, " "))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("missing: %s; run as root: apt-get install %s", missing, strings.Join(packages, " "))
	}
	fmt.Fprintf(log, "  installing %s\n", strings.Join(packages, " "))
	for _, args := range [][]string{
		{"update", "-q"},
		append([]string{"install", "-y", "-q", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args, " "), err, output.Bytes())
		}
	}
	if what, _ := missingRequirements(requirements); len(what) > 0 {
		return fmt.Errorf("still missing after apt-get install %s: %s", strings.Join(packages, " "), strings.Join(what, ", "))
	}
	return nil
}

func missingRequirements(requirements []requirement) (what, packages []string) {
	for _, r := range requirements {
		if r.present() {
			continue
		}
		what = append(what, r.what)
		if !slices.Contains(packages, r.debian) {
			packages = append(packages, r.debian)
		}
	}
	return what, packages
}

// cniDir is where the distribution has its CNI plugins, or empty.
func cniDir() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"} {
		complete := true
		for _, plugin := range []string{"ptp", "host-local", "loopback"} {
			if _, err := os.Stat(filepath.Join(dir, plugin)); err != nil {
				complete = false
			}
		}
		if complete {
			return dir
		}
	}
	return ""
}

// staticBusybox is the path of a busybox that runs in an empty image, or empty.
func staticBusybox() string {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return ""
	}
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return ""
		}
	}
	return path
}

// checkNodes refuses options that can't work before anything is made, and installs
// what nodes need.
func (c *Cluster) checkNodes(ctx context.Context) error {
	names := map[string]bool{}
	disks := false
	for i := range c.options.Nodes {
		n := &c.options.Nodes[i]
		if n.Name == "" {
			n.Name = fmt.Sprintf("node%d", i+1)
		}
		if n.KubeletDir == "" {
			n.KubeletDir = "/var/lib/kubelet"
		}
		if names[n.Name] {
			return fmt.Errorf("two nodes are called %s", n.Name)
		}
		names[n.Name] = true
		disks = disks || len(n.Disks) > 0
	}
	if len(c.options.Nodes) > maxNodes {
		return fmt.Errorf("%d nodes: at most %d fit into a cluster's network", len(c.options.Nodes), maxNodes)
	}
	if os.Geteuid() != 0 && (disks || c.options.Kubelets) {
		return errors.New("nodes need root: they make loop devices, mounts and network namespaces")
	}
	if !c.options.Kubelets {
		return nil
	}
	return InstallPackages(ctx, c.log)
}
