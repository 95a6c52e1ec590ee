package kubectl

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares an output with a file, or writes the file.
func golden(t *testing.T, name, have string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(have), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), have); diff != "" {
		t.Errorf("the output differs from %s (go test -update writes it):\n%s", path, diff)
	}
}

// TestGolden asserts what the read commands print, for each kind of terminal.
func TestGolden(t *testing.T) {
	server := serve(t, "cluster.yaml")
	commands := map[string][]string{
		"map-node":        {"map", "node-07"},
		"map-crowded":     {"map", "node-17"},
		"map-copying":     {"map", "node-11/nvme1n1"},
		"map":             {"map"},
		"map-ssd":         {"map", "--class", "ssd", "--sort", "largest"},
		"get-disks":       {"get", "disks"},
		"get-devices":     {"get", "devices"},
		"get-volumes":     {"get", "volumes", "--node", "node-07"},
		"get-classes":     {"get", "classes"},
		"get-wipes":       {"get", "wipes"},
		"get-candidate":   {"get", "devices", "--state", "candidate"},
		"status":          {"status"},
		"explain-pod":     {"explain", "pod", "kafka-3", "-n", "db"},
		"explain-pending": {"explain", "pod", "-A", "--pending"},
		"fit":             {"fit", "--class", "ssd", "--size", "200Gi", "--count", "3", "--spread", "disk"},
		"top-classes":     {"top", "classes"},
		"top-nodes":       {"top", "nodes", "--sort", "free"},
		"top-disks":       {"top", "disks", "--limit", "5"},
	}
	goldens(t, server, commands)
}

// TestGoldenOperations asserts the same of the commands that look at Berth's programs.
func TestGoldenOperations(t *testing.T) {
	server := serve(t, "cluster.yaml", "operations.yaml")
	goldens(t, server, map[string][]string{
		"doctor":      {"doctor"},
		"doctor-node": {"doctor", "node-60"},
	})
}

// goldens runs commands on each kind of terminal.
func goldens(t *testing.T, server *recorded, commands map[string][]string) {
	t.Helper()
	terminals := map[string]struct {
		width       int
		flags       []string
		environment map[string]string
	}{
		"40":    {width: 40},
		"80":    {width: 80},
		"120":   {width: 120},
		"200":   {width: 200},
		"ascii": {width: 80, flags: []string{"--ascii"}},
		"color": {width: 80, flags: []string{"--color=always"}},
		"dumb":  {width: 80, environment: map[string]string{"TERM": "dumb"}},
		"pipe":  {},
	}
	for name, args := range commands {
		for kind, to := range terminals {
			t.Run(name+"/"+kind, func(t *testing.T) {
				have := server.run(t, to.environment, to.width, append(args, to.flags...)...)
				if have.code == exitError {
					t.Fatal(have.err)
				}
				golden(t, name+"-"+kind, have.out)
				ascii := kind == "ascii" || kind == "dumb"
				for line := range strings.Lines(have.out) {
					if ascii && strings.ContainsFunc(line, func(r rune) bool { return r > 126 }) {
						t.Errorf("not ASCII: %s", line)
					}
				}
				if kind == "dumb" && have.out != server.run(t, nil, to.width, append(args, "--ascii")...).out {
					t.Error("a dumb terminal shows something else than --ascii")
				}
				if kind == "color" && withoutColors(have.out) != server.run(t, nil, to.width, args...).out {
					t.Error("with colors the text is another one")
				}
			})
		}
	}
}
