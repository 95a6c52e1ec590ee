package diskcapacity

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/klog/v2"
)

const (
	// unseenEvery is how often unseen PersistentVolumes are looked for. A watch shows a new one within milliseconds. It
	// is read when it is unseen the second time.
	unseenEvery = 5 * time.Second
	// unseenReads is how many are read each time, and unseenTimeout how long each read may take. A watch that is behind
	// for other reasons must not cost the API server more.
	unseenReads, unseenTimeout = 100, 5 * time.Second
)

// unseen are the UIDs of the PersistentVolumes that were unseen the last time.
type unseen map[string]struct{}

// followUnseen reads from the API server, every unseenEvery, the PersistentVolumes that this process has made and that
// the watch has not shown in time. One that was deleted while the watch was interrupted is in no list, and has no
// event.
func (f *feed) followUnseen(ctx context.Context, volumes corev1client.PersistentVolumesGetter, before unseen) {
	f.later(unseenEvery, func() {
		if ctx.Err() == nil {
			f.followUnseen(ctx, volumes, f.foldUnseen(ctx, volumes, before))
		}
	})
}

// foldUnseen reads those that were unseen before, and folds in the end of those that no longer exist. It returns those
// that are unseen now.
func (f *feed) foldUnseen(
	ctx context.Context, volumes corev1client.PersistentVolumesGetter, before unseen,
) (now unseen) {
	logger := klog.FromContext(ctx)
	all := f.ledger.UnseenVolumes()
	now = make(unseen, len(all))
	for _, v := range all {
		now[v.UID] = struct{}{}
	}
	reads := 0
	for _, v := range all {
		if _, already := before[v.UID]; !already || reads == unseenReads {
			continue
		}
		reads++
		reading, cancel := context.WithTimeout(ctx, unseenTimeout)
		pv, err := volumes.PersistentVolumes().Get(reading, v.Name, metav1.GetOptions{})
		cancel()
		switch {
		case apierrors.IsNotFound(err), err == nil && string(pv.UID) != v.UID:
			logger.V(2).Info("A PersistentVolume was deleted before its creation was seen",
				"volume", klog.KRef("", v.Name), "node", klog.KRef("", v.Node))
			f.ledger.DeleteVolume(v.UID)
			f.requeueFittingAsync(logger, []string{v.Node})
			delete(now, v.UID)
		case err != nil:
			logger.Error(err, "Reading a PersistentVolume that was made and not seen: tried again",
				"volume", klog.KRef("", v.Name))
			return now
		}
	}
	return now
}
