package kubectl

import (
	"io"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
	"github.com/berthdev/berth/pkg/kubectl/whatif"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

// document is what a command says of one thing: as text, and as an object for scripts. docs/operate/kubectl-berth.md
// has the fields of each kind. A field is never renamed, and its meaning stays the same.
type document struct {
	kind, name string
	value      any
	text       string
}

// newDocumentOutput is the flag -o of a command that says something of one thing.
func newDocumentOutput() *output {
	o := newOutput()
	o.one = true
	return o
}

// writeDocument writes the document in the form that the user asked for.
func (o *output) writeDocument(out io.Writer, d *document) error {
	if *o.print.OutputFormat == "" {
		_, err := io.WriteString(out, d.text)
		return err
	}
	printer, err := o.print.ToPrinter()
	if err != nil {
		return err
	}
	object, err := toObject(d.value)
	if err != nil {
		return err
	}
	object["apiVersion"], object["kind"], object["metadata"] = groupVersion, d.kind, map[string]any{"name": d.name}
	return printer.PrintObj(&unstructured.Unstructured{Object: object}, out)
}

// Kinds of documents.
const (
	kindStatus            = "Status"
	kindPodExplanation    = "PodExplanation"
	kindClaimExplanation  = "ClaimExplanation"
	kindVolumeExplanation = "VolumeExplanation"
	kindDiskExplanation   = "DiskExplanation"
	kindNodeExplanation   = "NodeExplanation"
	kindFit               = "Fit"
)

// clusterName is the name of documents about the whole cluster.
const clusterName = "cluster"

// statusItem is the page of the cluster.
type statusItem struct {
	Version   string        `json:"version"`
	APIServer string        `json:"apiServer"`
	Scheduler *readiness    `json:"scheduler,omitempty"`
	Agents    *readiness    `json:"agents,omitempty"`
	Classes   []statusClass `json:"classes"`
	NeedsYou  []remarkItem  `json:"needsYou"`
	GoesOn    []remarkItem  `json:"goesOn"`
}

// readiness is how many pods of a workload are ready, and how many there should be.
type readiness struct {
	Ready  int32 `json:"ready"`
	Wanted int32 `json:"wanted"`
}

type statusClass struct {
	*classRow `json:",inline"`
	// WaitingPods is how many pods wait for volumes of the class.
	WaitingPods int `json:"waitingPods"`
}

type remarkItem struct {
	// Severity is Error, Warning, OK or Busy.
	Severity string `json:"severity"`
	On       string `json:"on"`
	Message  string `json:"message"`
	Command  string `json:"command,omitempty"`
}

// severities name the marks in documents.
var severities = map[terminal.Mark]string{
	terminal.MarkBad: "Error", terminal.MarkWarning: "Warning", terminal.MarkDone: "OK", terminal.MarkBusy: "Busy",
}

func remarkItems(remarks []remark) []remarkItem {
	items := make([]remarkItem, 0, len(remarks))
	for _, r := range remarks {
		items = append(items, remarkItem{Severity: severities[r.mark], On: r.on, Message: r.says, Command: r.command})
	}
	return items
}

// podExplanation says where the volumes of a pod are, or why it waits.
type podExplanation struct {
	Pod     string    `json:"pod"`
	Node    string    `json:"node,omitempty"`
	Since   time.Time `json:"since"`
	Message string    `json:"message"`
	// Volumes are set for a pod with a node.
	Volumes []podVolume `json:"volumes,omitempty"`
	verdictItem
}

// podVolume is a volume of a pod that has a node. On is missing until the node publishes the volume.
type podVolume struct {
	Name string            `json:"name"`
	On   *inventory.Volume `json:"on,omitempty"`
}

// verdictItem is what the scheduler's plugins say of a pod.
type verdictItem struct {
	Wants []wantItem `json:"wants,omitempty"`
	// Invalid is why no node could take the pod, whatever is free.
	Invalid string        `json:"invalid,omitempty"`
	Nodes   int           `json:"nodes,omitempty"`
	Fits    []fitItem     `json:"fits,omitempty"`
	Refused []refusalItem `json:"refused,omitempty"`
	Helps   []helpItem    `json:"helps,omitempty"`
}

type wantItem struct {
	Name     string `json:"name"`
	Claim    string `json:"claim,omitempty"`
	Class    string `json:"class"`
	Size     int64  `json:"size"`
	Headroom int64  `json:"headroom,omitempty"`
	Apart    bool   `json:"apart,omitempty"`
}

type fitItem struct {
	Node   string      `json:"node"`
	Places []placeItem `json:"places,omitempty"`
}

type placeItem struct {
	Volume string `json:"volume,omitempty"`
	Disk   string `json:"disk"`
	Device string `json:"device"`
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Of     int64  `json:"of"`
	Leaves int64  `json:"leaves"`
	Pieces int    `json:"pieces,omitempty"`
}

type refusalItem struct {
	Plugin   string   `json:"plugin"`
	Reason   string   `json:"reason"`
	Nodes    []string `json:"nodes"`
	Nearest  string   `json:"nearest,omitempty"`
	Best     string   `json:"best,omitempty"`
	Missing  int64    `json:"missing,omitempty"`
	WithRoom []string `json:"withRoom,omitempty"`
}

type helpItem struct {
	Kind  string   `json:"kind"`
	Node  string   `json:"node"`
	Nodes int      `json:"nodes"`
	Pods  []string `json:"pods,omitempty"`
}

func wantItems(wants []diskcapacity.Want) []wantItem {
	items := make([]wantItem, 0, len(wants))
	for i := range wants {
		w := &wants[i]
		items = append(items, wantItem{Name: w.Name, Claim: w.Claim, Class: w.Class, Size: w.Size, Headroom: w.Headroom, Apart: w.Apart})
	}
	return items
}

func fitItems(fits []whatif.Fit, devices map[string]string, names []string) []fitItem {
	items := make([]fitItem, 0, len(fits))
	for i := range fits {
		item := fitItem{Node: fits[i].Node}
		for j, p := range fits[i].Plan {
			place := placeItem{Disk: p.Disk, Device: devices[p.Disk], Start: p.Start, Length: p.Length, Of: p.Of, Leaves: p.Leaves, Pieces: p.Pieces}
			if j < len(names) {
				place.Volume = names[j]
			}
			item.Places = append(item.Places, place)
		}
		items = append(items, item)
	}
	return items
}

func refusalItems(refused []whatif.Refusal) []refusalItem {
	items := make([]refusalItem, 0, len(refused))
	for i := range refused {
		r := &refused[i]
		items = append(items, refusalItem{r.Plugin, r.Reason, r.Nodes, r.Nearest, r.Best, r.Missing, r.WithRoom})
	}
	return items
}

func verdictOf(v *whatif.Verdict, devices map[string]string) verdictItem {
	return verdictItem{
		Wants: wantItems(v.Wants), Invalid: v.Invalid, Nodes: v.Nodes,
		Fits: fitItems(v.Fits, devices, wantNames(v.Wants)), Refused: refusalItems(v.Refused),
	}
}

// claimExplanation says where the volume of a claim is, or why it has none.
type claimExplanation struct {
	Claim   string             `json:"claim"`
	Message string             `json:"message"`
	Volume  *volumeExplanation `json:"volume,omitempty"`
	// Pod is one that waits for the volume.
	Pod *podExplanation `json:"pod,omitempty"`
}

// volumeExplanation says where a PersistentVolume is. For one of another driver it has only the first two fields.
type volumeExplanation struct {
	PersistentVolume string `json:"persistentVolume"`
	Message          string `json:"message"`
	Phase            string `json:"phase,omitempty"`
	Claim            string `json:"claim,omitempty"`
	Class            string `json:"class,omitempty"`
	Node             string `json:"node,omitempty"`
	Size             int64  `json:"size,omitempty"`
	// On is missing if no node publishes the volume.
	On *inventory.Volume `json:"on,omitempty"`
}

// diskExplanation says whether a disk takes volumes. Device is set instead of Disk if it is no disk of Berth.
type diskExplanation struct {
	Takes   bool                 `json:"takesVolumes"`
	Message string               `json:"message"`
	Disk    *inventory.Disk      `json:"disk,omitempty"`
	Device  *diskv1alpha1.Device `json:"device,omitempty"`
}

// nodeExplanation says whether volumes can come to a node.
type nodeExplanation struct {
	Node   string           `json:"node"`
	Takes  bool             `json:"takesVolumes"`
	Checks []checkItem      `json:"checks"`
	Disks  []inventory.Disk `json:"disks,omitempty"`
}

type checkItem struct {
	Severity string `json:"severity"`
	Message  string `json:"message"`
}

// fitDocument says where volumes would fit.
type fitDocument struct {
	// Class, Size, Headroom, Count and Spread repeat the question, or Like does.
	Class    string `json:"class,omitempty"`
	Size     int64  `json:"size,omitempty"`
	Headroom int64  `json:"headroom,omitempty"`
	Count    int    `json:"count,omitempty"`
	Spread   string `json:"spread,omitempty"`
	Like     string `json:"like,omitempty"`
	verdictItem
	// Pods is how many such pods have room, one after the other. It is missing with Like.
	Pods *int `json:"pods,omitempty"`
}
