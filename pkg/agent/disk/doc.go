// Package disk owns one disk of a node. It is the only code that writes partition tables. It knows nothing of
// Kubernetes, chooses no place for a volume, and neither makes nor mounts file systems.
//
// # Terms
//
// A disk is ours if its GPT has a meta partition of our type in entry 255. A volume is a partition of ours in any other
// entry. Its partition GUID is its identity, and the type of the partition is its phase. A volume may have further
// pieces, which are partitions of their own. Any other entry is foreign: it is never changed, and none of its bytes is
// ever free. The table is on the disk in two copies.
//
// A change is acknowledged when its call reports it as done: it survives any crash. A disk that is out of service is
// neither read nor written before it is opened again. docs/understand/on-disk-format.md describes the terms, format,
// phases, crashes and failures.
//
// # Promises
//
//  1. Nothing is written to a device unless it is ours, or blank in every way that Inspect checks. Initialize checks
//     again under an exclusive open.
//  2. No two volumes share a byte, and no volume shares a byte with a table, the meta partition or a foreign partition.
//     Every table is validated before it is written.
//  3. What MarkFormatted, Wipe, Grow, AddPiece, Move and Create report as done is on the medium in both copies, and was
//     read back from there past the caches. There is one exception. When Create returns a Reserved volume, only the
//     primary is certain: mkfs may begin, but nothing else may rely on the volume.
//  4. One write of the table changes entries of one volume only: of one piece, of several, or of the two places of a
//     move. The bytes of all others stay the same. So a volume has all of its pieces at every moment and after any
//     crash. One that has not was changed by another program: nothing of it is free, and it has no device.
//  5. An extent is free again only when the wipe's policy is satisfied and flushed. Under all policies but WipeNone,
//     zeros were read back. Before the first byte is zeroed the kernel has removed the volume's device, so no process
//     can write after the proof. Space that a volume gets without formatting (Raw, Grow, AddPiece) was zeroed before,
//     under every policy.
//  6. After any crash or power cut, Open finds the table as it was before the change in progress, or after it. What was
//     acknowledged is there, in its place.
//  7. A disk whose state is unknown is out of service. It answers every command with ErrOutOfService, and nothing is
//     written to it until it is opened again. A failed flush is never just repeated: all that it was for is written
//     again, or given up.
//  8. A disk serves only after these steps. Both copies of its table were checked, and damaged parts rewritten
//     unchanged. The kernel's partitions were compared with the table, and a write was tried. A disk that cannot serve
//     is returned out of service with its volumes, so that they can be shown.
//  9. At every moment, and after any crash, a volume that moves has one entry with its GUID, and all of its bytes are
//     there. It is switched to its new place only after every byte was read back from it. Nothing could write to it
//     since the copy began. Of a volume that moves to another disk, the table of the disk that it leaves decides on
//     which of the two it is: the entry there has the volume's GUID, or phase Moved.
//  10. A disk that hangs, fails or is gone does not affect any other disk. Snapshot never waits, calls fail, and every
//     disk has its own owner goroutine.
//
// # Life of a volume
//
//	         Create           MarkFormatted            Wipe
//	(free) ----------> Reserved ----------> Formatted -------+
//	   ^                  |      Wipe                        v
//	   |                  +------------------------------> Wiping
//	   +---------------------------------------------------- |
//	          policy satisfied, flushed, entry dropped
//
//	          Move             switch
//	(free) ----------> Copying ----------> Formatted; the volume's old entry: Wiping
//	                      |      Wipe
//	                      +------------------------------> Wiping
//
// A raw block volume begins as Formatted. Grow and AddPiece change no phase. Move makes a second entry in phase
// Copying, with the GUID of the copy. The switch exchanges the GUIDs of the two.
//
// A crash in each step leaves the following, and has these consequences:
//
//   - In Create: no entry, and the space is free. Or an entry in Reserved, perhaps not known to the kernel: Open
//     attaches it, and Create with the same arguments returns it.
//   - In Reserved: perhaps half a file system. The volume was not reported as ready, so it is formatted again. The
//     backup may have the phase Formatted, because Format prepares it.
//   - In MarkFormatted: Reserved or Formatted. The volume is reported as ready only after MarkFormatted has returned,
//     so Reserved never holds data. The volume may be mounted before or meanwhile, because a mount alone reports
//     nothing.
//   - In Grow: the old length, or the new one, perhaps not known to the kernel: Open lengthens the kernel's partition.
//   - In AddPiece: the volume without the piece, or with it, perhaps not in the kernel's device: Open lengthens that.
//   - In Move, before the switch: Formatted in the old place, perhaps not known to the kernel: Open attaches it.
//     Perhaps an entry in phase Copying, which Open does not attach. The volume may be used, and change. The next Move
//     compares, and a Wipe of the copy gives the move up.
//   - In Move, in the switch or after it: as before the switch, or Formatted in the new place. Then the old place is in
//     phase Wiping. Open attaches the volume where it is.
//   - In MoveTo: as in Move before the switch, with the copy in phase Arriving on the other disk. Or, after the commit,
//     Moved on this disk, which Open does not attach, and Arriving or Formatted on the other one.
//   - In Wipe: Formatted, perhaps not known to the kernel. Open attaches it, and Wipe is called again for the same
//     reason as before. Or Wiping. Open does not attach it, and Wipe continues at the progress in the volume's slot. It
//     uses the policy in the slot unless its caller gives another.
//
// # Concurrency
//
// One goroutine of a Disk, the worker, owns its table. Commands are calls, which it handles one after the other. Its
// output is OnChange and the Snapshot that it published last, which is read without waiting. Wiping, zeroing and
// copying run in the caller's goroutine, so that commands for other volumes go on meanwhile.
//
// A change of the table is planned without a disk. A table is a value. Its methods withNew, withPiece, withLength,
// withPhase, withCopy, withMoved, withoutPiece and without return the next table, or an error if there is none. A plan
// is a function of the table and of the request, and of nothing else. Its result is validated before it is written. The
// rules are in these methods, and tests compare them with an oracle that knows bytes only.
//
// Between processes, an open Disk holds its meta partition with O_EXCL. This excludes a second agent, and every program
// that opens the whole disk exclusively (mkfs, wipefs). It excludes neither mounts of other partitions nor a tool such
// as sgdisk. So before each write the table is read, and must be unchanged. The disk is locked with flock only while it
// is initialized or opened. udev takes that lock before it looks at a partition. It would never make its links if the
// lock were held for long.
//
// # Files
//
// Start reading at Open in disk.go, and then at the call of interest.
//
//   - disk.go: the Disk, its owner goroutine and its snapshot. snapshot.go: what the snapshot contains.
//   - open.go: how a disk comes into service. read.go: reading a table beside an agent.
//   - create.go, volume.go, grow.go, move.go and wipe.go: the calls for volumes. zerobefore.go: zeroing free space
//     first.
//   - move_to.go: moving a volume to another disk, the one call that needs two.
//   - copy.go: copying a volume's bytes, and the proof that they arrived.
//   - zero.go, progress.go and rate.go: zeroing, its progress on the disk, and its rate limit.
//   - table.go and pieces.go: the table and its rules, without a disk. layout.go: where its parts lie.
//   - header.go and codec.go: the bytes of headers and entries. slot.go and owner.go: those of the meta partition.
//   - store.go, pair.go and batch.go: both copies of the table on the medium. resized.go: disks that grew.
//   - inspect.go, usage.go and nodisk.go: what is on a device, and what uses it. identify.go: devices of our volumes.
//   - attach_set.go: how a volume is attached, and the call that changes it.
//   - attach.go, attach_loop.go, attach_dm.go and attach_linear.go: the kernel's devices of volumes. dm.go: the device
//     mapper.
//   - device.go: direct I/O. watchdog.go: disks that hang.
package disk
