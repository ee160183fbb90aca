package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
)

// attachTest runs f on two nodes, a and b, and claims once and many, of which one node
// and many nodes at a time may have the volume.
func attachTest(t *testing.T, f func(*attachWorld), more ...client.Object) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		objects := []client.Object{attachNodeObject("a"), attachNodeObject("b")}
		for name, mode := range map[string]corev1.PersistentVolumeAccessMode{"once": corev1.ReadWriteOnce, "many": corev1.ReadWriteMany} {
			claim, pv := attachClaim(name, mode)
			objects = append(objects, claim, pv)
		}
		w := newAttachWorld(t, 1, append(objects, more...)...)
		defer w.stop()
		w.pass(time.Second)
		f(w)
	})
}

// pass lets time pass.
func (w *attachWorld) pass(d time.Duration) { time.Sleep(d); synctest.Wait() }

// state is every VolumeAttachment, and what nodes list, in words.
func (w *attachWorld) state() string {
	var out []string
	for _, a := range list[*storagev1.VolumeAttachment](&w.world, "") {
		what := ptr.Deref(a.Spec.Source.PersistentVolumeName, "inline")
		s := fmt.Sprintf("%s to %s by %s", what, a.Spec.NodeName, a.Spec.Attacher)
		if a.Status.Attached {
			s += ", attached"
		}
		if a.DeletionTimestamp != nil {
			s += ", going"
		}
		out = append(out, s)
	}
	for _, n := range list[*corev1.Node](&w.world, "") {
		for _, v := range n.Status.VolumesAttached {
			out = append(out, n.Name+" lists "+string(v.Name))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func (w *attachWorld) want(what string, lines ...string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.state(); got != strings.Join(lines, "\n") {
		w.t.Errorf("%s:\n%s\nwant\n%s", what, got, strings.Join(lines, "\n"))
	}
}

func (w *attachWorld) wantEvents(lines ...string) {
	w.t.Helper()
	w.pass(time.Second)
	if got := w.events(); !slices.Equal(got, lines) {
		w.t.Errorf("events:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

// driver says of a volume's attachment to a node what f sets.
func (w *attachWorld) driver(claim, node string, f func(*storagev1.VolumeAttachment)) {
	w.t.Helper()
	edit(&w.world, "", storage.AttachmentName(simDriver, claim, node), "status", f)
	w.pass(10 * time.Millisecond)
}

func isAttached(a *storagev1.VolumeAttachment) { a.Status.Attached = true }

func (w *attachWorld) remove(pod string) {
	w.t.Helper()
	zero := int64(0)
	if err := client.For[*corev1.Pod](w.c).In("ns").Delete(context.Background(), pod, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		w.t.Fatal(err)
	}
	w.pass(10 * time.Millisecond)
}

func (w *attachWorld) put(o client.Object) { w.api.Put(o); w.pass(10 * time.Millisecond) }

// hold keeps an object until its driver is done with it.
func (w *attachWorld) hold(claim, node string) {
	edit(&w.world, "", storage.AttachmentName(simDriver, claim, node), "", func(a *storagev1.VolumeAttachment) { a.Finalizers = []string{"example.com/driver"} })
}

func (w *attachWorld) release(claim, node string) {
	edit(&w.world, "", storage.AttachmentName(simDriver, claim, node), "", func(a *storagev1.VolumeAttachment) { a.Finalizers = nil })
	w.pass(10 * time.Millisecond)
}

func TestAttachAndDetach(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.want("before")
		w.put(claimPod("web", "a", "once"))
		w.want("a pod is placed", "pv-once to a by disks.example.com")
		w.driver("once", "a", isAttached)
		listed := "a lists kubernetes.io/csi/disks.example.com^once"
		w.want("the driver has attached it", listed, "pv-once to a by disks.example.com, attached")
		w.wantEvents(`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `)
		w.setInUse("a", "once", true)
		w.hold("once", "a")
		w.remove("web")
		w.pass(time.Hour)
		w.want("the pod is gone, the volume is mounted", listed, "pv-once to a by disks.example.com, attached")
		w.setInUse("a", "once", false)
		w.pass(10 * time.Millisecond)
		w.want("the node is done with it", "pv-once to a by disks.example.com, attached, going")
		w.release("once", "a")
		w.want("the driver has detached it")
		w.wantEvents(`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `)
	})
}

// Whoever is later of the kubelet that reports a volume as in use and the controller that
// is about to detach it sees the other.
func TestNodeIsLookedAtBeforeADetachment(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.driver("once", "a", isAttached)
		w.set(func() {
			w.onRead = func(node string) {
				w.set(func() { w.onRead = nil })
				w.setInUse(node, "once", true)
			}
		})
		w.remove("web")
		w.pass(time.Minute)
		w.want("a pod came and went, the node may have it mounted",
			"a lists kubernetes.io/csi/disks.example.com^once", "pv-once to a by disks.example.com, attached")
		w.setInUse("a", "once", false)
		w.pass(time.Minute)
		w.want("the node is done with it")
	})
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.driver("once", "a", isAttached)
		w.api.refuse(func(verb string, ref client.Ref) error {
			if ref.GVR.Resource == "volumeattachments" && verb == "delete" {
				return errors.New("injected")
			}
			return nil
		})
		w.remove("web")
		w.pass(time.Minute)
		w.want("it cannot be detached", "pv-once to a by disks.example.com, attached")
		w.put(claimPod("again", "a", "once"))
		w.want("a pod wants it again", "a lists kubernetes.io/csi/disks.example.com^once", "pv-once to a by disks.example.com, attached")
		w.remove("again")
		w.api.refuse(nil)
		w.pass(3 * time.Minute)
		w.want("it can be detached now")
	})
}

