// Package filesystem makes, checks and grows the file systems of volumes, ext4 and xfs. It runs the programs of the
// file systems, and reads superblocks itself to know when a program is needed. It does not mount: package csi does.
//
// make.go makes file systems, with the feature sets of features.go. superblock.go reads superblocks. check.go runs
// e2fsck, and grow.go grows file systems. run.go runs the programs.
package filesystem
