package integration

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/agent/disk"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/units"
)

// TestAgentClaimFoundInEveryPhase: an agent that starts goes on from what it finds.
func TestAgentClaimFoundInEveryPhase(t *testing.T) {
	n := newNode(t, units.GiB)
	n.start()
	status := n.ready()
	n.stop()
	d := of(&status, n.disks[0])
	at := func(i int64) int64 { return d.Free[0].Start + i*64*units.MiB }
	made := func(name string, i int64, phase disk.Phase, change func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
		pv := n.answer(n.pvc(name, "64Mi", corev1.PersistentVolumeFilesystem), d.ID, at(i), change)
		n.provide(pv, corev1.VolumeBound)
		if phase != "" {
			n.make(n.disks[0], pv, at(i), 64*units.MiB, phase)
		}
		return pv
	}
	reserved := made("reserved", 0, disk.Reserved, nil)
	missing := made("missing", 1, "", nil)
	// Being wiped, by an agent that has died since.
	released := made("released", 2, disk.Formatted, nil)
	n.phase(released, corev1.VolumeReleased)
	n.remove(released)
	// The same one step later: wiped, but the PersistentVolume is still there.
	wiped := made("wiped", 3, "", nil)
	n.phase(wiped, corev1.VolumeReleased)
	n.remove(wiped)
	// Released, and never made.
	never := made("never", 4, "", nil)
	n.phase(never, corev1.VolumeReleased)
	// Never handed out, and deleted by its creator.
	taken := made("taken-back", 5, disk.Reserved, nil)
	n.phase(taken, corev1.VolumePending)
	n.remove(taken)
	n.start()
	n.realized(reserved)
	n.realized(missing)
	for _, pv := range []*corev1.PersistentVolume{released, wiped, never, taken} {
		n.gone(pv)
	}
	n.published("two volumes are left", func(s *diskv1alpha1.NodeDiskCapacityStatus) error {
		if s.Summary.Volumes != 2 {
			return errors.New("there are others")
		}
		return nil
	})
}

// make makes the volume's partition as an agent does that dies right afterwards.
func (n *node) make(on *testDisk, pv *corev1.PersistentVolume, start, length int64, phase disk.Phase) {
	n.t.Helper()
	d, err := disk.Open(n.t.Context(), on.path, disk.Options{})
	if err != nil {
		n.t.Fatal(err)
	}
	name, _ := diskv1alpha1.VolumeUUID(pv.Spec.CSI.VolumeHandle)
	partition := diskv1alpha1.PartitionID(pv.Spec.CSI.VolumeHandle)
	if _, err := d.Create(n.t.Context(), disk.CreateOptions{Partition: partition, Name: name, Extent: extent.New(start, length)}); err != nil {
		n.t.Error(err)
	}
	if phase == disk.Formatted {
		if err := d.MarkFormatted(n.t.Context(), partition); err != nil {
			n.t.Error(err)
		}
	}
	if err := d.Close(); err != nil {
		n.t.Error(err)
	}
}

// TestAgentClaimKilled: whenever the agent is killed, the next one ends what was begun.
func TestAgentClaimKilled(t *testing.T) {
	n := newNode(t, units.GiB)
	start := n.process()
	process := start()
	t.Cleanup(func() { _ = process.Process.Kill() })
	status := n.ready()
	d := of(&status, n.disks[0])
	const rounds = 8
	kill := func(round int) {
		if round == rounds {
			return
		}
		<-time.After(rand.N(60 * time.Millisecond))
		_ = process.Process.Kill()
		_ = process.Wait()
		process = start()
	}
	// In one more round no agent is killed: one that is at work ends at SIGTERM.
	for round := range rounds + 1 {
		pv := n.bound("data", "64Mi", corev1.PersistentVolumeFilesystem, d, d.Free[0].Start)
		pvc := n.claimOf(pv)
		pvc.Namespace = pv.Spec.ClaimRef.Namespace
		kill(round)
		n.realized(pv)
		target, unmount := n.mounted(pv, "ext4")
		n.writeCanary(target)
		unmount()
		n.phase(pv, corev1.VolumeReleased)
		kill(round)
		n.gone(pv)
		n.released()
		if canaryIn(t, n.disks[0]) {
			t.Fatal("the PersistentVolume is gone, and its data is still on the disk")
		}
		n.strip(pvc)
	}
	n.end(process)
}

// TestAgentClaimOfOthersToo: what others hold, and what others ask, does not get lost.
func TestAgentClaimOfOthersToo(t *testing.T) {
	n := newNode(t, units.GiB)
	d := n.startReady()
	const keep = "example.com/keep"
	pv := n.answer(n.pvc("data", "64Mi", corev1.PersistentVolumeFilesystem), d.ID, d.Free[0].Start, func(pv *corev1.PersistentVolume) {
		pv.Finalizers = append(pv.Finalizers, keep)
	})
	n.provide(pv, corev1.VolumeBound)
	n.realized(pv)

	connection, err := grpc.NewClient("unix://"+n.options.CSISocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { connection.Close() })
	controller := csispec.NewControllerClient(connection)
	_, err = controller.DeleteVolume(t.Context(), &csispec.DeleteVolumeRequest{VolumeId: pv.Name})
	if err == nil || !strings.Contains(err.Error(), "FailedPrecondition") {
		t.Errorf("a bound volume is deleted by a call: %v", err)
	}
	n.keeps("a bound volume is wiped by a call", pv)

	n.phase(pv, corev1.VolumeReleased)
	n.released()
	n.eventually("our finalizer is gone, the other is not", func() error {
		if err := n.client.Get(t.Context(), client.ObjectKeyFromObject(pv), pv); err != nil {
			return err
		}
		if !slices.Equal(pv.Finalizers, []string{keep}) {
			return errors.New(strings.Join(pv.Finalizers, ", "))
		}
		return nil
	})
	// Nothing is made for it any more.
	n.stop()
	n.start()
	n.never("a deleted PersistentVolume gets a partition", 500*time.Millisecond, func() error {
		ndc, err := n.ndc()
		if err != nil {
			return err
		}
		if _, _, ok := held(&ndc.Status, pv); !ok {
			return errors.New("it does not")
		}
		return nil
	})
	if entries, err := os.ReadDir(n.options.RegistrationDir); err != nil || len(entries) != 1 {
		t.Errorf("registered are %v, %v", entries, err)
	}
}
