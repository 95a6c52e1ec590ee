package claim

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
)

type classes map[string]*storagev1.StorageClass

func (c classes) Get(name string) (*storagev1.StorageClass, error) {
	if class, ok := c[name]; ok {
		return class, nil
	}
	return nil, errors.New("there is no such class")
}

// TestClass asserts that a claim's class is found by its annotation first, and is ours by its provisioner.
func TestClass(t *testing.T) {
	known := classes{"other": {ObjectMeta: metav1.ObjectMeta{Name: "other"}, Provisioner: "other.example.com"}}
	for _, name := range []string{"ssd", "hdd"} {
		known[name] = &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: diskv1alpha1.DriverName}
	}
	for name, test := range map[string]struct {
		annotation, field *string
		class, ours       string
	}{
		"neither":                       {},
		"field":                         {field: ptr.To("ssd"), class: "ssd", ours: "ssd"},
		"annotation":                    {annotation: ptr.To("ssd"), class: "ssd", ours: "ssd"},
		"annotation and field":          {annotation: ptr.To("hdd"), field: ptr.To("ssd"), class: "hdd", ours: "hdd"},
		"empty annotation and a field":  {annotation: ptr.To(""), field: ptr.To("ssd")},
		"empty field":                   {field: ptr.To("")},
		"of another driver":             {annotation: ptr.To("other"), class: "other"},
		"a class that does not exist":   {field: ptr.To("tape"), class: "tape"},
		"another driver by annotation":  {annotation: ptr.To("other"), field: ptr.To("ssd"), class: "other"},
		"another driver's by the field": {annotation: ptr.To("ssd"), field: ptr.To("other"), class: "ssd", ours: "ssd"},
	} {
		pvc := &corev1.PersistentVolumeClaim{}
		pvc.Spec.StorageClassName = test.field
		if test.annotation != nil {
			pvc.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: *test.annotation}
		}
		if have := ClassName(pvc); have != test.class {
			t.Errorf("%s: class %q, want %q", name, have, test.class)
		}
		class, ours := OurClass(known, pvc), ""
		if class != nil {
			ours = class.Name
		}
		if ours != test.ours {
			t.Errorf("%s: ours is %q, want %q", name, ours, test.ours)
		}
		found, err := ClassOf(known, pvc)
		if _, want := known[test.class]; want != (err == nil && found != nil) {
			t.Errorf("%s: found %v, %v", name, found, err)
		}
	}
	for mode, want := range map[*storagev1.VolumeBindingMode]bool{
		nil: false, ptr.To(storagev1.VolumeBindingImmediate): false, ptr.To(storagev1.VolumeBindingWaitForFirstConsumer): true,
	} {
		if have := WaitsForFirstConsumer(&storagev1.StorageClass{VolumeBindingMode: mode}); have != want {
			t.Errorf("mode %v waits: %t, want %t", mode, have, want)
		}
	}
}
