package provisioner

import (
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// repeatEventAfter is how long the API server keeps an event by default.
const repeatEventAfter = time.Hour

// The first node that a scheduler chose for a claim is withdrawn at once, the next ones after growing pauses. The
// scheduler does not know what is free, and would choose a node again and again. The same pauses are used for a file
// system that the kubelet could not grow.
const firstPause, lastPause = time.Second, time.Minute

// backoff is the growing pause between tries.
type backoff struct {
	tries int
	last  time.Time
}

// remaining returns how long the next try has to wait.
func (b *backoff) remaining(now time.Time) time.Duration {
	if b.tries == 0 {
		return 0
	}
	// Ten doublings are beyond the limit, and far from overflowing.
	pause := min(firstPause<<min(b.tries-1, 10), lastPause)
	return max(b.last.Add(pause).Sub(now), 0)
}

// record counts a try, and begins the pause after it.
func (b *backoff) record(now time.Time) { b.tries, b.last = b.tries+1, now }

// claimMemory is what is known of claims only while the process runs: the events that were sent, and how often each
// step was tried.
type claimMemory struct {
	mu     sync.Mutex
	claims map[string]*claimState
	// unsettledGrowth has the PersistentVolumes, before the write, that a failed write may have made larger; by the key
	// of their claim. They stay when the claim is gone.
	unsettledGrowth map[string][]*corev1.PersistentVolume
	// pins are the pods that name the node of a claim themselves, by the claim's key.
	pins map[string]pin
	// waiting has the claims that wait for changes of a node, by its value of LabelNode.
	waiting map[string]map[string]struct{}
}

// claimState is the state of one claim. The queue gives a claim to one worker at a time, so only the map needs the
// lock.
type claimState struct {
	uid        types.UID
	lastNote   string
	lastNoteAt time.Time

	// unsureSince is when it became unknown whether the claim's PersistentVolume was made; zero if it is known.
	unsureSince time.Time

	// placeBackoff is between tries to find a node for the claim. resizeBackoff is between requests to the kubelet to
	// grow the file system.
	placeBackoff, resizeBackoff backoff
}

func newClaimMemory() *claimMemory {
	return &claimMemory{claims: map[string]*claimState{}, unsettledGrowth: map[string][]*corev1.PersistentVolume{}, pins: map[string]pin{}, waiting: map[string]map[string]struct{}{}}
}

// stateOf returns the state of the claim with that key, a new one if there is none. If the key had another claim
// before, stateOf returns its UID, too.
func (m *claimMemory) stateOf(key string, uid types.UID) (current *claimState, earlier types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	current = m.claims[key]
	if current != nil && current.uid == uid {
		return current, ""
	}
	if current != nil {
		earlier = current.uid
	}
	current = &claimState{uid: uid}
	m.claims[key] = current
	return current, earlier
}

// forget drops the claim of that key, and returns its UID if it was known.
func (m *claimMemory) forget(key string) types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	current := m.claims[key]
	if current == nil {
		return ""
	}
	delete(m.claims, key)
	return current.uid
}

func (m *claimMemory) knows(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.claims[key] != nil
}

// pin records the pod that names the node of the claim with that key. The first one counts.
func (m *claimMemory) pin(key string, p pin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.pins[key]; !ok {
		m.pins[key] = p
	}
}

// unpin removes the pod that pin has recorded.
func (m *claimMemory) unpin(key string, pod types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins[key].uid == pod {
		delete(m.pins, key)
	}
}

// pinned returns the pod that pin has recorded.
func (m *claimMemory) pinned(key string) (pin, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.pins[key]
	return p, ok
}

// addUnsettled records a PersistentVolume, before the write, that a failed write may have made larger.
func (m *claimMemory) addUnsettled(key string, pv *corev1.PersistentVolume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unsettledGrowth[key] = append(m.unsettledGrowth[key], pv)
}

// unsettled returns the PersistentVolumes that addUnsettled has recorded for the claim with that key.
func (m *claimMemory) unsettled(key string) []*corev1.PersistentVolume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.unsettledGrowth[key])
}

// dropUnsettled removes a PersistentVolume that addUnsettled has recorded.
func (m *claimMemory) dropUnsettled(key string, pv *corev1.PersistentVolume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.unsettledGrowth[key], func(other *corev1.PersistentVolume) bool { return other == pv })
	if m.unsettledGrowth[key] = left; len(left) == 0 {
		delete(m.unsettledGrowth, key)
	}
}

// addWaiting has takeWaiting return the claim when the node changes.
func (m *claimMemory) addWaiting(node, key string) {
	node = diskv1alpha1.NodeLabel(node)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.waiting[node] == nil {
		m.waiting[node] = map[string]struct{}{}
	}
	m.waiting[node][key] = struct{}{}
}

// takeWaiting returns the claims that wait for the node with that value of LabelNode. They no longer wait then.
func (m *claimMemory) takeWaiting(label string) map[string]struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := m.waiting[label]
	delete(m.waiting, label)
	return keys
}

// emitEvent writes an event about a claim, unless the last event had the same note. It repeats the event after
// repeatEventAfter. It reports whether it wrote one.
func (c *Controllers) emitEvent(state *claimState, pvc *corev1.PersistentVolumeClaim, eventType, reason, action, note string) bool {
	now := c.clock.Now()
	if state.lastNote == note && now.Sub(state.lastNoteAt) < repeatEventAfter {
		return false
	}
	state.lastNote, state.lastNoteAt = note, now
	c.recorder.Eventf(pvc, nil, eventType, reason, action, "%s", note)
	return true
}
