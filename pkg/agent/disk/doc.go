// Package disk owns one disk of a node: it is the only code that writes partition
// tables. It knows nothing of Kubernetes, chooses no place for a volume, and neither
// makes nor mounts file systems.
//
// # Terms
//
// A disk is ours if its GPT has a meta partition of our type in entry 255. A volume is
// a partition of ours in any other entry; its partition GUID is its
// identity, the type of the partition its phase. Any other entry is foreign: it is
// never changed, and no byte of it is ever free. The table lies on the disk in two
// copies. What a call reports as done is acknowledged: it survives any crash. A disk
// out of service is neither read nor written before it is opened again.
// docs/on-disk-format.md has it all: terms, format, phases, crashes, failures.
//
// # Promises
//
//  1. Nothing is written to a device that is neither ours nor blank in every way that
//     we know to look (Inspect). Initialize looks again under an exclusive open.
//  2. No two volumes share a byte, nor a byte with a table, the meta partition or a
//     foreign partition. Every table is validated before it is written.
//  3. What MarkFormatted, Wipe, Grow and Create report as done is on the medium, in both
//     copies, and was read back from there past the caches. Of a Reserved volume that
//     Create reports only the primary is for certain: mkfs may begin, nothing else may rely on it.
//  4. One call changes one entry; the bytes of all others stay as they are.
//  5. An extent is free again only when the wipe's policy is satisfied and flushed, and,
//     under all policies but WipeNone, zeros were read back. Before the first byte is zeroed
//     the kernel has forgotten the volume's device, so no process can write after the proof. What a volume gets that
//     is not formatted (Raw, Grow) was zeroed before it is the volume's, whatever the policy.
//  6. Whatever a crash or a power cut leaves, Open finds the table as it was before
//     the change under way, or after it. What was acknowledged is there, in its place.
//  7. A disk whose state is unknown is out of service: it answers every command with
//     ErrOutOfService, and nothing is written to it until it is opened again. A failed
//     flush is never just repeated: all that it was for is written again, or given up.
//  8. A disk serves only after both copies of its table were checked and repaired
//     (damaged parts are rewritten unchanged before anything is changed), the kernel's
//     partitions compared with it, and a write tried. One that cannot serve is
//     returned out of service with its volumes, so that they can be shown.
//  9. A disk that hangs, fails or is gone costs no other disk anything: Snapshot never
//     waits, calls fail, and every disk has an owner of its own.
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
// A raw block volume begins as Formatted. Grow changes no phase.
//
// What a crash leaves in each step, and what follows:
//
//   - In Create: no entry, and the space is free; or an entry in Reserved, perhaps not
//     known to the kernel: Open attaches it. Create with the same arguments returns it.
//   - In Reserved: maybe half a file system. The volume was not reported as ready,
//     so it is formatted again. The backup may say Formatted, as Format prepares that.
//   - In MarkFormatted: Reserved or Formatted. The volume is reported as
//     ready only after MarkFormatted has returned, so Reserved never holds data.
//     The volume may be mounted before or meanwhile, as that alone reports nothing.
//   - In Grow: the old length, or the new one, perhaps not known to the kernel: Open
//     tells it.
//   - In Wipe: Formatted, perhaps not known to the kernel: Open attaches it, and Wipe is called
//     again for the same reason as before. Or Wiping: Open does not attach it, and Wipe goes on where
//     the volume's slot says, under the policy that is there unless it is given another.
//
// # Concurrency
//
// One goroutine of a Disk owns its table. Commands go in: calls, one after the other.
// Events come out: OnChange, and the Snapshot that the owner last published, which is
// read without waiting. Wiping and zeroing happen in the goroutine of the caller, so
// that other volumes go on meanwhile.
//
// What a command will do to the table is planned without a disk: a table is a value, and
// its methods withNew, withLength, withPhase and without return the next one, or say why
// there is none. A plan is a function of the table and of what is wanted and nothing else;
// what it returns is validated before it is written. That is where the rules are, and
// tests hold them against an oracle that knows bytes only.
//
// Between processes: an open Disk holds its meta partition with O_EXCL. This keeps out
// a second agent, and whatever opens the whole disk exclusively (mkfs, wipefs), but
// neither mounts of other partitions nor a tool such as sgdisk; so before each write
// the table is read, and must be what it was. The disk is locked with flock only while
// it is initialized or opened: udev takes that lock before it looks at a partition,
// and would never make its links if it were held for good.
package disk
