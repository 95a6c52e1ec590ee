package diskcapacity

import (
	"fmt"
	"math"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/pkg/ledger"
)

// volumesByNode indexes our PersistentVolumes by their node's label: there are too many to visit all of them for one
// node.
const volumesByNode = "disk.berth.dev/node"

func volumeNode(obj any) ([]string, error) {
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok || !claim.IsOurs(pv) {
		return nil, nil
	}
	v, err := claim.ReadVolume(pv)
	if err != nil {
		// The ledger does not know it either.
		return nil, nil //nolint:nilerr // an error would be a panic of the informer
	}
	return []string{v.Node}, nil
}

// persistentVolumesOn returns our PersistentVolumes on the node with that label.
func (f *feed) persistentVolumesOn(label string) []*corev1.PersistentVolume {
	objects, err := f.volumes.ByIndex(volumesByNode, label)
	if err != nil {
		// There is no such index: a mistake in this program.
		panic(err)
	}
	volumes := make([]*corev1.PersistentVolume, 0, len(objects))
	for _, obj := range objects {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			volumes = append(volumes, pv)
		}
	}
	return volumes
}

// followVolumes folds PersistentVolumes into the ledger.
func (f *feed) followVolumes(logger klog.Logger, informer cache.SharedIndexInformer) error {
	f.volumes = informer.GetIndexer()
	if f.volumes.GetIndexers()[volumesByNode] == nil {
		if err := informer.AddIndexers(cache.Indexers{volumesByNode: volumeNode}); err != nil {
			return fmt.Errorf("following PersistentVolumes: %w", err)
		}
	}
	fold := func(obj any) {
		if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = gone.Obj
		}
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			f.foldVolume(logger, pv)
		}
	}
	registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: fold,
		UpdateFunc: func(old, obj any) {
			before, _ := old.(*corev1.PersistentVolume)
			after, _ := obj.(*corev1.PersistentVolume)
			if before != nil && after != nil && before.UID != after.UID {
				f.foldVolume(logger, before)
			}
			fold(obj)
		},
		DeleteFunc: func(obj any) { f.foldVolumeEnd(logger, obj) },
	})
	if err != nil {
		return fmt.Errorf("following PersistentVolumes: %w", err)
	}
	f.volumesSynced = registration.HasSynced
	return nil
}

// foldVolumeEnd is foldPodEnd for PersistentVolumes.
func (f *feed) foldVolumeEnd(logger klog.Logger, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	pv, ok := obj.(*corev1.PersistentVolume)
	if !ok {
		return
	}
	if !claim.IsOurs(pv) {
		f.foldVolume(logger, pv)
		return
	}
	v, _ := claim.ReadVolume(pv)
	before := f.ledger.Snapshot(f.longNames.of(v.Node))
	if node := f.foldVolume(logger, pv); f.ledger.Snapshot(node) != before {
		f.requeueFitting(logger, node, before.Node)
	}
}

// foldedVolume is an event of a PersistentVolume, and the node where the volume is.
type foldedVolume struct {
	event *corev1.PersistentVolume
	node  string
}

// foldVolumeOnce is foldVolume for hints, which are called for every pending pod: it folds in an event once.
func (f *feed) foldVolumeOnce(logger klog.Logger, event *corev1.PersistentVolume) (nodeName string) {
	if last := f.lastVolume.Load(); last != nil && last.event == event {
		return last.node
	}
	last := &foldedVolume{event: event, node: f.foldVolume(logger, event)}
	f.lastVolume.Store(last)
	return last.node
}

