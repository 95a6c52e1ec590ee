package holders

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berthdev/berth/pkg/agent/mounts"
)

// namespaces are the mount namespaces of the processes that were read.
type namespaces struct {
	byName map[string]*namespace
	// order has them as they were found. host is the name of the host's, empty if it is not known.
	order []*namespace
	host  string
}

// namespace is a mount namespace with what is mounted there.
type namespace struct {
	onHost    bool
	processes []process
	// mounted are the devices with a file system mounted there, held the mounts of devices.
	mounted map[uint64]bool
	held    []deviceMount
}

// deviceMount is a mount that holds a device.
type deviceMount struct {
	device uint64
	holder Holder
}

// hostNamespace is the mount namespace of the host's first process, if proc shows the host.
func hostNamespace(proc string) string {
	if !showsHost(proc) {
		return ""
	}
	first, err := os.Readlink(filepath.Join(proc, "1/ns/mnt"))
	if err != nil {
		return ""
	}
	return first
}

// add adds a process to its mount namespace, and returns the devices that have a file system mounted there. The result
// is nil if that is not known.
func (n *namespaces) add(p process) (mounted map[uint64]bool, err error) {
	name, err := os.Readlink(filepath.Join(p.dir, "ns/mnt"))
	if err != nil {
		return nil, err
	}
	of := n.byName[name]
	if of == nil {
		of = &namespace{onHost: name == n.host}
		if of.mounted, of.held, err = p.mounts(); err != nil {
			return nil, err
		}
		n.byName[name], n.order = of, append(n.order, of)
	}
	of.processes = append(of.processes, p)
	return of.mounted, nil
}

// addTo adds the mounts to the holders of devices.
func (n *namespaces) addTo(s *System) {
	for _, of := range n.order {
		if len(of.held) == 0 {
			continue
		}
		representative := of.representative()
		for _, h := range of.held {
			h.holder.Process, h.holder.OnHost = representative, of.onHost
			s.add(h.device, h.holder)
		}
	}
}

// representative is the process that names the namespace in messages: the first one of a pod, else the first one that
// is no kernel thread.
func (n *namespace) representative() Process {
	var first *Process
	for _, p := range n.processes {
		identity := p.identify()
		if identity.PodUID != "" {
			return identity
		}
		if first == nil && !p.isKernel() {
			first = &identity
		}
	}
	if first == nil {
		return n.processes[0].identify()
	}
	return *first
}

// kernelThread is the flag of a kernel thread in /proc/PID/stat.
const kernelThread = 0x00200000

// isKernel reports whether the process is a thread of the kernel, such as kthreadd.
func (p process) isKernel() bool {
	stat, err := os.ReadFile(filepath.Join(p.dir, "stat"))
	if err != nil {
		return false
	}
	// A command can have spaces and parentheses. After it: state, ppid, pgrp, session, tty, tpgid, flags.
	const flags = 6
	_, after, _ := strings.Cut(string(stat), "(")
	fields := strings.Fields(after[strings.LastIndex(after, ")")+1:])
	if len(fields) <= flags {
		return false
	}
	value, err := strconv.ParseUint(fields[flags], 10, 64)
	return err == nil && value&kernelThread != 0
}

// mounts are the mounts of devices in the process's mount namespace, and the devices that have a
// file system mounted there.
func (p process) mounts() (mounted map[uint64]bool, held []deviceMount, err error) {
	f, err := os.Open(filepath.Join(p.dir, "mountinfo"))
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	table, err := mounts.ReadFrom(f)
	if err != nil {
		return nil, nil, err
	}
	mounted = map[uint64]bool{}
	for _, m := range table {
		// Major 0 is for file systems without a device.
		if m.Major != 0 {
			mounted[m.Device()] = true
			held = append(held, deviceMount{m.Device(), Holder{Kind: Mount, Name: m.Mountpoint}})
		}
		if device, ok := m.Node(filepath.Join(p.dir, "root")); ok {
			held = append(held, deviceMount{device, Holder{Kind: Bind, Name: m.Mountpoint}})
		}
	}
	return mounted, held, nil
}
