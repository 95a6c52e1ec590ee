package ledger

import (
	"slices"

	"github.com/berthdev/berth/pkg/extent"
)

// locate returns where the record's volume is: where the node publishes it, if it does. The length is the longer one.
func (p *published) locate(r Record) Record {
	if disk, v := p.volume(r.Partition, r.Disk); v != nil && !v.Wiping {
		r.Disk, r.Extent = disk, extent.New(v.Extent.Start, max(v.Extent.Len(), r.Extent.Len()))
	}
	return r
}

// Where finds the volume that has the partition: by a PersistentVolume's record, by a reservation, or by what a node
// publishes and is not wiping. A reservation in doubt is not found, because the volume may be elsewhere.
func (l *Ledger) Where(partition string) (nodeName string, r Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.where(partition, nil)
}

// where is Where without a holder, which may be nil. The lock is held.
func (l *Ledger) where(partition string, without *holder) (nodeName string, r Record, ok bool) {
	if nodeName, r, ok = l.whereRecorded(partition, without); ok {
		return nodeName, r, true
	}
	n := l.publisherOf(partition)
	if n == nil {
		return "", Record{}, false
	}
	disk, v := n.published.volume(partition, "")
	return n.name, Record{Partition: partition, Disk: disk, Extent: v.Extent}, !v.Wiping
}

// whereRecorded is where for volumes with a record only. The lock is held.
func (l *Ledger) whereRecorded(partition string, without *holder) (nodeName string, r Record, ok bool) {
	var found *holder
	for _, h := range l.recordedBy[partition] {
		if h != without && (found == nil || h.source > found.source) {
			found = h
		}
	}
	if found != nil {
		for _, r := range found.records {
			if r.Partition == partition {
				return found.node, l.Snapshot(found.node).published.locate(r), true
			}
		}
	}
	return "", Record{}, false
}

// furtherOf returns the records of a volume's further pieces on the node, in their order, up to the first that is not
// there. The lock is held.
func (l *Ledger) furtherOf(nodeName string, pieces []string, without *holder) []Record {
	var records []Record
	for _, partition := range pieces {
		where, r, ok := l.where(partition, without)
		if !ok || where != nodeName {
			break
		}
		records = append(records, r)
	}
	return records
}

// publisherOf returns the node that publishes the partition; of several, one on which its disk is in service. It is nil
// if no node does. The lock is held.
func (l *Ledger) publisherOf(partition string) *node {
	last := l.publishedBy[partition]
	if len(l.alsoPublishedBy[partition]) == 0 {
		return last
	}
	serves := func(n *node) bool {
		disk, _ := n.published.volume(partition, "")
		return n.inService(disk)
	}
	if serves(last) {
		return last
	}
	for _, n := range slices.Backward(l.alsoPublishedBy[partition]) {
		if serves(n) {
			return n
		}
	}
	return last
}

// removeRecords removes a holder's records from those that Where finds. The lock is held.
func (l *Ledger) removeRecords(h *holder) {
	for _, r := range h.records {
		holders := l.recordedBy[r.Partition]
		if i := slices.Index(holders, h); i >= 0 {
			holders = slices.Delete(holders, i, i+1)
		}
		if len(holders) == 0 {
			delete(l.recordedBy, r.Partition)
		} else {
			l.recordedBy[r.Partition] = holders
		}
	}
}

// setPublished replaces what the node publishes, and updates which partitions Where finds. changed are the partitions
// that may have come or gone. The lock is held; the caller makes the snapshot.
func (l *Ledger) setPublished(n *node, p *published, changed []string) {
	before := n.published
	n.published = p
	for _, partition := range changed {
		_, had := before.volume(partition, "")
		_, has := p.volume(partition, "")
		switch {
		case had == nil && has != nil:
			l.addPublisher(partition, n)
		case had != nil && has == nil:
			l.removePublisher(partition, n)
		}
	}
}

// addPublisher adds a node that publishes the partition and did not before. A disk that is moved is published by two
// nodes for a while: the last one counts.
func (l *Ledger) addPublisher(partition string, n *node) {
	if other := l.publishedBy[partition]; other != nil && other != n {
		l.alsoPublishedBy[partition] = append(l.alsoPublishedBy[partition], other)
	}
	l.publishedBy[partition] = n
}

// removePublisher undoes addPublisher. If other nodes publish the partition, the last of them counts.
func (l *Ledger) removePublisher(partition string, n *node) {
	others := slices.DeleteFunc(l.alsoPublishedBy[partition], func(other *node) bool { return other == n })
	if l.publishedBy[partition] == n {
		delete(l.publishedBy, partition)
		if last := len(others) - 1; last >= 0 {
			l.publishedBy[partition], others = others[last], others[:last]
		}
	}
	if len(others) > 0 {
		l.alsoPublishedBy[partition] = others
	} else {
		delete(l.alsoPublishedBy, partition)
	}
}
