package volumebinding

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"

	diskv1alpha1 "github.com/berthdev/berth/apis/disk/v1alpha1"
	"github.com/berthdev/berth/pkg/answer"
	"github.com/berthdev/berth/pkg/claim"
	"github.com/berthdev/berth/pkg/ledger"
	"github.com/berthdev/berth/pkg/plugins/diskcapacity"
)

const (
	// firstPause and lastPause are the pauses between tries of a request whose outcome is not known.
	firstPause, lastPause = 100 * time.Millisecond, 5 * time.Second
	// discardTimeout is for cleaning up after a failure, also after a timeout.
	discardTimeout = 10 * time.Second
	// tryTimeout is for one try to create a volume: one that hangs blocks others.
	tryTimeout = 30 * time.Second
	// maxConflicts is how many conflicting changes of an object are retried.
	maxConflicts = 10
)

var (
	// errDeleted is the error of a claim that is gone or is being deleted.
	errDeleted = errors.New("the claim was deleted")
	// errUnknown is the error of a volume that may have been made.
	errUnknown = errors.New("the API server does not say whether it did it")
)

// boundElsewhereError is the error of a claim that was bound to another volume.
type boundElsewhereError struct{ volume string }

func (e *boundElsewhereError) Error() string {
	return fmt.Sprintf("it was bound to PersistentVolume %s meanwhile", e.volume)
}

// provisionClaim replaces the reservation of a claim by its PersistentVolume, and returns when the two are bound.
func (b *binder) provisionClaim(ctx context.Context, l *ledger.Ledger, pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) error {
	class, err := b.classOf(pvc)
	if err != nil {
		return err
	}
	wanted, err := claim.Request(pvc, class)
	if err != nil {
		return err
	}
	// The pod's reservation ends when the pod is deleted. This one stays until the PersistentVolume has replaced it.
	holder := "binding/" + string(pvc.UID)
	node, records, ok := l.Share(wanted.Partition, diskv1alpha1.PieceIDs(wanted.Partition), holder)
	switch {
	case !ok:
		return fmt.Errorf("nothing is reserved for it any more: the pod was deleted, or a volume that it was to be bound to was taken")
	case diskv1alpha1.NodeLabel(node) != diskv1alpha1.NodeLabel(pod.Spec.NodeName):
		l.Forget(holder)
		return &ledger.ElsewhereError{Partition: wanted.Partition, Node: node}
	}
	places := diskcapacity.PlacesOf(records)
	pv, err := b.ensureVolume(ctx, pod, claim.NewVolume(pvc, class, wanted, pod.Spec.NodeName, places[0], places[1:]...), pvc)
	if err == nil {
		err = recordVolume(l, pv, pod.Spec.NodeName)
	}
	if errors.Is(err, errUnknown) {
		b.doubt(ctx, l, holder, pvc, wanted.ID, node)
		return err
	}
	l.Release(holder)
	if err != nil {
		return err
	}
	err = b.waitBound(ctx, pod, pvc, pv)
	var elsewhere *boundElsewhereError
	if errors.Is(err, errDeleted) || errors.As(err, &elsewhere) {
		b.discard(ctx, pv)
	}
	return err
}

// doubt holds the place of a volume that may have been made, or may still be made. It ends when a later try knows, when
// the claim is gone, or when answer.SettleAfter has passed and the volume does not exist.
func (b *binder) doubt(ctx context.Context, l *ledger.Ledger, holder string, pvc *corev1.PersistentVolumeClaim, name, node string) {
	l.Doubt(holder)
	b.changes.whenGone(pvc, func() { l.Release(holder) })
	// The claim of that name may be another one by now.
	if now, err := b.claims.PersistentVolumeClaims(pvc.Namespace).Get(pvc.Name); apierrors.IsNotFound(err) || err == nil && now.UID != pvc.UID {
		l.Release(holder)
		return
	}
	// Each doubt has its own time. A later doubt of the same claim starts the time again.
	token := new(int)
	b.doubts.Store(holder, token)
	b.settleLater(context.WithoutCancel(ctx), l, holder, token, name, node)
}

// settleLater reads whether the volume exists when no write of it can be on its way any more.
func (b *binder) settleLater(ctx context.Context, l *ledger.Ledger, holder string, token *int, name, node string) {
	b.later(answer.SettleAfter, func() {
		if current, _ := b.doubts.Load(holder); current != token {
			return
		}
		reading, cancel := context.WithTimeout(ctx, discardTimeout)
		defer cancel()
		pv, err := b.client.CoreV1().PersistentVolumes().Get(reading, name, metav1.GetOptions{})
		switch answer.Of(err) {
		case answer.Done:
			if err := recordVolume(l, pv, node); err != nil {
				klog.FromContext(ctx).Error(err, "A volume that was made is not where it was to be", "volume", klog.KObj(pv))
			}
		case answer.Absent:
		default:
			b.settleLater(ctx, l, holder, token, name, node)
			return
		}
		b.doubts.CompareAndDelete(holder, token)
		l.Settle(holder)
	})
}

