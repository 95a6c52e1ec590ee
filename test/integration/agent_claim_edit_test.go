package integration

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentClaimEditedByHand asserts that what a user writes into PersistentVolumes moves no byte of a
// volume that exists.
func TestAgentClaimEditedByHand(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	at := func(i int64) int64 { return d.Free[0].Start + i*100*units.MiB }
	bound := func(name string, i int64) *corev1.PersistentVolume {
		pv := n.bound(name, "64Mi", corev1.PersistentVolumeFilesystem, d, at(i))
		target, unmount := n.mounted(pv, "ext4")
		n.writeCanary(target)
		unmount()
		return pv
	}

	t.Run("label", func(t *testing.T) {
		pv := bound("label", 0)
		n.edit(pv, func() { pv.Labels[diskv1alpha1.LabelNode] = "another-node" })
		if said := n.said(pv, "VolumeMismatch"); !strings.Contains(said, "another-node") {
			t.Errorf("event says %q", said)
		}
		n.phase(pv, corev1.VolumeReleased)
		n.keeps("a volume is wiped by a PersistentVolume of another node", pv)
		n.edit(pv, func() { pv.Labels[diskv1alpha1.LabelNode] = n.name })
		n.gone(pv)
	})
	t.Run("smaller", func(t *testing.T) {
		pv := bound("smaller", 1)
		n.edit(pv, func() { pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("10Mi") })
		n.keeps("a volume shrinks", pv)
		n.edit(pv, func() { pv.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("64Mi") })
		n.phase(pv, corev1.VolumeReleased)
		n.gone(pv)
	})
	t.Run("same handle", func(t *testing.T) {
		pv := bound("twice", 2)
		other := pv.DeepCopy()
		other.ResourceVersion, other.UID, other.Name = "", "", n.name+"-copy"
		other.Finalizers, other.Spec.ClaimRef = []string{diskv1alpha1.FinalizerVolume}, nil
		n.provide(other, corev1.VolumeAvailable)
		n.said(other, "VolumeMismatch")
		n.phase(pv, corev1.VolumeReleased)
		if said := n.said(pv, "VolumeNotReleased"); !strings.Contains(said, other.Name) {
			t.Errorf("event says %q", said)
		}
		n.keeps("a volume is wiped that another PersistentVolume has too", pv)
		// The one that is deleted goes, and the volume stays with the other one.
		n.remove(other)
		n.gone(other)
		n.gone(pv)
		n.released()
	})
	t.Run("inline volume's handle", func(t *testing.T) {
		pod := n.pod("pod", "", nil, n.volumeOf("data", "64Mi", ""))
		n.formatted(pod, "data")
		pv := n.answer(n.pvc("inline", "64Mi", corev1.PersistentVolumeFilesystem), d.ID, at(8), func(pv *corev1.PersistentVolume) {
			pv.Spec.CSI.VolumeHandle = diskv1alpha1.InlineVolumeID(pod.UID, "data")
		})
		n.provide(pv, corev1.VolumeReleased)
		n.said(pv, "VolumeNotReleased")
		n.remove(pv)
		n.never("an inline volume of a living pod is wiped", 500*time.Millisecond, func() error {
			if n.onDisk(pod, "data") {
				return errors.New("it is not")
			}
			return nil
		})
		n.delete(pod)
	})
	t.Run("nonsense", func(t *testing.T) {
		for name, change := range map[string]func(*corev1.PersistentVolume){
			"handle": func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeHandle = "any" },
			"disk":   func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeDisk] = "sda" },
			"start":  func(pv *corev1.PersistentVolume) { pv.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeStart] = "-1" },
			"affinity": func(pv *corev1.PersistentVolume) {
				pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values[0] = "another"
			},
		} {
			pv := n.provide(n.answer(n.pvc(name, "64Mi", corev1.PersistentVolumeFilesystem), d.ID, at(4), change), corev1.VolumeBound)
			n.said(pv, "InvalidVolume")
			ndc, err := n.ndc()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, ok := held(&ndc.Status, pv); ok {
				t.Errorf("%s: there is a partition", name)
			}
		}
	})
}

// TestAgentClaimWithoutServer: what the API server cannot confirm is kept.
func TestAgentClaimWithoutServer(t *testing.T) {
	n := newNode(t, units.GiB)
	g := newGate(t, n.options.Config)
	n.options.Config = g.config(t, n.options.Config)
	d := n.startReady()
	pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
	if err := n.stage(pv); err != nil {
		t.Fatal(err)
	}
	n.writeCanary(n.staging(pv))
	n.phase(pv, corev1.VolumeReleased)
	n.said(pv, "VolumeNotReleased")
	// The agent has seen the release; when it is due, the API server does not answer whether it still holds.
	g.shut(t)
	n.unstage(pv)
	n.never("a volume is wiped while the API server is away", time.Second, func() error {
		if canaryIn(t, n.disks[0]) {
			return errors.New("it is not")
		}
		return nil
	})
	// Meanwhile the policy was changed.
	n.edit(pv, func() { pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain })
	g.open(t)
	n.keeps("a volume is wiped by what was true earlier", pv)
	if !canaryIn(t, n.disks[0]) {
		t.Error("a retained volume lost its data")
	}
}

