package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/storage"
	"skiff/internal/client"
)

// attachedVolumes are Volumes that need what package volume does of a claim.
type attachedVolumes struct {
	*volumes
	s *Sources
}

func (v *attachedVolumes) Setup(ctx context.Context, pod *corev1.Pod) (map[string]string, time.Time, error) {
	out := map[string]string{}
	var errs []error
	for i := range pod.Spec.Volumes {
		x := &pod.Spec.Volumes[i]
		pv, err := v.s.PersistentVolume(ctx, pod, x)
		if err == nil {
			var driver, label string
			if driver, label, err = v.s.Attached(ctx, pod, x, pv); err == nil && label != "pv-ready" {
				err = fmt.Errorf("%s of %s cannot be mounted", label, driver)
			}
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out[x.Name] = "/volumes/" + x.Name
	}
	return out, time.Time{}, errors.Join(errs...)
}

func withClaims(w *world) {
	withNode(w)
	more := w.deps
	w.deps = func(d *Deps) {
		more(d)
		d.Taints = nil
		d.Sources = NewSources(SourcesDeps{Client: d.Client, NodeName: node})
		d.Volumes = &attachedVolumes{w.volumes, d.Sources}
	}
	for _, name := range []string{"data", "ready"} {
		w.api.Put(&corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
		})
		w.api.Put(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d", VolumeHandle: name}},
			ClaimRef:               &corev1.ObjectReference{Namespace: "default", Name: name, UID: types.UID(name)},
		}})
	}
}

func claimPod(name, claim string) *corev1.Pod {
	p := newPod(name, "c")
	p.Spec.Volumes = []corev1.Volume{{Name: "vol", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "vol", MountPath: "/data"}}
	return p
}

func (w *world) attachment(claim string, f func(*storagev1.VolumeAttachment)) {
	a := &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: storage.AttachmentName("d", claim, node)}}
	f(a)
	w.api.Put(a)
	w.after(time.Millisecond)
}

func (w *world) listAttached(names ...corev1.UniqueVolumeName) {
	n := w.node().DeepCopy()
	n.Status.VolumesAttached = nil
	for _, name := range names {
		n.Status.VolumesAttached = append(n.Status.VolumesAttached, corev1.AttachedVolume{Name: name})
	}
	w.api.Put(n)
	w.after(time.Millisecond)
}

func (w *world) wantInUse(names ...corev1.UniqueVolumeName) {
	w.t.Helper()
	if got := w.node().Status.VolumesInUse; !slices.Equal(got, names) {
		w.t.Errorf("the node reports %v as in use, want %v", got, names)
	}
}

func (w *world) mountEvents() []string {
	return slices.DeleteFunc(w.events.all(), func(e string) bool { return len(e) < 11 || e[:11] != "FailedMount" })
}

func TestVolumeIsWaitedFor(t *testing.T) {
	run(t, withClaims, func(w *world) {
		w.after(time.Second)
		w.create(claimPod("p", "ready"))
		w.after(time.Second)
		w.wantInUse("kubernetes.io/csi/d^ready")
		w.after(2 * time.Minute)
		if got := w.mountEvents(); len(got) != 0 {
			t.Errorf("while it waits: %q", got)
		}
		w.after(2 * time.Second)
		wait := "FailedMount: Unable to attach or mount volumes: unmounted volumes=[vol], unattached volumes=[vol], failed to process volumes=[]: context deadline exceeded"
		if got := w.mountEvents(); !slices.Equal(got, []string{wait}) {
			t.Errorf("after its time: %q", got)
		}
		w.after(2*time.Minute + 3*time.Second)
		if got := w.mountEvents(); !slices.Equal(got, []string{wait, wait}) {
			t.Errorf("after twice its time: %q", got)
		}
		w.wantPhase("p", corev1.PodPending)
		// The list alone does not do: the driver's word counts.
		w.listAttached("kubernetes.io/csi/d^ready")
		name := storage.AttachmentName("d", "ready", node)
		w.wantEvent(`FailedMount: MountVolume.WaitForAttach failed for volume "pv-ready" : volume ready has GET error for volume attachment ` + name)
		w.attachment("ready", func(*storagev1.VolumeAttachment) {})
		w.after(2 * time.Second)
		w.wantEvent(`FailedMount: MountVolume.WaitForAttach failed for volume "pv-ready" : volume ready is not attached for volume attachment ` + name)
		w.attachment("ready", func(a *storagev1.VolumeAttachment) {
			a.Status.AttachError = &storagev1.VolumeError{Message: "no such disk"}
		})
		w.after(4 * time.Second)
		w.wantEvent(`FailedMount: MountVolume.WaitForAttach failed for volume "pv-ready" : no such disk`)
		w.attachment("ready", func(a *storagev1.VolumeAttachment) {
			a.Status.Attached = true
			a.DeletionTimestamp, a.Finalizers = ptr(metav1.Now()), []string{"example.com/driver"}
		})
		w.after(8 * time.Second)
		w.wantEvent(`FailedMount: MountVolume.WaitForAttach failed for volume "pv-ready" : volume attachment is being deleted`)
		w.attachment("ready", func(a *storagev1.VolumeAttachment) { a.Status.Attached = true })
		w.after(time.Minute)
		w.wantPhase("p", corev1.PodRunning)
		w.wantInUse("kubernetes.io/csi/d^ready")
		w.delete("p", 0)
		w.after(time.Second)
		w.wantInUse()
	})
}

