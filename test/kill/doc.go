// Package kill kills a program that uses package disk for a whole volume life. It kills at every system call that
// changes something, and at a sample of the others. Then it starts the program again, and asserts that everything
// acknowledged is true.
//
// The program is ./life. It runs under a tracer of this package rather than under strace. strace counts the calls of
// each thread separately. The Go runtime moves goroutines between threads, so `when=N` misses most calls of a program
// in Go. The tracer counts the N-th call of a kind by any thread. The call at which the program is killed is not made.
// So the kills at all calls that change something cover the states between any two of them.
//
// Programs that life runs (mkfs, blkid, wipefs) are not killed with it: they go on as orphans, and the next life has to
// handle them. strace does kill mkfs, which has one thread.
package kill
