// Package vm breaks what cannot be broken on the machine that runs the tests. It boots a virtual machine with qemu, in
// software emulation, cuts its power and pulls its disks. The virtual machine's kernel has the device mapper. Nothing
// affects the host's own kernel or disks.
//
// The kernel is Debian's, unpacked and not installed. The package writes the initramfs. It contains a static Go program
// as init (package guest), the modules that it loads, and the host's programs for file systems with their libraries.
// The guest opens the disks with package disk, like the agent. It executes the commands that it gets over a virtio
// serial port (package wire).
//
// This package serves the disks over NBD, with a write cache that a power cut empties. What the guest did not flush is
// lost, in part and in any order.
package vm
