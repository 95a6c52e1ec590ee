package ledger

import "time"

// RefusalLifetime is how long a refusal is remembered if the node publishes nothing
// new about its disks. It is the time after which the scheduler retries a pod that no event
// woke, so that a refusal whose cause is gone holds up a pod for one such round at most.
const RefusalLifetime = 5 * time.Minute

type refusal struct {
	reason string
	// news is when the node had last said something new about its disks.
	news uint64
	at   time.Time
}

// Refuse remembers that the pod could not be bound to the node, and why.
func (l *Ledger) Refuse(uid, nodeName, reason string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refusals[uid] == nil {
		l.refusals[uid] = map[string]refusal{}
	}
	l.refusals[uid][nodeName] = refusal{reason: reason, news: l.news(nodeName), at: now}
}

// Refusals returns the nodes that refused the pod and have published nothing new
// about their disks since, with the reason of each; nil when there are none.
func (l *Ledger) Refusals(uid string, now time.Time) map[string]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var reasons map[string]string
	for name, r := range l.refusals[uid] {
		if l.news(name) != r.news || now.Sub(r.at) >= RefusalLifetime {
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

// Lifted returns the UIDs of the pods that the node refused before what it publishes of its disks now.
func (l *Ledger) Lifted(nodeName string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var uids []string
	for uid, nodes := range l.refusals {
		if r, refused := nodes[nodeName]; refused && l.news(nodeName) != r.news {
			uids = append(uids, uid)
		}
	}
	return uids
}
