package kubectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
	"github.com/berthdev/berth/pkg/kubectl/whatif"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

func newExplain(s *session) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "Say why a pod waits or runs where it does, or what is with a claim, volume, disk or node",
		Example: "  kubectl berth explain pod kafka-3 -n db\n  kubectl berth explain pod -A --pending\n" +
			"  kubectl berth explain pvc data-kafka-3 -n db\n  kubectl berth explain disk node-07/nvme0n1\n  kubectl berth explain node node-29",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newExplainPod(s),
		s.newExplainOf("pvc", "NAME", "Say where the volume of a claim is, or why it has none", s.explainClaim, nil),
		s.newExplainOf("pv", "NAME", "Say where a PersistentVolume of Berth is, and in which state", s.explainVolume, nil),
		s.newExplainOf("disk", "NODE/DEVICE", "Say whether a disk takes volumes, and what is on it", s.explainDisk, s.completeNodes),
		s.newExplainOf("node", "NAME", "Say whether a node takes volumes, and if not why", s.explainNode, s.completeNodes),
	)
	return cmd
}

// newExplainOf is a command that explains one object.
func (s *session) newExplainOf(kind, name, short string, run func(context.Context, *api, string) (*document, error), complete cobra.CompletionFunc) *cobra.Command {
	form := newDocumentOutput()
	cmd := &cobra.Command{
		Use: kind + " " + name, Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: complete,
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			d, err := run(ctx, a, args[0])
			if err != nil {
				return err
			}
			return form.writeDocument(s.Out, d)
		}),
	}
	form.add(cmd)
	return cmd
}

func newExplainPod(s *session) *cobra.Command {
	var pending, everywhere bool
	form := newDocumentOutput()
	cmd := &cobra.Command{
		Use:   "pod [NAME]",
		Short: "Say why a pod waits for its volumes, or where they are",
		Long: "Say why a pod waits for its volumes, or where they are.\n\n" +
			"The verdict on each node is that of the scheduler's own plugins, on the objects as they are now.",
		Example: "  kubectl berth explain pod kafka-3 -n db\n  kubectl berth explain pod -A --pending",
		Args:    cobra.MaximumNArgs(1),
		RunE: s.connected(func(ctx context.Context, a *api, args []string) error {
			if pending == (len(args) == 1) {
				return errors.New("name a pod, or give --pending for all that wait")
			}
			namespace, _, err := s.config.ToRawKubeConfigLoader().Namespace()
			if err != nil {
				return err
			}
			if pending && everywhere {
				namespace = metav1.NamespaceAll
			}
			if pending {
				l, err := s.explainPending(ctx, a, namespace)
				if err != nil {
					return err
				}
				return form.write(s, l)
			}
			d, err := s.explainPod(ctx, a, namespace, args[0])
			if err != nil {
				return err
			}
			return form.writeDocument(s.Out, d)
		}),
	}
	cmd.Flags().BoolVar(&pending, "pending", false, "All pods that wait for volumes, with the reason that most nodes have.")
	cmd.Flags().BoolVarP(&everywhere, "all-namespaces", "A", false, "With --pending, the pods of all namespaces.")
	form.add(cmd)
	return cmd
}

// objects reads all that decides where a pod can run.
func (a *api) objects(ctx context.Context) (*whatif.Objects, error) {
	o := &whatif.Objects{}
	group, groupCtx := errgroup.WithContext(ctx)
	read := func(do func(context.Context) error) { group.Go(func() error { return do(groupCtx) }) }
	read(func(ctx context.Context) (err error) { o.Capacities, err = a.capacities(ctx); return err })
	read(func(ctx context.Context) (err error) { o.Classes, err = a.classes(ctx); return err })
	read(func(ctx context.Context) (err error) { o.Nodes, err = a.nodeObjects(ctx); return err })
	read(func(ctx context.Context) (err error) { o.CSINodes, err = a.csiNodes(ctx); return err })
	read(func(ctx context.Context) (err error) { o.Claims, err = a.claims(ctx); return err })
	read(func(ctx context.Context) (err error) { o.Volumes, err = a.volumes(ctx); return err })
	read(func(ctx context.Context) (err error) { o.StorageClasses, err = a.storageClasses(ctx); return err })
	read(func(ctx context.Context) (err error) {
		o.Pods, err = a.pods(ctx, metav1.NamespaceAll, fields.ParseSelectorOrDie("status.phase!=Succeeded,status.phase!=Failed"))
		return err
	})
	return o, group.Wait()
}

