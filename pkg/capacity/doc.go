// Package capacity has the controllers of NodeDiskCapacities and DiskClasses. They run beside the scheduler, on its
// ledger and informers, while this process leads. They
//
//   - write down which node owns a disk, and on which node a disk serves that several nodes publish (owners.go);
//   - remove the NodeDiskCapacity of a node that is gone for good (gone.go);
//   - take the start-up taint off nodes whose disks are in service (taint.go);
//   - evict pods whose volumes do not fit on their node, as its agent requests (evict.go);
//   - sum up in each DiskClass what it selects on all nodes (class.go).
//
// controllers.go starts them, and objects.go reads and writes NodeDiskCapacities and DiskClasses.
//
// One thing that matters is kept in memory only: how long a Node has been gone. That begins again when another process
// leads.
package capacity
