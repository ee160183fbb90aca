package controller

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/control"
)

func testClaim(name, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: ptr.To(""),
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func testVolume(name, size string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			Capacity:               corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/srv/x"}},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	for _, f := range change {
		f(v)
	}
	return v
}

func localTestClass() *storagev1.StorageClass {
	return &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: "local", Annotations: map[string]string{storage.DefaultClassAnnotation: "true"}},
		Provisioner: LocalProvisioner, VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
		ReclaimPolicy: ptr.To(corev1.PersistentVolumeReclaimDelete), AllowVolumeExpansion: ptr.To(true),
	}
}

func TestPlanClaim(t *testing.T) {
	inClass := func(name string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &name }
	}
	unnamed := func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }
	at := func(node string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { annotateObject(c, storage.SelectedNode, node) }
	}
	of := func(volume string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = volume }
	}
	bound := func(c *corev1.PersistentVolumeClaim) { annotateObject(c, storage.BindCompleted, "yes") }
	held := func(name string, uid types.UID) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: uid}
		}
	}
	volumes := map[string]*corev1.PersistentVolume{
		"big": testVolume("big", "10Gi"), "fit": testVolume("fit", "2Gi"),
		"other": testVolume("other", "2Gi", held("somebody", "u")),
		"mine":  testVolume("mine", "2Gi", held("mine", "")),
	}
	classes := []*storagev1.StorageClass{
		localTestClass(),
		{ObjectMeta: metav1.ObjectMeta{Name: "none"}, Provisioner: "kubernetes.io/no-provisioner", VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate)},
		{ObjectMeta: metav1.ObjectMeta{Name: "ebs"}, Provisioner: "kubernetes.io/aws-ebs", VolumeBindingMode: ptr.To(storagev1.VolumeBindingImmediate)},
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "first"}}
	for _, tt := range []struct {
		what   string
		claim  *corev1.PersistentVolumeClaim
		pods   []*corev1.Pod
		bind   string
		ask    string
		class  string
		phase  corev1.PersistentVolumeClaimPhase
		reason string
		says   string
	}{
		{what: "the smallest that fits", claim: testClaim("c", "1Gi"), bind: "fit"},
		{what: "only the big one fits", claim: testClaim("c", "3Gi"), bind: "big"},
		{what: "one reserved for it", claim: testClaim("mine", "1Gi"), bind: "mine"},
		{what: "none is large enough", claim: testClaim("c", "1Ti"), phase: corev1.ClaimPending, reason: "FailedBinding",
			says: "no persistent volumes available for this claim and no storage class is set"},
		{what: "no class, a default", claim: testClaim("c", "1Ti", unnamed), class: "local"},
		{what: "waits for a pod", claim: testClaim("c", "1Gi", inClass("local")), phase: corev1.ClaimPending, reason: "WaitForFirstConsumer",
			says: "waiting for first consumer to be created before binding"},
		{what: "waits for its pod's node", claim: testClaim("c", "1Gi", inClass("local")), pods: []*corev1.Pod{pod}, phase: corev1.ClaimPending,
			reason: "WaitForPodScheduled", says: "waiting for pod first to be scheduled"},
		{what: "has a node", claim: testClaim("c", "1Gi", inClass("local"), at("n")), ask: LocalProvisioner, reason: "ExternalProvisioning",
			says: "Waiting for a volume to be created either by the external provisioner 'skiff.io/local' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."},
		{what: "a driver took over", claim: testClaim("c", "1Gi", inClass("ebs")), ask: "ebs.csi.aws.com", reason: "ExternalProvisioning",
			says: "Waiting for a volume to be created either by the external provisioner 'ebs.csi.aws.com' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."},
		{what: "nobody provisions", claim: testClaim("c", "1Gi", inClass("none")), reason: "ProvisioningFailed", says: "no volume plugin matched name: kubernetes.io/no-provisioner"},
		{what: "an unknown class", claim: testClaim("c", "1Gi", inClass("x")), reason: "ProvisioningFailed", says: `storageclass.storage.k8s.io "x" not found`},
		{what: "names a free one", claim: testClaim("c", "1Gi", of("big")), bind: "big"},
		{what: "names a small one", claim: testClaim("c", "5Gi", of("fit")), phase: corev1.ClaimPending, reason: "VolumeMismatch",
			says: `Cannot bind to requested volume "fit": requested PV is too small`},
		{what: "names another's", claim: testClaim("c", "1Gi", of("other")), phase: corev1.ClaimPending, reason: "FailedBinding",
			says: `volume "other" already bound to a different claim.`},
		{what: "names one that is not there", claim: testClaim("c", "1Gi", of("gone")), phase: corev1.ClaimPending},
		{what: "lost its volume", claim: testClaim("c", "1Gi", of("gone"), bound), phase: corev1.ClaimLost, reason: "ClaimLost",
			says: "Bound claim has lost its PersistentVolume. Data on the volume is lost!"},
		{what: "lost its reference", claim: testClaim("c", "1Gi", bound), phase: corev1.ClaimLost, reason: "ClaimLost",
			says: "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!"},
		{what: "its volume is another's", claim: testClaim("c", "1Gi", of("other"), bound), phase: corev1.ClaimLost, reason: "ClaimMisbound",
			says: "Two claims are bound to the same volume, this one is bound incorrectly"},
	} {
		var all []*corev1.PersistentVolume
		for _, v := range volumes {
			all = append(all, v)
		}
		p := planClaim(tt.claim, surroundings{
			volumes: all, classes: classes, pods: tt.pods,
			volume: func(name string) (*corev1.PersistentVolume, bool) { v, ok := volumes[name]; return v, ok },
			class: func(name string) (*storagev1.StorageClass, bool) {
				for _, c := range classes {
					if c.Name == name {
						return c, true
					}
				}
				return nil, false
			},
		})
		got := ""
		if p.bind != nil {
			got = p.bind.Name
		}
		if p.err != nil || got != tt.bind || p.ask != tt.ask || p.class != tt.class || p.phase != tt.phase || p.say.reason != tt.reason || p.say.message != tt.says {
			t.Errorf("%s: bind %q, plan %+v", tt.what, got, p)
		}
	}
}