func TestPodEndsBeforeItsVolumeIsAttached(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.hold("once", "a")
		w.setInUse("a", "once", true)
		edit(&w.world, "ns", "web", "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		w.pass(time.Second)
		w.want("the node may mount it any moment", "pv-once to a by disks.example.com")
		w.setInUse("a", "once", false)
		w.pass(time.Second)
		w.want("the node does not mean to any more", "pv-once to a by disks.example.com, going")
		w.release("once", "a")
		w.want("the driver was told")
		w.wantEvents()
	})
}

func TestAttachFails(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.driver("once", "a", func(a *storagev1.VolumeAttachment) {
			a.Status.AttachError = &storagev1.VolumeError{Message: "rpc error: no such disk"}
		})
		failed := `web Warning FailedAttachVolume: AttachVolume.Attach failed for volume "pv-once" : rpc error: no such disk`
		w.wantEvents(failed)
		// 0.5, 1, 2, 4, 8, 16, 32, 64, 122 s, and again: 12 times in ten minutes.
		w.pass(10 * time.Minute)
		for _, e := range list[*corev1.Event](&w.world, "ns") {
			if e.Count != 12 {
				t.Errorf("it was told %d times", e.Count)
			}
		}
		w.driver("once", "a", func(a *storagev1.VolumeAttachment) { a.Status.AttachError, a.Status.Attached = nil, true })
		w.wantEvents(`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `, failed)
	})
}

func TestAttachTimesOut(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.pass(2*time.Minute - 3*time.Second)
		w.wantEvents()
		w.pass(time.Second)
		w.wantEvents(`web Warning FailedAttachVolume: AttachVolume.Attach failed for volume "pv-once" : timed out waiting for external-attacher of disks.example.com CSI driver to attach volume once`)
	})
}

func TestExclusiveVolumeMoves(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("old", "a", "once"))
		w.driver("once", "a", isAttached)
		w.hold("once", "a")
		w.setInUse("a", "once", true)
		w.put(claimPod("new", "b", "once"))
		listed, attached := "a lists kubernetes.io/csi/disks.example.com^once", "pv-once to a by disks.example.com, attached"
		w.want("two pods", listed, attached)
		told := []string{
			`new Warning FailedAttachVolume: Waiting for detach for volume "pv-once" Volume is already used by pod(s) old`,
			`old Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `,
		}
		w.wantEvents(told...)
		w.remove("old")
		w.want("still mounted", listed, attached)
		w.setInUse("a", "once", false)
		w.pass(10 * time.Millisecond)
		w.want("unmounted", attached+", going")
		w.pass(time.Minute)
		w.release("once", "a")
		w.want("detached", "pv-once to b by disks.example.com")
		w.driver("once", "b", isAttached)
		w.want("moved", "b lists kubernetes.io/csi/disks.example.com^once", "pv-once to b by disks.example.com, attached")
		w.wantEvents(append([]string{`new Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `}, told...)...)
	})
}

func TestSharedVolume(t *testing.T) {
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("one", "a", "many"))
		w.put(claimPod("two", "b", "many"))
		w.put(claimPod("three", "b", "many"))
		w.want("two nodes", "pv-many to a by disks.example.com", "pv-many to b by disks.example.com")
		w.driver("many", "a", isAttached)
		w.remove("two")
		w.want("one pod is left there", "a lists kubernetes.io/csi/disks.example.com^many",
			"pv-many to a by disks.example.com, attached", "pv-many to b by disks.example.com")
		w.remove("three")
		w.want("none is", "a lists kubernetes.io/csi/disks.example.com^many", "pv-many to a by disks.example.com, attached")
	})
}

