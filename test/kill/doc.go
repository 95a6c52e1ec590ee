// Package kill kills a program that uses package disk at its system calls in a whole volume life, at every one that
// changes something and at a sample of the others, starts it again, and asserts that what it had acknowledged is true.
//
// The program is ./life. It runs under a tracer of this package rather than under strace:
// strace counts the calls of each thread for itself, and the Go runtime moves goroutines
// between threads as it likes, so that `when=N` misses most calls of a program in Go. The
// tracer counts the N-th call of a kind by any thread. The call that is killed is not made; so
// the kills at all calls that change something are the states between any two of them.
//
// Programs that life runs (mkfs, blkid, wipefs) are not killed with it: they go on as orphans,
// and the next life has to get along with them. strace does kill mkfs, which has one thread.
package kill
