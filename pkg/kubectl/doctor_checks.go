package kubectl

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-base/version"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/kubectl/inventory"
	"github.com/berthdev/berth/pkg/kubectl/terminal"
)

// installCommand renders again what is missing.
const installCommand = "docs/install.md"

// checkPrograms says whether the API, the policies, the scheduler and the agents are there. With a node it looks only
// at the agent of that node.
func (e *examination) checkPrograms(node string) []remark {
	if node != "" {
		return e.checkPods(node)
	}
	found := append(e.checkAPI(), e.checkPolicies()...)
	found = append(found, e.checkScheduler(), e.checkAgents())
	found = append(found, e.checkPods("")...)
	return append(found, e.checkVersions())
}

// checkAPI says whether the CRDs and the CSIDriver are there.
func (e *examination) checkAPI() []remark {
	var missing []string
	for _, name := range []string{capacities, capacities + "/status", classes, classes + "/status"} {
		if !slices.Contains(e.resources, name) {
			missing = append(missing, name)
		}
	}
	found := []remark{{terminal.MarkDone, "CRDs", "are served as " + diskv1alpha1.SchemeGroupVersion.String(), ""}}
	if len(missing) > 0 {
		found[0] = remark{terminal.MarkBad, "CRDs", "lack " + strings.Join(missing, ", ") + ": apply those of this version", "kubectl apply -f config/crd"}
	}
	d := e.driver
	switch {
	case e.unread[ofDrivers]:
		return append(found, remark{terminal.MarkBusy, "CSIDriver", "not checked: you may not read CSIDrivers", ""})
	case d == nil:
		return append(found, remark{terminal.MarkBad, "CSIDriver", "is missing: no pod can mount a volume of Berth", "kubectl apply -f config/nodeagent/csidriver.yaml"})
	case d.Spec.PodInfoOnMount == nil || !*d.Spec.PodInfoOnMount || len(d.Spec.VolumeLifecycleModes) < 2:
		return append(found, remark{terminal.MarkBad, "CSIDriver", "is not that of this version: inline volumes cannot be mounted", "kubectl apply -f config/nodeagent/csidriver.yaml"})
	}
	return append(found, remark{terminal.MarkDone, "CSIDriver", diskv1alpha1.DriverName + " is there", ""})
}

// ourPolicies are the admission policies without which agents and tenants may do what they must not.
var ourPolicies = []string{"claims", "nodediskcapacities", "nodes", "owners", "pods", "scheduler", "schedulername", "status", "volumes"}

// checkPolicies says whether the admission policies are there, bound and valid.
func (e *examination) checkPolicies() []remark {
	if e.unread[ofPolicies] {
		return []remark{{terminal.MarkBusy, "policies", "not checked: you may not read ValidatingAdmissionPolicies", ""}}
	}
	var found []remark
	var missing []string
	for _, short := range ourPolicies {
		name := short + "." + diskv1alpha1.GroupName
		at := slices.IndexFunc(e.policies, func(p admissionv1.ValidatingAdmissionPolicy) bool { return p.Name == name })
		bound := slices.ContainsFunc(e.bindings, func(b admissionv1.ValidatingAdmissionPolicyBinding) bool { return b.Spec.PolicyName == name })
		if at < 0 || !bound {
			missing = append(missing, short)
			continue
		}
		if checked := e.policies[at].Status.TypeChecking; checked != nil && len(checked.ExpressionWarnings) > 0 {
			found = append(found, remark{terminal.MarkWarning, "policies", name + " has an expression that this API server cannot check: " + checked.ExpressionWarnings[0].Warning, "kubectl describe validatingadmissionpolicy " + name})
		}
	}
	switch {
	case len(missing) > 0:
		found = append(found, remark{terminal.MarkWarning, "policies", "are missing or not bound: " + strings.Join(missing, ", ") + ". What they forbid is possible", "kubectl apply -k config/admission"})
	case len(found) == 0:
		found = append(found, remark{terminal.MarkDone, "policies", fmt.Sprintf("%d are there and bound", len(ourPolicies)), ""})
	}
	return found
}