// A volume is taken from a node that may have it mounted only where the node is not
// ready for six minutes, is gone for as long, or is said to be out of service.
func TestLostNodes(t *testing.T) {
	setup := func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.driver("once", "a", isAttached)
		w.setInUse("a", "once", true)
		w.pass(time.Second)
	}
	notReady := func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }
	kept := []string{"a lists kubernetes.io/csi/disks.example.com^once", "pv-once to a by disks.example.com, attached"}
	t.Run("not ready", func(t *testing.T) {
		attachTest(t, func(w *attachWorld) {
			setup(w)
			edit(&w.world, "", "a", "status", notReady)
			w.pass(time.Hour)
			w.want("the pod is there", kept...)
			w.remove("web")
			w.pass(6*time.Minute - time.Second)
			w.want("for less than six minutes", kept...)
			w.pass(time.Second)
			w.want("for six minutes")
		})
	})
	t.Run("ready again", func(t *testing.T) {
		attachTest(t, func(w *attachWorld) {
			setup(w)
			edit(&w.world, "", "a", "status", notReady)
			w.remove("web")
			w.pass(5 * time.Minute)
			edit(&w.world, "", "a", "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue })
			w.pass(time.Hour)
			w.want("a node that is ready unmounts by itself", kept...)
		})
	})
	t.Run("out of service", func(t *testing.T) {
		attachTest(t, func(w *attachWorld) {
			setup(w)
			edit(&w.world, "", "a", "status", notReady)
			w.remove("web")
			w.want("before", kept...)
			edit(&w.world, "", "a", "", func(n *corev1.Node) {
				n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
			})
			w.pass(time.Second)
			w.want("after")
		})
	})
	t.Run("gone", func(t *testing.T) {
		attachTest(t, func(w *attachWorld) {
			setup(w)
			if err := client.For[*corev1.Node](w.c).Delete(context.Background(), "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Second)
			w.want("the pod is there", kept[1])
			w.remove("web")
			w.pass(6*time.Minute - 2*time.Second)
			w.want("it may be mounted", kept[1])
			w.pass(2 * time.Second)
			w.want("for six minutes")
		})
	})
	t.Run("gone, not mounted", func(t *testing.T) {
		attachTest(t, func(w *attachWorld) {
			setup(w)
			w.setInUse("a", "once", false)
			w.pass(time.Second)
			if err := client.For[*corev1.Node](w.c).Delete(context.Background(), "a", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			w.remove("web")
			w.want("at once")
		})
	})
}

func TestDriverWithoutAttachment(t *testing.T) {
	off := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: simDriver}, Spec: storagev1.CSIDriverSpec{AttachRequired: ptr.To(false)}}
	attachTest(t, func(w *attachWorld) {
		w.put(claimPod("web", "a", "once"))
		w.pass(time.Hour)
		w.want("nothing is attached")
		edit(&w.world, "", simDriver, "", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = ptr.To(true) })
		w.pass(time.Second)
		w.want("the driver wants it now", "pv-once to a by disks.example.com")
		w.driver("once", "a", isAttached)
		edit(&w.world, "", simDriver, "", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = ptr.To(false) })
		w.pass(time.Second)
		w.want("and does not any more")
		w.wantEvents(`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `)
	}, off)
}

