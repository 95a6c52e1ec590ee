package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
	"github.com/berthdev/berth/test/objects"
)

// guardedNamespace makes a namespace in which the policy for pods is in force. Other
// tests of the same control plane create pods that the policy would refuse.
func guardedNamespace(ctx context.Context, t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	labels := map[string]string{"guarded": "true"}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "guarded-", Labels: labels}}
	if err := c.Client().Create(ctx, namespace); err != nil {
		t.Fatal(err)
	}
	if err := c.Apply(ctx, "config/admission"); err != nil {
		t.Fatal(err)
	}
	restrict(ctx, t, c)
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{}
	if err := c.Client().Get(ctx, client.ObjectKey{Name: "pods.disk.berth.dev"}, binding); err != nil {
		t.Fatal(err)
	}
	binding.Spec.MatchResources = &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: labels}}
	if err := c.Client().Update(ctx, binding); err != nil {
		t.Fatal(err)
	}
	// A policy is in force some time after it was created: wait for the first refusal.
	err := cluster.Eventually(ctx, 30*time.Second, func(ctx context.Context) error {
		err := c.Client().Create(ctx, diskPodFor(namespace.Name, nil, nil), client.DryRunAll)
		if err == nil {
			return fmt.Errorf("a pod without attributes was accepted")
		}
		if !strings.Contains(err.Error(), "pods.disk.berth.dev") {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return namespace.Name
}

// restrict adds accounts of another namespace, with other names, to those that the policies restrict. The policies take
// them from the bindings that give rights.
func restrict(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	agent := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: "storage", Name: "disk-agent"}
	scheduler := rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: "storage", Name: "disk-scheduler"}
	for name, subjects := range map[string][]rbacv1.Subject{
		"berth-nodeagent": {agent}, "berth-scheduler": {scheduler}, "berth-scheduler-as-volume-scheduler": {scheduler}, "berth-status": {agent, scheduler},
	} {
		binding := &rbacv1.ClusterRoleBinding{}
		if err := c.Client().Get(ctx, client.ObjectKey{Name: name}, binding); err != nil {
			t.Fatal(err)
		}
		for _, subject := range subjects {
			if !slices.Contains(binding.Subjects, subject) {
				binding.Subjects = append(binding.Subjects, subject)
			}
		}
		if err := c.Client().Update(ctx, binding); err != nil {
			t.Fatal(err)
		}
	}
}

func diskPodFor(namespace string, attributes map[string]string, change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "pod-", Namespace: namespace},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: ptr.To(false),
			Containers:                   []corev1.Container{{Name: "main", Image: "pause"}},
			Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{
				CSI: &corev1.CSIVolumeSource{Driver: diskv1alpha1.DriverName, VolumeAttributes: attributes},
			}}},
		},
	}
	if change != nil {
		change(pod)
	}
	return pod
}