func (e *examination) checkScheduler() remark {
	d := e.scheduler
	if d == nil {
		return remark{terminal.MarkBusy, "scheduler", "not checked: no Deployment has the label " + nameLabel + "=" + schedulerName, ""}
	}
	says := fmt.Sprintf("%d of %d ready, %s", d.Status.ReadyReplicas, d.Status.Replicas, tagOf(d.Spec.Template.Spec.Containers))
	command := "kubectl -n " + d.Namespace + " describe deployment " + d.Name
	switch {
	case d.Status.ReadyReplicas == 0:
		return remark{terminal.MarkBad, "scheduler", says + ": no pod with volumes of Berth is placed", command}
	case d.Status.ReadyReplicas < d.Status.Replicas:
		return remark{terminal.MarkWarning, "scheduler", says, command}
	}
	return remark{terminal.MarkDone, "scheduler", says, ""}
}

func (e *examination) checkAgents() remark {
	d := e.agents
	if d == nil {
		return remark{terminal.MarkBusy, "agents", "not checked: no DaemonSet has the label " + nameLabel + "=" + agentName, ""}
	}
	says := fmt.Sprintf("%d of %d ready, %s", d.Status.NumberReady, d.Status.DesiredNumberScheduled, tagOf(d.Spec.Template.Spec.Containers))
	command := "kubectl -n " + d.Namespace + " get pods -o wide -l " + nameLabel + "=" + agentName
	switch {
	case d.Status.NumberReady < d.Status.DesiredNumberScheduled:
		return remark{terminal.MarkBad, "agents", says, command}
	case d.Status.UpdatedNumberScheduled < d.Status.DesiredNumberScheduled:
		return remark{terminal.MarkWarning, "agents", fmt.Sprintf("%s: %d have another version", says, d.Status.DesiredNumberScheduled-d.Status.UpdatedNumberScheduled), command}
	}
	return remark{terminal.MarkDone, "agents", says, ""}
}

// checkPods says which pods of Berth's programs are not ready; with a node, only those there.
func (e *examination) checkPods(node string) []remark {
	var found []remark
	for i := range e.programs {
		p := &e.programs[i]
		if node != "" && p.Spec.NodeName != node {
			continue
		}
		why := notReady(p)
		if why == "" {
			if node != "" {
				found = append(found, remark{terminal.MarkDone, p.Name, "is ready, " + tagOf(p.Spec.Containers), ""})
			}
			continue
		}
		on := " on " + p.Spec.NodeName
		if p.Spec.NodeName == "" {
			on = " on no node"
		}
		found = append(found, remark{terminal.MarkBad, p.Name, "is not ready" + on + ": " + why, "kubectl -n " + p.Namespace + " describe pod " + p.Name})
	}
	return found
}

// notReady says why a pod is not ready; it is empty if the pod is.
func notReady(p *corev1.Pod) string {
	why := string(p.Status.Phase)
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		if c.Status == corev1.ConditionTrue {
			return ""
		}
		why = cmp.Or(c.Message, c.Reason, why)
	}
	for i := range p.Status.ContainerStatuses {
		c := &p.Status.ContainerStatuses[i]
		if w := c.State.Waiting; w != nil {
			why = w.Reason
			if last := c.LastTerminationState.Terminated; last != nil {
				why += fmt.Sprintf(", it ended with code %d", last.ExitCode)
			}
		}
	}
	return cmp.Or(why, "its state is not known")
}

