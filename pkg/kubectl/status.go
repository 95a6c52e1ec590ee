package kubectl

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

func newStatus(s *session) *cobra.Command {
	var watching, all bool
	form := newDocumentOutput()
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Sum up the cluster: space, what needs you, and what goes on",
		Long: "Sum up the cluster: space, what needs you, and what goes on.\n\n" +
			"Each line of what needs you ends in the command that says more. If there is one, the exit code is 2.",
		Args: cobra.NoArgs,
		RunE: s.connected(func(ctx context.Context, a *api, _ []string) error {
			return s.perhapsWatch(ctx, a, watching, func(ctx context.Context, out io.Writer) error {
				return s.status(ctx, a, out, form, all)
			})
		}),
	}
	cmd.Flags().BoolVarP(&watching, "watch", "w", false, "Print it again after each change.")
	cmd.Flags().BoolVar(&all, "all", false, "All lines, not only the first ones.")
	form.add(cmd)
	return cmd
}

// overview is what `status` reads.
type overview struct {
	*fleet
	classes []diskv1alpha1.DiskClass
	// registered are the nodes where an agent is registered with the kubelet.
	registered map[string]bool
	pending    []waitingPod
	server     string
	agents     *appsv1.DaemonSet
	scheduler  *appsv1.Deployment
}

// waitingPod is a pod that the scheduler could not place.
type waitingPod struct {
	name    string
	classes []string
	since   time.Time
}

// overview reads what `status` shows. All lists are read at once.
func (a *api) overview(ctx context.Context) (*overview, error) {
	o := &overview{registered: map[string]bool{}}
	group, groupCtx := errgroup.WithContext(ctx)
	read := func(do func(context.Context) error) { group.Go(func() error { return do(groupCtx) }) }
	read(func(ctx context.Context) (err error) { o.fleet, err = a.fleet(ctx); return err })
	read(func(ctx context.Context) (err error) { o.classes, err = a.classes(ctx); return err })
	read(func(ctx context.Context) error { return a.readRegistered(ctx, o.registered) })
	read(func(ctx context.Context) (err error) { o.pending, err = a.waitingPods(ctx); return err })
	read(func(ctx context.Context) error { return a.readPrograms(ctx, o) })
	return o, group.Wait()
}

// readRegistered reads on which nodes the driver is registered.
func (a *api) readRegistered(ctx context.Context, into map[string]bool) error {
	nodes, err := a.csiNodes(ctx)
	for i := range nodes {
		into[nodes[i].Name] = isRegistered(&nodes[i])
	}
	return err
}

func (a *api) csiNodes(ctx context.Context) ([]storagev1.CSINode, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]storagev1.CSINode, metav1.ListInterface, error) {
		list, err := a.core.StorageV1().CSINodes().List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("CSINodes", err)
		}
		return list.Items, list, nil
	})
}

// Labels of Berth's own workloads.
const (
	nameLabel     = "app.kubernetes.io/name"
	agentName     = "berth-nodeagent"
	schedulerName = "berth-scheduler"
)

// readPrograms reads the versions, and how many agents and schedulers run. Without the right to, they are left out.
func (a *api) readPrograms(ctx context.Context, into *overview) error {
	server, err := a.core.Discovery().ServerVersion()
	if err != nil {
		return fmt.Errorf("reading the API server's version: %w", err)
	}
	into.server = server.GitVersion
	agents, err := a.core.AppsV1().DaemonSets(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + agentName})
	if err != nil && !apierrors.IsForbidden(err) {
		return wrapList("DaemonSets", err)
	}
	if err == nil && len(agents.Items) > 0 {
		into.agents = &agents.Items[0]
	}
	schedulers, err := a.core.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: nameLabel + "=" + schedulerName})
	if err != nil && !apierrors.IsForbidden(err) {
		return wrapList("Deployments", err)
	}
	if err == nil && len(schedulers.Items) > 0 {
		into.scheduler = &schedulers.Items[0]
	}
	return nil
}

