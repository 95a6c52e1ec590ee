// Package holders finds what holds a block device: other devices of the kernel, loop devices and swap. It also finds
// mounts in any mount namespace, and processes that have it open.
//
// ReadSystem reads everything once, and Of then answers for any number of devices. Unchecked reports what could not be
// looked at: without hostPID the processes of the host are not visible.
//
// devices.go looks at devices of the kernel, loop devices and swap. kubelet.go looks at the kubelet's raw block
// volumes, processes.go at open files, and namespaces.go at mounts.
package holders

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Kind says in which way a device is held.
type Kind string

const (
	// Kernel is another block device made of this one, such as LVM, LUKS, RAID or multipath.
	Kernel Kind = "Kernel"
	// Loop is a loop device over this one.
	Loop Kind = "Loop"
	// Swap is swap space.
	Swap Kind = "Swap"
	// Mount is a mount of the file system on the device.
	Mount Kind = "Mount"
	// Bind is a bind mount of the device's own node, like a raw block volume's.
	Bind Kind = "Bind"
	// Published is a raw block volume of the kubelet.
	Published Kind = "Published"
	// Open is a process that has the device open.
	Open Kind = "Open"
	// File is a process with an open file on a file system that was unmounted lazily.
	File Kind = "File"
)

// kindOrder is the order in which holders are reported.
var kindOrder = []Kind{Kernel, Loop, Swap, Mount, Bind, Published, Open, File}

// Holder is one thing that holds a device.
type Holder struct {
	Kind Kind
	// Name is the other device with its label, the mount point, or the open path.
	Name string
	// Process is the process that holds the device. For a mount it is one process of the mount namespace: the first one
	// of a pod, if there is one.
	Process Process
	// OnHost is true for a mount in the host's own mount namespace.
	OnHost bool
	// Writing reports whether the device is open for writing.
	Writing bool
}

// Process identifies a process for messages.
type Process struct {
	PID     int
	Command string
	// PodUID is the pod that the process belongs to. It is empty if its cgroup names none.
	PodUID string
	// Own is true for this process.
	Own bool
}

func (p Process) String() string {
	text := fmt.Sprintf("process %d (%s)", p.PID, p.Command)
	if p.PodUID != "" {
		text += " of pod " + p.PodUID
	}
	return text
}

func (h Holder) String() string {
	switch h.Kind {
	case Kernel:
		return "it is part of " + h.Name
	case Loop:
		return "loop device " + h.Name + " lies on it"
	case Swap:
		return "it is used as swap"
	case Mount:
		return fmt.Sprintf("it is mounted at %s in %s", h.Name, h.namespace())
	case Bind:
		return fmt.Sprintf("its device node is mounted at %s in %s", h.Name, h.namespace())
	case Published:
		return "the kubelet has it as a raw block volume at " + h.Name
	case File:
		return fmt.Sprintf("%s has %s open on its file system, which is not mounted there", h.Process, h.Name)
	case Open:
	}
	if h.Writing {
		return fmt.Sprintf("%s has it open for writing", h.Process)
	}
	return fmt.Sprintf("%s has it open", h.Process)
}

// namespace names the mount namespace that a mount is in.
func (h Holder) namespace() string {
	if h.OnHost {
		return "the host's mount namespace"
	}
	return "the mount namespace of " + h.Process.String()
}

// Describe joins the first holders for a message, and counts the rest.
func Describe(found []Holder) string {
	const most = 4
	var parts []string
	for _, h := range found[:min(len(found), most)] {
		parts = append(parts, h.String())
	}
	if more := len(found) - most; more > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}

// System is what holds the block devices of the node, at the time of ReadSystem.
type System struct {
	// held has the holders of a device, by its number (major and minor).
	held      map[uint64][]Holder
	unchecked []string

	// Used only while the system is read.
	backingDevice func(loop string) (uint64, error)
	loopTimeout   time.Duration
	loopRequests  []loopRequest
}

// Unchecked lists what could not be looked at, one sentence each. If there are any, a device without holders may still
// be held.
func (s *System) Unchecked() []string { return s.unchecked }

// Of returns the holders of a device, by its number: first the kernel's, then mounts, then
// processes. A partition is another device than its disk.
func (s *System) Of(device uint64) []Holder {
	found := slices.Clone(s.held[device])
	slices.SortStableFunc(found, func(a, b Holder) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kindOrder, a.Kind), slices.Index(kindOrder, b.Kind)),
			cmp.Compare(a.Process.PID, b.Process.PID),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return found
}

func (s *System) add(device uint64, h Holder) {
	if !slices.Contains(s.held[device], h) {
		s.held[device] = append(s.held[device], h)
	}
}

// ReadSystem reads the present state of the system. A file system that hangs can delay it. When ctx ends it returns the
// context's error, and the search goes on in the background.
func ReadSystem(ctx context.Context) (*System, error) { return ReadSystemWithKubelet(ctx, "") }

// ReadSystemWithKubelet is ReadSystem, including the raw block volumes that the kubelet has below its folder.
func ReadSystemWithKubelet(ctx context.Context, kubeletDir string) (*System, error) {
	return readSystem(ctx, roots{"/proc", "/sys", kubeletDir}, &System{backingDevice: backingDevice, loopTimeout: loopTimeout})
}

// roots are the folders that are read.
type roots struct{ proc, sys, kubelet string }

func readSystem(ctx context.Context, r roots, s *System) (*System, error) {
	s.held = map[uint64][]Holder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.readDevices(ctx, filepath.Join(r.sys, "dev/block"))
		s.readSwaps(filepath.Join(r.proc, "swaps"))
		if r.kubelet != "" {
			s.readKubeletVolumes(r.kubelet)
		}
		s.readProcesses(ctx, r.proc)
	}()
	select {
	case <-done:
		return s, ctx.Err()
	case <-ctx.Done():
		return nil, fmt.Errorf("looking for what holds a device: %w", ctx.Err())
	}
}

// OfDevice returns what holds the device with that path, and what could not be looked at.
func OfDevice(ctx context.Context, path string) (found []Holder, unchecked []string, err error) {
	device, err := numberOf(path)
	if err != nil {
		return nil, nil, err
	}
	s, err := ReadSystem(ctx)
	if err != nil {
		return nil, nil, err
	}
	return s.Of(device), s.Unchecked(), nil
}
