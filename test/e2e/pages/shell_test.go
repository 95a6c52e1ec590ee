package pages

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// shell is bash for the commands of a page: variables stay from one to the next.
type shell struct {
	command *exec.Cmd
	input   io.WriteCloser
	output  *bufio.Reader
	script  string
}

// startShell starts bash in a folder. It ends with the context, with all that it has started.
func startShell(ctx context.Context, folder string, environment ...string) (*shell, error) {
	s := &shell{command: exec.CommandContext(ctx, "bash", "-u"), script: filepath.Join(folder, ".command")}
	s.command.Dir = folder
	s.command.Env = append(os.Environ(), environment...)
	s.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	s.command.Cancel = func() error { return syscall.Kill(-s.command.Process.Pid, syscall.SIGKILL) }
	var err error
	if s.input, err = s.command.StdinPipe(); err != nil {
		return nil, err
	}
	output, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.command.Stderr = s.command.Stdout
	s.output = bufio.NewReader(output)
	return s, s.command.Start()
}

// run runs a command and returns what it printed. A command that fails is an error.
func (s *shell) run(command string) (printed string, err error) {
	if err := os.WriteFile(s.script, []byte(command+"\n"), 0o600); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(s.input, `. %q </dev/null; printf '\0%%d\0' $?`+"\n", s.script); err != nil {
		return "", fmt.Errorf("bash has ended: %w", err)
	}
	if printed, err = s.output.ReadString(0); err != nil {
		return printed, fmt.Errorf("bash has ended: %w", err)
	}
	status, err := s.output.ReadString(0)
	if err == nil && status != "0\x00" {
		err = fmt.Errorf("exit status %s", strings.TrimSuffix(status, "\x00"))
	}
	return strings.TrimSuffix(printed, "\x00"), err
}

// stop ends bash.
func (s *shell) stop() error {
	s.input.Close()
	return s.command.Wait()
}

// TestShell asserts that a shell keeps variables, reports the status of commands, and ends with its context.
func TestShell(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := startShell(ctx, t.TempDir(), "GIVEN=given")
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		command, printed, failure string
	}{
		{"a=$(cat <<EOF\n\"b\"\nEOF\n)", "", ""},
		{"echo $GIVEN \\\n  $a; pwd >/dev/null", "given \"b\"\n", ""},
		{"cat; ls /nothing 2>&1 | wc -l; false", "1\n", "exit status 1"},
		{"echo error >&2; (exit 3)", "error\n", "exit status 3"},
	} {
		failure := ""
		printed, err := s.run(step.command)
		if err != nil {
			failure = err.Error()
		}
		if printed != step.printed || failure != step.failure {
			t.Errorf("%s: %q, %q, want %q, %q", step.command, printed, failure, step.printed, step.failure)
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	ended, end := context.WithCancel(ctx)
	if s, err = startShell(ended, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	end()
	if _, err := s.run("sleep 600"); err == nil {
		t.Error("a shell outlives its context")
	}
	_ = s.stop()
}
