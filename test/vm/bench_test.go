package vm

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthdev/berth/test/vm/wire"
)

// BenchmarkPieces measures the device mapper over 1, 4 and 16 pieces against the bare partition, in a virtual machine.
func BenchmarkPieces(b *testing.B) {
	for b.Loop() {
		p, err := newPlatter(filepath.Join(newMachineDir(b), "disk"), 512*mib, 512)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { p.close() })
		m := bootOnce(b, drive{name: "one", socket: p.socket(), sector: p.sector})
		var device string
		if err := m.call(b.Context(), "find", "one", &device); err != nil {
			b.Fatal(err)
		}
		var e wire.Exited
		argv := []string{"/bin/disk.test", "-test.v", "-test.run", "^TestBenchPieces$"}
		if err := m.call(b.Context(), "exec", wire.Exec{Argv: argv, Env: []string{"BERTH_BENCH_DISK=" + device}}, &e); err != nil {
			b.Fatal(err)
		}
		for line := range strings.Lines(e.Output) {
			if _, figures, found := strings.Cut(line, "BENCH "); found {
				b.Log(strings.TrimSpace(figures))
			}
		}
		if e.Code != 0 {
			b.Fatalf("it ended with code %d:\n%s", e.Code, e.Output)
		}
	}
}