// ensureVolume creates the PersistentVolume, or finds the one that was created for the claim before: by an earlier try,
// by another pod that shares the claim, or by a scheduler that crashed.
//
// While the outcome is unknown it tries again, unless the pod or the claim is gone. Between tries it occupies no slot
// of writers.
func (b *binder) ensureVolume(ctx context.Context, pod *corev1.Pod, pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) (*corev1.PersistentVolume, error) {
	changed, stop := b.changes.subscribe(claimKey(pvc), podKey(pod))
	defer stop()
	unsure := false
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		created, what, err := b.createOrGetVolume(ctx, pv)
		switch {
		case what == answer.Done:
			return created, adopt(created, pvc)
		case what.NotDone() && !unsure:
			return nil, fmt.Errorf("making its PersistentVolume %s: %w", pv.Name, err)
		case what.NotDone():
			// This try was not done, but an earlier one may have been.
			return nil, fmt.Errorf("making its PersistentVolume %s: %w: %w", pv.Name, errUnknown, err)
		}
		unsure = true
		if gone := b.waitBeforeRetry(ctx, pause, changed, pod, pvc); gone != nil {
			return nil, fmt.Errorf("making its PersistentVolume %s: %w: %w: %w", pv.Name, errUnknown, gone, err)
		}
	}
}

// createOrGetVolume creates the PersistentVolume, or reads the one that has its name.
func (b *binder) createOrGetVolume(ctx context.Context, pv *corev1.PersistentVolume) (*corev1.PersistentVolume, answer.Answer, error) {
	if err := b.writers.Acquire(ctx, 1); err != nil {
		return nil, answer.Busy, fmt.Errorf("waiting for other writes: %w", err)
	}
	defer b.writers.Release(1)
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	volumes := b.client.CoreV1().PersistentVolumes()
	created, err := volumes.Create(ctx, pv, metav1.CreateOptions{})
	switch answer.Of(err) {
	case answer.Done:
		klog.FromContext(ctx).V(3).Info("Made a volume", "volume", klog.KObj(created), "attributes", pv.Spec.CSI.VolumeAttributes)
	case answer.Exists:
		if created, err = volumes.Get(ctx, pv.Name, metav1.GetOptions{}); err != nil {
			// It may have been deleted in between. Then the next try creates it.
			return nil, answer.Unknown, err
		}
	}
	return created, answer.Of(err), err
}

// waitBeforeRetry waits before the next try. It returns early, with the reason, when no other try is needed.
func (b *binder) waitBeforeRetry(ctx context.Context, pause time.Duration, changed <-chan struct{}, pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		if err := b.checkGone(pod, pvc); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// checkGone returns an error if the claim or the pod is gone, by the informers' stores.
func (b *binder) checkGone(pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim) error {
	now, err := b.claims.PersistentVolumeClaims(pvc.Namespace).Get(pvc.Name)
	if apierrors.IsNotFound(err) || err == nil && (now.UID != pvc.UID || now.DeletionTimestamp != nil) {
		return errDeleted
	}
	have, err := b.pods.Pods(pod.Namespace).Get(pod.Name)
	if apierrors.IsNotFound(err) || err == nil && (have.UID != pod.UID || have.DeletionTimestamp != nil) {
		return fmt.Errorf("pod %s was deleted while its claim was being bound", klog.KObj(pod))
	}
	return nil
}

// adopt accepts an existing PersistentVolume if it was made for the claim.
func adopt(pv *corev1.PersistentVolume, pvc *corev1.PersistentVolumeClaim) error {
	switch {
	case !claim.IsOurs(pv) || !claim.IsFor(pv, pvc):
		return fmt.Errorf("there is a PersistentVolume %s that was not made for it: delete that", pv.Name)
	case pv.DeletionTimestamp != nil:
		return fmt.Errorf("its PersistentVolume %s is being deleted, and must be gone first: see the log of the agent on its node if it stays", pv.Name)
	}
	return nil
}

// recordVolume folds an existing PersistentVolume into the ledger at once. If it is on another node, the pod is tried
// there next, because the ledger says so.
func recordVolume(l *ledger.Ledger, pv *corev1.PersistentVolume, nodeName string) error {
	v, err := claim.ReadVolume(pv)
	if err != nil {
		return err
	}
	if v.Node == diskv1alpha1.NodeLabel(nodeName) {
		l.AddVolume(string(pv.UID), pv.Name, nodeName, diskcapacity.RecordOf(v), diskcapacity.PiecesOf(v))
		return nil
	}
	// If v.Node is only the label of a long name, the informer's event corrects it.
	l.AddVolume(string(pv.UID), pv.Name, v.Node, diskcapacity.RecordOf(v), diskcapacity.PiecesOf(v))
	return &ledger.ElsewhereError{Partition: v.Partition, Node: v.Node}
}

// waitBound returns when claim and volume are bound to each other. A kubelet that finds an unbound claim starts the pod
// ten seconds later, so it would gain nothing to bind the pod before.
func (b *binder) waitBound(ctx context.Context, pod *corev1.Pod, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) error {
	patient, cancel := context.WithTimeout(ctx, b.controllerPatience)
	defer cancel()
	err := b.await(patient, pod, pvc, pv)
	if patient.Err() == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return b.completeClaim(ctx, pvc, pv, pod.Spec.NodeName)
}

// completeClaim writes into the claim what the controller would write: the volume, and that it is bound. This is
// correct, because the volume names the claim by its UID, so no other volume and no other claim can be bound to either.
// The controller finds it done, and adds its annotation.
//
// The controller must have seen the volume before it sees this. Otherwise it waits for the volume of the claim, and
// checks again only at its next resync. That is the reason for controllerPatience: the controller sees volumes at once,
// also while claims are queued.
func (b *binder) completeClaim(ctx context.Context, pvc *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, nodeName string) error {
	if err := b.writers.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("waiting to note in it that it is bound to PersistentVolume %s: %w", pv.Name, err)
	}
	defer b.writers.Release(1)
	claims := b.client.CoreV1().PersistentVolumeClaims(pvc.Namespace)
	// The stored claim may be old. Then the API server refuses the write.
	now, err := b.claims.PersistentVolumeClaims(pvc.Namespace).Get(pvc.Name)
	if err != nil {
		now, err = b.readClaim(ctx, pvc)
	}
	for pause := firstPause; err == nil; {
		next := now.DeepCopy()
		switch {
		case now.UID != pvc.UID, now.DeletionTimestamp != nil:
			return errDeleted
		case now.Spec.VolumeName != "" && now.Spec.VolumeName != pv.Name:
			return &boundElsewhereError{now.Spec.VolumeName}
		case now.Spec.VolumeName == "":
			next.Spec.VolumeName = pv.Name
			metav1.SetMetaDataAnnotation(&next.ObjectMeta, volume.AnnSelectedNode, nodeName)
			next, err = claims.Update(ctx, next, metav1.UpdateOptions{})
		case now.Status.Phase != corev1.ClaimBound:
			next.Status.Phase, next.Status.AccessModes, next.Status.Capacity = corev1.ClaimBound, pv.Spec.AccessModes, pv.Spec.Capacity
			next, err = claims.UpdateStatus(ctx, next, metav1.UpdateOptions{})
		default:
			return nil
		}
		if err == nil {
			now = next
			continue
		}
		switch answer.Of(err) {
		case answer.Conflict, answer.Absent:
		case answer.Unknown:
			if !sleep(ctx, pause) {
				return fmt.Errorf("noting in it that it is bound to PersistentVolume %s: %w", pv.Name, err)
			}
			pause = min(2*pause, lastPause)
		default:
			return fmt.Errorf("noting in it that it is bound to PersistentVolume %s: %w", pv.Name, err)
		}
		now, err = b.readClaim(ctx, pvc)
	}
	return err
}

