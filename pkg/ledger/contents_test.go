package ledger

import (
	"reflect"
	"testing"
	"time"

	"github.com/berthdev/berth/test/units"
)

// TestContents asserts that Contents lists every record that no node publishes, and no longer when it is settled.
func TestContents(t *testing.T) {
	l := New()
	disk10(l, "n1", 1)
	volume := Record{"part-v", "disk-n1", span(9, 1)}
	l.setFirst("pv", "n1", volume)
	reserve := func(key, partition string) {
		t.Helper()
		if _, err := l.Reserve(key, "n1", []VolumeRequest{claimWant(partition, 1, 0)}); err != nil {
			t.Fatal(err)
		}
	}
	reserve("doubted", "a")
	l.Doubt("doubted")
	reserve("assumed", "b")
	if granted, _ := l.Grow("pv", 1*units.GiB); !granted {
		t.Fatal("the length that it has is not granted")
	}
	l.RecordRefusal("pod", "n1", "for a reason", time.Now())
	held := func(key string, r Record) []HolderRecords { return []HolderRecords{{key, "n1", []Record{r}}} }
	want := Contents{
		Observed: held(volumeKey("pv"), volume),
		Assumed:  held("assumed", Record{"part-b", "disk-n1", span(1, 1)}),
		Doubts:   held("doubted", Record{"part-a", "disk-n1", span(0, 1)}),
		Refusals: map[string][]string{"pod": {"n1"}},
	}
	if have := l.Contents(); !reflect.DeepEqual(have, want) {
		t.Errorf("the ledger has\n%+v, want\n%+v", have, want)
	}
	l.DeletePod("pod")
	l.Release("doubted")
	l.Forget("assumed")
	l.DeleteVolume("pv")
	if have := l.Contents(); !reflect.DeepEqual(have, Contents{Refusals: map[string][]string{}}) {
		t.Errorf("the ledger still has %+v", have)
	}
	disk10(l, "n1", 2)
	l.setFirst("pv", "n1", Record{"part-v", "disk-n1", span(0, 1)})
	if granted, _ := l.Grow("pv", 2*units.GiB); !granted {
		t.Fatal("the volume does not grow")
	}
	if have := l.Contents().Grants; !reflect.DeepEqual(have, []string{"pv"}) {
		t.Errorf("grants are %q", have)
	}
	l.WithdrawGrowth("pv")
	if have := l.Contents().Grants; len(have) > 0 {
		t.Errorf("grants are %q", have)
	}
}