// waitingPods are the pods without a node that want volumes of Berth.
func (a *api) waitingPods(ctx context.Context) ([]waitingPod, error) {
	pods, err := a.pods(ctx, metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", ""))
	if err != nil || len(pods) == 0 {
		return nil, err
	}
	wants, err := a.claimClasses(ctx, pods)
	if err != nil {
		return nil, err
	}
	var waiting []waitingPod
	for i := range pods {
		p := &pods[i]
		since, waits := unschedulableSince(p)
		if classes := wants(p); waits && len(classes) > 0 {
			waiting = append(waiting, waitingPod{p.Namespace + "/" + p.Name, classes, since})
		}
	}
	slices.SortFunc(waiting, func(x, y waitingPod) int { return cmp.Or(x.since.Compare(y.since), cmp.Compare(x.name, y.name)) })
	return waiting, nil
}

// unschedulableSince returns since when the scheduler cannot place the pod; false if it has not tried, or may yet.
func unschedulableSince(pod *corev1.Pod) (time.Time, bool) {
	if pod.Spec.NodeName != "" || pod.Status.Phase != corev1.PodPending || pod.DeletionTimestamp != nil {
		return time.Time{}, false
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable {
			return c.LastTransitionTime.Time, true
		}
	}
	return time.Time{}, false
}

// claimClasses returns a function that says which DiskClasses a pod wants. It wants them by its inline volumes, and by
// its claims that have no volume yet.
func (a *api) claimClasses(ctx context.Context, pods []corev1.Pod) (func(*corev1.Pod) []string, error) {
	byName := map[string]string{}
	if slices.ContainsFunc(pods, func(p corev1.Pod) bool {
		return slices.ContainsFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.PersistentVolumeClaim != nil || v.Ephemeral != nil })
	}) {
		claims, err := a.claims(ctx)
		if err != nil {
			return nil, err
		}
		storageClasses, err := a.storageClasses(ctx)
		if err != nil {
			return nil, err
		}
		ours := map[string]string{}
		for i := range storageClasses {
			if c := &storageClasses[i]; c.Provisioner == diskv1alpha1.DriverName {
				ours[c.Name] = c.Parameters[diskv1alpha1.AttributeClass]
			}
		}
		for i := range claims {
			if c := &claims[i]; c.Spec.VolumeName == "" {
				byName[c.Namespace+"/"+c.Name] = ours[claim.ClassName(c)]
			}
		}
	}
	return func(p *corev1.Pod) []string {
		var found []string
		for i := range p.Spec.Volumes {
			class := ""
			switch v := &p.Spec.Volumes[i]; {
			case v.CSI != nil && v.CSI.Driver == diskv1alpha1.DriverName:
				class = cmp.Or(v.CSI.VolumeAttributes[diskv1alpha1.AttributeClass], "-")
			case v.PersistentVolumeClaim != nil:
				class = byName[p.Namespace+"/"+v.PersistentVolumeClaim.ClaimName]
			case v.Ephemeral != nil:
				class = byName[p.Namespace+"/"+p.Name+"-"+v.Name]
			}
			if class != "" && !slices.Contains(found, class) {
				found = append(found, class)
			}
		}
		slices.Sort(found)
		return found
	}, nil
}

func (a *api) claims(ctx context.Context) ([]corev1.PersistentVolumeClaim, error) {
	return listAll(ctx, a.chunk, metav1.ListOptions{}, func(ctx context.Context, o metav1.ListOptions) ([]corev1.PersistentVolumeClaim, metav1.ListInterface, error) {
		list, err := a.core.CoreV1().PersistentVolumeClaims(metav1.NamespaceAll).List(ctx, o)
		if err != nil {
			return nil, nil, wrapList("claims", err)
		}
		return list.Items, list, nil
	})
}

