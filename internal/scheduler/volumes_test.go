package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func withClaim(p *corev1.Pod, claim string) *corev1.Pod {
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: claim, VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
	}})
	return p
}

func claim(name, class string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("claim-" + name)},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: list("storage", "1Gi")},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
}

func volumeOn(name, class, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("volume-" + name)},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: list("storage", "1Gi"),
			PersistentVolumeSource: corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: "/srv/" + name}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
			}}}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
}

func waitingClass(name, provisioner string) *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}
}

// bindClaim writes what the binder writes into a claim.
func (r *running) bindClaim(name, volume string) {
	r.t.Helper()
	claims := client.For[*corev1.PersistentVolumeClaim](r.api.Client()).In("default")
	c, err := claims.Get(r.ctx, name)
	if err != nil {
		r.t.Fatal(err)
	}
	c = c.DeepCopy()
	c.Spec.VolumeName = volume
	metav1.SetMetaDataAnnotation(&c.ObjectMeta, storage.BindCompleted, "yes")
	if c, err = claims.Update(r.ctx, c); err == nil {
		c = c.DeepCopy()
		c.Status.Phase = corev1.ClaimBound
		_, err = claims.UpdateStatus(r.ctx, c)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// A pod goes where there is a volume for its claim, and is bound once the claim is.
func TestVolumeDecidesTheNode(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), node("c"), waitingClass("static", "kubernetes.io/no-provisioner"), volumeOn("v", "static", "b"),
		claim("one", "static"), claim("two", "static"))
	r := run(t, api)
	api.Put(withClaim(pod("first"), "one"))
	volumes := client.For[*corev1.PersistentVolume](api.Client())
	r.until("the volume refers to the claim", func() bool {
		v, err := volumes.Get(r.ctx, "v")
		return err == nil && v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID == "claim-one" && v.Annotations[storage.BoundByController] == "yes"
	})
	if n := r.node("first"); n != "" {
		t.Fatalf("the pod is on %q before its claim is bound", n)
	}

	// Pods for which nothing waits are bound meanwhile; the volume is given away once.
	api.Put(pod("plain"))
	r.until("a pod without claims is bound", func() bool { return r.node("plain") != "" })
	api.Put(withClaim(pod("second"), "two"))
	const none = "Unschedulable: 0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind. preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
	r.until("the other pod is refused", func() bool { return r.message("second") != "" })
	if got := r.message("second"); got != none {
		t.Errorf("second is refused with %q, want %q", got, none)
	}

	r.bindClaim("one", "v")
	r.until("the pod is bound to the volume's node", func() bool { return r.node("first") == "b" })

	// A volume that comes wakes the pod that had none.
	api.Put(volumeOn("w", "static", "c"))
	r.until("the new volume refers to the other claim", func() bool {
		v, err := volumes.Get(r.ctx, "w")
		return err == nil && v.Spec.ClaimRef != nil && v.Spec.ClaimRef.UID == "claim-two"
	})
	r.bindClaim("two", "w")
	r.until("the other pod is bound", func() bool { return r.node("second") == "c" })
}

// A provisioner is told the node; where it gives that back, another is chosen.
func TestProvisionerGetsTheNode(t *testing.T) {
	api := clienttest.New(node("a"), waitingClass("local", "skiff.io/local"))
	r := run(t, api)
	api.Put(withClaim(pod("p"), "data"))
	const missing = `Unschedulable: 0/1 nodes are available: persistentvolumeclaim "data" not found. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.`
	r.until("the pod is refused", func() bool { return r.message("p") != "" })
	if got := r.message("p"); got != missing {
		t.Errorf("refused with %q, want %q", got, missing)
	}

	api.Put(claim("data", "local"))
	claims := client.For[*corev1.PersistentVolumeClaim](api.Client()).In("default")
	chosen := func() string {
		c, err := claims.Get(r.ctx, "data")
		if err != nil {
			t.Fatal(err)
		}
		return c.Annotations[storage.SelectedNode]
	}
	r.until("the claim has the node", func() bool { return chosen() == "a" })
	c, err := claims.Get(r.ctx, "data")
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	delete(c.Annotations, storage.SelectedNode)
	if _, err := claims.Update(r.ctx, c); err != nil {
		t.Fatal(err)
	}
	r.until("a node is chosen again", func() bool { return chosen() == "a" })
	if n := r.node("p"); n != "" {
		t.Fatalf("the pod is on %q before its claim is bound", n)
	}
	api.Put(volumeOn("v", "local", "a"))
	r.bindClaim("data", "v")
	r.until("the pod is bound", func() bool { return r.node("p") == "a" })
}