// readClaim reads the claim from the API server.
func (b *binder) readClaim(ctx context.Context, pvc *corev1.PersistentVolumeClaim) (*corev1.PersistentVolumeClaim, error) {
	now, err := b.client.CoreV1().PersistentVolumeClaims(pvc.Namespace).Get(ctx, pvc.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, errDeleted
	case err != nil:
		return nil, fmt.Errorf("reading it: %w", err)
	case now.UID != pvc.UID, now.DeletionTimestamp != nil:
		return nil, errDeleted
	}
	return now, nil
}

// discard deletes a volume that no pod has used or will use, because its claim was deleted before it was bound. A
// volume that was bound is left to its reclaim policy. One that was not bound has no data. So it is not retained, even
// if its policy says so: no claim names it.
func (b *binder) discard(ctx context.Context, pv *corev1.PersistentVolume) {
	logger := klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), discardTimeout)
	defer cancel()
	volumes := b.client.CoreV1().PersistentVolumes()
	for range maxConflicts {
		now, err := volumes.Get(ctx, pv.Name, metav1.GetOptions{})
		if err == nil && now.UID != pv.UID {
			return
		}
		if err == nil && now.DeletionTimestamp == nil && wasBound(now) {
			return
		}
		if err == nil && now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete {
			now.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
			now, err = volumes.Update(ctx, now, metav1.UpdateOptions{})
		}
		if err == nil {
			err = volumes.Delete(ctx, pv.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &now.UID, ResourceVersion: &now.ResourceVersion}})
		}
		switch answer.Of(err) {
		case answer.Done:
			logger.V(2).Info("Deleted a volume whose claim went before they were bound", "volume", klog.KObj(pv), "claim", klog.KRef(pv.Spec.ClaimRef.Namespace, pv.Spec.ClaimRef.Name))
			return
		case answer.Absent:
			return
		case answer.Conflict:
		default:
			logger.Error(err, "A volume whose claim went before they were bound could not be deleted: delete it if it stays", "volume", klog.KObj(pv))
			return
		}
	}
}

// wasBound reports whether the volume was bound, or may have been. A volume becomes Released only when its claim is
// gone, but the controller also says so of one that was never bound. That matters only with policy Retain.
func wasBound(pv *corev1.PersistentVolume) bool {
	return pv.Status.Phase == corev1.VolumeBound || pv.Status.Phase == corev1.VolumeReleased
}

// sleep waits. It reports false if the context ended first.
func sleep(ctx context.Context, pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