// What a user gets wrong is refused when the pod is created, with what to do.
func TestAdmissionOfPods(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	namespace := guardedNamespace(ctx, t, c)
	attributes := func(size string, more ...string) map[string]string {
		a := map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.AttributeSize: size}
		for i := 0; i < len(more); i += 2 {
			a[more[i]] = more[i+1]
		}
		return a
	}
	const badSize = `volume "data": attribute disk.berth.dev/size must be a size larger than zero`
	for _, tc := range []struct {
		name       string
		attributes map[string]string
		change     func(*corev1.Pod)
		want       string // part of the error; empty if the pod is accepted
	}{
		{name: "a good pod", attributes: attributes("10Gi")},
		{name: "all attributes", attributes: attributes("1.5Gi", diskv1alpha1.AttributeSpread, "disk")},
		{name: "a pod of another driver", change: func(p *corev1.Pod) { p.Spec.Volumes[0].CSI.Driver = "other.example.com" }},
		{name: "no size", attributes: map[string]string{diskv1alpha1.AttributeClass: "ssd"}, want: badSize},
		{name: "size zero", attributes: attributes("0"), want: badSize},
		{name: "negative size", attributes: attributes("-1Gi"), want: badSize},
		{name: "misspelled unit", attributes: attributes("10Gib"), want: badSize},
		{name: "2^63", attributes: attributes("9223372036854775808"), want: badSize},
		{name: "an exponent that takes for ever", attributes: attributes("1e999999999999"), want: badSize},
		{name: "no class", attributes: map[string]string{diskv1alpha1.AttributeSize: "1Gi"}, want: "attribute disk.berth.dev/class is missing"},
		{name: "unknown attribute", attributes: attributes("1Gi", "disk.berth.dev/sise", "2Gi"), want: "unknown attribute"},
		{name: "unknown spread", attributes: attributes("1Gi", diskv1alpha1.AttributeSpread, "node"), want: `can only be "disk"`},
		{name: "unsupported file system", attributes: attributes("1Gi"), change: func(p *corev1.Pod) {
			p.Spec.Volumes[0].CSI.FSType = ptr.To("btrfs")
		}, want: "file system btrfs is not supported: use ext4 or xfs"},
		{name: "too small for xfs", attributes: attributes("299Mi"), change: func(p *corev1.Pod) {
			p.Spec.Volumes[0].CSI.FSType = ptr.To("xfs")
		}, want: "at least 300Mi"},
		{name: "the least for xfs", attributes: attributes("300Mi"), change: func(p *corev1.Pod) {
			p.Spec.Volumes[0].CSI.FSType = ptr.To("xfs")
		}},
		{name: "read-only", attributes: attributes("1Gi"), change: func(p *corev1.Pod) {
			p.Spec.Volumes[0].CSI.ReadOnly = ptr.To(true)
		}, want: "readOnly is set"},
		{name: "a record that only the scheduler writes", attributes: attributes("1Gi"), change: func(p *corev1.Pod) {
			p.Annotations = map[string]string{diskv1alpha1.AnnotationAllocation: "{}"}
		}, want: "is written by Berth's scheduler only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := c.Client().Create(ctx, diskPodFor(namespace, tc.attributes, tc.change), client.DryRunAll)
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got error %v, want %q", err, tc.want)
			}
		})
	}

	// The record reaches a pod through its Binding, and is not changed behind that.
	pod := diskPodFor(namespace, attributes("1Gi"), nil)
	if err := c.Client().Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), pod, client.GracePeriodSeconds(0)) })
	record, err := diskv1alpha1.EncodeRecord([]diskv1alpha1.RecordVolume{{
		Name: "data", Disk: diskv1alpha1.PartitionID("some disk"),
		Extent: diskv1alpha1.Extent{Start: diskv1alpha1.Alignment, Length: 1 << 30},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Client().SubResource("binding").Create(ctx, pod, &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{diskv1alpha1.AnnotationAllocation: record}},
		Target:     corev1.ObjectReference{Kind: "Node", Name: "nowhere"},
	}); err != nil {
		t.Fatalf("the Binding with the record was refused: %v", err)
	}
	if err := c.Client().Get(ctx, client.ObjectKeyFromObject(pod), pod); err != nil {
		t.Fatal(err)
	}
	if pod.Annotations[diskv1alpha1.AnnotationAllocation] != record {
		t.Fatalf("the pod has the record %q, want %q", pod.Annotations[diskv1alpha1.AnnotationAllocation], record)
	}
	pod.Labels = map[string]string{"touched": "true"}
	if err := c.Client().Update(ctx, pod); err != nil {
		t.Errorf("a change of a label was refused: %v", err)
	}
	pod.Annotations[diskv1alpha1.AnnotationAllocation] = "{}"
	if err := c.Client().Update(ctx, pod); err == nil || !strings.Contains(err.Error(), "is written by Berth's scheduler only") {
		t.Errorf("a change of the record: got error %v, want a refusal", err)
	}
}

// as is a client of another user, maybe with a token that names a node.
func as(t *testing.T, c *cluster.Cluster, user, nodeName string) client.Client {
	t.Helper()
	config := c.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:serviceaccounts", "system:authenticated", "test:anything"}}
	if nodeName != "" {
		config.Impersonate.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {nodeName}}
	}
	out, err := client.New(config, client.Options{Scheme: c.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// allowAll gives a group that only tests are in all rights, so that nothing but admission refuses.
func allowAll(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "test-anything"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "Group", Name: "test:anything"}},
	}
	if err := c.Client().Create(ctx, binding); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
}