// checkVersions says whether all programs have the same version.
func (e *examination) checkVersions() remark {
	var seen []string
	add := func(of, tag string) {
		if tag != "" && !slices.ContainsFunc(seen, func(s string) bool { return strings.HasSuffix(s, " "+tag) }) {
			seen = append(seen, of+" "+tag)
		}
	}
	if e.agents != nil {
		add("agents", tagOf(e.agents.Spec.Template.Spec.Containers))
	}
	if e.scheduler != nil {
		add("scheduler", tagOf(e.scheduler.Spec.Template.Spec.Containers))
	}
	if v := version.Get().GitVersion; len(seen) > 0 && !strings.Contains(v, "$Format") {
		add("kubectl-berth", v)
	}
	switch len(seen) {
	case 0:
		return remark{terminal.MarkBusy, "versions", "not checked: no workload of Berth was found", ""}
	case 1:
		_, tag, _ := strings.Cut(seen[0], " ")
		return remark{terminal.MarkDone, "versions", "all are " + tag, ""}
	}
	return remark{terminal.MarkWarning, "versions", "differ: " + strings.Join(seen, ", ") + ". Finish the upgrade", "docs/install.md"}
}

// Versions of Linux: the agent does not start before the first. From the second on file systems are sure to be mounted.
const (
	leastKernel = "5.12"
	wantKernel  = "5.15"
)

// checkNodes says which nodes take no volumes.
func (e *examination) checkNodes(only string) []remark {
	published := map[string]*diskv1alpha1.NodeDiskCapacity{}
	for i := range e.nodes {
		published[e.nodes[i].Name] = &e.nodes[i]
	}
	var found []remark
	checked, well := 0, 0
	for i := range e.nodeObjects {
		node := e.nodeObjects[i].DeepCopy()
		ndc := published[node.Name]
		delete(published, node.Name)
		if only != "" && node.Name != only || ndc == nil && !e.registered[node.Name] && node.Name != only {
			continue
		}
		checked++
		// Taints and cordons are there on purpose.
		node.Spec.Taints, node.Spec.Unschedulable = nil, false
		bad := checkNode(node, e.registered[node.Name], ndc)
		if len(bad) == 0 {
			well++
		}
		found = append(found, bad...)
	}
	for _, ndc := range e.nodes {
		if published[ndc.Name] != nil && (only == "" || only == ndc.Name) {
			found = append(found, remark{terminal.MarkWarning, ndc.Name, "its Node is gone, its disks are not used", "kubectl berth map " + ndc.Name})
		}
	}
	slices.SortStableFunc(found, func(a, b remark) int { return cmp.Or(cmp.Compare(a.mark, b.mark), cmp.Compare(a.on, b.on)) })
	if checked == 0 && len(found) == 0 {
		return []remark{{terminal.MarkWarning, "nodes", "no agent has published disks: does the DaemonSet " + agentName + " run?", installCommand}}
	}
	return append([]remark{{markOf(well == checked), "nodes", fmt.Sprintf("volumes can go to %d of %s", well, plural(checked, "node")), ""}}, found...)
}

// markOf is the mark of a sum. What is wrong with a part of it is a finding of its own.
func markOf(well bool) terminal.Mark {
	if well {
		return terminal.MarkDone
	}
	return terminal.MarkBusy
}

// checkNode are the findings on one node.
func checkNode(node *corev1.Node, registered bool, ndc *diskv1alpha1.NodeDiskCapacity) []remark {
	var unpublished error
	if ndc == nil {
		unpublished = errNotPublished
	}
	var found []remark
	for _, c := range nodeChecks(node, registered, ndc, unpublished) {
		// A node need not have disks.
		if c.mark != terminal.MarkDone && (c.says != noDiskTakes || len(ndc.Status.Disks) > 0) {
			found = append(found, remark{c.mark, node.Name, c.says, "kubectl berth explain node " + node.Name})
		}
	}
	switch v := node.Status.NodeInfo.KernelVersion; {
	case kernelBefore(v, leastKernel):
		found = append(found, remark{terminal.MarkBad, node.Name, fmt.Sprintf("runs Linux %s: the agent needs %s, and %s to be sure that file systems can be mounted", v, leastKernel, wantKernel), "docs/install.md"})
	case kernelBefore(v, wantKernel):
		found = append(found, remark{terminal.MarkWarning, node.Name, fmt.Sprintf("runs Linux %s: from %s on file systems are sure to be mounted", v, wantKernel), "docs/install.md"})
	}
	return found
}

