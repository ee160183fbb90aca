package scheduler

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

// boundClaim is a claim that has its volume, of a CSI driver, which any node reaches.
func boundClaim(name string, change func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) []client.Object {
	c := claim(name, "fast")
	c.Annotations = map[string]string{storage.BindCompleted: "yes"}
	c.Spec.VolumeName, c.Status.Phase = "pv-"+name, corev1.ClaimBound
	v := volumeOn("pv-"+name, "fast", "")
	v.Spec.NodeAffinity = nil
	v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "disk.io", VolumeHandle: name}}
	v.Spec.ClaimRef, v.Status.Phase = storage.Reference(c), corev1.VolumeBound
	if change != nil {
		change(c, v)
	}
	return []client.Object{c, v}
}

func csiNode(name string, limit int32) *storagev1.CSINode {
	return &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{
		Name: "disk.io", NodeID: name, Allocatable: &storagev1.VolumeNodeResources{Count: &limit},
	}}}}
}

func put(api *clienttest.API, objects ...client.Object) {
	for _, o := range objects {
		api.Put(o)
	}
}

func (r *running) waits(name, message string) {
	r.t.Helper()
	r.until(name+" waits", func() bool { return r.message(name) != "" })
	if got, want := r.message(name), "Unschedulable: "+message; got != want {
		r.t.Errorf("%s: %q, want %q", name, got, want)
	}
}

func TestReadWriteOncePod(t *testing.T) {
	api := clienttest.New(node("a"), node("b"))
	put(api, boundClaim("one", func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	})...)
	r := run(t, api)
	api.Put(withClaim(pod("first"), "one"))
	r.until("first is bound", func() bool { return r.node("first") != "" })
	api.Put(withClaim(pod("second"), "one"))
	r.waits("second", "0/2 nodes are available: 2 node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access mode already in-use by another pod. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.")
	r.end("first")
	r.until("second follows", func() bool { return r.node("second") != "" })
}

// One that is more important takes the claim over.
func TestReadWriteOncePodPreempts(t *testing.T) {
	api := clienttest.New(node("a"), node("b"))
	put(api, boundClaim("one", func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
	})...)
	api.Put(on(withClaim(pod("low"), "one"), "b"))
	r := run(t, api)
	api.Put(withPriority(withClaim(pod("high"), "one"), 10))
	r.until("low is to end", func() bool { return r.get("low").DeletionTimestamp != nil })
	r.until("high waits for it", func() bool { return r.get("high").Status.NominatedNodeName == "b" })
	r.end("low")
	r.until("high runs", func() bool { return r.node("high") != "" })
}

func TestDiskConflict(t *testing.T) {
	disk := func(p *corev1.Pod, readOnly bool) *corev1.Pod {
		p.Spec.Volumes = []corev1.Volume{{Name: "d", VolumeSource: corev1.VolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{PDName: "d", ReadOnly: readOnly}}}}
		return p
	}
	r := run(t, clienttest.New(node("a"), on(disk(pod("reader"), true), "a")))
	r.api.Put(disk(pod("reads"), true))
	r.until("another reader is bound", func() bool { return r.node("reads") == "a" })
	r.api.Put(disk(pod("writes"), false))
	r.waits("writes", "0/1 nodes are available: 1 node(s) had no available disk. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
}

