// Package vm breaks what cannot be broken on the machine that runs the tests: it boots a
// virtual machine with qemu, in software emulation, cuts its power, pulls its disks, and
// has a kernel with the device mapper. Nothing of it touches the machine's own kernel or disks.
//
// The kernel is Debian's, unpacked and not installed. The initramfs is written here: a
// static Go program as init (package guest), the modules that it loads, and the programs
// for file systems of this machine with their libraries. The guest opens the disks with package
// disk, as the agent does, and obeys the lines that it gets over a virtio serial port (package wire).
//
// Disks are served by this package over NBD, with a write cache that a power cut empties:
// what the guest did not flush is lost, in part and in any order.
package vm
