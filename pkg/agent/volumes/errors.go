package volumes

import (
	"errors"

	"github.com/berthdev/berth/pkg/agent/disk"
)

// Errors that callers branch on.
var (
	// ErrInvalid: the pod or the call requests something impossible. A retry does not help.
	ErrInvalid = errors.New("invalid volume")
	// ErrNoRoom: the node has no room for the pod's volumes.
	ErrNoRoom = errors.New("no room")
	// ErrWaiting: there is room as soon as a wipe that is in progress or about to begin has ended.
	ErrWaiting = errors.New("waiting for a wipe")
	// ErrPodGone: the pod does not exist (any more), or is being deleted.
	ErrPodGone = errors.New("pod is gone")
	// ErrReleased: the PersistentVolume is released or being deleted, or its volume is being wiped.
	ErrReleased = errors.New("volume is not served any more")
	// ErrNotFound: no disk has the volume, and no PersistentVolume requests it.
	ErrNotFound = errors.New("no such volume")
	// ErrExists: a volume with that ID exists and has other properties.
	ErrExists = errors.New("volume exists with other properties")
	// ErrInUse: the volume is mounted, or a claim is bound to it.
	ErrInUse = disk.ErrInUse
	// ErrNotGrown: the bytes behind the volume are not free, or its growth was not granted.
	ErrNotGrown = errors.New("volume cannot grow in place")
	// ErrNotAttached: the kernel does not show the volume.
	ErrNotAttached = errors.New("volume is not attached")
	// ErrMoving: the volume is being moved, and is mounted when that has ended.
	ErrMoving = errors.New("volume is being moved")
	// ErrOutOfService: the disk that holds the volume is out of service.
	ErrOutOfService = disk.ErrOutOfService
)