func (a *api) storageClasses(ctx context.Context) ([]storagev1.StorageClass, error) {
	list, err := a.core.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, wrapList("StorageClasses", err)
	}
	return list.Items, nil
}

// shownLines is how many lines of what needs an operator are shown without --all.
const shownLines = 20

// status prints the page.
func (s *session) status(ctx context.Context, a *api, out io.Writer, form *output, all bool) error {
	to, err := s.terminal()
	if err != nil {
		return err
	}
	o, err := a.overview(ctx)
	if err != nil {
		return err
	}
	classes, needs, goesOn := o.statusClasses(s.classRows(o.fleet, o.classes)), o.needs(s.now()), o.goesOn()
	var b strings.Builder
	b.WriteString(o.heading(to) + "\n\n")
	if err := classTable(classes).Write(&b, to); err != nil {
		return err
	}
	writeLinesOf(&b, to, "NEEDS YOU", needs, all)
	writeLinesOf(&b, to, "GOES ON", goesOn, all)
	value := statusItem{Version: imageTag(o), APIServer: o.server, Classes: classes, NeedsYou: remarkItems(needs), GoesOn: remarkItems(goesOn)}
	if d := o.scheduler; d != nil {
		value.Scheduler = &readiness{d.Status.ReadyReplicas, d.Status.Replicas}
	}
	if d := o.agents; d != nil {
		value.Agents = &readiness{d.Status.NumberReady, d.Status.DesiredNumberScheduled}
	}
	if err := form.writeDocument(out, &document{kind: kindStatus, name: clusterName, value: value, text: b.String()}); err != nil {
		return err
	}
	if len(needs) > 0 {
		return errNeedsOperator
	}
	return nil
}

// heading has the versions and what runs.
func (o *overview) heading(to terminal.Terminal) string {
	items := []string{"Berth " + imageTag(o), "API server " + o.server}
	if d := o.scheduler; d != nil {
		items = append(items, fmt.Sprintf("scheduler: %d of %d ready", d.Status.ReadyReplicas, d.Status.Replicas))
	}
	if d := o.agents; d != nil {
		items = append(items, fmt.Sprintf("agents: %d of %d ready", d.Status.NumberReady, d.Status.DesiredNumberScheduled))
	}
	return to.Wrap("  ", items...)
}

// imageTag is the version in the agents' image, or the scheduler's.
func imageTag(o *overview) string {
	tag := ""
	if o.agents != nil {
		tag = tagOf(o.agents.Spec.Template.Spec.Containers)
	} else if o.scheduler != nil {
		tag = tagOf(o.scheduler.Spec.Template.Spec.Containers)
	}
	return cmp.Or(tag, "(version unknown)")
}

// tagOf is the tag of the first image that has one.
func tagOf(containers []corev1.Container) string {
	for i := range containers {
		image, _, _ := strings.Cut(containers[i].Image, "@")
		if at := strings.LastIndexByte(image, ':'); at > strings.LastIndexByte(image, '/') {
			return image[at+1:]
		}
	}
	return ""
}

// statusClasses adds to the classes how many pods wait for each. Pods can name classes that do not exist.
func (o *overview) statusClasses(rows []*classRow) []statusClass {
	waiting := map[string]int{}
	for i := range o.pending {
		for _, class := range o.pending[i].classes {
			waiting[class]++
		}
	}
	found := make([]statusClass, 0, len(rows))
	for _, r := range rows {
		found = append(found, statusClass{r, waiting[r.Name]})
		delete(waiting, r.Name)
	}
	for _, class := range slices.Sorted(maps.Keys(waiting)) {
		found = append(found, statusClass{&classRow{Name: class}, waiting[class]})
	}
	return found
}

