package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/extent"
	"github.com/berthdev/berth/test/testenv"
	"github.com/berthdev/berth/test/units"
)

// TestAgentMoves asserts that volumes keep their data while they grow, are moved on their disk, and the agent is killed
// at random moments, at both sector sizes. After each round there is one volume, at the place that its PersistentVolume
// names, with the size that it names.
func TestAgentMoves(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	n := newNode(t, units.GiB, units.GiB)
	start := n.process()
	m := &moves{node: n, rng: rand.New(rand.NewPCG(seed, 1)), start: start, agent: start()}
	t.Cleanup(func() { m.kill() })
	status := n.ready()
	var volumes []*growing
	for i, d := range n.disks {
		on := of(&status, d)
		v := &growing{device: d, disk: on.ID, at: extent.New((10+int64(i))*units.MiB, 40*units.MiB), content: m.random(8 * units.MiB)}
		v.pv = n.bound(fmt.Sprintf("data-%d", i), "40Mi", corev1.PersistentVolumeFilesystem, on, v.at.Start)
		n.realized(v.pv)
		n.eventually("the volume is staged", func() error { return n.stage(v.pv) })
		if err := os.WriteFile(filepath.Join(n.staging(v.pv), "data"), v.content, 0o600); err != nil {
			t.Fatal(err)
		}
		testenv.Run(t, "sync", "-f", n.staging(v.pv))
		n.unstage(v.pv)
		volumes = append(volumes, v)
	}
	rounds := 5
	if os.Getenv("BERTH_TORTURE") != "" {
		rounds = 50
	}
	for round := range rounds {
		for _, v := range volumes {
			m.round(t, v)
			if t.Failed() {
				t.Fatalf("round %d of seed %d", round, seed)
			}
		}
	}
	t.Logf("%d moves and %d growths, the agent was killed %d times", m.moved, m.grown, m.kills)
}

// moves is a node whose agent is killed at random moments.
type moves struct {
	*node
	rng                 *rand.Rand
	start               func() *exec.Cmd
	agent               *exec.Cmd
	moved, grown, kills int
}

// growing is a volume, and where it is.
type growing struct {
	pv      *corev1.PersistentVolume
	device  *testDisk
	disk    string
	at      extent.Extent
	content []byte
}

func (m *moves) kill() {
	if m.agent == nil {
		return
	}
	if err := m.agent.Process.Kill(); err != nil {
		m.t.Error(err)
	}
	// The error says that it was killed.
	_ = m.agent.Wait()
	m.agent = nil
}

func (m *moves) random(size int64) []byte {
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(m.rng.Uint32())
	}
	return content
}

// next returns where the volume is after the next round: larger, in the other half of the disk or where it is.
func (m *moves) next(v *growing) (to extent.Extent, moves bool) {
	length := min(v.at.Len()+m.rng.Int64N(12)*units.MiB, 200*units.MiB)
	if m.rng.IntN(4) == 0 {
		return extent.New(v.at.Start, length), false
	}
	begin := int64(10)
	if v.at.Start < 500*units.MiB {
		begin = 520
	}
	return extent.New((begin+m.rng.Int64N(200))*units.MiB, length), true
}

// round has the volume grow, where it is or elsewhere, kills the agent meanwhile, and checks the volume.
func (m *moves) round(t *testing.T, v *growing) {
	t.Helper()
	to, moved := m.next(v)
	m.edit(v.pv, func() {
		v.pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: *resource.NewQuantity(to.Len(), resource.BinarySI)}
		if moved {
			place := diskv1alpha1.Place{Disk: v.disk, Extent: diskv1alpha1.Extent{Start: to.Start, Length: to.Len()}}
			metav1.SetMetaDataAnnotation(&v.pv.ObjectMeta, diskv1alpha1.AnnotationMoveTo, place.String())
		}
	})
	for range m.rng.IntN(3) {
		// The random part of this test.
		<-time.After(time.Duration(m.rng.IntN(120)) * time.Millisecond)
		m.kill()
		m.kills++
		m.agent = m.start()
	}
	// A call that comes before the watch shows the change finds the volume where it was. It is moved when it is unstaged.
	m.eventually("the volume is where its PersistentVolume says", func() error {
		if err := m.stage(v.pv); err != nil {
			return err
		}
		if now, err := os.ReadFile(filepath.Join(m.staging(v.pv), "data")); err != nil || !bytes.Equal(now, v.content) {
			t.Fatalf("the volume holds something else after it went from %v to %v: %v", v.at, to, err)
		}
		err := m.isAt(v, to)
		if err != nil {
			m.unstage(v.pv)
		}
		return err
	})
	m.unstage(v.pv)
	testenv.Run(t, "fsck.ext4", "-f", "-n", m.device(v.pv))
	// What the scheduler does.
	m.edit(v.pv, func() { delete(v.pv.Annotations, diskv1alpha1.AnnotationMoveTo) })
	if moved {
		m.moved++
		if !v.device.zero(t, v.at.Start, v.at.Len()) {
			t.Errorf("the earlier place %v is not zero", v.at)
		}
	} else {
		m.grown++
	}
	v.at = to
}

// isAt returns an error unless the volume is published there, and nothing else is on its disk.
func (m *moves) isAt(v *growing, to extent.Extent) error {
	ndc, err := m.ndc()
	if err != nil {
		return err
	}
	d, a, found := held(&ndc.Status, v.pv)
	if !found || d.ID != v.disk || a.Start != to.Start || a.Length != to.Len() || a.Phase != diskv1alpha1.PhaseFormatted {
		return fmt.Errorf("it is published as %+v, want %v", a, to)
	}
	if len(d.Allocations) != 1 {
		return fmt.Errorf("the disk has %+v", d.Allocations)
	}
	return nil
}