// foldVolume folds in the present state of a PersistentVolume after an event, see foldPod. It returns the node where
// the volume is, if it is ours.
func (f *feed) foldVolume(logger klog.Logger, event *corev1.PersistentVolume) (nodeName string) {
	f.folding.Lock()
	defer f.folding.Unlock()
	pv := f.storedVolume(event.Name)
	if pv == nil || pv.UID != event.UID {
		// A PersistentVolume of the same name is another one. It has an event of its own, which may have been handled
		// already.
		f.bindableVolumes.remove(event)
		if pv != nil {
			f.bindableVolumes.set(pv)
		}
		if !claim.IsOurs(event) {
			return ""
		}
		v, _ := claim.ReadVolume(event)
		f.ledger.DeleteVolume(string(event.UID))
		return f.longNames.of(v.Node)
	}
	f.bindableVolumes.set(pv)
	if !claim.IsOurs(pv) {
		return ""
	}
	v, err := claim.ReadVolume(pv)
	if err != nil {
		// The node of a PersistentVolume that a CSI sidecar made publishes its partition. Other invalid ones have no
		// partition.
		logger.V(2).Info("A PersistentVolume reserves nothing", "volume", klog.KObj(pv), "err", err)
		return ""
	}
	nodeName = f.longNames.of(v.Node)
	version, err := RevisionOf(pv.ResourceVersion)
	if err != nil {
		logger.Error(err, "A PersistentVolume's version cannot be compared, it counts as the newest", "volume", klog.KObj(pv))
		version = math.MaxUint64
	}
	f.ledger.SetVolume(string(pv.UID), nodeName, ledger.Version{Number: version, First: RecordOf(v), Pieces: PiecesOf(v), Move: MoveOf(v)})
	return nodeName
}

// RecordOf is the ledger's record of a PersistentVolume, or of the first piece of it.
func RecordOf(v claim.Volume) ledger.Record {
	return ledger.Record{Partition: v.Partition, Disk: v.Place.Disk, Extent: extent.New(v.Place.Start, v.FirstLength())}
}

// PiecesOf are the ledger's records of a PersistentVolume's further pieces, in their order.
func PiecesOf(v claim.Volume) []ledger.Record {
	var pieces []ledger.Record
	for i, p := range v.Pieces {
		pieces = append(pieces, ledger.Record{Partition: diskv1alpha1.PieceID(v.Partition, i+1), Disk: p.Disk, Extent: extent.New(p.Start, p.Length)})
	}
	return pieces
}

// PlacesOf are the places of the ledger's records of one volume: its first piece, then its further ones.
func PlacesOf(records []ledger.Record) []diskv1alpha1.Place {
	places := make([]diskv1alpha1.Place, len(records))
	for i, r := range records {
		places[i] = diskv1alpha1.Place{Disk: r.Disk, Extent: diskv1alpha1.Extent{Start: r.Extent.Start, Length: r.Extent.Len()}}
	}
	return places
}

// MoveOf is the ledger's record of a PersistentVolume's move; nil if it has none.
func MoveOf(v claim.Volume) *ledger.Move {
	if v.MoveTo == nil {
		return nil
	}
	return &ledger.Move{Copy: diskv1alpha1.CopyID(v.Partition), Disk: v.MoveTo.Disk, Extent: extent.New(v.MoveTo.Start, v.MoveTo.Length)}
}

// storedVolume returns the PersistentVolume that the informer has now; nil if it is gone.
func (f *feed) storedVolume(name string) *corev1.PersistentVolume {
	obj, exists, err := f.volumes.GetByKey(name)
	if err != nil || !exists {
		return nil
	}
	pv, _ := obj.(*corev1.PersistentVolume)
	return pv
}

// longNames has the nodes whose names are too long for a label, by their label in PersistentVolumes. A node publishes
// before any volume can be placed on it, so its capacity shows the name in time.
type longNames struct {
	mu    sync.RWMutex
	nodes map[string]string
}

func newLongNames() *longNames { return &longNames{nodes: map[string]string{}} }

// of returns the name of the node with that label: the label itself, if no longer name is known for it.
func (n *longNames) of(label string) string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if name, ok := n.nodes[label]; ok {
		return name
	}
	return label
}

// add reports whether the node's name changes the meaning of its label.
func (n *longNames) add(node string) (label string, changed bool) {
	if label = diskv1alpha1.NodeLabel(node); label == node {
		return label, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[label] == node {
		return label, false
	}
	n.nodes[label] = node
	return label, true
}

// addNodeName is called before the capacity of a node is folded in.
func (f *feed) addNodeName(logger klog.Logger, nodeName string) {
	label, changed := f.longNames.add(nodeName)
	if !changed {
		return
	}
	for _, pv := range f.persistentVolumesOn(label) {
		f.foldVolume(logger, pv)
	}
}
