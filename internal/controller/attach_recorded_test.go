package controller

import (
	"context"
	"os"
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

// testdata/attach.txt has scenarios: a title, what happens, line by line, and after
// each the state in which upstream's controller (1.37.2, with its CSI plugin) left
// objects, nodes and events five seconds later. It was run on these very lines; its six
// minutes (expire) were fifteen seconds. Where a line has several steps, what is between
// them is not compared: upstream takes volumes for mounted after a start, until the node's
// status changes, and goes by what it remembers where a PersistentVolume is gone. What is
// not recorded: upstream detaches nothing while a try to attach goes on, here a pod that
// ends meanwhile gives its volume back at once.
func TestRecordedAttachments(t *testing.T) {
	b, err := os.ReadFile("testdata/attach.txt")
	if err != nil {
		t.Fatal(err)
	}
	scenarios := strings.Split(strings.TrimSpace(string(b)), "\n\n")
	if len(scenarios) < 20 {
		t.Fatalf("%d scenarios", len(scenarios))
	}
	for _, s := range scenarios {
		lines := strings.Split(s, "\n")
		t.Run(strings.TrimPrefix(lines[0], "# "), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { replay(t, lines[1:]) })
		})
	}
}

func replay(t *testing.T, lines []string) {
	w := newAttachWorld(t, 1)
	defer w.stop()
	w.asleep(true)
	for i := 0; i < len(lines); {
		step := lines[i]
		var want []string
		for i++; i < len(lines) && strings.HasPrefix(lines[i], "> "); i++ {
			want = append(want, strings.TrimPrefix(lines[i], "> "))
		}
		for one := range strings.SplitSeq(step, "; ") {
			w.happens(strings.Fields(one))
		}
		if len(want) == 0 && !w.began {
			continue
		}
		got := strings.Split(w.state(), "\n")
		for _, e := range w.events() {
			got = append(got, strings.TrimSpace(e))
		}
		slices.Sort(got)
		got = slices.DeleteFunc(slices.Compact(got), func(s string) bool { return s == "" })
		if !slices.Equal(got, want) {
			t.Errorf("after %q:\n%s\nupstream:\n%s", step, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// asleep keeps the controller from running, or lets it.
func (w *attachWorld) asleep(on bool) {
	w.set(func() {
		w.sleeping = on
		if on && w.kill != nil {
			w.kill()
		}
	})
	w.pass(2 * time.Second)
}

// happens does a step of a scenario, and waits as long as upstream was given.
func (w *attachWorld) happens(f []string) {
	w.t.Helper()
	wait := 5 * time.Second
	object := func(f func(*storagev1.VolumeAttachment), claim, node string) { w.driver(claim, node, f) }
	node := func(name, sub string, f func(*corev1.Node)) { edit(&w.world, "", name, sub, f) }
	rest := func(n int) string { return strings.Join(f[n:], " ") }
	switch f[0] {
	case "node":
		n := attachNodeObject(f[1])
		if len(f) > 2 {
			n.Annotations = nil
		}
		w.api.Put(n)
	case "claim":
		mode := map[string]corev1.PersistentVolumeAccessMode{"RWO": corev1.ReadWriteOnce, "RWX": corev1.ReadWriteMany, "RWOP": corev1.ReadWriteOncePod}[f[2]]
		c, v := attachClaim(f[1], mode)
		w.api.Put(c)
		w.api.Put(v)
	case "removevolume":
		if err := client.For[*corev1.PersistentVolume](w.c).Delete(context.Background(), "pv-"+f[1], metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	case "pod":
		p := claimPod(f[1], f[2], f[3])
		switch s := &p.Spec.Volumes[0].VolumeSource; f[3] {
		case "ebs":
			*s = corev1.VolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "vol-1"}}
		case "iscsi":
			*s = corev1.VolumeSource{ISCSI: &corev1.ISCSIVolumeSource{TargetPortal: "p", IQN: "i", Lun: 1}}
		case "fc":
			*s = corev1.VolumeSource{FC: &corev1.FCVolumeSource{TargetWWNs: []string{"w", "x"}, Lun: ptr.To(int32(2))}}
		case "inline":
			*s = corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: simDriver}}
		}
		w.api.Put(p)
	case "ended":
		edit(&w.world, "ns", f[1], "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
	case "remove":
		w.remove(f[1])
	case "attached":
		object(func(a *storagev1.VolumeAttachment) { a.Status.Attached, a.Status.AttachError = true, nil }, f[1], f[2])
	case "fails":
		object(func(a *storagev1.VolumeAttachment) { a.Status.AttachError = &storagev1.VolumeError{Message: rest(3)} }, f[1], f[2])
	case "stuck":
		object(func(a *storagev1.VolumeAttachment) { a.Status.DetachError = &storagev1.VolumeError{Message: rest(3)} }, f[1], f[2])
	case "hold":
		w.hold(f[1], f[2])
	case "release":
		w.release(f[1], f[2])
	case "inuse":
		w.setInUse(f[2], f[1], true)
	case "unused":
		w.setInUse(f[2], f[1], false)
	case "notready":
		node(f[1], "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })
	case "outofservice":
		node(f[1], "", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
		})
	case "removenode":
		if err := client.For[*corev1.Node](w.c).Delete(context.Background(), f[1], metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	case "driver":
		if len(list[*storagev1.CSIDriver](&w.world, "")) == 0 {
			w.api.Put(&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: simDriver}})
		}
		edit(&w.world, "", simDriver, "", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = ptr.To(f[1] == "on") })
	case "start":
		w.began = true
		w.asleep(false)
	case "stop":
		w.asleep(true)
	case "deleteobject":
		if err := client.For[*storagev1.VolumeAttachment](w.c).Delete(context.Background(), storage.AttachmentName(simDriver, f[1], f[2]), metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	case "timeout":
		wait = attacherWait + 20*time.Second
	case "expire":
		wait = unmountWait
	default:
		w.t.Fatalf("no such step: %q", f)
	}
	w.pass(wait)
}
