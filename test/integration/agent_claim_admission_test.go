package integration

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/cluster"
)

// An agent that was broken into can touch the PersistentVolumes of its own node only, and
// cannot give itself others.
func TestAdmissionOfVolumes(t *testing.T) {
	c := controlPlane(t)
	ctx := t.Context()
	guardedNamespace(ctx, t, c)
	n := &node{t: t, name: "volumes-own", plane: c, client: c.Client()}
	agent, err := client.New(n.agentConfig(), client.Options{Scheme: c.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	const someDisk = "11111111-2222-4333-8444-555555555555"
	volume := func(name string, change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
		return n.provide(n.answer(n.pvc(name, "64Mi", corev1.PersistentVolumeFilesystem), someDisk, diskv1alpha1.Alignment, change), corev1.VolumeBound)
	}
	own := volume("own", nil)
	pieced := volume("pieced", func(pv *corev1.PersistentVolume) {
		metav1.SetMetaDataAnnotation(&pv.ObjectMeta, diskv1alpha1.AnnotationPieces, someDisk+"/9437184/1048576")
	})
	elsewhere := volume("elsewhere", func(pv *corev1.PersistentVolume) {
		pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = "volumes-other"
	})
	foreign := volume("foreign", func(pv *corev1.PersistentVolume) { pv.Spec.CSI.Driver = "other.example.com" })

	patch := func(pv *corev1.PersistentVolume, body string) error {
		return agent.Patch(ctx, pv.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(body)), client.DryRunAll)
	}
	const finalizers = `{"metadata":{"finalizers":[]}}`
	// A policy is in force some time after it was created.
	err = cluster.Eventually(ctx, 30*time.Second, func(context.Context) error {
		err := patch(elsewhere, finalizers)
		if err == nil {
			return errors.New("the agent of another node takes the finalizer")
		}
		if !strings.Contains(err.Error(), "volumes.disk.berth.dev") {
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		try  func() error
		want string
	}{
		"finalizer":            {func() error { return patch(own, finalizers) }, ""},
		"annotation":           {func() error { return patch(own, `{"metadata":{"annotations":{"disk.berth.dev/moved-to":"x"}}}`) }, ""},
		"pieces":               {func() error { return patch(own, `{"metadata":{"annotations":{"disk.berth.dev/pieces":"x"}}}`) }, "has its pieces"},
		"no pieces":            {func() error { return patch(pieced, `{"metadata":{"annotations":{"disk.berth.dev/pieces":null}}}`) }, "has its pieces"},
		"beside pieces":        {func() error { return patch(pieced, `{"metadata":{"annotations":{"disk.berth.dev/moved-to":"x"}}}`) }, ""},
		"delete one of pieces": {func() error { return agent.Delete(ctx, pieced.DeepCopy(), client.DryRunAll) }, ""},
		"move":                 {func() error { return patch(own, `{"metadata":{"annotations":{"disk.berth.dev/move-to":"x"}}}`) }, "is moved"},
		"delete":               {func() error { return agent.Delete(ctx, own.DeepCopy(), client.DryRunAll) }, ""},
		"policy":               {func() error { return patch(own, `{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}`) }, "no more of"},
		"label":                {func() error { return patch(own, `{"metadata":{"labels":{"disk.berth.dev/node":"x"}}}`) }, "no more of"},
		"delete elsewhere":     {func() error { return agent.Delete(ctx, elsewhere.DeepCopy(), client.DryRunAll) }, "not of that node"},
		"of another driver":    {func() error { return patch(foreign, finalizers) }, "not of that node"},
		"delete a foreign one": {func() error { return agent.Delete(ctx, foreign.DeepCopy(), client.DryRunAll) }, "not of that node"},
	} {
		switch err := tc.try(); {
		case tc.want == "" && err != nil:
			t.Errorf("%s: refused: %v", name, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s: got error %v, want %q", name, err, tc.want)
		}
	}
	// Whose name is too long for a label is known by a checksum.
	long := &node{t: t, name: "volumes-" + strings.Repeat("x", 80), plane: c, client: c.Client()}
	agent, err = client.New(long.agentConfig(), client.Options{Scheme: c.Client().Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	pvc := n.pvc("long", "64Mi", corev1.PersistentVolumeFilesystem)
	pv := long.provide(long.answer(pvc, someDisk, diskv1alpha1.Alignment, nil), corev1.VolumeBound)
	if err := patch(pv, finalizers); err != nil {
		t.Errorf("long name: refused: %v", err)
	}
	if err := patch(own, finalizers); err == nil {
		t.Error("long name: takes the finalizer of another node's PersistentVolume")
	}
}