func TestVolumeLimits(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), csiNode("a", 2), &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: "disk.io"}, Spec: storagev1.CSIDriverSpec{PreventPodSchedulingIfMissing: ptr.To(true)},
	})
	for _, name := range []string{"one", "two", "three", "four"} {
		put(api, boundClaim(name, nil)...)
	}
	// A volume that is attached still, although no pod here uses it.
	api.Put(&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "left"}, Spec: storagev1.VolumeAttachmentSpec{
		Attacher: "disk.io", NodeName: "a", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("pv-four")},
	}})
	r := run(t, api)
	api.Put(withClaim(pod("p1"), "one"))
	r.until("one fits", func() bool { return r.node("p1") == "a" })
	api.Put(withClaim(pod("p2"), "two"))
	r.waits("p2", "0/2 nodes are available: 1 disk.io CSI driver is not installed on the node, 1 node(s) exceed max volume count. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.")
	api.Put(withClaim(pod("p3"), "one"))
	r.until("the same volume once more costs nothing", func() bool { return r.node("p3") == "a" })
	if err := client.For[*storagev1.VolumeAttachment](api.Client()).Delete(r.ctx, "left", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.until("p2 runs when the volume is detached", func() bool { return r.node("p2") == "a" })
	api.Put(withClaim(pod("p4"), "three"))
	r.until("p4 waits", func() bool { return r.message("p4") != "" })
	api.Put(csiNode("a", 3))
	r.until("p4 runs when the limit is raised", func() bool { return r.node("p4") == "a" })
}

func TestVolumeZone(t *testing.T) {
	zoned := func(name, zone string) *corev1.Node {
		n := node(name)
		n.Labels[corev1.LabelTopologyZone] = zone
		return n
	}
	api := clienttest.New(zoned("a", "z1"), zoned("b", "z2"))
	put(api, boundClaim("here", func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
		v.Labels = map[string]string{corev1.LabelFailureDomainBetaZone: "z2__z3"}
	})...)
	put(api, boundClaim("nowhere", func(_ *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) {
		v.Labels = map[string]string{corev1.LabelTopologyZone: "z9"}
	})...)
	r := run(t, api)
	api.Put(withClaim(pod("p"), "here"))
	r.until("p runs in the volume's zone", func() bool { return r.node("p") == "b" })
	api.Put(withClaim(pod("q"), "nowhere"))
	r.waits("q", "0/2 nodes are available: 2 node(s) had no available volume zone. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.")
}

func TestStorageCapacity(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), waitingClass("made", "disk.io"), claim("c", "made"), claim("d", "made"),
		&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk.io"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: ptr.To(true)}})
	r := run(t, api)
	api.Put(withClaim(pod("p"), "c"))
	r.waits("p", "0/2 nodes are available: 2 node(s) did not have enough free storage. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.")
	size := list("storage", "2Gi")["storage"]
	api.Put(&storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "b"}, StorageClassName: "made", Capacity: &size,
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: "b"}},
	})
	claims := client.InformerFor[*corev1.PersistentVolumeClaim](r.sched.d.Informers)
	asked := make(chan string, 8)
	claims.OnChange(func(c client.Change[*corev1.PersistentVolumeClaim]) {
		if c.New != nil && c.New.Annotations[storage.SelectedNode] != "" {
			asked <- c.New.Annotations[storage.SelectedNode]
		}
	})
	if got := <-asked; got != "b" {
		t.Errorf("the volume is wanted on %q", got)
	}
}

// Where a driver says what room it has, the volume is made where it fills least.
func TestStorageCapacityScores(t *testing.T) {
	room := func(node, size string) *storagev1.CSIStorageCapacity {
		q := list("storage", size)["storage"]
		return &storagev1.CSIStorageCapacity{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: node}, StorageClassName: "made", Capacity: &q,
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}},
		}
	}
	api := clienttest.New(node("a"), node("b"), node("c"), waitingClass("made", "disk.io"), claim("c", "made"), room("a", "2Gi"), room("b", "20Gi"), room("c", "4Gi"),
		&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk.io"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: ptr.To(true)}})
	r := run(t, api)
	asked := make(chan string, 8)
	client.InformerFor[*corev1.PersistentVolumeClaim](r.sched.d.Informers).OnChange(func(c client.Change[*corev1.PersistentVolumeClaim]) {
		if c.New != nil && c.New.Annotations[storage.SelectedNode] != "" {
			asked <- c.New.Annotations[storage.SelectedNode]
		}
	})
	api.Put(withClaim(pod("p"), "c"))
	if got := <-asked; got != "b" {
		t.Errorf("the volume is wanted on %q", got)
	}
}