func classTable(classes []statusClass) *terminal.Table {
	table := &terminal.Table{Columns: []terminal.Column{
		{Name: "CLASS"}, {Name: "NODES", Right: true}, {Name: "DISKS", Right: true}, {Name: "SIZE", Right: true}, {Name: "USED", Right: true}, {Name: "FREE", Right: true},
		{Name: "LARGEST", Right: true}, {Name: "PIECES", Right: true}, {Name: "FRAG", Right: true}, {Name: "WAITING", Right: true},
	}}
	for _, r := range classes {
		pods := "-"
		if r.WaitingPods > 0 {
			pods = plural(r.WaitingPods, "pod")
		}
		if r.object == nil && r.Disks == 0 && r.Candidates == 0 {
			table.AddTexts(r.Name, "-", "-", "-", "-", "-", "-", "-", "-", pods)
			continue
		}
		table.AddTexts(r.Name, strconv.Itoa(r.Nodes), r.disksText(), size(r.Size), percent(r.Used, r.Size), size(r.Free), size(r.Largest),
			strconv.Itoa(r.Pieces), dash(r.Fragmentation), pods)
	}
	return table
}

// remark is a line of the page.
type remark struct {
	mark     terminal.Mark
	on, says string
	// command says more, or deals with it.
	command string
}

// needs are the things that an operator must look at, the worst first.
func (o *overview) needs(now time.Time) []remark {
	var found []remark
	for i := range o.disks {
		if d := &o.disks[i]; d.State == string(diskv1alpha1.DiskFailed) || d.State == inventory.StateShared {
			found = append(found, remark{terminal.MarkBad, d.Path(), strings.ToLower(d.State[:1]) + d.State[1:] + ": " + d.Message, "kubectl berth map " + d.Path()})
		}
	}
	for i := range o.nodes {
		found = append(found, o.needsOf(&o.nodes[i], now)...)
	}
	if n := len(o.pending); n > 0 {
		says := "waits for its volumes"
		if n > 1 {
			says = "wait for their volumes, the oldest"
		}
		found = append(found, remark{
			terminal.MarkWarning, plural(n, "pod"), says + " since " + duration.HumanDuration(now.Sub(o.pending[0].since)), "kubectl berth explain pod -A --pending",
		})
	}
	slices.SortStableFunc(found, func(a, b remark) int { return cmp.Compare(a.mark, b.mark) })
	return found
}

// conditionsToShow are those that need an operator, with the command that says more.
var conditionsToShow = map[string]string{
	diskv1alpha1.ConditionReclaimStopped:     "kubectl berth orphans NODE",
	diskv1alpha1.ConditionReclaimBlocked:     "kubectl berth map NODE",
	diskv1alpha1.ConditionPublicationLimited: "kubectl berth get volumes --node NODE",

	diskv1alpha1.ConditionDeviceMapperMissing: "kubectl berth get disks --node NODE",
}

// needsOf are those of a node.
func (o *overview) needsOf(ndc *diskv1alpha1.NodeDiskCapacity, now time.Time) []remark {
	if !o.exist[ndc.Name] {
		return []remark{{terminal.MarkWarning, ndc.Name, "its Node is gone, its disks are not used", "kubectl berth map " + ndc.Name}}
	}
	var found []remark
	if !o.registered[ndc.Name] {
		found = append(found, remark{terminal.MarkBad, ndc.Name, "its agent is not registered with the kubelet", "kubectl berth doctor " + ndc.Name})
	}
	return append(found, conditionNeeds(ndc, now)...)
}