// kernelBefore reports whether a kernel is older. One whose version cannot be read is not.
func kernelBefore(have, want string) bool {
	number := func(v string) (major, minor int, ok bool) {
		first, rest, _ := strings.Cut(v, ".")
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end >= 0 {
			rest = rest[:end]
		}
		major, err := strconv.Atoi(first)
		minor, err2 := strconv.Atoi(rest)
		return major, minor, err == nil && err2 == nil
	}
	major, minor, ok := number(have)
	wantMajor, wantMinor, _ := number(want)
	return ok && (major < wantMajor || major == wantMajor && minor < wantMinor)
}

// checkDisks says which disks and volumes need an operator.
func (e *examination) checkDisks(now time.Time, only string) []remark {
	var found []remark
	inService := 0
	for i := range e.disks {
		d := &e.disks[i]
		switch {
		case only != "" && d.Node != only:
		case d.InService():
			inService++
		case d.State == inventory.StateNodeGone:
		default:
			found = append(found, diskFinding(d))
		}
	}
	for i := range e.nodes {
		ndc := &e.nodes[i]
		if !e.exist[ndc.Name] || only != "" && ndc.Name != only {
			continue
		}
		found = append(found, conditionNeeds(ndc, now)...)
		found = append(found, staleDecisions(ndc)...)
	}
	slices.SortStableFunc(found, func(a, b remark) int { return cmp.Or(cmp.Compare(a.mark, b.mark), cmp.Compare(a.on, b.on)) })
	return append([]remark{{markOf(inService > 0), "disks", fmt.Sprintf("%d in service", inService), ""}}, found...)
}

// diskFinding says why a disk takes no volumes.
func diskFinding(d *inventory.Disk) remark {
	command := "kubectl berth map " + d.Path()
	switch d.State {
	case string(diskv1alpha1.DiskCordoned):
		return remark{terminal.MarkBusy, d.Path(), "cordoned: it keeps its volumes and takes no new one", command}
	case string(diskv1alpha1.DiskDraining):
		if d.VolumeCount() > 0 {
			return remark{terminal.MarkBusy, d.Path(), fmt.Sprintf("draining: %s left", plural(d.VolumeCount(), "volume")), command}
		}
		return remark{terminal.MarkWarning, d.Path(), "drained, it holds nothing: take the drive out, or end the drain", "kubectl berth drain " + d.Node + " " + d.Device + " --undo"}
	case string(diskv1alpha1.DiskFailed), inventory.StateShared:
		return remark{terminal.MarkBad, d.Path(), d.State + ": " + d.Message, command}
	}
	return remark{terminal.MarkWarning, d.Path(), "no DiskClass selects it: it takes no new volumes", "kubectl berth explain disk " + d.Path()}
}

// staleDecisions says which entries of spec have no effect any more.
func staleDecisions(ndc *diskv1alpha1.NodeDiskCapacity) []remark {
	var found []remark
	warn := func(says, command string) {
		found = append(found, remark{terminal.MarkWarning, ndc.Name, says, command})
	}
	for _, decision := range ndc.Spec.Disks {
		if !slices.ContainsFunc(ndc.Status.Disks, func(d diskv1alpha1.Disk) bool { return d.ID == decision.ID }) {
			command := "kubectl edit ndc " + ndc.Name
			switch {
			case decision.Drain != nil:
				command = "kubectl berth drain " + ndc.Name + " " + decision.ID + " --undo"
			case decision.Unschedulable:
				command = "kubectl berth uncordon " + ndc.Name + " " + decision.ID
			}
			warn("spec.disks names disk "+decision.ID+", which the node does not have: take the entry out", command)
		}
	}
	for i := range ndc.Spec.Adopt {
		if approval := &ndc.Spec.Adopt[i]; !isEffective(ndc, approval) {
			warn("spec.adopt approves "+nameOf(approval)+", which has changed since or is not there: approve it again, or take the entry out", "kubectl edit ndc "+ndc.Name)
		}
	}
	return found
}

