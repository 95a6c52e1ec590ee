package disk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthdev/berth/pkg/extent"
)

// Options of Open.
type Options struct {
	// OnChange, if set, is called after every change of the snapshot. It must neither block nor call the Disk's methods
	// other than Snapshot.
	OnChange func()
	// SeenBefore, if set, reports whether a disk of that id was seen on this node before. If the beginning of a disk is
	// lost, its table is restored only if it was.
	SeenBefore func(id string) bool
	// CommandTimeout is how long the disk may take for one command. After that it counts as hanging, and is out of
	// service. 0 means 30 seconds.
	CommandTimeout time.Duration
	// Attachment is the way in which volumes are attached that the kernel does not show yet. Empty is Partition. Volumes
	// of several pieces and those of a mapped disk are always attached by the device mapper, and where the kernel has none
	// volumes of one piece are attached as partitions. Attach changes the way of one volume.
	Attachment Attachment

	wipeMethods *wipeMethods // nil is the default
	copyWindow  int64        // 0 is the default
	noMapper    bool         // as on a kernel without the device mapper
}

// Disk is an open disk of ours. Any goroutine may call its methods. One goroutine of its own, the worker, does all that
// concerns the table.
type Disk struct {
	device      *blockDevice
	meta        *os.File // held open exclusively, against other agents, mkfs and the like
	wipeMethods *wipeMethods
	pacer       pacer // of all zeroing and copying that has a limit
	copyWindow  int64 // how much a move copies up to a flush
	onChange    func()
	attachAs    Attachment // unless a volume is wanted otherwise
	noMapper    bool

	// Only the worker uses these.
	store   *store
	loops   *loopAttacher
	mapped  *dmAttacher           // nil if the disk is attached by partitions and loops
	linear  *linearAttacher       // devices over these; nil if the kernel has no device mapper
	devices map[string]string     // device node by partition, of attached ones
	wanted  map[string]Attachment // of volumes for which a way was given
	unshown map[string]string     // why a volume is not attached
	zeroed  extent.Set            // free, zeroed by us, and nothing written since
	zeroing map[string]extent.Set // free, and being zeroed for that volume
	slots   map[string]slot       // what the disk keeps of its volumes, by partition
	moving  map[string]bool       // volumes that are being copied, and must not be attached
	// unflushed are copies of which a flush has failed. The next Move writes them again.
	unflushed map[string]bool
	owner     Owner // the node that the disk belongs to
	failure   error // why the disk is out of service

	commands chan command
	stop     chan struct{} // closed by Close
	stopped  chan struct{} // closed by the worker when it has ended
	closing  sync.Once
	watchdog *watchdog // takes the disk out of service when it hangs, and has the snapshot

	copying sync.WaitGroup // calls that copy a volume; the worker adds to it

	longCallsMu sync.Mutex
	longCalls   map[string]chan struct{} // closed when the long work on that volume ends
}

// command is a call that the worker runs.
type command struct {
	ctx  context.Context
	do   func(context.Context) error
	done chan error
}

// Open takes a disk of ours into service. It checks both copies of the table, repairs a damaged one, and proves that
// the disk takes writes. It attaches the partitions that are not attached yet, and holds the meta partition until
// Close.
//
// A disk of ours that cannot serve is returned out of service, so that its volumes can be shown. It may be truncated,
// take no writes, or have partitions in the kernel that differ from its table.
func Open(ctx context.Context, path string, o Options) (*Disk, error) {
	device, err := openDevice(path, os.O_RDWR)
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	d := &Disk{
		device: device, onChange: o.OnChange, devices: map[string]string{},
		commands: make(chan command), stop: make(chan struct{}), stopped: make(chan struct{}), watchdog: newWatchdog(o.CommandTimeout),
		longCalls: map[string]chan struct{}{}, zeroing: map[string]extent.Set{}, wanted: map[string]Attachment{}, unshown: map[string]string{},
		attachAs: cmp.Or(o.Attachment, Partition), noMapper: o.noMapper, moving: map[string]bool{}, unflushed: map[string]bool{},
		wipeMethods: cmp.Or(o.wipeMethods, defaultWipeMethods()), copyWindow: cmp.Or(o.copyWindow, defaultCopyWindow),
	}
	if err := d.open(ctx, o.SeenBefore); err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, errors.Join(err, d.releaseDevices(), device.Close()))
	}
	go d.runWorker()
	return d, nil
}

// Snapshot returns the state of the disk. It never waits.
func (d *Disk) Snapshot() Snapshot { return *d.watchdog.snapshot.Load() }