// conditionNeeds are the conditions, orphans and candidates of a node that need an operator.
func conditionNeeds(ndc *diskv1alpha1.NodeDiskCapacity, now time.Time) []remark {
	var found []remark
	warn := func(says, command string) {
		found = append(found, remark{terminal.MarkWarning, ndc.Name, says, command})
	}
	for _, c := range ndc.Status.Conditions {
		if command, shown := conditionsToShow[c.Type]; shown && c.Status == metav1.ConditionTrue {
			warn(fmt.Sprintf("%s since %s: %s", c.Type, duration.HumanDuration(now.Sub(c.LastTransitionTime.Time)), c.Message), strings.ReplaceAll(command, "NODE", ndc.Name))
		}
	}
	orphans, candidates := 0, 0
	for i := range ndc.Status.Disks {
		for j := range ndc.Status.Disks[i].Allocations {
			if a := &ndc.Status.Disks[i].Allocations[j]; a.OrphanedSince != nil && a.Phase != diskv1alpha1.PhaseWiping && !strings.HasPrefix(a.Volume, "csi-") {
				orphans++
			}
		}
	}
	for i := range ndc.Status.Devices {
		if ndc.Status.Devices[i].State == diskv1alpha1.DeviceCandidate {
			candidates++
		}
	}
	if orphans > 0 {
		warn(plural(orphans, "persistent volume")+" without PersistentVolume", "kubectl berth orphans "+ndc.Name)
	}
	if candidates > 0 {
		warn(plural(candidates, "candidate device")+" for a disk", "kubectl berth adopt")
	}
	return found
}

// goesOn are the things that end by themselves, and those that an operator has decided.
func (o *overview) goesOn() []remark {
	var found []remark
	for i := range o.disks {
		d := &o.disks[i]
		switch d.State {
		case string(diskv1alpha1.DiskDraining):
			found = append(found, remark{terminal.MarkBusy, d.Path(), fmt.Sprintf("draining: %s left", plural(d.VolumeCount(), "volume")), "kubectl berth map " + d.Path()})
		case string(diskv1alpha1.DiskCordoned):
			found = append(found, remark{terminal.MarkBusy, d.Path(), "cordoned: it takes no new volumes", "kubectl berth uncordon " + d.Node + " " + d.Device})
		}
		for _, v := range d.FirstPieces() {
			switch v.State {
			case string(diskv1alpha1.PhaseWiping):
				says := "wiping " + size(v.Whole())
				if v.WipePolicy != "" {
					says += fmt.Sprintf(" (%s): %s", v.WipePolicy, percent(v.Wiped, v.Whole()))
				}
				found = append(found, remark{terminal.MarkBusy, d.Path(), says, ""})
			case string(diskv1alpha1.PhaseCopying):
				found = append(found, remark{terminal.MarkBusy, d.Path(), fmt.Sprintf("moving %s of %s: %s copied", size(v.Length), ownerOf(v), percent(v.Copied, v.Length)), ""})
			}
		}
	}
	return found
}

// writeLinesOf writes remarks below a heading.
func writeLinesOf(b *strings.Builder, to terminal.Terminal, heading string, lines []remark, all bool) {
	if len(lines) == 0 {
		return
	}
	b.WriteString("\n" + to.Paint(terminal.Bold, heading) + "\n")
	shown := lines
	if !all && len(lines) > shownLines {
		shown = lines[:shownLines]
	}
	table := &terminal.Table{NoHeaders: true, Indent: " ", Columns: []terminal.Column{{}, {}, {Shrink: 24}, {}}}
	for _, r := range shown {
		sign := terminal.Cell{Text: to.PlainMark(r.mark), Painted: to.Mark(r.mark)}
		table.Add(sign, terminal.Cell{Text: r.on}, terminal.Cell{Text: r.says}, terminal.Cell{Text: r.command, Style: terminal.Dim})
	}
	if to.Limited && table.Width() > to.Width {
		writeNarrow(b, to, shown)
	} else {
		_ = table.Write(b, to)
	}
	if more := len(lines) - len(shown); more > 0 {
		fmt.Fprintf(b, "   %d more: --all\n", more)
	}
}

// writeNarrow writes remarks with the command on a line of its own.
func writeNarrow(b *strings.Builder, to terminal.Terminal, lines []remark) {
	for _, r := range lines {
		b.WriteString(" " + to.Mark(r.mark) + " " + to.Shorten(r.on+"  "+r.says, to.Width-3) + "\n")
		if r.command != "" {
			b.WriteString("     " + to.Paint(terminal.Dim, r.command) + "\n")
		}
	}
}
