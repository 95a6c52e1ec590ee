// Package filesystem makes, checks and grows the file systems of volumes, ext4 and xfs. It runs the programs of the
// file systems, and reads superblocks itself to know when a program is needed.
package filesystem