// Close closes the disk. Partitions stay attached: what is mounted stays mounted. Commands in progress are finished,
// later ones fail. A Move that copies ends.
func (d *Disk) Close() error {
	var err error
	d.closing.Do(func() {
		close(d.stop)
		<-d.stopped
		d.copying.Wait()
		err = errors.Join(d.releaseDevices(), d.device.Close())
	})
	return err
}

// runWorker is the worker: it runs commands one after the other, and finishes what they leave for later.
func (d *Disk) runWorker() {
	defer close(d.stopped)
	for {
		var due <-chan time.Time
		if d.failure == nil && d.store.unfinished() {
			due = time.After(finishDelay)
		}
		select {
		case <-due:
			_ = d.runWithWatchdog(context.Background(), func() error { d.finish(context.Background()); return nil })
		case <-d.stop:
			d.syncCopies()
			return
		case c := <-d.commands:
			if d.failure != nil {
				c.done <- d.failure
				continue
			}
			err := d.runWithWatchdog(c.ctx, func() error { return c.do(c.ctx) })
			if errors.Is(err, ErrOutOfService) {
				d.fail(c.ctx, err)
			}
			c.done <- err
		}
	}
}

// syncCopies makes both copies of the table the same. If that fails, the next Open repairs them.
func (d *Disk) syncCopies() {
	ctx := context.Background()
	if d.failure != nil {
		return
	}
	if err := errors.Join(d.store.finish(ctx), d.store.undoPrepare(ctx)); err != nil {
		d.fail(ctx, err)
	}
}

// finishDelay is how long the second half of a write waits for the next command. That is usually Format's, which writes
// the backup in another way.
const finishDelay = time.Millisecond

// finish writes what a command has left for later, usually the backup copy. Every change of the table does it first.
func (d *Disk) finish(ctx context.Context) {
	if err := d.store.finish(ctx); err != nil {
		d.fail(ctx, fmt.Errorf("after a volume was made: %w", err))
	}
}

// runInWorker has the worker call do, and waits for it. Once the worker has begun, it waits even if ctx ends: a table
// is not left half written.
func (d *Disk) runInWorker(ctx context.Context, do func(context.Context) error) error {
	c := command{context.WithoutCancel(ctx), do, make(chan error, 1)}
	select {
	case d.commands <- c:
		return <-c.done
	case <-ctx.Done():
		return ctx.Err()
	case <-d.watchdog.expired:
		return d.watchdog.reason
	case <-d.stop:
		return fmt.Errorf("disk %s is closed: %w", d.Snapshot().ID, ErrOutOfService)
	}
}

// fail takes the disk out of service for good.
func (d *Disk) fail(ctx context.Context, err error) {
	if !errors.Is(err, ErrOutOfService) {
		err = fmt.Errorf("%w: %w", ErrOutOfService, err)
	}
	d.failure = err
	klog.FromContext(ctx).Error(err, "Disk is out of service", "device", d.device.path, "disk", d.store.table.id)
	d.publish()
}

// publish makes the worker's state the snapshot.
func (d *Disk) publish() {
	t := d.store.table
	s := &Snapshot{
		ID: t.id, Owner: d.owner, Path: d.device.path, Size: t.size, SectorSize: t.sector,
		Free: t.free(), Err: d.failure,
	}
	s.Overhead = t.size - s.Free.Total()
	volumes, orphans := t.sets()
	for _, v := range volumes {
		s.Volumes = append(s.Volumes, d.volume(v))
		s.Overhead -= v.length()
	}
	for _, e := range orphans {
		s.Volumes = append(s.Volumes, d.volume(set{first: e}))
		s.Overhead -= e.extent.Len()
	}
	slices.SortFunc(s.Volumes, func(a, b Volume) int { return cmp.Compare(a.Extent.Start, b.Extent.Start) })
	d.watchdog.publish(s)
	if d.onChange != nil {
		d.onChange()
	}
}

// volume is a volume with its device, and with what its slot holds.
func (d *Disk) volume(s set) Volume {
	e := s.first
	v := Volume{
		Partition: e.guid, Name: e.name, Extent: e.extent, Phase: e.phase(), Incomplete: s.incomplete(),
		Ephemeral: e.attributes&AttributeEphemeral != 0, Raw: e.attributes&AttributeRaw != 0,
		Index: e.index, Device: d.devices[e.guid], Attachment: d.attachment(e.guid), NotAttached: d.unshown[e.guid],
		Note: d.slots[e.guid].note, Wipe: d.slots[e.guid].wipe,
	}
	if e.isPiece() {
		v.Phase, v.Incomplete = OrphanPiece, "its first piece is not in the table"
	}
	for _, p := range s.pieces {
		v.Pieces = append(v.Pieces, Piece{Partition: p.guid, Number: p.number, Extent: p.extent, Index: p.index})
	}
	return v
}
