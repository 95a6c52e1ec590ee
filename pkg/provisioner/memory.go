package provisioner

import (
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// sayAgainAfter is how long the API server keeps an event by default.
const sayAgainAfter = time.Hour

// maxNote is how many bytes the note of an event may have, a little less than the API server's limit.
const maxNote = 1000

// A claim is given back to its scheduler at once the first time, and then after growing pauses. The scheduler does not
// know what is free, and would choose a node again and again. The same pauses are used for a file system that the
// kubelet could not grow.
const firstPause, lastPause = time.Second, time.Minute

// pauses are the pauses between tries.
type pauses struct {
	tries int
	last  time.Time
}

// wait returns how long the next try has to wait.
func (p *pauses) wait(now time.Time) time.Duration {
	if p.tries == 0 {
		return 0
	}
	// Ten doublings are beyond the limit, and far from overflowing.
	pause := min(firstPause<<min(p.tries-1, 10), lastPause)
	return max(p.last.Add(pause).Sub(now), 0)
}

func (p *pauses) tried(now time.Time) { p.tries, p.last = p.tries+1, now }

// memory is what is known of claims only while the process runs: the events that were sent, and how often claims were
// given back.
type memory struct {
	mu     sync.Mutex
	claims map[string]*memo
	// growing has the PersistentVolumes, before the write, that a failed write may have made larger; by the key of
	// their claim. They stay when the claim is gone.
	growing map[string][]*corev1.PersistentVolume
	// pins are the pods that name the node of a claim themselves, by the claim's key.
	pins map[string]pin
	// nodes has the claims that wait for changes of a node, by its value of LabelNode.
	nodes map[string]map[string]struct{}
}

// memo is the state of one claim. The queue gives a claim to one worker at a time, so only the map needs the lock.
type memo struct {
	uid    types.UID
	said   string
	saidAt time.Time

	// unsure is when it became unknown whether the claim's PersistentVolume was made; zero if it is known.
	unsure time.Time

	// returns has the pauses between returns of the claim to its scheduler, and requests those between requests to the
	// kubelet to grow the file system.
	returns, requests pauses
}

func newMemory() *memory {
	return &memory{claims: map[string]*memo{}, growing: map[string][]*corev1.PersistentVolume{}, pins: map[string]pin{}, nodes: map[string]map[string]struct{}{}}
}

// of returns the memo of the claim with that key, a new one if there is none. If the key had another claim before, of
// returns its UID, too.
func (m *memory) of(key string, uid types.UID) (current *memo, earlier types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	current = m.claims[key]
	if current != nil && current.uid == uid {
		return current, ""
	}
	if current != nil {
		earlier = current.uid
	}
	current = &memo{uid: uid}
	m.claims[key] = current
	return current, earlier
}

// forget drops the claim of that key, and returns its UID if it was known.
func (m *memory) forget(key string) types.UID {
	m.mu.Lock()
	defer m.mu.Unlock()
	current := m.claims[key]
	if current == nil {
		return ""
	}
	delete(m.claims, key)
	return current.uid
}

func (m *memory) knows(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.claims[key] != nil
}

// pin records the pod that names the node of the claim with that key. The first one counts.
func (m *memory) pin(key string, p pin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.pins[key]; !ok {
		m.pins[key] = p
	}
}

// unpin removes the pod that pin has recorded.
func (m *memory) unpin(key string, pod types.UID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins[key].uid == pod {
		delete(m.pins, key)
	}
}

// pinned returns the pod that pin has recorded.
func (m *memory) pinned(key string) (pin, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.pins[key]
	return p, ok
}

// doubt records a PersistentVolume, before the write, that a failed write may have made larger.
func (m *memory) doubt(key string, pv *corev1.PersistentVolume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.growing[key] = append(m.growing[key], pv)
}

// doubts returns the PersistentVolumes that doubt has recorded for the claim with that key and that are not settled.
func (m *memory) doubts(key string) []*corev1.PersistentVolume {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.growing[key])
}

// settled removes a PersistentVolume that doubt has recorded.
func (m *memory) settled(key string, pv *corev1.PersistentVolume) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := slices.DeleteFunc(m.growing[key], func(other *corev1.PersistentVolume) bool { return other == pv })
	if m.growing[key] = left; len(left) == 0 {
		delete(m.growing, key)
	}
}

// wait has wake return the claim when the node changes.
func (m *memory) wait(node, key string) {
	node = diskv1alpha1.NodeLabel(node)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes[node] == nil {
		m.nodes[node] = map[string]struct{}{}
	}
	m.nodes[node][key] = struct{}{}
}

// wake returns the claims that wait for the node with that value of LabelNode. They no longer wait then.
func (m *memory) wake(label string) map[string]struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := m.nodes[label]
	delete(m.nodes, label)
	return keys
}

// shorten cuts a note to the API server's limit, which is in bytes.
func shorten(note string) string {
	return strings.ToValidUTF8(note[:min(len(note), maxNote)], "")
}

// say writes an event about a claim, unless the last event had the same note. It repeats the event after sayAgainAfter.
// It reports whether it wrote one.
func (c *Controllers) say(m *memo, pvc *corev1.PersistentVolumeClaim, eventType, reason, action, note string) bool {
	now := c.clock.Now()
	if m.said == note && now.Sub(m.saidAt) < sayAgainAfter {
		return false
	}
	m.said, m.saidAt = note, now
	c.recorder.Eventf(pvc, nil, eventType, reason, action, "%s", shorten(note))
	return true
}
