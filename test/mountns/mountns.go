// Package mountns runs programs of tests in their own mount namespaces.
//
// A new mount namespace copies every mount of the old one, also those of other tests' volumes. A copy keeps a volume
// busy after its own test has unmounted it, until the namespace ends. So the copies are removed first.
package mountns

// DropCopies is the part of a shell script that unmounts the copies of file systems on loop devices and their
// partitions. It keeps those below the folder $keep.
const DropCopies = `while read -r device target _; do
	case $target/ in
	"$keep"/*) continue ;;
	esac
	case $device in
	/dev/loop* | /dev/dm-* | /dev/mapper/*) umount --lazy "$target" || true ;;
	esac
done < /proc/self/mounts
`

// private ends the propagation of every mount except those below $keep: unmounting a copy must not unmount the
// original.
const private = `while read -r device target _; do
	case $target/ in
	"$keep"/*) continue ;;
	esac
	mount --make-private "$target" || true
done < /proc/self/mounts
`

// Propagation of the new namespace's mounts.
type Propagation string

// The names of mount(8) and unshare(1).
const (
	Private   Propagation = "private"
	Slave     Propagation = "slave"
	Shared    Propagation = "shared"
	Unchanged Propagation = "unchanged" // only below the folder keep
)

// Command returns the command that runs argv in its own mount namespace. Mounts below the folder keep are copied, if it
// is not empty.
func Command(propagation Propagation, keep string, argv ...string) []string {
	if keep == "" {
		keep = "/dev/null" // nothing lies below a file
	}
	begin, script := propagation, "set -e\nkeep=$1\nshift\n"
	switch propagation {
	case Shared:
		// Not from the start: the mounts would be peers of the originals.
		begin, script = Private, script+DropCopies+"mount --make-rshared /\n"
	case Unchanged:
		script += private + DropCopies
	case Private, Slave:
		script += DropCopies
	}
	script += `exec "$@"`
	return append([]string{"unshare", "--mount", "--propagation", string(begin), "--", "/bin/sh", "-c", script, "sh", keep}, argv...)
}
