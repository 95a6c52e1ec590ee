// Package host owns what a local cluster makes on the machine it runs on, and takes
// it away again: processes, control groups, loop devices, network links, kernel
// settings and the state directory.
//
// A crash can come between making a thing and writing down that it was made, so
// nothing relies on a list. Everything carries the cluster's ID, which is on disk
// before the first thing is made: processes in their environment or control group,
// links and control groups in their names, loop devices by lying in the state
// directory. Clean-up finds things by looking for the ID; it needs no help from the
// process that made them, and running it twice changes nothing.
//
// Namespaces need no clean-up: each node's network and mount namespace lives as long
// as the node's processes, and everything mounted in it goes with it.
package host
