package testenv

import (
	"bufio"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// StartScript starts a shell script and waits until it prints "ready". stop ends its input and waits for the script's
// end. The end of the test calls it, too.
func StartScript(t testing.TB, argv ...string) (pid int, stop func()) {
	t.Helper()
	command := exec.Command(argv[0], argv[1:]...)
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = stdin.Close()
		if err := command.Wait(); err != nil {
			t.Errorf("%v: %v", argv, err)
		}
	})
	t.Cleanup(stop)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%v printed %q, %v, want ready", argv, line, err)
	}
	return command.Process.Pid, stop
}
