package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
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

// What a person gets wrong is refused when the pod is created, with what to do.
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
		{name: "misspelt unit", attributes: attributes("10Gib"), want: badSize},
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
		{name: "a record that nobody but the scheduler writes", attributes: attributes("1Gi"), change: func(p *corev1.Pod) {
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
	// Nobody can publish space that is not aligned, or ends behind the disk.
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