// inForce waits until the policy refuses what it must: it is in force some time after it was made.
func inForce(ctx context.Context, t *testing.T, try func() error, policy string) {
	t.Helper()
	err := cluster.Eventually(ctx, 30*time.Second, func(context.Context) error {
		switch err := try(); {
		case err == nil:
			return fmt.Errorf("policy %s refuses nothing", policy)
		case !strings.Contains(err.Error(), policy):
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAdmissionOfWriters asserts who may write what of a NodeDiskCapacity, whatever RBAC allows:
// also where the agents are not in kube-system, or have another name.
func TestAdmissionOfWriters(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	guardedNamespace(ctx, t, c)
	allowAll(ctx, t, c)
	const name = "admission-writers"
	const disk = "11111111-2222-4333-8444-555555555555"
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{
		Name: name, Annotations: map[string]string{diskv1alpha1.AnnotationReclaimOrphans: "3"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: "gone"}},
	}}
	if err := c.Client().Create(ctx, ndc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), ndc) })
	agent := as(t, c, "system:serviceaccount:storage:disk-agent", name)
	other := as(t, c, "system:serviceaccount:storage:disk-agent", "another-node")
	nameless := as(t, c, "system:serviceaccount:storage:disk-agent", "")
	renamed := as(t, c, "system:serviceaccount:storage:berth-nodeagent", name)
	scheduler := as(t, c, "system:serviceaccount:storage:disk-scheduler", "another-node")
	operator := as(t, c, "jane", "")
	patch := func(who client.Client, body string) func() error {
		return func() error {
			return who.Patch(ctx, ndc.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(body)), client.DryRunAll)
		}
	}
	status := func(who client.Client) func() error {
		return func() error {
			return who.Status().Patch(ctx, ndc.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"status":{"summary":{"disks":1,"volumes":0}}}`)), client.DryRunAll)
		}
	}
	remove := func(who client.Client) func() error {
		return func() error { return who.Delete(ctx, ndc.DeepCopy(), client.DryRunAll) }
	}
	const (
		owned   = `{"spec":{"ownedDisks":["` + disk + `"]}}`
		adopt   = `{"spec":{"adopt":[{"serial":"s","class":"ssd","fingerprint":"0123456789abcdef"}]}}`
		drain   = `{"spec":{"disks":[{"id":"` + disk + `","drain":{}}]}}`
		compact = `{"spec":{"disks":[{"id":"` + disk + `","compact":true}]}}`
		unnote  = `{"metadata":{"annotations":{"disk.berth.dev/reclaim-orphans":null}}}`
		note    = `{"metadata":{"annotations":{"disk.berth.dev/reclaim-orphans":"999"}}}`
		label   = `{"metadata":{"labels":{"a":"b"}}}`
		unowned = `{"metadata":{"ownerReferences":[]}}`
	)
	inForce(ctx, t, patch(renamed, owned), "owners.disk.berth.dev")
	inForce(ctx, t, patch(agent, label), "nodediskcapacities.disk.berth.dev")
	inForce(ctx, t, status(operator), "status.disk.berth.dev")
	for name, tc := range map[string]struct {
		try  func() error
		want string
	}{
		"agent: status":                 {status(agent), ""},
		"agent: takes an annotation":    {patch(agent, unnote), ""},
		"agent: removes the owner":      {patch(agent, unowned), ""},
		"agent: changes an annotation":  {patch(agent, note), "may change no more"},
		"agent: label":                  {patch(agent, label), "may change no more"},
		"agent: approves a device":      {patch(agent, adopt), "may not write spec"},
		"agent: drains a disk":          {patch(agent, drain), "may not write spec"},
		"agent: owns a disk":            {patch(agent, owned), "spec"},
		"agent: delete":                 {remove(agent), "may not delete"},
		"another node: status":          {status(other), "of another node"},
		"another node: annotation":      {patch(other, unnote), "of another node"},
		"no node: status":               {status(nameless), "a token without a node may not write"},
		"an agent renamed: status":      {status(renamed), "not by system:serviceaccount:storage:berth-nodeagent"},
		"an agent renamed: owns a disk": {patch(renamed, owned), "written by Berth's scheduler only"},
		"scheduler: status":             {status(scheduler), ""},
		"scheduler: owner":              {patch(scheduler, owned), ""},
		"scheduler: delete":             {remove(scheduler), ""},
		"scheduler: approves a device":  {patch(scheduler, adopt), "may change no more"},
		"scheduler: drains a disk":      {patch(scheduler, drain), "may change no more"},
		"scheduler: compacts a disk":    {patch(scheduler, compact), "may change no more"},
		"scheduler: annotation":         {patch(scheduler, note), "may change no more"},
		"scheduler: takes a note back":  {patch(scheduler, unnote), "may change no more"},
		"scheduler: label":              {patch(scheduler, label), "may change no more"},
		"scheduler: removes the owner":  {patch(scheduler, unowned), "may change no more"},
		"operator: approves a device":   {patch(operator, adopt), ""},
		"operator: drains a disk":       {patch(operator, drain), ""},
		"operator: compacts a disk":     {patch(operator, compact), ""},
		"operator: annotation":          {patch(operator, note), ""},
		"operator: delete":              {remove(operator), ""},
		"operator: status":              {status(operator), "not by jane"},
		"operator: owner":               {patch(operator, owned), "written by Berth's scheduler only"},
	} {
		switch err := tc.try(); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got error %v, want %q", name, err, tc.want)
		}
	}
	// What the agent creates has no spec.
	fresh := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "another-node"}}
	if err := other.Create(ctx, fresh.DeepCopy(), client.DryRunAll); err != nil {
		t.Errorf("an agent may not create the NodeDiskCapacity of its node: %v", err)
	}
	fresh.Spec.OwnedDisks = []string{disk}
	if err := other.Create(ctx, fresh, client.DryRunAll); err == nil {
		t.Error("an agent creates a NodeDiskCapacity that owns a disk")
	}
}

// TestAdmissionOfPieces asserts which classes and allocations of pieces the API server accepts.
func TestAdmissionOfPieces(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	for name, tc := range map[string]struct {
		attachment diskv1alpha1.Attachment
		maxPieces  *int32
		want       string
	}{
		"defaults":           {"", nil, ""},
		"one piece":          {diskv1alpha1.AttachPartition, ptr.To[int32](1), ""},
		"most pieces":        {diskv1alpha1.AttachDeviceMapper, ptr.To[int32](16), ""},
		"no piece":           {"", ptr.To[int32](0), "should be greater than or equal to 1"},
		"too many pieces":    {"", ptr.To[int32](17), "should be less than or equal to 16"},
		"another attachment": {"Loop", nil, "Unsupported value"},
	} {
		class := &diskv1alpha1.DiskClass{ObjectMeta: metav1.ObjectMeta{Name: "admission-of-pieces"}}
		class.Spec.Devices.Paths = []string{"/dev/none"}
		class.Spec.Attachment, class.Spec.MaxPieces = tc.attachment, tc.maxPieces
		switch err := c.Client().Create(ctx, class, client.DryRunAll); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got error %v, want %q", name, err, tc.want)
		}
		if tc.want == "" && tc.attachment == "" && class.Spec.Attachment != diskv1alpha1.AttachPartition {
			t.Errorf("the default attachment is %q", class.Spec.Attachment)
		}
	}
	ndc := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "admission-of-pieces"}}
	if err := c.Client().Create(ctx, ndc); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), ndc) })
	for piece, refused := range map[int]bool{1: false, 15: false, 16: true, -1: true} {
		body := fmt.Sprintf(`{"status":{"deviceMapper":true,"disks":[{"id":"11111111-2222-4333-8444-555555555555","device":"sda","rotational":false,
			"sectorSize":512,"size":10485760,"overhead":1048576,"state":"Ready","allocations":[{"partition":"11111111-2222-4333-8444-555555555556",
			"start":1048576,"length":1048576,"phase":"Formatted","attachment":"DeviceMapper","piece":%d}]}]}}`, piece)
		err := c.Client().Status().Patch(ctx, ndc.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(body)), client.DryRunAll)
		if (err != nil) != refused {
			t.Errorf("piece %d: %v", piece, err)
		}
	}
}

// TestAdmissionOfNodes asserts that the scheduler removes Berth's taint from a Node, and can
// change nothing else.
func TestAdmissionOfNodes(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	guardedNamespace(ctx, t, c)
	allowAll(ctx, t, c)
	ours := corev1.Taint{Key: diskv1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "admission-taints"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{ours, {Key: "other", Effect: corev1.TaintEffectNoExecute}}}}
	if err := c.Client().Create(ctx, node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), node) })
	scheduler := as(t, c, "system:serviceaccount:storage:disk-scheduler", "another-node")
	// The API server has given the node taints of its own.
	others := slices.DeleteFunc(slices.Clone(node.Spec.Taints), func(t corev1.Taint) bool { return t == ours })
	less, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": others}})
	if err != nil {
		t.Fatal(err)
	}
	inForce(ctx, t, func() error {
		return scheduler.Patch(ctx, node.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(`{"spec":{"unschedulable":true}}`)), client.DryRunAll)
	}, "nodes.disk.berth.dev")
	for name, tc := range map[string]struct {
		body    string
		refused bool
	}{
		"our taint":     {string(less), false},
		"all taints":    {`{"spec":{"taints":[]}}`, true},
		"another taint": {`{"spec":{"taints":[{"key":"disk.berth.dev/not-ready","effect":"NoSchedule"}]}}`, true},
		"cordon":        {`{"spec":{"unschedulable":true}}`, true},
		"label":         {`{"metadata":{"labels":{"a":"b"}}}`, true},
	} {
		err := scheduler.Patch(ctx, node.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(tc.body)), client.DryRunAll)
		if refused := err != nil && strings.Contains(err.Error(), "may change no more of a Node"); refused != tc.refused || err != nil && !refused {
			t.Errorf("%s: got error %v, want refused %v", name, err, tc.refused)
		}
	}
}

// An agent that was broken into can publish nonsense for its own node only.
func TestAdmissionOfCapacity(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	guardedNamespace(ctx, t, c)
	config := c.RESTConfig()
	config.Impersonate = rest.ImpersonationConfig{
		UserName: "system:serviceaccount:kube-system:berth-nodeagent",
		Groups:   []string{"system:serviceaccounts", "system:authenticated"},
		Extra:    map[string][]string{"authentication.kubernetes.io/node-name": {"admission-own"}},
	}
	agent, err := client.New(config, client.Options{Scheme: c.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	own := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "admission-own"}}
	if err := agent.Create(ctx, own); err != nil {
		t.Fatalf("the agent may not publish its own node: %v", err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), own) })
	other := &diskv1alpha1.NodeDiskCapacity{ObjectMeta: metav1.ObjectMeta{Name: "admission-other"}}
	if err := agent.Create(ctx, other, client.DryRunAll); err == nil || !strings.Contains(err.Error(), "may not write the NodeDiskCapacity of another node") {
		t.Errorf("publishing for another node: got error %v, want a refusal", err)
	}
	// No agent can publish space that is not aligned, or ends behind the disk.
	for _, tc := range []struct {
		extent diskv1alpha1.Extent
		want   string
	}{
		{diskv1alpha1.Extent{Start: 1 << 20, Length: 1<<20 + 512}, "multiple of"},
		{diskv1alpha1.Extent{Start: 1 << 20, Length: 1 << 30}, "a free extent ends behind the disk"},
	} {
		bad := own.DeepCopy()
		bad.Status.Disks = []diskv1alpha1.Disk{{
			ID: diskv1alpha1.PartitionID("disk"), Device: "sda", SectorSize: 512, Size: 1 << 30, State: diskv1alpha1.DiskReady,
			Free: []diskv1alpha1.Extent{tc.extent},
		}}
		if err := c.Client().Status().Update(ctx, bad, client.DryRunAll); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("publishing the extent %+v: got error %v, want %q", tc.extent, err, tc.want)
		}
	}
}

// TestAdmissionOfScheduler asserts that the scheduler's account makes PersistentVolumes of Berth's driver only.
func TestAdmissionOfScheduler(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	guardedNamespace(ctx, t, c)
	allowAll(ctx, t, c)
	scheduler := as(t, c, "system:serviceaccount:storage:disk-scheduler", "another-node")
	volume := func(source corev1.PersistentVolumeSource) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "admission-of-the-scheduler"},
			Spec: corev1.PersistentVolumeSpec{
				Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeSource: source,
			},
		}
	}
	host := corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}
	inForce(ctx, t, func() error { return scheduler.Create(ctx, volume(host), client.DryRunAll) }, "scheduler.disk.berth.dev")
	for name, tc := range map[string]struct {
		source  corev1.PersistentVolumeSource
		refused bool
	}{
		"ours":    {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: diskv1alpha1.DriverName, VolumeHandle: "v"}}, false},
		"another": {corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "other.example.com", VolumeHandle: "v"}}, true},
		"host":    {host, true},
	} {
		err := scheduler.Create(ctx, volume(tc.source), client.DryRunAll)
		if refused := err != nil && strings.Contains(err.Error(), "of driver disk.berth.dev only"); refused != tc.refused || err != nil && !refused {
			t.Errorf("%s: got error %v, want refused %v", name, err, tc.refused)
		}
	}
	// Of a volume that exists, only its claim.
	pv := volume(host)
	if err := c.Client().Create(ctx, pv); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Client().Delete(context.Background(), pv) })
	for body, refused := range map[string]bool{
		`{"spec":{"claimRef":{"namespace":"default","name":"data"}}}`: false,
		`{"spec":{"capacity":{"storage":"2Gi"}}}`:                     true,
	} {
		err := scheduler.Patch(ctx, pv.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(body)), client.DryRunAll)
		if (err != nil) != refused {
			t.Errorf("%s: got error %v, want refused %v", body, err, refused)
		}
	}
	if err := scheduler.Delete(ctx, pv.DeepCopy(), client.DryRunAll); err == nil || !strings.Contains(err.Error(), "of driver disk.berth.dev only") {
		t.Errorf("deleted a hostPath volume: %v", err)
	}
}

// TestAdmissionOfClaims asserts that the scheduler's account deletes claims of Berth only.
func TestAdmissionOfClaims(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	namespace := guardedNamespace(ctx, t, c)
	allowAll(ctx, t, c)
	scheduler := as(t, c, "system:serviceaccount:storage:disk-scheduler", "another-node")
	made := func(name string, bound bool, notes map[string]string) *corev1.PersistentVolumeClaim {
		t.Helper()
		pvc := objects.Claim(namespace, name, "any", "1Gi")
		pvc.Annotations = notes
		if err := c.Client().Create(ctx, pvc); err != nil {
			t.Fatal(err)
		}
		pvc.Spec.VolumeName = "another"
		if bound {
			pvc.Spec.VolumeName = diskv1alpha1.ClaimVolumeID(pvc.UID)
		}
		if err := c.Client().Update(ctx, pvc); err != nil {
			t.Fatal(err)
		}
		return pvc
	}
	const driver = "volume.kubernetes.io/storage-provisioner"
	adopted := made("adopted", false, map[string]string{driver: diskv1alpha1.DriverName})
	inForce(ctx, t, func() error { return scheduler.Delete(ctx, adopted.DeepCopy(), client.DryRunAll) }, "claims.disk.berth.dev")
	unbound := objects.Claim(namespace, "unbound", "any", "1Gi")
	if err := c.Client().Create(ctx, unbound); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		pvc     *corev1.PersistentVolumeClaim
		refused bool
	}{
		{adopted, true},
		{unbound, true},
		{made("ours", true, map[string]string{driver: diskv1alpha1.DriverName}), false},
		{made("of-the-plugin", true, nil), false},
		{made("of-another", true, map[string]string{driver: "other.example.com"}), true},
		{made("of-another-once", true, map[string]string{"volume.beta.kubernetes.io/storage-provisioner": "other.example.com"}), true},
	} {
		err := scheduler.Delete(ctx, tc.pvc.DeepCopy(), client.DryRunAll)
		if refused := err != nil && strings.Contains(err.Error(), "of driver disk.berth.dev only"); refused != tc.refused || err != nil && !refused {
			t.Errorf("%s: got error %v, want refused %v", tc.pvc.Name, err, tc.refused)
		}
	}
}

// TestWarningOfSchedulerName asserts that who creates a pod of ours for another scheduler is warned, and not refused.
func TestWarningOfSchedulerName(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	namespace := guardedNamespace(ctx, t, c)
	config := c.RESTConfig()
	received := make(warnings, 100)
	config.WarningHandler = received
	user, err := client.New(config, client.Options{Scheme: c.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	attributes := map[string]string{diskv1alpha1.AttributeClass: "ssd", diskv1alpha1.AttributeSize: "1Gi"}
	warned := func(schedulerName string) bool {
		pod := diskPodFor(namespace, attributes, func(pod *corev1.Pod) { pod.Spec.SchedulerName = schedulerName })
		if err := user.Create(ctx, pod, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		select {
		case text := <-received:
			return strings.Contains(text, "set schedulerName: berth")
		default:
			return false
		}
	}
	// A policy is in force some time after it was made.
	if err := cluster.Eventually(ctx, 30*time.Second, func(context.Context) error {
		if !warned("") {
			return fmt.Errorf("no warning")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if warned("berth") {
		t.Error("a pod of Berth's scheduler is warned of")
	}
}

type warnings chan string

func (w warnings) HandleWarningHeader(_ int, _, text string) { w <- text }
