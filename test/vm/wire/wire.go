// Package wire is the protocol between a test and the program in its virtual machine: JSON, one message per line.
package wire

import "encoding/json"

// Request is a command for the guest. Requests are served concurrently: one that hangs does not delay another.
type Request struct {
	ID   int
	Do   string
	Args json.RawMessage
}

// Reply is one answer. A request gets any number of events, and then exactly one reply that is Done.
type Reply struct {
	ID     int
	Done   bool            `json:",omitempty"`
	Error  string          `json:",omitempty"`
	Result json.RawMessage `json:",omitempty"`
}

// Exec runs a program of the guest. Its result is Exited.
type Exec struct {
	Argv []string
	Env  []string `json:",omitempty"`
}

// Exited is how a program ended.
type Exited struct {
	Code   int
	Output string
}

// Volume names a volume of an open disk.
type Volume struct {
	Disk      string // path of the device
	Partition string
	// Start and Length in bytes, for commands that need them.
	Start, Length int64 `json:",omitempty"`
	// More is set if the file that uses the space of a grown volume was acknowledged.
	More bool `json:",omitempty"`
}

// Adopt has a disk initialized for a node.
type Adopt struct{ Disk, Node string }

// Discover has the agent of a node decide about a disk, in a cluster that has the node and others.
type Discover struct {
	Disk, Node string
	Others     []string `json:",omitempty"`
}

// State is the engine's state of a disk.
type State struct {
	ID         string
	OutOf      string `json:",omitempty"` // why it is out of service
	Invalid    string `json:",omitempty"` // which invariant is violated
	SectorSize int64
	Size       int64
	Free       []Span
	Volumes    []Found
}

// Span is an extent in bytes.
type Span struct{ Start, End int64 }

// Found is a volume in the engine's state.
type Found struct {
	Partition string
	Start     int64
	Length    int64   // of all pieces
	Pieces    []int64 `json:",omitempty"` // where the further pieces begin
	Wrong     string  `json:",omitempty"` // what is wrong with them
	Phase     string
	Index     int
	Device    string
}

// Burst has the guest make, fill, grow and wipe volumes of a disk, until the test stops it or the power is cut. Each
// volume has its own slot of the disk, of which it uses a part from the beginning.
type Burst struct {
	Disk string
	Seed uint64
	// Workers is the number of workers. Each works on one volume at a time.
	Workers int
	// From is where the first slot begins. Both are in bytes.
	From, SlotBytes int64
	Slots           int
	// Pieces has volumes grow by pieces as well, see PieceOffset. A slot has PieceOffset(2) bytes at least.
	Pieces bool
}

// PieceOffset is where in its slot the further piece of that number begins, from 1. A volume of a burst gets two.
func PieceOffset(number int) int64 { return (8 + 2*int64(number-1)) << 20 }

// Step reports that an operation of a burst is about to begin, or that it is done.
type Step struct {
	Do        string // "create", "format", "fill", "grow", "piece", "more", "wipe"
	Partition string
	Start     int64  `json:",omitempty"`
	Length    int64  `json:",omitempty"`
	Done      bool   `json:",omitempty"`
	Error     string `json:",omitempty"`
}