// The node's status wakes a pod that waits; nothing is asked again and again.
func TestAttachmentWakesThePod(t *testing.T) {
	run(t, withClaims, func(w *world) {
		w.after(time.Second)
		w.attachment("ready", func(a *storagev1.VolumeAttachment) { a.Status.Attached = true })
		w.create(claimPod("p", "ready"))
		w.after(10 * time.Second)
		w.wantPhase("p", corev1.PodPending)
		w.listAttached("kubernetes.io/csi/d^ready")
		w.wantPhase("p", corev1.PodRunning)
	})
}

func TestDriverThatAttachesNothing(t *testing.T) {
	run(t, func(w *world) {
		withClaims(w)
		w.api.Put(&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: storagev1.CSIDriverSpec{AttachRequired: ptr(false)}})
	}, func(w *world) {
		w.after(time.Second)
		w.create(claimPod("p", "ready"))
		w.create(claimPod("q", "data"))
		w.after(time.Second)
		w.wantPhase("p", corev1.PodRunning)
		w.wantEvent("FailedMount: pv-data of d cannot be mounted")
		w.wantInUse()
	})
}

// A kubelet that starts anew does not take back what its predecessor reported, until it
// knows that no pod has it mounted.
func TestVolumesInUseOverARestart(t *testing.T) {
	run(t, withClaims, func(w *world) {
		w.after(time.Second)
		w.attachment("ready", func(a *storagev1.VolumeAttachment) { a.Status.Attached = true })
		w.listAttached("kubernetes.io/csi/d^ready")
		w.create(claimPod("p", "ready"))
		w.after(time.Second)
		w.wantPhase("p", corev1.PodRunning)
		w.kill()
		n := w.node().DeepCopy()
		n.Status.VolumesInUse = append(n.Status.VolumesInUse, "kubernetes.io/csi/d^stale")
		w.api.Put(n)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		watch, err := client.For[*corev1.Node](w.api.Client()).Watch(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range watch.Events() {
				if n, ok := e.Object.(*corev1.Node); ok && !slices.Contains(n.Status.VolumesInUse, "kubernetes.io/csi/d^ready") {
					t.Errorf("the node reported %v as in use", n.Status.VolumesInUse)
				}
			}
		}()
		w.start()
		w.after(time.Second)
		w.wantInUse("kubernetes.io/csi/d^ready")
		cancel()
		<-done
	})
}

func TestUsedVolumes(t *testing.T) {
	u := newUsedVolumes()
	told := map[types.UID]int{}
	u.reported = func(p types.UID) { told[p]++ }
	if u.use("v", "p") {
		t.Error("it is reported before any report")
	}
	list := u.begin()
	if u.use("w", "q") {
		t.Error("a report that is on its way does not have what came later")
	}
	u.done(list)
	if !u.use("v", "p") || u.use("w", "q") || told["p"] != 1 || told["q"] != 0 {
		t.Errorf("after the report: %v", told)
	}
	// What a report on its way leaves out does not count as reported, although the
	// node's status still has it.
	u.drop("p")
	list = u.begin()
	if u.use("v", "r") {
		t.Error("it is about to leave the node's status")
	}
	u.done(list)
	if u.use("v", "r") || told["q"] != 1 {
		t.Errorf("it has left the node's status: %v", told)
	}
	u.done(u.begin())
	if !u.use("v", "r") || told["r"] != 1 {
		t.Errorf("it is back: %v", told)
	}
}
