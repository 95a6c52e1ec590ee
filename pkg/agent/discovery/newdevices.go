package discovery

import (
	"strconv"
	"strings"
	"time"
)

// newDevices remembers which devices appeared while the agent ran, and since when each has been unused. A new device
// may be one that another storage driver has just attached, so it is not taken at once.
//
// Times are of the injected clock, and only their differences are used.
type newDevices struct {
	// seen are the devices of the last rescan, with what was found on them. It is nil before the first rescan.
	seen map[string]*seenDevice
}

// seenDevice is a device of the last rescan.
type seenDevice struct {
	// since is when the device appeared or was last used. It is zero for a device that is not new.
	since time.Time
	// activity is the result of function activity at the last rescan.
	activity string
	// blank is true if the device was found blank then. No other result is kept.
	blank bool
}

// update notes which devices exist now. published are those that the former agent had published. If there are any, all
// other devices are new, even at the first rescan.
func (n *newDevices) update(devices, published []Device, now time.Time) {
	next := map[string]*seenDevice{}
	for _, d := range devices {
		key := mediumKey(d)
		k := n.seen[key]
		switch {
		case k == nil && n.seen == nil && !isNew(d, published):
			k = &seenDevice{activity: d.Activity}
		case k == nil:
			k = &seenDevice{activity: d.Activity, since: now}
		case countersReset(k.activity, d.Activity):
			// Another medium under the same name, on a kernel without sequence numbers.
			k = &seenDevice{activity: d.Activity, since: now}
		case k.activity != d.Activity:
			k.activity, k.blank = d.Activity, false
			if !k.since.IsZero() {
				k.since = now
			}
		}
		next[key] = k
	}
	n.seen = next
}

// countersReset reports whether a counter is lower than before.
func countersReset(before, now string) bool {
	b, n := strings.Fields(before), strings.Fields(now)
	for i := firstCounter; i < len(b) && i < len(n); i++ {
		was, err := strconv.ParseInt(b[i], 10, 64)
		is, err2 := strconv.ParseInt(n[i], 10, 64)
		if err == nil && err2 == nil && is < was {
			return true
		}
	}
	return false
}

// isNew reports whether a device of the first rescan is new. On a node without published devices none is.
func isNew(d Device, published []Device) bool {
	for _, p := range published {
		if d.isSameDevice(p) {
			return false
		}
	}
	return len(published) > 0
}

// recordRead notes the result of reading the device, and its activity afterwards: reading it is activity.
func (n *newDevices) recordRead(d Device, blank bool, activity string) {
	if k := n.seen[mediumKey(d)]; k != nil {
		k.blank, k.activity = blank && activity != "", activity
	}
}

// isBlank reports whether the device was found blank and has not been used since.
func (n *newDevices) isBlank(d Device) bool {
	k := n.seen[mediumKey(d)]
	return k != nil && k.blank
}

// waitTime reports whether a device is new, and how long it has been unused since.
func (n *newDevices) waitTime(d Device, now time.Time) (isNew bool, waitTime time.Duration) {
	k := n.seen[mediumKey(d)]
	if k == nil || k.since.IsZero() {
		return false, 0
	}
	return true, now.Sub(k.since)
}
