package ledger

import "time"

// RefusalLifetime is how long a refusal is remembered if the node's disks do not change. After this time the scheduler
// retries a pod that no event woke. So a refusal whose cause is gone delays a pod by one such period at most.
const RefusalLifetime = 5 * time.Minute

type refusal struct {
	reason string
	// disksRevision is the revision at which the node's disks had last changed.
	disksRevision uint64
	at            time.Time
}

// RecordRefusal remembers that the API server refused to bind the pod to the node, and why.
func (l *Ledger) RecordRefusal(uid, nodeName, reason string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refusals[uid] == nil {
		l.refusals[uid] = map[string]refusal{}
	}
	l.refusals[uid][nodeName] = refusal{reason: reason, disksRevision: l.disksRevision(nodeName), at: now}
}

// Refusals returns the nodes that refused the pod and whose disks have not changed since, with the reason of each. It
// is nil when there are none.
func (l *Ledger) Refusals(uid string, now time.Time) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var reasons map[string]string
	for name, r := range l.refusals[uid] {
		if l.disksRevision(name) != r.disksRevision || now.Sub(r.at) >= RefusalLifetime {
			delete(l.refusals[uid], name)
			continue
		}
		if reasons == nil {
			reasons = map[string]string{}
		}
		reasons[name] = r.reason
	}
	if len(l.refusals[uid]) == 0 {
		delete(l.refusals, uid)
	}
	return reasons
}

// LiftedRefusals returns the UIDs of the pods that the node refused before its disks last changed.
func (l *Ledger) LiftedRefusals(nodeName string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var uids []string
	for uid, nodes := range l.refusals {
		if r, refused := nodes[nodeName]; refused && l.disksRevision(nodeName) != r.disksRevision {
			uids = append(uids, uid)
		}
	}
	return uids
}