// isEffective reports whether an approval names a device as it is now, or one that is in use.
func isEffective(ndc *diskv1alpha1.NodeDiskCapacity, approval *diskv1alpha1.DeviceApproval) bool {
	return slices.ContainsFunc(ndc.Status.Devices, func(d diskv1alpha1.Device) bool {
		return approves(approval, &d) && (d.State == diskv1alpha1.DeviceInUse || d.Fingerprint == approval.Fingerprint)
	})
}

// approves reports whether an approval is about the device.
func approves(approval *diskv1alpha1.DeviceApproval, d *diskv1alpha1.Device) bool {
	return approval.WWN != "" && approval.WWN == d.WWN || approval.Serial != "" && approval.Serial == d.Serial || approval.ByID != "" && approval.ByID == d.ByID
}

// nameOf is how an approval names its device.
func nameOf(approval *diskv1alpha1.DeviceApproval) string {
	d := inventory.Device{Device: diskv1alpha1.Device{WWN: approval.WWN, Serial: approval.Serial, ByID: approval.ByID}}
	return d.Identity()
}

// checkClasses says which classes have no disk, and which StorageClasses no class.
func (e *examination) checkClasses(rows []*classRow) []remark {
	var found []remark
	exist := map[string]bool{}
	for _, r := range rows {
		switch {
		case r.object == nil:
			if r.Disks > 0 {
				found = append(found, remark{terminal.MarkWarning, r.Name, plural(r.Disks, "disk") + " of a class that does not exist", "kubectl berth get disks --class " + r.Name})
			}
			continue
		case r.InService == 0:
			found = append(found, remark{terminal.MarkWarning, r.Name, "no disk is in service: " + whyEmpty(r.object), "kubectl berth get devices --class " + r.Name})
		default:
			found = append(found, remark{terminal.MarkDone, r.Name, fmt.Sprintf("%s in service on %s", plural(r.InService, "disk"), plural(r.Nodes, "node")), ""})
		}
		exist[r.Name] = true
	}
	if len(exist) == 0 {
		found = append(found, remark{terminal.MarkWarning, "classes", "there is no DiskClass: no disk is used until one selects it", "docs/operate/choose-disks.md"})
	}
	for i := range e.storageClasses {
		c := &e.storageClasses[i]
		if class := c.Parameters[diskv1alpha1.AttributeClass]; c.Provisioner == diskv1alpha1.DriverName && class != "" && !exist[class] {
			found = append(found, remark{terminal.MarkBad, "StorageClass " + c.Name, fmt.Sprintf("names DiskClass %q, which does not exist: its claims get no volume", class), "kubectl get storageclass " + c.Name + " -o yaml"})
		}
	}
	slices.SortStableFunc(found, func(a, b remark) int { return cmp.Compare(rankOf(a.mark), rankOf(b.mark)) })
	return found
}

// rankOf has what is well first, as in the other groups.
func rankOf(m terminal.Mark) int {
	if m == terminal.MarkDone {
		return -1
	}
	return int(m)
}

// whyEmpty is what the scheduler's leader says of a class without disks.
func whyEmpty(c *diskv1alpha1.DiskClass) string {
	for _, condition := range c.Status.Conditions {
		if condition.Type == diskv1alpha1.ConditionReady && condition.Status != metav1.ConditionTrue && condition.Message != "" {
			return condition.Message
		}
	}
	return "it selects none, or none that was found is taken"
}
