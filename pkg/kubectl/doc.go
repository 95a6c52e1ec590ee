// Package kubectl is the commands of kubectl-berth. Each command reads objects of the API, or writes some, and ends: it
// runs nothing on a node.
//
// It owns the flags, what is read for a command, and how it is printed. It does not own what is said:
//
//   - inventory: disks, volumes and devices of NodeDiskCapacities, for people.
//   - diagram: the drawing of a disk.
//   - terminal: widths, colors and tables.
//   - whatif: what the scheduler would do.
//
// # Where to start
//
//   - root.go: the command, its common flags, and exit codes.
//   - api.go: the objects that commands read.
//   - output.go: -o of lists; document.go: -o of what is said of one thing.
//   - map.go: the command that draws. node_map.go has a node's disks, class_map.go a line for each disk, and html.go
//     the page; drawing.go has characters and colors.
//   - get.go: tables; status.go: the page of the cluster; space.go: the sums of disks in both.
//   - explain.go: why a pod waits; explain_objects.go: claims, volumes, disks and nodes; fit.go: what would fit.
//   - doctor.go: looks at the whole installation, by the checks of doctor_checks.go.
//   - top.go: who uses most; collect.go: the file for a report.
//   - change.go: what all commands that write have: the question, --dry-run, and how spec of a node is changed.
//   - target.go: which disk is meant; cordon.go, drain.go, compact.go, forget.go, adopt.go: decisions about disks and
//     devices.
//   - release.go: the volumes of a node that is gone.
//   - orphans.go: volumes without an owner; orphans_change.go: what becomes of them.
//   - watch.go: commands that run again after a change.
//   - completion.go, version.go: what a shell offers, and versions.
package kubectl
