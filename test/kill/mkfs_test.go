package kill

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthdev/berth/test/testenv"
)

// The short form kills as many as there is time for, and a minimum on a slow machine.
const (
	mkfsBudget = 8 * time.Second
	mkfsKills  = 15
)

// TestKillMkfsAtEverySystemCall kills mkfs and not the agent. The agent's call fails, and the next life formats the
// volume again. The test kills at as many writes as there is time for, and then at other calls.
func TestKillMkfsAtEverySystemCall(t *testing.T) {
	t.Parallel()
	c := &campaign{program: buildLife(t), template: blankImage(t), sectors: []int{512}}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// The script replaces mkfs. strace ends with the signal that ended its program.
	script := fmt.Sprintf("#!/bin/sh\nexec strace -qq -o /dev/null -e trace=$KILL -e inject=$KILL:signal=SIGKILL:when=$NTH %s \"$@\"\n", mkfs)
	if err := os.WriteFile(filepath.Join(dir, "mkfs.ext4"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c.countCalls(t)
	all := mkfsCalls(t, mkfs)
	begin, killed := time.Now(), map[string]int{}
	verified := 0
	for i, at := range all {
		if !torture && i >= mkfsKills && time.Since(begin) > mkfsBudget {
			break
		}
		l := c.newLife(t, 512)
		first := l.command()
		first.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KILL="+at.name, fmt.Sprintf("NTH=%d", at.nth))
		out, err := first.CombinedOutput()
		if err != nil && !bytes.Contains(out, []byte("mkfs.ext4 "+l.path)) || err != nil && !bytes.Contains(out, []byte("signal: killed")) {
			t.Fatalf("mkfs killed at %s number %d: %v\n%s", at.name, at.nth, err, out)
		}
		if err != nil {
			killed[at.name]++
			if out, err := l.command().CombinedOutput(); err != nil {
				t.Fatalf("after mkfs was killed at %s number %d: %v\n%s", at.name, at.nth, err, out)
			}
		}
		tools := i%20 == 0
		if tools {
			verified++
		}
		l.check(t, tools)
		l.close(t)
	}
	total := 0
	for _, n := range killed {
		total += n
	}
	if total < mkfsKills*2/3 || killed["pwrite64"] == 0 {
		t.Errorf("mkfs was killed %d times", total)
	}
	t.Logf("%d of the %d system calls of mkfs.ext4 killed, %d tables verified, in %v: %v", total, len(all), verified, time.Since(begin).Round(time.Second), killed)
}

type mkfsCall struct {
	name string
	nth  int
}

// mkfsCalls lists the system calls of an mkfs, those that write first.
func mkfsCalls(t *testing.T, mkfs string) []mkfsCall {
	t.Helper()
	image, log := sparse(t, volumeExtent.Len()), filepath.Join(t.TempDir(), "log")
	testenv.Run(t, "strace", "-qq", "-o", log, mkfs, "-q", "-F", "-m0", "-U", partition, "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image)
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var writes, others []mkfsCall
	seen := map[string]int{}
	for line := range strings.Lines(string(text)) {
		name, _, isCall := strings.Cut(line, "(")
		// strace makes the program's own execve, and the last call does not return.
		if !isCall || name == "execve" || strings.HasPrefix(name, "exit") {
			continue
		}
		seen[name]++
		if strings.Contains(name, "write") || strings.Contains(name, "sync") {
			writes = append(writes, mkfsCall{name, seen[name]})
		} else {
			others = append(others, mkfsCall{name, seen[name]})
		}
	}
	return append(spread(writes), spread(others)...)
}
