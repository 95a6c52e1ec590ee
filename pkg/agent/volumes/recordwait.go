package volumes

import (
	"errors"
	"fmt"
	"time"
)

const (
	// recordTimeout is how long a volume waits for its recorded extent while the extent is in use. The scheduler may
	// know before this node that a pod is gone. Then it reserves the extent of a volume that the node has just made for
	// that pod. The node wipes that volume as soon as it knows, too.
	recordTimeout = 5 * time.Second
	// recordWaitTTL is how long recordWaits remembers that a volume has waited. It does not wait twice.
	recordWaitTTL = 10 * time.Minute
)

// recordInUseError says that the recorded extents of some volumes are in use, and that the volumes wait for them.
type recordInUseError struct {
	why string
	// left bounds how much longer they wait.
	left time.Duration
}

func (e *recordInUseError) Error() string {
	return fmt.Sprintf("%s; the volume waits for it for at most %s, and is then put elsewhere on the node", e.why, recordTimeout)
}

// waitsForRecord returns how long the caller waits before the next try, if err is a recordInUseError.
func waitsForRecord(err error) (left time.Duration, is bool) {
	var contested *recordInUseError
	if !errors.As(err, &contested) {
		return 0, false
	}
	return contested.left, true
}

// recordWaits maps a partition to the time since when the recorded extent of its volume has been in use.
type recordWaits map[string]time.Time

// check returns a recordInUseError as long as one of the volumes has to wait. rest are those that do not follow their
// record.
func (r recordWaits) check(rest []unplacedVolume, now time.Time) error {
	for partition, since := range r {
		if now.Sub(since) > recordWaitTTL {
			delete(r, partition)
		}
	}
	var wait *recordInUseError
	for _, w := range rest {
		if !w.recordInUse {
			continue
		}
		since, known := r[w.Partition]
		if !known {
			since = now
			r[w.Partition] = now
		}
		if left := recordTimeout - now.Sub(since); left > 0 && (wait == nil || left > wait.left) {
			wait = &recordInUseError{why: w.noRecordReason, left: left}
		}
	}
	if wait == nil {
		return nil
	}
	return wait
}
