package discovery

import (
	"strconv"
	"strings"
	"time"
)

// newcomers remembers which devices appeared while the agent ran, and since when each has been unopened. Times are of
// the injected clock, and only their differences are used.
type newcomers struct {
	// known are the devices of the last look, with what was found on them. It is nil before the first look.
	known map[string]*known
}

// known is a device of the last look.
type known struct {
	// since is when the device appeared or was last used. It is zero for the devices of the first look.
	since time.Time
	// activity is the device's activity at the last look.
	activity string
	// blank is true if the device was found blank then. Only that result is used again.
	blank bool
}

// look notes which devices exist now. before are those that the former agent had published. If it had published any,
// all other devices are new even at the first look.
func (n *newcomers) look(devices, before []Device, now time.Time) {
	next := map[string]*known{}
	for _, d := range devices {
		key := hangKey(d)
		k := n.known[key]
		switch {
		case k == nil && n.known == nil && !isNew(d, before):
			k = &known{activity: d.Activity}
		case k == nil:
			k = &known{activity: d.Activity, since: now}
		case wentBack(k.activity, d.Activity):
			// Another medium under the same name, on a kernel without sequence numbers.
			k = &known{activity: d.Activity, since: now}
		case k.activity != d.Activity:
			k.activity, k.blank = d.Activity, false
			if !k.since.IsZero() {
				k.since = now
			}
		}
		next[key] = k
	}
	n.known = next
}

// wentBack reports whether a counter is lower than before.
func wentBack(before, now string) bool {
	b, n := strings.Fields(before), strings.Fields(now)
	for i := countersAt; i < len(b) && i < len(n); i++ {
		was, err := strconv.ParseInt(b[i], 10, 64)
		is, err2 := strconv.ParseInt(n[i], 10, 64)
		if err == nil && err2 == nil && is < was {
			return true
		}
	}
	return false
}

func isNew(d Device, before []Device) bool {
	for _, b := range before {
		if d.is(b) {
			return false
		}
	}
	return len(before) > 0
}

// read notes the result of reading the device, and its activity afterwards: reading it is activity.
func (n *newcomers) read(d Device, blank bool, activity string) {
	if k := n.known[hangKey(d)]; k != nil {
		k.blank, k.activity = blank && activity != "", activity
	}
}

// blank reports whether the device was found blank and has not been used since.
func (n *newcomers) blank(d Device) bool {
	k := n.known[hangKey(d)]
	return k != nil && k.blank
}

// waited is how long a new device has been unopened.
func (n *newcomers) waited(d Device, now time.Time) (isNew bool, waited time.Duration) {
	k := n.known[hangKey(d)]
	if k == nil || k.since.IsZero() {
		return false, 0
	}
	return true, now.Sub(k.since)
}
