package kill

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is the nth system call of a kind, by any thread.
type call struct {
	number uint64
	nth    int
}

// traceResult is how a traced program ended.
type traceResult struct {
	killed bool           // at the given call
	status int            // of the exit, if it was not killed
	counts map[uint64]int // calls that were begun, by number
}

// trace runs a program and kills it when it is about to make the call. If none is set it is not killed. Its children
// are left alone. The command's streams must be files.
func trace(command *exec.Cmd, none bool, at call) (traceResult, error) {
	type result struct {
		traceResult
		error
	}
	done := make(chan result)
	go func() {
		// The tracer is a thread. It ends with this goroutine, because the lock is never released.
		runtime.LockOSThread()
		t := tracer{none: none, at: at, traceResult: traceResult{counts: map[uint64]int{}}, threads: map[int]bool{}}
		err := t.run(command)
		done <- result{t.traceResult, err}
	}()
	r := <-done
	return r.traceResult, r.error
}

type tracer struct {
	none bool
	at   call
	traceResult
	pid     int
	threads map[int]bool // those that have stopped once
}

// syscallStop is the signal of a stop at a system call. PTRACE_O_TRACESYSGOOD distinguishes it from other traps.
const syscallStop = syscall.SIGTRAP | 0x80

func (t *tracer) run(command *exec.Cmd) error {
	// In its own process group, so that wait can wait for it alone. This thread may have started other programs before,
	// and their ends must be left to others.
	command.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := command.Start(); err != nil {
		return err
	}
	t.pid = command.Process.Pid
	var status unix.WaitStatus
	if _, err := wait(t.pid, &status); err != nil {
		return err
	}
	t.threads[t.pid] = true
	// Without PTRACE_O_TRACEFORK and _TRACEVFORK children are not traced, but threads are.
	if err := unix.PtraceSetOptions(t.pid, unix.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_TRACECLONE|unix.PTRACE_O_EXITKILL); err != nil {
		return fmt.Errorf("tracing %s: %w", command.Path, err)
	}
	resume(t.pid, 0)
	for {
		thread, err := wait(-t.pid, &status)
		if err != nil {
			return fmt.Errorf("tracing %s: %w", command.Path, err)
		}
		switch {
		case thread == t.pid && (status.Exited() || status.Signaled()):
			// The first thread ends last.
			t.status = status.ExitStatus()
			return nil
		case !status.Stopped():
			// Another thread has ended.
		case status.StopSignal() == syscallStop:
			if err := t.atCall(thread); err != nil {
				return err
			}
			resume(thread, 0)
		case status.StopSignal() == unix.SIGTRAP, status.StopSignal() == unix.SIGSTOP && !t.threads[thread]:
			// A thread was made, or it is the new one.
			t.threads[thread] = true
			resume(thread, 0)
		default:
			resume(thread, int(status.StopSignal()))
		}
	}
}

// wait waits for a thread that this thread traces, and not for a child of another thread. A negative number means any
// thread of that process group.
func wait(thread int, status *unix.WaitStatus) (int, error) {
	for {
		found, err := unix.Wait4(thread, status, unix.WALL|unix.WNOTHREAD, nil)
		if !errors.Is(err, unix.EINTR) {
			return found, err
		}
	}
}

// resume fails only if the thread was killed meanwhile, which the next wait reports.
func resume(thread, signal int) { _ = unix.PtraceSyscall(thread, signal) }

// syscallInfo is the kernel's struct ptrace_syscall_info, at the entry of a call.
type syscallInfo struct {
	op     uint8
	_      [3]uint8
	_      uint32
	_, _   uint64
	number uint64
	_      [7]uint64
}

const (
	ptraceGetSyscallInfo = 0x420e
	atEntry              = 1
)

// atCall counts the call if the thread is about to make it, and kills the program if it is the given one.
func (t *tracer) atCall(thread int) error {
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetSyscallInfo, uintptr(thread), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errors.Is(errno, unix.ESRCH) {
		return nil // killed meanwhile
	}
	if errno != 0 {
		return fmt.Errorf("system call of thread %d: %w", thread, errno)
	}
	if info.op != atEntry || t.killed {
		return nil
	}
	t.counts[info.number]++
	if t.none || info.number != t.at.number || t.counts[info.number] != t.at.nth {
		return nil
	}
	t.killed = true
	// A fatal signal at the entry of a call: the call is not made.
	if err := unix.Kill(t.pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("killing %d: %w", t.pid, err)
	}
	return nil
}