// What a controller finds when it starts.
func TestAttachmentsFound(t *testing.T) {
	object := func(claim, node string, attached bool) *storagev1.VolumeAttachment {
		return &storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: storage.AttachmentName(simDriver, claim, node), UID: "found"},
			Spec:       storagev1.VolumeAttachmentSpec{Attacher: simDriver, NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("pv-" + claim)}},
			Status:     storagev1.VolumeAttachmentStatus{Attached: attached},
		}
	}
	lists := func(names ...string) *corev1.Node {
		n := attachNodeObject("c")
		for _, name := range names {
			n.Status.VolumesAttached = append(n.Status.VolumesAttached, corev1.AttachedVolume{Name: corev1.UniqueVolumeName(name)})
		}
		return n
	}
	for _, tt := range []struct {
		what    string
		objects []client.Object
		want    []string
		says    []string
	}{
		{"one that is wanted", []client.Object{object("once", "c", true), claimPod("web", "c", "once"), lists("kubernetes.io/csi/disks.example.com^once")},
			[]string{"c lists kubernetes.io/csi/disks.example.com^once", "pv-once to c by disks.example.com, attached"}, nil},
		{"one that is not listed", []client.Object{object("once", "c", true), claimPod("web", "c", "once"), lists()},
			[]string{"c lists kubernetes.io/csi/disks.example.com^once", "pv-once to c by disks.example.com, attached"},
			[]string{`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-once" `}},
		{"one that nobody wants", []client.Object{object("once", "c", true), lists("kubernetes.io/csi/disks.example.com^once")}, nil, nil},
		{"one whose volume is gone", []client.Object{object("lost", "c", true), lists("kubernetes.io/csi/disks.example.com^lost")}, nil, nil},
		{"one that is listed without an object", []client.Object{claimPod("web", "c", "once"), lists("kubernetes.io/csi/disks.example.com^once")},
			[]string{"pv-once to c by disks.example.com"}, nil},
		{"a listed one of another kind", []client.Object{lists("kubernetes.io/flexvolume-x/y", "kubernetes.io/iscsi/p:i:0", "z")},
			[]string{"c lists kubernetes.io/flexvolume-x/y", "c lists z"}, nil},
		{"somebody else's", []client.Object{&storagev1.VolumeAttachment{
			ObjectMeta: metav1.ObjectMeta{Name: "mine", UID: "u"},
			Spec:       storagev1.VolumeAttachmentSpec{Attacher: simDriver, NodeName: "a", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: ptr.To("pv-once")}},
		}}, []string{"pv-once to a by disks.example.com"}, nil},
		{"two at once", []client.Object{object("once", "a", true), object("once", "c", false), claimPod("web", "c", "once"), lists()},
			[]string{"pv-once to c by disks.example.com"}, nil},
	} {
		attachTest(t, func(w *attachWorld) {
			w.want(tt.what, tt.want...)
			w.wantEvents(tt.says...)
		}, tt.objects...)
	}
}

// Volumes that are not of a driver from the start.
func TestOtherVolumes(t *testing.T) {
	inline := func(name, node string, s corev1.VolumeSource) *corev1.Pod {
		p := claimPod(name, node, "")
		p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: s}}
		return p
	}
	attachTest(t, func(w *attachWorld) {
		w.put(inline("web", "a", corev1.VolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "vol-1"}}))
		w.want("a driver took over for it", "inline to a by ebs.csi.aws.com")
		edit(&w.world, "", storage.AttachmentName("ebs.csi.aws.com", "vol-1", "a"), "status", isAttached)
		w.wantEvents(`web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "ebs.csi.aws.com-vol-1" `)
		w.remove("web")
		w.want("detached")
		iscsi := corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "p", IQN: "i", Lun: 1}}
		w.put(inline("db", "a", iscsi))
		w.want("the node attaches it", "a lists kubernetes.io/iscsi/p:i:1")
		w.setInUse("a", "x", true)
		w.remove("db")
		w.want("and detaches it")
	})
}

func TestPodsThatWantNothing(t *testing.T) {
	foreign := attachNodeObject("c")
	foreign.Annotations = nil
	attachTest(t, func(w *attachWorld) {
		over := claimPod("over", "a", "once")
		over.Status.Phase = corev1.PodSucceeded
		w.put(over)
		w.put(claimPod("unplaced", "", "once"))
		w.put(claimPod("lost", "nowhere", "once"))
		w.put(claimPod("foreign", "c", "once"))
		other := claimPod("other", "a", "once")
		other.Namespace = "other"
		w.put(other)
		ephemeral := claimPod("once", "a", "")
		ephemeral.Spec.Volumes[0] = corev1.Volume{Name: "x", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{}}}}
		claim, pv := attachClaim("once-x", corev1.ReadWriteOnce) // somebody else's
		w.put(claim)
		w.put(pv)
		w.put(ephemeral)
		unbound, free := attachClaim("unbound", corev1.ReadWriteOnce)
		unbound.Status.Phase = corev1.ClaimPending
		w.put(unbound)
		w.put(free)
		w.put(claimPod("waits", "a", "unbound"))
		w.want("nothing is attached")
		edit(&w.world, "ns", "unbound", "status", func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimBound })
		w.pass(10 * time.Millisecond)
		w.want("a claim is bound", "pv-unbound to a by disks.example.com")
		// A pod that is deleted and whose containers have ended needs nothing either,
		// though its object stays.
		if err := client.For[*corev1.Pod](w.c).In("ns").Delete(context.Background(), "waits", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.pass(10 * time.Millisecond)
		w.want("its pod is deleted")
	}, foreign)
}
