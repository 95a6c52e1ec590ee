// Package units has the units of sizes that tests and their programs use.
package units

// The binary units of bytes, as in 4*MiB.
const (
	MiB = int64(1) << 20
	GiB = int64(1) << 30
)
