package controller

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/storage"
)

// attachTime is the now of these tests; what happens before it says how long.
var attachTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func past(d time.Duration) time.Time { return attachTime.Add(-d) }

// objectOf is a VolumeAttachment; state is attached, failed, or empty while the driver
// is at it. Deleting ones are since so long.
func objectOf(state string, deleting time.Duration) *storagev1.VolumeAttachment {
	a := &storagev1.VolumeAttachment{}
	switch state {
	case "attached":
		a.Status.Attached = true
	case "failed":
		a.Status.AttachError = &storagev1.VolumeError{Message: "no such disk"}
	case "stuck": // attached, and does not come off
		a.Status.Attached = true
		a.Status.DetachError = &storagev1.VolumeError{Message: "it is stuck"}
	}
	if deleting >= 0 {
		at := metav1.NewTime(past(deleting))
		a.DeletionTimestamp = &at
	}
	return a
}

const alive = time.Duration(-1)

func attachPod(name string, age time.Duration) *corev1.Pod {
	ns, n, _ := strings.Cut(name, "/")
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: n, CreationTimestamp: metav1.NewTime(past(age))}}
}

func showPlans(plans []attachPlan, r attachRetries) string {
	var lines []string
	for _, p := range plans {
		var do []string
		switch p.step {
		case attachCreate:
			do = append(do, "create")
		case attachDelete:
			do = append(do, "delete")
		}
		if p.unsafe {
			do = append(do, "unsafe")
		}
		if p.relist {
			do = append(do, "list")
		}
		if len(do) == 0 {
			do = append(do, "nothing")
		}
		line := p.node + ": " + strings.Join(do, " ")
		if !p.again.IsZero() {
			line += fmt.Sprintf(" again %s", p.again.Sub(attachTime))
		}
		lines = append(lines, line)
		for _, s := range p.say {
			lines = append(lines, fmt.Sprintf("  %s/%s %s %s: %s", s.pod.Namespace, s.pod.Name, s.kind, s.reason, s.message))
		}
	}
	if r.delay > 0 {
		op := "attach"
		if r.detach {
			op = "detach"
		}
		lines = append(lines, fmt.Sprintf("retry %s after %s", op, r.delay))
	}
	return strings.Join(lines, "\n")
}