// scheduler makes the scheduler's plugins over the objects as they are now.
func (a *api) scheduler(ctx context.Context) (*whatif.Scheduler, *whatif.Objects, error) {
	o, err := a.objects(ctx)
	if err != nil {
		return nil, nil, err
	}
	scheduler, err := whatif.New(ctx, o)
	return scheduler, o, err
}

func (s *session) explainPod(ctx context.Context, a *api, namespace, name string) (*document, error) {
	to, err := s.terminal()
	if err != nil {
		return nil, err
	}
	pod, err := a.core.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading pod %s/%s: %w", namespace, name, err)
	}
	var b strings.Builder
	value := &podExplanation{Pod: namespace + "/" + name, Node: pod.Spec.NodeName}
	if value.Node != "" {
		err = s.explainPlaced(ctx, a, to, &b, pod, value)
	} else {
		var scheduler *whatif.Scheduler
		var o *whatif.Objects
		if scheduler, o, err = a.scheduler(ctx); err == nil {
			s.explainWaiting(ctx, to, &b, scheduler, o, pod, value)
		}
	}
	if err != nil {
		return nil, err
	}
	return &document{kind: kindPodExplanation, name: value.Pod, value: value, text: b.String()}, nil
}

// explainPlaced says where the volumes of a pod with a node are.
func (s *session) explainPlaced(ctx context.Context, a *api, to terminal.Terminal, b *strings.Builder, pod *corev1.Pod, value *podExplanation) error {
	node := pod.Spec.NodeName
	ndc, about, err := a.node(ctx, node)
	if err != nil {
		return err
	}
	value.Since = pod.CreationTimestamp.Time
	if pod.Status.StartTime != nil {
		value.Since = pod.Status.StartTime.Time
	}
	value.Message = fmt.Sprintf("%s is on %s since %s.", value.Pod, node, duration.HumanDuration(s.now().Sub(value.Since)))
	b.WriteString(value.Message + "\n")
	byName := map[string]*inventory.Volume{}
	disks := inventory.Disks(ndc, about)
	for i := range disks {
		for _, v := range disks[i].FirstPieces() {
			byName[v.Name] = v
		}
	}
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{}, {Right: true}, {}, {Shrink: 20}}}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		id, err := a.volumeID(ctx, pod, v)
		if err != nil {
			return err
		}
		if id == "" {
			continue
		}
		on := byName[id]
		value.Volumes = append(value.Volumes, podVolume{Name: v.Name, On: on})
		if on == nil {
			table.AddTexts(v.Name, "-", "not published by the node", "its agent makes it, or does not run")
			continue
		}
		table.AddTexts(v.Name, size(on.Whole()), fmt.Sprintf("%s at %s", on.Device, size(on.Start)), joined(of(on.Class), kindOrState(on), noteOn(on, s.now())))
	}
	if len(table.Rows) == 0 {
		b.WriteString("  It has no volumes of Berth.\n")
		return nil
	}
	return table.Write(b, to)
}

func of(class string) string {
	if class == "" {
		return ""
	}
	return "of " + class
}

// joined joins what is not empty.
func joined(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(p string) bool { return p == "" }), ", ")
}

// volumeID is the ID of a pod's volume, if it is one of Berth's; else it is empty.
func (a *api) volumeID(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	if v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName {
		return diskv1alpha1.InlineVolumeID(pod.UID, v.Name), nil
	}
	name := claim.NameIn(pod, v)
	if name == "" {
		return "", nil
	}
	pvc, err := a.core.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("reading claim %s/%s: %w", pod.Namespace, name, err)
	}
	if pvc.Spec.VolumeName == "" {
		return "", nil
	}
	pv, err := a.core.CoreV1().PersistentVolumes().Get(ctx, pvc.Spec.VolumeName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("reading PersistentVolume %s: %w", pvc.Spec.VolumeName, err)
	}
	if pv.Spec.CSI == nil || pv.Spec.CSI.Driver != diskv1alpha1.DriverName {
		return "", nil
	}
	return pv.Spec.CSI.VolumeHandle, nil
}