// TestAgentClaimManifests: from the disks alone come PersistentVolumes that can be bound again.
func TestAgentClaimManifests(t *testing.T) {
	n := newNode(t, units.GiB, units.GiB)
	start := n.process()
	process := start()
	t.Cleanup(func() { _ = process.Process.Kill() })
	n.eventually("the agent serves", func() error {
		_, err := os.Stat(filepath.Join(n.options.RegistrationDir, "disk.berth.dev-reg.sock"))
		return err
	})
	status := n.ready()
	var volumes []*corev1.PersistentVolume
	for i, mode := range []corev1.PersistentVolumeMode{corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeBlock} {
		d := of(&status, n.disks[i])
		volumes = append(volumes, n.bound(strings.ToLower(string(mode)), "64Mi", mode, d, d.Free[0].Start))
	}
	pod := n.pod("pod", "", nil, n.volumeOf("data", "64Mi", ""))
	n.formatted(pod, "data")
	target, unmount := n.mounted(volumes[0], "ext4")
	n.writeCanary(target)
	unmount()
	testenv.WriteDevice(t, n.device(volumes[1]), bytes.Repeat([]byte(canary), 1000))

	// Nothing of them is left in the cluster.
	for _, pv := range volumes {
		pvc := &corev1.PersistentVolumeClaim{}
		pvc.Namespace, pvc.Name = pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name
		n.strip(pv.DeepCopy())
		n.strip(pvc)
	}
	n.orphans(2)

	// Beside the running agent.
	manifests := func(arguments ...string) []*corev1.PersistentVolume {
		t.Helper()
		c := exec.Command(process.Path, append([]string{"manifests", "--node-name=" + n.name, "--devices=" + n.disks[0].path + "," + n.disks[1].path}, arguments...)...)
		var stderr bytes.Buffer
		c.Stderr = &stderr
		out, err := c.Output()
		if err != nil {
			t.Fatalf("%v: %v: %s", c, err, stderr.String())
		}
		var printed []*corev1.PersistentVolume
		decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096)
		for {
			pv := &corev1.PersistentVolume{}
			if err := decoder.Decode(pv); err != nil {
				break
			}
			printed = append(printed, pv)
		}
		if len(printed) != len(volumes) {
			t.Fatalf("%d PersistentVolumes are printed, want %d:\n%s", len(printed), len(volumes), out)
		}
		return printed
	}
	for _, pv := range manifests("--bind") {
		if pv.Spec.ClaimRef == nil || !strings.HasPrefix(pv.Spec.ClaimRef.Name, n.name) || pv.Spec.ClaimRef.UID != "" {
			t.Errorf("with --bind the claim is %v", pv.Spec.ClaimRef)
		}
	}
	again := map[string]*corev1.PersistentVolume{}
	for _, pv := range manifests() {
		if pv.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain || pv.Spec.ClaimRef != nil {
			t.Errorf("printed is %+v", pv.Spec)
		}
		again[pv.Name] = n.provide(pv, corev1.VolumeAvailable)
	}
	n.orphans(0)
	for i, old := range volumes {
		pv := again[old.Name]
		if pv == nil {
			t.Fatalf("%s is not printed", old.Name)
		}
		if class := diskv1alpha1.AttributeClass; pv.Spec.StorageClassName != old.Spec.StorageClassName || !slices.Equal(pv.Spec.AccessModes, old.Spec.AccessModes) ||
			pv.Spec.CSI.VolumeAttributes[class] != old.Spec.CSI.VolumeAttributes[class] {
			t.Errorf("printed is %+v, was %+v: not as noted on the disk", pv.Spec, old.Spec)
		}
		if *pv.Spec.VolumeMode != *old.Spec.VolumeMode || pv.Spec.CSI.FSType != old.Spec.CSI.FSType || !pv.Spec.Capacity.Storage().Equal(*old.Spec.Capacity.Storage()) {
			t.Errorf("printed is %+v, was %+v", pv.Spec, old.Spec)
		}
		pvc := n.pvc("again-"+strings.ToLower(string(*pv.Spec.VolumeMode)), "64Mi", *pv.Spec.VolumeMode)
		n.edit(pv, func() {
			pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: pvc.Namespace, Name: pvc.Name, UID: pvc.UID}
		})
		n.phase(pv, corev1.VolumeBound)
		if err := n.stage(pv); err != nil {
			t.Fatal(err)
		}
		if i == 0 && !n.hasCanary(n.staging(pv)) {
			t.Error("the data is not there")
		}
		n.unstage(pv)
	}
	if data, err := os.ReadFile(n.device(volumes[1])); err != nil || !bytes.HasPrefix(data, []byte(canary)) {
		t.Errorf("the raw volume's data is not there: %v", err)
	}

	// To release them: with policy Delete, and deleted.
	for _, pv := range again {
		n.strip(pv)
	}
	n.orphans(2)
	for _, pv := range manifests("--reclaim-policy=Delete") {
		n.provide(pv, corev1.VolumeAvailable)
		n.remove(pv)
		n.gone(pv)
	}
	for _, d := range n.disks {
		if canaryIn(t, d) {
			t.Error("a released volume's data is still on the disk")
		}
	}
	n.end(process)
}