func TestPlanVolume(t *testing.T) {
	web := []*corev1.Pod{attachPod("ns/web", time.Minute)}
	up := func(name string, f func(*attachment)) attachment {
		x := attachment{node: name, there: true, ready: true}
		f(&x)
		return x
	}
	for _, tt := range []struct {
		what     string
		shared   bool
		noDriver bool
		nodes    []attachment
		retries  attachRetries
		want     string
	}{
		{what: "a pod wants it", nodes: []attachment{up("a", func(x *attachment) { x.pods = web })}, want: "a: create again 2m0s"},
		{what: "its node is gone", nodes: []attachment{{node: "a", pods: web}}, want: "a: nothing"},
		{what: "the driver is at it", nodes: []attachment{up("a", func(x *attachment) {
			x.pods, x.object, x.since = web, objectOf("", alive), past(30*time.Second)
		})}, want: "a: nothing again 1m30s"},
		{what: "found after a restart", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("", alive) })},
			want: "a: nothing again 2m0s"},
		{what: "the driver failed", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("failed", alive) })},
			want: "a: nothing again 500ms\n  ns/web Warning FailedAttachVolume: AttachVolume.Attach failed for volume \"pv\" : no such disk\nretry attach after 500ms"},
		{what: "it failed again", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("failed", alive) })},
			retries: attachRetries{delay: 64 * time.Second, until: attachTime},
			want:    "a: nothing again 2m2s\n  ns/web Warning FailedAttachVolume: AttachVolume.Attach failed for volume \"pv\" : no such disk\nretry attach after 2m2s"},
		{what: "too early to try again", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("failed", alive) })},
			retries: attachRetries{delay: time.Second, until: past(-400 * time.Millisecond)}, want: "a: nothing again 400ms\nretry attach after 1s"},
		{what: "the driver says nothing", nodes: []attachment{up("a", func(x *attachment) {
			x.pods, x.object, x.since = web, objectOf("", alive), past(2*time.Minute)
		})}, want: "a: nothing again 500ms\n  ns/web Warning FailedAttachVolume: AttachVolume.Attach failed for volume \"pv\" : " +
			"timed out waiting for external-attacher of d CSI driver to attach volume h\nretry attach after 500ms"},
		{what: "attached", retries: attachRetries{delay: time.Second, until: past(0)}, nodes: []attachment{up("a", func(x *attachment) {
			x.pods, x.object = web, objectOf("attached", alive)
		})}, want: "a: list\n  ns/web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume \"pv\" "},
		{what: "attached, and said so", nodes: []attachment{up("a", func(x *attachment) {
			x.pods, x.object, x.attached = web, objectOf("attached", alive), true
		})}, want: "a: list"},
		{what: "its object was deleted by somebody", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.listed, x.attached = web, true, true })},
			want: "a: create list again 2m0s"},
		{what: "attached and listed", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object, x.listed = web, objectOf("attached", alive), true })},
			want: "a: nothing"},

		{what: "nobody wants it", nodes: []attachment{up("a", func(x *attachment) { x.object, x.listed = objectOf("attached", alive), true })}, want: "a: list"},
		{what: "the node has dropped it", nodes: []attachment{up("a", func(x *attachment) { x.object = objectOf("attached", alive) })}, want: "a: delete"},
		{what: "it is still mounted", nodes: []attachment{up("a", func(x *attachment) {
			x.object, x.listed, x.inUse, x.unwanted = objectOf("attached", alive), true, true, past(time.Hour)
		})}, want: "a: nothing"},
		{what: "mounted, the node is not ready", nodes: []attachment{up("a", func(x *attachment) {
			x.object, x.listed, x.inUse, x.ready = objectOf("attached", alive), true, true, false
		})}, want: "a: nothing again 6m0s"},
		{what: "not ready for long", nodes: []attachment{up("a", func(x *attachment) {
			x.object, x.inUse, x.ready, x.unwanted = objectOf("attached", alive), true, false, past(6*time.Minute)
		})}, want: "a: delete unsafe"},
		{what: "out of service", nodes: []attachment{up("a", func(x *attachment) {
			x.object, x.inUse, x.ready, x.outOfService = objectOf("attached", alive), true, false, true
		})}, want: "a: delete unsafe"},
		{what: "the driver is detaching", nodes: []attachment{up("a", func(x *attachment) { x.object = objectOf("attached", 30*time.Second) })},
			want: "a: nothing again 1m30s"},
		{what: "the detachment failed here", nodes: []attachment{up("a", func(x *attachment) { x.object = objectOf("attached", alive) })},
			retries: attachRetries{detach: true, delay: time.Second, until: past(-time.Second)}, want: "a: nothing again 1s\nretry detach after 1s"},
		{what: "another failure does not matter", nodes: []attachment{up("a", func(x *attachment) { x.object = objectOf("attached", alive) })},
			retries: attachRetries{delay: time.Second, until: past(-time.Second)}, want: "a: delete\nretry attach after 1s"},
		{what: "nothing is left", nodes: []attachment{up("a", func(x *attachment) { x.unwanted = past(time.Hour) })},
			retries: attachRetries{detach: true, delay: time.Second, until: past(0)}, want: "a: nothing"},
		{what: "wanted again while it is detached", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("attached", time.Second) })},
			want: "a: nothing again 1m59s"},
		{what: "wanted again, and it does not come off", nodes: []attachment{up("a", func(x *attachment) { x.pods, x.object = web, objectOf("stuck", time.Second) })},
			want: "a: nothing again 500ms\n  ns/web Warning FailedAttachVolume: AttachVolume.Attach failed for volume \"pv\" : volume attachment is being deleted\nretry attach after 500ms"},

		{what: "another node has it", nodes: []attachment{
			up("a", func(x *attachment) {
				x.object, x.listed, x.pods = objectOf("attached", alive), true, []*corev1.Pod{attachPod("ns/old", 0), attachPod("other/x", 0)}
			}),
			up("b", func(x *attachment) {
				x.pods = []*corev1.Pod{attachPod("far/web", 0), attachPod("ns/web", 0), attachPod("other/web", 0)}
			}),
		}, want: "a: nothing\nb: nothing\n" +
			"  far/web Warning FailedAttachVolume: Waiting for detach for volume \"pv\" Volume is already used by 2 pod(s) in different namespaces\n" +
			"  ns/web Warning FailedAttachVolume: Waiting for detach for volume \"pv\" Volume is already used by pod(s) old and 1 pod(s) in different namespaces\n" +
			"  other/web Warning FailedAttachVolume: Waiting for detach for volume \"pv\" Volume is already used by pod(s) x and 1 pod(s) in different namespaces"},
		{what: "another node has it, and said so", nodes: []attachment{
			up("a", func(x *attachment) { x.object, x.listed, x.pods = objectOf("attached", alive), true, web }),
			up("b", func(x *attachment) { x.pods, x.blocked = web, true }),
		}, want: "a: nothing\nb: nothing"},
		{what: "another node has it mounted still", nodes: []attachment{
			up("a", func(x *attachment) { x.object, x.listed, x.inUse = objectOf("attached", alive), true, true }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing\nb: nothing\n  ns/web Warning FailedAttachVolume: Waiting for detach for volume \"pv\" " +
			"Volume is already exclusively attached to one node, waiting on detach before it can be attached to another node"},
		{what: "it moves", nodes: []attachment{
			up("b", func(x *attachment) { x.pods = web }),
			up("a", func(x *attachment) { x.object = objectOf("attached", alive) }),
		}, want: "a: delete\nb: nothing"},
		{what: "another node is losing it", nodes: []attachment{
			up("a", func(x *attachment) { x.object = objectOf("attached", time.Minute) }), up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing again 1m0s\nb: nothing"},
		{what: "another node cannot lose it", nodes: []attachment{
			up("a", func(x *attachment) { x.object = objectOf("stuck", time.Minute) }), up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing\nb: create again 2m0s"},
		{what: "the detachment takes too long", nodes: []attachment{
			up("a", func(x *attachment) { x.object = objectOf("attached", 2*time.Minute) }), up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing\nb: create again 2m0s"},
		{what: "another node is getting it", nodes: []attachment{
			up("a", func(x *attachment) { x.pods, x.object, x.since = web, objectOf("", alive), past(time.Minute) }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing again 1m0s\nb: nothing"},
		{what: "two want it: the older pod's node", nodes: []attachment{
			up("a", func(x *attachment) { x.pods = []*corev1.Pod{attachPod("ns/new", time.Second)} }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "b: create again 2m0s\na: nothing"},
		{what: "the one that failed is tried after the other", nodes: []attachment{
			up("a", func(x *attachment) { x.pods, x.object, x.tried = web, objectOf("failed", alive), past(time.Second) }),
			up("b", func(x *attachment) { x.pods = web }),
		}, retries: attachRetries{delay: time.Second, until: attachTime}, want: "b: create again 2m0s\na: nothing\nretry attach after 1s"},
		{what: "two objects are found after a restart", nodes: []attachment{
			up("a", func(x *attachment) { x.pods, x.object = web, objectOf("", alive) }),
			up("b", func(x *attachment) { x.pods, x.object = web, objectOf("", alive) }),
		}, want: "a: nothing again 2m0s\nb: nothing"},
		{what: "another node never got it", nodes: []attachment{
			up("a", func(x *attachment) { x.object = objectOf("", alive) }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: delete\nb: nothing"},
		{what: "another node never got it, and means to use it", nodes: []attachment{
			up("a", func(x *attachment) { x.object, x.inUse = objectOf("", alive), true }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing\nb: create again 2m0s"},
		{what: "shared", shared: true, nodes: []attachment{
			up("a", func(x *attachment) { x.object, x.listed, x.pods = objectOf("attached", alive), true, web }),
			up("b", func(x *attachment) { x.pods = web }),
		}, want: "a: nothing\nb: create again 2m0s"},

		{what: "the node attaches it itself", noDriver: true, nodes: []attachment{up("a", func(x *attachment) { x.pods = web })},
			want: "a: list\n  ns/web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume \"pv\" "},
		{what: "two nodes would", noDriver: true, nodes: []attachment{
			up("a", func(x *attachment) { x.pods = web }),
			up("b", func(x *attachment) { x.pods = []*corev1.Pod{attachPod("ns/new", 0)} }),
		}, want: "a: list\n  ns/web Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume \"pv\" \nb: nothing"},
		{what: "another node did", noDriver: true, nodes: []attachment{
			up("a", func(x *attachment) { x.pods, x.listed = web, true }),
			up("b", func(x *attachment) { x.pods = []*corev1.Pod{attachPod("ns/new", 0)} }),
		}, want: "a: nothing\nb: nothing\n  ns/new Warning FailedAttachVolume: Waiting for detach for volume \"pv\" Volume is already used by pod(s) web"},
		{what: "the node is done with it", noDriver: true, nodes: []attachment{up("a", func(x *attachment) { x.listed = true })}, want: "a: list"},
	} {
		v := &attachedVolume{Attachable: storage.Attachable{Name: "kubernetes.io/csi/d^h", Driver: "d", Handle: "h", Label: "pv", Exclusive: !tt.shared}, nodes: tt.nodes, retries: tt.retries}
		if tt.noDriver {
			v.Driver, v.Handle = "", ""
		}
		plans, retries := planVolume(v, attachTime)
		if got := showPlans(plans, retries); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.what, got, tt.want)
		}
	}
}

// What is listed as attached may be mounted: a volume leaves the list before it is
// detached, and is not on it while it is not attached for sure.
func TestListing(t *testing.T) {
	web := []*corev1.Pod{attachPod("ns/web", 0)}
	for _, tt := range []struct {
		what string
		x    attachment
		want bool
	}{
		{"attached and wanted", attachment{object: objectOf("attached", alive), pods: web}, true},
		{"attached and mounted", attachment{object: objectOf("attached", alive), inUse: true, ready: true}, true},
		{"attached for nobody", attachment{object: objectOf("attached", alive), ready: true}, false},
		{"out of service", attachment{object: objectOf("attached", alive), inUse: true, outOfService: true}, false},
		{"waited for long enough", attachment{object: objectOf("attached", alive), inUse: true, attachmentMemory: attachmentMemory{unwanted: past(6 * time.Minute)}}, false},
		{"being attached", attachment{object: objectOf("", alive), pods: web, listed: true}, false},
		{"being detached", attachment{object: objectOf("attached", 0), pods: web, listed: true}, false},
		{"no object", attachment{pods: web, listed: true}, false},
	} {
		v := &attachedVolume{Attachable: storage.Attachable{Driver: "d", Handle: "h"}}
		if got := v.listing(&tt.x, attachTime); got != tt.want {
			t.Errorf("%s: %v", tt.what, got)
		}
	}
}

func TestAttachRetries(t *testing.T) {
	var r attachRetries
	var got []time.Duration
	for range 11 {
		r = r.failed(false, attachTime)
		got = append(got, r.delay)
	}
	if s := fmt.Sprint(got); s != "[500ms 1s 2s 4s 8s 16s 32s 1m4s 2m2s 2m2s 2m2s]" {
		t.Errorf("delays are %s", s)
	}
	if r = r.failed(true, attachTime); r.delay != 500*time.Millisecond || !r.detach {
		t.Errorf("after another failure: %+v", r)
	}
}
