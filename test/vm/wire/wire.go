// Package wire is what a test and the program in its virtual machine say to each other:
// JSON, one message a line.
package wire

import "encoding/json"

// Request asks the guest to do something. Requests are served side by side: one that hangs
// holds up no other.
type Request struct {
	ID   int
	Do   string
	Args json.RawMessage
}

// Reply is one answer. A request gets any number of events, and then exactly one reply
// that is Done.
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
	// Start and Length in bytes, where they matter.
	Start, Length int64 `json:",omitempty"`
}

// Adopt has a disk initialized for a node.
type Adopt struct{ Disk, Node string }

// State is what the engine says of a disk.
type State struct {
	ID         string
	OutOf      string `json:",omitempty"` // why it is out of service
	Invalid    string `json:",omitempty"` // which invariant does not hold
	SectorSize int64
	Size       int64
	Free       []Span
	Volumes    []Found
}

// Span is an extent in bytes.
type Span struct{ Start, End int64 }

// Found is a volume as the engine has it.
type Found struct {
	Partition string
	Start     int64
	Length    int64
	Phase     string
	Index     int
	Device    string
}

// Burst has the guest make, fill, grow and wipe volumes of a disk, until the test stops it
// or the power is cut.
// Each has a slot of the disk to itself, of which it takes a part from the beginning.
type Burst struct {
	Disk string
	Seed uint64
	// Workers do one volume at a time each.
	Workers int
	// From is where the first slot begins; both in bytes.
	From, SlotBytes int64
	Slots           int
}

// Step says of one operation of a burst that it is about to begin, or that it is done.
type Step struct {
	Do        string // "create", "format", "fill", "grow", "wipe"
	Partition string
	Start     int64  `json:",omitempty"`
	Length    int64  `json:",omitempty"`
	Done      bool   `json:",omitempty"`
	Error     string `json:",omitempty"`
}
