package kill

import (
	"cmp"
	"fmt"

	"golang.org/x/sys/unix"
)

// callNames of the calls that a life makes, for messages.
var callNames = map[uint64]string{
	unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_CLOSE: "close", unix.SYS_DUP3: "dup3",
	unix.SYS_EPOLL_CREATE1: "epoll_create1", unix.SYS_EPOLL_CTL: "epoll_ctl", unix.SYS_EPOLL_PWAIT: "epoll_pwait",
	unix.SYS_EVENTFD2: "eventfd2", unix.SYS_EXIT: "exit", unix.SYS_EXIT_GROUP: "exit_group", unix.SYS_FACCESSAT2: "faccessat2",
	unix.SYS_FALLOCATE: "fallocate", unix.SYS_FCNTL: "fcntl", unix.SYS_FLOCK: "flock", unix.SYS_FSTAT: "fstat", unix.SYS_FSYNC: "fsync",
	unix.SYS_FUTEX: "futex", unix.SYS_GETDENTS64: "getdents64", unix.SYS_GETPID: "getpid", unix.SYS_GETTID: "gettid",
	unix.SYS_IOCTL: "ioctl", unix.SYS_LSEEK: "lseek", unix.SYS_MADVISE: "madvise", unix.SYS_MMAP: "mmap", unix.SYS_MOUNT: "mount",
	unix.SYS_MUNMAP: "munmap", unix.SYS_NANOSLEEP: "nanosleep", unix.SYS_OPENAT: "openat", unix.SYS_PIDFD_OPEN: "pidfd_open",
	unix.SYS_PIDFD_SEND_SIGNAL: "pidfd_send_signal", unix.SYS_PIPE2: "pipe2", unix.SYS_PRCTL: "prctl", unix.SYS_PREAD64: "pread64",
	unix.SYS_PRLIMIT64: "prlimit64", unix.SYS_PWRITE64: "pwrite64", unix.SYS_READ: "read", unix.SYS_READLINKAT: "readlinkat",
	unix.SYS_RT_SIGACTION: "rt_sigaction", unix.SYS_RT_SIGPROCMASK: "rt_sigprocmask", unix.SYS_RT_SIGRETURN: "rt_sigreturn",
	unix.SYS_SCHED_GETAFFINITY: "sched_getaffinity", unix.SYS_SCHED_YIELD: "sched_yield", unix.SYS_SIGALTSTACK: "sigaltstack",
	unix.SYS_TGKILL: "tgkill", unix.SYS_UMOUNT2: "umount2", unix.SYS_UNAME: "uname", unix.SYS_WAITID: "waitid", unix.SYS_WRITE: "write",
}

// changingCalls are the calls that change a disk, the kernel's partitions, or the answers to others. They include the
// calls that start a program which might.
var changingCalls = map[uint64]bool{
	unix.SYS_PWRITE64: true, unix.SYS_WRITE: true, unix.SYS_FSYNC: true, unix.SYS_FALLOCATE: true, unix.SYS_IOCTL: true,
	unix.SYS_MOUNT: true, unix.SYS_UMOUNT2: true, unix.SYS_FLOCK: true, unix.SYS_CLONE: true, unix.SYS_WAITID: true,
}

func callName(number uint64) string {
	if name, ok := callNames[number]; ok {
		return name
	}
	return fmt.Sprintf("call %d", number)
}

func (c call) String() string { return fmt.Sprintf("%s number %d", callName(c.number), c.nth) }

func (c call) compare(other call) int {
	return cmp.Or(cmp.Compare(c.number, other.number), cmp.Compare(c.nth, other.nth))
}
