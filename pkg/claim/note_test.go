package claim

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

// TestNoteRestoresVolume asserts that the note of a volume is enough to bind its claim again.
func TestNoteRestoresVolume(t *testing.T) {
	class := storageClass(map[string]string{diskv1alpha1.AttributeClass: "ssd"})
	c := pvc("3Gi", nil)
	_, pv := volumeFor(t, c, class)
	v, err := ReadVolume(pv)
	if err != nil {
		t.Fatal(err)
	}
	text, err := NoteOf(pv, v).Encode()
	if err != nil {
		t.Fatal(err)
	}
	note, err := ReadNote(text)
	if err != nil {
		t.Fatal(err)
	}
	again := &corev1.PersistentVolume{}
	again.Spec.CSI = &corev1.CSIPersistentVolumeSource{VolumeAttributes: map[string]string{}}
	note.Apply(again)
	want := &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "shop", Name: "data-db-0"}
	if !reflect.DeepEqual(again.Spec.ClaimRef, want) || again.Spec.StorageClassName != "fast" ||
		again.Spec.CSI.VolumeAttributes[diskv1alpha1.AttributeClass] != "ssd" || !reflect.DeepEqual(again.Spec.AccessModes, pv.Spec.AccessModes) {
		t.Errorf("note %s makes %+v", text, again.Spec)
	}
}

func TestNoteFits(t *testing.T) {
	name := strings.Repeat("n", 253)
	text, err := Note{
		Namespace: name[:63], Claim: name, StorageClass: name, DiskClass: name,
		AccessModes:   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod, corev1.ReadWriteOnce},
		ReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
	}.Encode()
	if err != nil || len(text) >= 994 {
		t.Errorf("the longest note has %d bytes: %v", len(text), err)
	}
}

// TestReadNoteRefuses asserts that a note on a disk is accepted only if every field has its form.
func TestReadNoteRefuses(t *testing.T) {
	for text, says := range map[string]string{
		`[`:                                "is not one",
		`{"namespace":"a","claim":"../x"}`: "has a name",
		`{"storageClass":"Fast"}`:          "has a name",
		`{"namespace":"a"}`:                "names a claim by half",
		`{"claim":"x"}`:                    "names a claim by half",
		`{"namespace":"a","claim":"x","accessModes":["ReadWriteMany"]}`: "access mode",
		`{"reclaimPolicy":"Recycle"}`:                                   "reclaim policy",
	} {
		if n, err := ReadNote(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: read as %+v, error %v, want one that says %q", text, n, err, says)
		}
	}
}

func FuzzReadNote(f *testing.F) {
	for _, text := range []string{
		`{"namespace":"shop","claim":"data-db-0","storageClass":"fast","accessModes":["ReadWriteOnce"],"reclaimPolicy":"Delete"}`,
		`{}`, `{"namespace":"a"}`, `{"claim":"../x","namespace":"a"}`, `{"accessModes":["ReadWriteMany"]}`, `[`, ``,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ReadNote(text)
		if err != nil {
			return
		}
		again, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ReadNote(again); err != nil || !reflect.DeepEqual(back, n) && len(n.AccessModes) > 0 {
			t.Errorf("%+v reads back as %+v: %v", n, back, err)
		}
	})
}
