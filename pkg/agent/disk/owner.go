package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Owner is the node that a disk belongs to. The zero Owner means that the disk has none.
//
// It is in the meta partition, in the slot of the meta partition's own entry, and has that partition's GUID. So an
// owner that an earlier table left counts as none. A damaged owner counts as none, too: a power cut leaves one. A disk
// whose owner cannot be read is refused.
type Owner struct {
	// NodeUID is the UID of the Node object.
	NodeUID string `json:"nodeUID,omitempty"`
	// NodeName is the name of the Node object.
	NodeName string `json:"nodeName,omitempty"`
	// MachineID is that of the node's status.nodeInfo.
	MachineID string `json:"machineID,omitempty"`
}

// ownerMagic begins the owner's slot. Its form is that of a volume's slot, see slot.go.
const ownerMagic = "berthown"

// encodeOwner returns the bytes of the owner's slot, bound to the meta partition.
func encodeOwner(metaGUID string, o Owner) ([]byte, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	slot, err := encodeSlot(ownerMagic, metaGUID, text)
	if err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	return slot, nil
}

// decodeOwner returns the zero Owner if the slot holds none of that meta partition.
func decodeOwner(slot []byte, metaGUID string) Owner {
	text, found := decodeSlot(slot, ownerMagic, metaGUID)
	var o Owner
	if !found || json.Unmarshal(text, &o) != nil {
		return Owner{}
	}
	return o
}

// readOwner reads the owner of a disk of ours. The error comes from the device.
func readOwner(r io.ReaderAt, l layout, metaGUID string) (Owner, error) {
	unit, skip := l.slotUnit(MetaEntry)
	b := make([]byte, unit.Len())
	if _, err := r.ReadAt(b, unit.Start); err != nil {
		return Owner{}, fmt.Errorf("reading the owner: %w", err)
	}
	return decodeOwner(b[skip:skip+slotBytes], metaGUID), nil
}

// ownerOf is readOwner for a disk that was only examined, on the device of that path. If it cannot be read the disk may
// be another node's, so the error says what to do.
func ownerOf(r io.ReaderAt, path string, l layout, c tableCopy) (Owner, error) {
	o, err := readOwner(r, l, decodeGUID(c.entryBytes(MetaEntry)[16:32]).String())
	if err != nil {
		unit, _ := l.slotUnit(MetaEntry)
		return Owner{}, fmt.Errorf("disk %s may belong to another node, its owner cannot be read: if it belongs to this one, "+
			"zero the %d bytes at %d of %s (dd with oflag=direct), otherwise detach it: %w", c.id, unit.Len(), unit.Start, path, err)
	}
	return o, nil
}

// metaGUID is the GUID of the meta partition, which every valid table has.
func (t table) metaGUID() string {
	for _, e := range t.entries {
		if e.isMeta() {
			return e.guid
		}
	}
	return ""
}

// SetOwner records the owner of the disk. After a crash it is the new one, the old one, or none. The caller decides
// whether the disk may change its owner.
func (d *Disk) SetOwner(ctx context.Context, o Owner) error {
	err := d.runInWorker(ctx, func(ctx context.Context) error {
		// The meta partition must still be this table's.
		if err := d.recheck(ctx); err != nil {
			return err
		}
		err := d.store.writeOwner(o)
		if mayBeGone(err) {
			return errors.Join(err, d.recheck(ctx))
		}
		if err != nil {
			return err
		}
		d.owner = o
		d.publish()
		return nil
	})
	if err != nil {
		return fmt.Errorf("setting the owner of disk %s: %w", d.Snapshot().ID, err)
	}
	return nil
}

// writeOwner writes the owner, flushes, and reads it back.
func (s *store) writeOwner(o Owner) error {
	slot, err := encodeOwner(s.table.metaGUID(), o)
	if err != nil {
		return err
	}
	w, err := s.slotWrite(MetaEntry, slot)
	if err != nil {
		return err
	}
	if _, err := s.dev.WriteAt(w.data, w.off); err != nil {
		return fmt.Errorf("writing the owner: %w", err)
	}
	if err := s.dev.Sync(); err != nil {
		return fmt.Errorf("writing the owner: %w", err)
	}
	back := make([]byte, len(w.data))
	if _, err := s.dev.ReadAt(back, w.off); err != nil {
		return fmt.Errorf("reading the owner back: %w", err)
	}
	if !bytes.Equal(back, w.data) {
		return errors.New("the owner does not read back as written")
	}
	return nil
}
