// Package discovery finds the node's block devices, decides which of them become disks of ours, and keeps those disks
// open. It owns the list of the node's devices and disks. Package disk owns the content of a disk. Package volumes
// decides which volumes a disk must have.
//
// Start reading at Inventory.Rescan, which does all of the work in this order:
//
//	list the devices in sysfs                  ListDevices                  sysfs.go, links.go, transport.go
//	update and close open disks                checkOpenDisks               inservice.go, close.go
//	find devices that had a missing disk       findMissing                  missing.go
//	read what loop devices show                readLoops                    loops.go
//	decide about each device that is not open  Decide (pure)                decide.go, select.go, models.go
//	inspect the devices that a class selects   inspect                      inspect.go, newdevices.go
//	refuse copies of a disk                    refusedCopies (pure)         copies.go
//	look up a disk's owner, attachments        findOwnership, ...           owner.go, attachments.go
//	initialize or open the disk                adopt                        inservice.go
//	publish the decisions                      publish                      rescan.go
//
// The other files: inventory.go has the types that callers use, and device.go the device. hang.go bounds how long a
// device may take. uevent.go watches the kernel's device events.
package discovery
