package process

import (
	"os"
	"strconv"
	"testing"
)

// TestProcess looks at this process.
func TestProcess(t *testing.T) {
	memory, err := PeakMemory(os.Getpid())
	if err != nil || memory < 1<<20 {
		t.Errorf("peak memory %d, %v", memory, err)
	}
	before, err := CPUTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Loops until a tick of CPU time has passed.
	for sink := 0; ; sink++ {
		now, err := CPUTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		_ = strconv.Itoa(sink)
	}
	if _, err := CPUTime(1 << 30); err == nil {
		t.Error("a process that does not exist has used no CPU")
	}
}