// explainWaiting says why a pod without a node has none.
func (s *session) explainWaiting(ctx context.Context, to terminal.Terminal, b *strings.Builder, scheduler *whatif.Scheduler, o *whatif.Objects, pod *corev1.Pod, value *podExplanation) {
	v := scheduler.Pod(ctx, pod)
	devices := namesOfDisks(o.Capacities)
	value.Since, value.verdictItem = pod.CreationTimestamp.Time, verdictOf(v, devices)
	if at, ok := unschedulableSince(pod); ok {
		value.Since = at
	}
	waits := fmt.Sprintf("%s waits since %s", value.Pod, duration.HumanDuration(s.now().Sub(value.Since)))
	switch {
	case v.Invalid != "":
		value.Message = waits + ": no node can take it."
	case len(pod.Spec.SchedulingGates) > 0:
		value.Message = fmt.Sprintf("%s: it has scheduling gates, so that no scheduler tries it: %s.", waits, pod.Spec.SchedulingGates[0].Name)
	case len(v.Fits) > 0:
		value.Message = fmt.Sprintf("%s, and fits on %d of %s: the scheduler places it when it tries it again.", waits, len(v.Fits), plural(v.Nodes, "node"))
	default:
		value.Message = fmt.Sprintf("%s: it fits on none of %s.", waits, plural(v.Nodes, "node"))
	}
	b.WriteString(value.Message + "\n")
	if v.Invalid != "" {
		fmt.Fprintf(b, "\n  %s\n", v.Invalid)
	}
	if scheduler := pod.Spec.SchedulerName; scheduler != diskv1alpha1.SchedulerName {
		fmt.Fprintf(b, "Its schedulerName is %s: Berth places it only if that is a profile with Berth's plugins.\n", scheduler)
	}
	writeWants(b, to, pod, v.Wants)
	if len(v.Fits) > 0 {
		b.WriteString("\nThe best node for its volumes is " + v.Fits[0].Node + ":\n")
		writePlan(b, to, &v.Fits[0], devices, wantNames(v.Wants))
	}
	if v.Invalid != "" {
		return
	}
	writeRefusals(b, to, v.Refused, len(v.Fits) > 0)
	if len(v.Fits) > 0 {
		return
	}
	helps := scheduler.Helps(ctx, pod)
	for _, h := range helps {
		value.Helps = append(value.Helps, helpItem(h))
	}
	writeHelps(b, to, helps, v, pod)
}

func wantNames(wants []diskcapacity.Want) []string {
	names := make([]string, len(wants))
	for i := range wants {
		names[i] = wants[i].Name
	}
	return names
}

// writeWants lists the volumes that a pod requests.
func writeWants(b *strings.Builder, to terminal.Terminal, pod *corev1.Pod, wants []diskcapacity.Want) {
	if len(wants) == 0 {
		return
	}
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{}, {Right: true}, {}, {Shrink: 20}}}
	for i := range wants {
		w := &wants[i]
		says := "inline"
		if w.Claim != "" {
			says = "claim " + strings.TrimPrefix(w.Claim, pod.Namespace+"/")
		}
		if w.Apart {
			says += ", on a disk apart (spread: disk)"
		}
		if w.Headroom > 0 {
			with := w.WithHeadroom()
			says += fmt.Sprintf("; with its headroom it looks for %s in one piece", size(with.Size))
		}
		table.AddTexts(w.Name, size(w.Size), of(w.Class), says)
	}
	b.WriteString("\n")
	_ = table.Write(b, to)
}

// writeRefusals lists why nodes cannot take the pod.
func writeRefusals(b *strings.Builder, to terminal.Terminal, refused []whatif.Refusal, fits bool) {
	if len(refused) == 0 {
		return
	}
	heading := "WHY NOT"
	if fits {
		heading = "WHY NOT ON THE OTHERS"
	}
	table := &terminal.Table{Columns: []terminal.Column{{Name: heading, Shrink: 30}, {Name: "NODES", Right: true}, {Name: "NEAREST", Shrink: 16}}}
	for i := range refused {
		r := &refused[i]
		table.AddTexts(r.Reason, strconv.Itoa(len(r.Nodes)), nearest(r))
	}
	b.WriteString("\n")
	_ = table.Write(b, to)
}

// nearest says which node lacks the least.
func nearest(r *whatif.Refusal) string {
	switch {
	case r.Best != "" && r.Missing > 0:
		return fmt.Sprintf("%s: %s, %s short", r.Nearest, r.Best, size(r.Missing))
	case r.Best != "":
		return r.Nearest + ": " + r.Best
	case len(r.WithRoom) > 0:
		return r.WithRoom[0] + " has the room"
	case len(r.Nodes) == 1:
		return r.Nodes[0]
	}
	return ""
}

