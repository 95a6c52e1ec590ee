package faults

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const diskName = "disk"

// root is the file system's folder, with one file.
type root struct {
	fs.Inode
	server *server
}

func (r *root) OnAdd(ctx context.Context) {
	r.AddChild(diskName, r.NewPersistentInode(ctx, &file{server: r.server}, fs.StableAttr{Ino: 2}), false)
}

// file is the disk.
type file struct {
	fs.Inode
	server *server
}

var _ interface {
	fs.NodeGetattrer
	fs.NodeOpener
	fs.NodeReader
	fs.NodeWriter
	fs.NodeFsyncer
	fs.NodeAllocater
} = (*file)(nil)

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	out.Mode, out.Size = syscall.S_IFREG|0o600, uint64(f.server.medium.size)
	return 0
}

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	// close causes a flush. The server keeps the file open and may be killed, and then the flush would get no answer.
	return nil, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, b []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, errno := f.server.read(b, off)
	return fuse.ReadResultData(b[:n]), errno
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, b []byte, off int64) (uint32, syscall.Errno) {
	data := append([]byte(nil), b...)
	if errno := f.server.change(Write, change{off: off, length: int64(len(b)), data: data}); errno != 0 {
		return 0, errno
	}
	return uint32(len(b)), 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return f.server.sync() }

func (f *file) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	f.server.mu.Lock()
	plain := f.server.withoutZeroing
	f.server.mu.Unlock()
	if plain || mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	return f.server.change(Zero, change{off: int64(off), length: int64(size)})
}