// directories is a LocalVolumes in memory.
type directories struct {
	mu   sync.Mutex
	have map[string]string
}

func (d *directories) Make(_ context.Context, n *corev1.Node, name string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.have[name] = n.Name
	return "/data/volumes/" + name, nil
}

func (d *directories) Remove(_ context.Context, _ *corev1.Node, name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.have, name)
	return nil
}

func (d *directories) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.have)
}

func TestLocalVolumesComeGrowAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dirs := &directories{have: map[string]string{}}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelHostname: "host-n"}}}
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.LocalVolumes = dirs
			return []*control.Controller{newPVBinder(d), newLocalVolume(d), newPVCProtection(d), newPVProtection(d), newExpand(d)}
		}, localTestClass(), node)
		defer w.stop()
		w.api.Put(testClaim("data", "1Gi", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }))
		claim := func() *corev1.PersistentVolumeClaim { return get[*corev1.PersistentVolumeClaim](w, "ns", "data") }
		w.until("the claim has the default class", func() bool { return storage.ClaimClass(claim()) == "local" })
		time.Sleep(time.Minute)
		synctest.Wait()
		if dirs.len() != 0 {
			t.Fatal("a volume was made before a pod needed it")
		}
		edit(w, "ns", "data", "", func(c *corev1.PersistentVolumeClaim) { annotateObject(c, storage.SelectedNode, "n") })
		w.until("the claim is bound", func() bool { return claim().Status.Phase == corev1.ClaimBound })
		c := claim()
		v := get[*corev1.PersistentVolume](w, "", c.Spec.VolumeName)
		if v.Spec.Local == nil || v.Spec.Local.Path != "/data/volumes/"+v.Name || v.Spec.ClaimRef.UID != c.UID || v.Status.Phase != corev1.VolumeBound ||
			c.Annotations[storage.BindCompleted] != "yes" || !storage.Reaches(v, node) || storage.Reaches(v, &corev1.Node{}) {
			t.Errorf("volume is %+v, claim %+v", v, c)
		}
		edit(w, "ns", "data", "", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("3Gi")}
		})
		w.until("the claim has grown", func() bool { return claim().Status.Capacity.Storage().String() == "3Gi" })

		// A pod that runs keeps the claim; the directory goes with it.
		w.api.Put(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p"}, Spec: corev1.PodSpec{NodeName: "n", Volumes: []corev1.Volume{{
			Name: "d", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}},
		}}}})
		if err := client.For[*corev1.PersistentVolumeClaim](w.c).In("ns").Delete(t.Context(), "data", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if claim().DeletionTimestamp == nil || dirs.len() != 1 {
			t.Fatal("a claim went while a pod used it")
		}
		zero := int64(0)
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), "p", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
			t.Fatal(err)
		}
		w.until("volume and directory are gone", func() bool {
			_, err := client.For[*corev1.PersistentVolume](w.c).Get(t.Context(), v.Name)
			return apierrors.IsNotFound(err) && dirs.len() == 0
		})
	})
}