func writeHelps(b *strings.Builder, to terminal.Terminal, helps []whatif.Help, v *whatif.Verdict, pod *corev1.Pod) {
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{}, {Shrink: 40}}}
	for _, h := range helps {
		switch h.Kind {
		case whatif.HelpHeadroom:
			table.AddTexts(h.Kind, fmt.Sprintf("without it, the volumes fit on %s, such as %s", plural(h.Nodes, "node"), h.Node))
		case whatif.HelpWaiting:
			table.AddTexts(h.Kind, fmt.Sprintf("when what is being wiped on %s is free, they fit there", h.Node))
		case whatif.HelpPreemption:
			says := fmt.Sprintf("without %s, which has a lower priority, it fits on %s", strings.Join(h.Pods, ", "), h.Node)
			if len(h.Pods) > 1 {
				says = fmt.Sprintf("without %s, which have lower priorities, it fits on %s", strings.Join(h.Pods, ", "), h.Node)
			}
			if p := pod.Spec.PreemptionPolicy; p != nil && *p == corev1.PreemptNever {
				says += ". Not tried: its preemptionPolicy is Never"
			}
			table.AddTexts(h.Kind, says)
		}
	}
	for i := range v.Refused {
		if r := &v.Refused[i]; len(r.WithRoom) > 0 {
			table.AddTexts("elsewhere", fmt.Sprintf("%s %s the room, without: %s", shortList(r.WithRoom), has(len(r.WithRoom)), r.Reason))
		}
	}
	if len(table.Rows) > 0 {
		b.WriteString("\n" + to.Paint(terminal.Bold, "WHAT WOULD HELP") + "\n")
		_ = table.Write(b, to)
	}
}

func has(n int) string {
	if n == 1 {
		return "has"
	}
	return "have"
}

// shortList names the first ones.
func shortList(names []string) string {
	const most = 3
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// namesOfDisks are the devices of all disks, by ID.
func namesOfDisks(capacities []diskv1alpha1.NodeDiskCapacity) map[string]string {
	names := map[string]string{}
	for i := range capacities {
		for j := range capacities[i].Status.Disks {
			d := &capacities[i].Status.Disks[j]
			names[d.ID] = d.Device
		}
	}
	return names
}

// writePlan lists where volumes would go.
func writePlan(b *strings.Builder, to terminal.Terminal, f *whatif.Fit, devices map[string]string, names []string) {
	table := &terminal.Table{NoHeaders: true, Indent: "  ", Columns: []terminal.Column{{}, {}, {Right: true}, {}, {}}}
	for i, p := range f.Plan {
		name := ""
		if i < len(names) {
			name = names[i]
		}
		left := fmt.Sprintf("leaves %s of %s", size(p.Leaves), size(p.Of))
		if p.Pieces > 0 {
			left = fmt.Sprintf("in %d pieces", p.Pieces)
		}
		table.AddTexts(name, devices[p.Disk], size(p.Length), "at "+size(p.Start), left)
	}
	_ = table.Write(b, to)
}

// pendingItem is a pod that waits.
type pendingItem struct {
	Since   time.Time `json:"since"`
	Classes []string  `json:"classes"`
	Why     string    `json:"why"`
}

// explainPending lists all pods that wait.
func (s *session) explainPending(ctx context.Context, a *api, namespace string) (*listing, error) {
	scheduler, o, err := a.scheduler(ctx)
	if err != nil {
		return nil, err
	}
	waiting, err := a.waitingPods(ctx)
	if err != nil {
		return nil, err
	}
	byName := map[string]*corev1.Pod{}
	for i := range o.Pods {
		byName[o.Pods[i].Namespace+"/"+o.Pods[i].Name] = &o.Pods[i]
	}
	l := &listing{kind: "PendingPod", none: "No pod waits for volumes of Berth.", table: &terminal.Table{Columns: []terminal.Column{
		{Name: "POD", Shrink: 16}, {Name: "WAITS"}, {Name: "CLASS", Shrink: 16}, {Name: "WHY", Shrink: 24},
	}}}
	for _, w := range waiting {
		pod := byName[w.name]
		if pod == nil || namespace != metav1.NamespaceAll && pod.Namespace != namespace {
			continue
		}
		item := pendingItem{w.since, w.classes, why(scheduler.Pod(ctx, pod))}
		l.names, l.items = append(l.names, w.name), append(l.items, item)
		l.table.AddTexts(w.name, duration.HumanDuration(s.now().Sub(w.since)), strings.Join(w.classes, ","), item.Why)
	}
	return l, nil
}

// why is the reason that most nodes have.
func why(v *whatif.Verdict) string {
	switch {
	case v.Invalid != "":
		return v.Invalid
	case len(v.Fits) > 0:
		return fmt.Sprintf("it fits on %s now, such as %s", plural(len(v.Fits), "node"), v.Fits[0].Node)
	case len(v.Refused) == 0:
		return "there are no nodes"
	}
	r := &v.Refused[0]
	says := fmt.Sprintf("%s (%d of %s)", r.Reason, len(r.Nodes), plural(v.Nodes, "node"))
	if r.Best != "" {
		says += "; nearest is " + r.Nearest + " with " + r.Best
	}
	return says
}
