package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"skiff/internal/api/storage"
	"skiff/internal/client"
	"skiff/internal/client/clienttest"
	"skiff/internal/control"
)

// attachWorld is a cluster of which the controller that attaches volumes is real, and
// nodes, storage and its driver are simulated. The controller may be killed between
// any two of its writes; a new one starts then.
type attachWorld struct {
	world
	rng *rand.Rand

	mu      sync.Mutex
	faults  int               // of 100 requests of the controller
	trouble int               // of 100 tries of the driver
	lifeEnd int               // requests until the controller is killed; negative for never
	disks   map[string]string // at which node each disk is; exclusive ones at one, others at "a b"
	mounted map[string]bool   // "node volume"
	down    map[string]bool   // nodes that do nothing

	began, sleeping bool // of recorded scenarios: the controller ran once; it is kept from running
	kill            func()
	running         *attachDetach
	onRead          func(node string) // before the controller reads a node
}

const simDriver = "disks.example.com"

func attachNodeObject(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name + "-uid"), Annotations: map[string]string{storage.ManagedAttach: "true"}},
		Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
	}
}

// attachClaim is a claim and the volume that it is bound to.
func attachClaim(name string, mode corev1.PersistentVolumeAccessMode) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	c := testClaim(name, "1Gi", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase, c.Spec.AccessModes = "pv-"+name, corev1.ClaimBound, []corev1.PersistentVolumeAccessMode{mode}
	})
	v := testVolume("pv-"+name, "1Gi", func(v *corev1.PersistentVolume) {
		v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{mode}
		v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: simDriver, VolumeHandle: name}}
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: c.UID}
	})
	return c, v
}

func claimPod(name, node, claim string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), CreationTimestamp: metav1.Now()},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c"}}, Volumes: []corev1.Volume{{
			Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}},
		}}},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
}

func diskName(claim string) corev1.UniqueVolumeName {
	return corev1.UniqueVolumeName("kubernetes.io/csi/" + simDriver + "^" + claim)
}

func newAttachWorld(t *testing.T, seed uint64, objects ...client.Object) *attachWorld {
	w := &attachWorld{
		rng: rand.New(rand.NewPCG(seed, 1)), lifeEnd: -1,
		disks: map[string]string{}, mounted: map[string]bool{}, down: map[string]bool{},
	}
	w.t, w.api = t, &server{API: clienttest.New(objects...)}
	w.c = w.api.API.Client()
	w.ctx, w.cancel = context.WithCancel(t.Context())
	w.wg.Go(func() {
		for life := 0; w.ctx.Err() == nil; life++ {
			w.mu.Lock()
			sleeping := w.sleeping
			w.mu.Unlock()
			if !sleeping {
				w.live(rand.New(rand.NewPCG(seed, uint64(life)+100)))
			}
			select {
			case <-time.After(time.Second):
			case <-w.ctx.Done():
			}
		}
	})
	return w
}

// live runs one controller until it is killed.
func (w *attachWorld) live(rng *rand.Rand) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	w.set(func() { w.kill = cancel })
	p := &process{guarded: guarded{server: w.api, t: w.t, name: "attachdetach-controller", rules: map[string][]rbacv1.PolicyRule{}}, w: w, rng: rng, kill: cancel}
	log := slog.New(slog.DiscardHandler)
	d := Deps{Deps: control.Deps{
		Informers: client.NewInformers(w.c, log), ClientFor: func(string) *client.Client { return client.New(p, "kube-controller-manager") }, Log: log,
	}}
	a := makeAttachDetach(d)
	c := a.Controller
	w.set(func() { w.running = a })
	p.rules[c.Name] = c.Rules()
	var g sync.WaitGroup
	g.Go(func() { _ = d.Informers.Run(ctx) })
	g.Go(func() {
		if err := control.Run(ctx, d.Deps, []*control.Controller{c}); err != nil {
			w.t.Error(err)
		}
	})
	g.Wait()
}

// process is the API as one life of the controller sees it. What it must never do is
// checked at the writes.
type process struct {
	guarded
	w    *attachWorld
	rng  *rand.Rand
	kill func()
	dead bool
}

var errKilled = errors.New("the process is dead")

// fate says what becomes of a request before it is done.
func (p *process) fate(ref client.Ref) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	switch {
	case p.dead:
		return errKilled
	case ref.GVR.Resource == "events":
		return nil
	case p.w.lifeEnd == 0:
		p.dead, p.w.lifeEnd = true, -1
		p.kill()
		return errKilled
	case p.w.lifeEnd > 0:
		p.w.lifeEnd--
	}
	if p.rng.IntN(100) >= p.w.faults {
		return nil
	}
	return apierrors.NewInternalError(errors.New("injected"))
}

func (p *process) Get(ctx context.Context, ref client.Ref, o metav1.GetOptions) (client.Object, error) {
	if err := p.fate(ref); err != nil {
		return nil, err
	}
	p.w.mu.Lock()
	f := p.w.onRead
	p.w.mu.Unlock()
	if f != nil {
		f(ref.Name)
	}
	return p.guarded.Get(ctx, ref, o)
}

func (p *process) Create(ctx context.Context, ref client.Ref, obj client.Object, o metav1.CreateOptions) (client.Object, error) {
	if err := p.fate(ref); err != nil {
		return nil, err
	}
	if a, ok := obj.(*storagev1.VolumeAttachment); ok {
		p.w.checkCreate(a)
	}
	return p.guarded.Create(ctx, ref, obj, o)
}

func (p *process) Patch(ctx context.Context, ref client.Ref, t types.PatchType, b []byte, o metav1.PatchOptions) (client.Object, error) {
	if err := p.fate(ref); err != nil {
		return nil, err
	}
	return p.guarded.Patch(ctx, ref, t, b, o)
}

func (p *process) Delete(ctx context.Context, ref client.Ref, o metav1.DeleteOptions) (client.Object, error) {
	if err := p.fate(ref); err != nil {
		return nil, err
	}
	if ref.GVR.Resource == "volumeattachments" {
		p.w.checkDelete(ref.Name)
	}
	return p.guarded.Delete(ctx, ref, o)
}

// checkCreate holds an exclusive disk to one node: nobody asks for it to be attached
// to another while it is attached, unless the driver fails to detach it.
func (w *attachWorld) checkCreate(a *storagev1.VolumeAttachment) {
	if a.Spec.Source.PersistentVolumeName == nil {
		return
	}
	pv := get[*corev1.PersistentVolume](&w.world, "", *a.Spec.Source.PersistentVolumeName)
	if pv.Spec.AccessModes[0] != corev1.ReadWriteOnce {
		return
	}
	for _, o := range list[*storagev1.VolumeAttachment](&w.world, "") {
		if *o.Spec.Source.PersistentVolumeName == pv.Name && o.Spec.NodeName != a.Spec.NodeName && o.Status.Attached && o.DeletionTimestamp == nil {
			w.t.Errorf("%s is to be attached to %s, while it is attached to %s", pv.Name, a.Spec.NodeName, o.Spec.NodeName)
		}
	}
}

// checkDelete keeps what a node has mounted: it is detached only from a node that was
// not ready for long, or is out of service.
func (w *attachWorld) checkDelete(name string) {
	a, err := client.For[*storagev1.VolumeAttachment](w.c).Get(context.Background(), name)
	if err != nil || a.Spec.Source.PersistentVolumeName == nil {
		return
	}
	n, err := client.For[*corev1.Node](w.c).Get(context.Background(), a.Spec.NodeName)
	if err != nil {
		return
	}
	claim := strings.TrimPrefix(*a.Spec.Source.PersistentVolumeName, "pv-")
	v := diskName(claim)
	if slices.ContainsFunc(n.Status.VolumesAttached, func(l corev1.AttachedVolume) bool { return l.Name == v }) {
		w.t.Errorf("%s is detached from %s, which lists it as attached", v, n.Name)
	}
	w.mu.Lock()
	mounted := w.mounted[n.Name+" "+claim]
	w.mu.Unlock()
	if nodeReady(n) == corev1.ConditionTrue && !outOfService(n) && (mounted || slices.Contains(n.Status.VolumesInUse, v)) {
		w.t.Errorf("%s is detached from %s, which uses it (mounted: %v)", v, n.Name, mounted)
	}
}

// watchEach calls f in a goroutine for each object of a kind that appears or changes.
func watchEach[T client.Object](w *attachWorld, f func(T)) {
	events, err := client.For[T](w.c).Watch(w.ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.wg.Go(func() {
		for e := range events.Events() {
			if o, ok := e.Object.(T); ok && e.Type != watch.Deleted {
				w.wg.Go(func() { f(o) })
			}
		}
	})
}

// update changes an object if it still is there.
func update[T client.Object](w *attachWorld, ns, name, sub string, f func(T)) {
	r := client.For[T](w.c).In(ns)
	for w.ctx.Err() == nil {
		o, err := r.Get(w.ctx, name)
		if err != nil {
			return
		}
		o = o.DeepCopyObject().(T)
		f(o)
		if sub == "status" {
			_, err = r.UpdateStatus(w.ctx, o)
		} else {
			_, err = r.Update(w.ctx, o)
		}
		if !apierrors.IsConflict(err) {
			return
		}
	}
}

func (w *attachWorld) wait(most time.Duration) {
	w.mu.Lock()
	d := time.Duration(w.rng.Int64N(int64(most)))
	w.mu.Unlock()
	select {
	case <-time.After(d):
	case <-w.ctx.Done():
	}
}

func (w *attachWorld) chance(percent int) bool { return w.rng.IntN(100) < percent }

// drive is the driver's attacher: it follows VolumeAttachments as the external
// attacher of upstream's sidecars does, over a storage that has each exclusive disk at
// one node.
func (w *attachWorld) drive() {
	const finalizer = "external-attacher/disks-example-com"
	busy := map[string]bool{}
	watchEach(w, func(o *storagev1.VolumeAttachment) {
		w.mu.Lock()
		if busy[o.Name] {
			w.mu.Unlock()
			return
		}
		busy[o.Name] = true
		w.mu.Unlock()
		defer func() { w.mu.Lock(); delete(busy, o.Name); w.mu.Unlock() }()
		for w.ctx.Err() == nil {
			w.wait(2 * time.Second)
			a, err := client.For[*storagev1.VolumeAttachment](w.c).Get(w.ctx, o.Name)
			if err != nil || a.DeletionTimestamp == nil && a.Status.Attached {
				return
			}
			disk, node := *a.Spec.Source.PersistentVolumeName, a.Spec.NodeName
			pv := get[*corev1.PersistentVolume](&w.world, "", disk)
			exclusive := pv.Spec.AccessModes[0] == corev1.ReadWriteOnce
			if a.DeletionTimestamp != nil {
				if len(a.Finalizers) == 0 {
					return
				}
				w.mu.Lock()
				failed := w.chance(w.trouble)
				if !failed {
					w.disks[disk] = strings.Join(slices.DeleteFunc(strings.Fields(w.disks[disk]), func(n string) bool { return n == node }), " ")
				}
				w.mu.Unlock()
				update(w, "", a.Name, "status", func(a *storagev1.VolumeAttachment) {
					if a.Status.DetachError = nil; failed {
						a.Status.DetachError = &storagev1.VolumeError{Message: "cannot detach"}
					} else {
						a.Status.Attached = false
					}
				})
				if !failed {
					update(w, "", a.Name, "", func(a *storagev1.VolumeAttachment) { a.Finalizers = nil })
				}
				continue
			}
			update(w, "", a.Name, "", func(a *storagev1.VolumeAttachment) {
				if a.DeletionTimestamp == nil {
					a.Finalizers = []string{finalizer}
				}
			})
			if a, err = client.For[*storagev1.VolumeAttachment](w.c).Get(w.ctx, o.Name); err != nil || len(a.Finalizers) == 0 {
				continue // nothing is done to the storage that could be forgotten
			}
			w.mu.Lock()
			at := strings.Fields(w.disks[disk])
			failed := w.chance(w.trouble) || exclusive && len(at) > 0 && at[0] != node
			if !failed && !slices.Contains(at, node) {
				w.disks[disk] = strings.Join(append(at, node), " ")
			}
			w.mu.Unlock()
			update(w, "", a.Name, "status", func(a *storagev1.VolumeAttachment) {
				if a.Status.AttachError = nil; failed {
					a.Status.AttachError = &storagev1.VolumeError{Message: "cannot attach"}
				} else {
					a.Status.Attached = true
				}
			})
		}
	})
}

// setInUse is the node's report of what it uses.
func (w *attachWorld) setInUse(node, claim string, on bool) {
	update(w, "", node, "status", func(n *corev1.Node) {
		n.Status.VolumesInUse = slices.DeleteFunc(n.Status.VolumesInUse, func(v corev1.UniqueVolumeName) bool { return v == diskName(claim) })
		if on {
			n.Status.VolumesInUse = append(n.Status.VolumesInUse, diskName(claim))
		}
	})
}

// kubelets run pods: one mounts its disk once it is reported as in use and attached,
// and unmounts it when the pod is deleted. Nodes that are down do nothing.
func (w *attachWorld) kubelets() {
	busy, users := map[types.UID]bool{}, map[string]map[types.UID]bool{}
	// One thing at a time is done on a node with a disk.
	locks := map[string]*sync.Mutex{}
	lock := func(node, claim string) *sync.Mutex {
		w.mu.Lock()
		defer w.mu.Unlock()
		k := node + " " + claim
		if locks[k] == nil {
			locks[k], users[k] = &sync.Mutex{}, map[types.UID]bool{}
		}
		return locks[k]
	}
	watchEach(w, func(first *corev1.Pod) {
		w.mu.Lock()
		known := busy[first.UID]
		busy[first.UID] = true
		w.mu.Unlock()
		if known {
			return
		}
		node, claim := first.Spec.NodeName, first.Spec.Volumes[0].PersistentVolumeClaim.ClaimName
		key := node + " " + claim
		gone := func() bool {
			p, err := client.For[*corev1.Pod](w.c).In("ns").Get(w.ctx, first.Name)
			return err != nil || p.UID != first.UID || p.DeletionTimestamp != nil
		}
		l := lock(node, claim)
		for mounted := false; w.ctx.Err() == nil; w.wait(time.Second) {
			w.mu.Lock()
			down := w.down[node]
			w.mu.Unlock()
			if down {
				continue
			}
			l.Lock()
			if gone() {
				w.mu.Lock()
				delete(users[key], first.UID)
				last := len(users[key]) == 0
				if last {
					w.mounted[key] = false
				}
				w.mu.Unlock()
				if last {
					w.setInUse(node, claim, false)
				}
				l.Unlock()
				zero := int64(0)
				_ = client.For[*corev1.Pod](w.c).In("ns").Delete(w.ctx, first.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &first.UID}})
				return
			}
			if !mounted {
				w.mu.Lock()
				users[key][first.UID] = true
				w.mu.Unlock()
				w.setInUse(node, claim, true)
				if w.attachedTo(node, claim) {
					mounted = true
					w.mu.Lock()
					w.mounted[key] = true
					w.mu.Unlock()
					update(w, "ns", first.Name, "status", func(p *corev1.Pod) {
						p.Status.Phase = corev1.PodRunning
						p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
					})
				}
			}
			l.Unlock()
		}
	})
}

// attachedTo is how a kubelet finds out.
func (w *attachWorld) attachedTo(node, claim string) bool {
	n, err := client.For[*corev1.Node](w.c).Get(w.ctx, node)
	if err != nil || !slices.Contains(n.Status.VolumesInUse, diskName(claim)) ||
		!slices.ContainsFunc(n.Status.VolumesAttached, func(l corev1.AttachedVolume) bool { return l.Name == diskName(claim) }) {
		return false
	}
	a, err := client.For[*storagev1.VolumeAttachment](w.c).Get(w.ctx, storage.AttachmentName(simDriver, claim, node))
	return err == nil && a.Status.Attached && a.DeletionTimestamp == nil
}

func (w *attachWorld) set(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *attachWorld) events() []string {
	var out []string
	for _, e := range list[*corev1.Event](&w.world, "ns") {
		out = append(out, e.InvolvedObject.Name+" "+e.Type+" "+e.Reason+": "+e.Message)
	}
	slices.Sort(out)
	return out
}

func TestSimulatedAttachments(t *testing.T) {
	seeds := 10
	if s := os.Getenv("SKIFF_SIM_SEEDS"); s != "" {
		seeds, _ = strconv.Atoi(s)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulateAttachments(t, uint64(seed)) })
		})
	}
}

func simulateAttachments(t *testing.T, seed uint64) {
	nodes := []string{"a", "b", "c"}
	claims := []string{"one", "two", "three", "shared"}
	var objects []client.Object
	for _, n := range nodes {
		objects = append(objects, attachNodeObject(n))
	}
	for _, c := range claims {
		mode := corev1.ReadWriteOnce
		if c == "shared" {
			mode = corev1.ReadWriteMany
		}
		claim, pv := attachClaim(c, mode)
		objects = append(objects, claim, pv)
	}
	w := newAttachWorld(t, seed, objects...)
	defer w.stop()
	w.drive()
	w.kubelets()
	rng := rand.New(rand.NewPCG(seed, 2))
	pick := func(list []string) string { return list[rng.IntN(len(list))] }
	ready := func(node string, on corev1.ConditionStatus) {
		w.set(func() { w.down[node] = on != corev1.ConditionTrue })
		update(w, "", node, "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = on })
	}
	name := 0
	for range 6 {
		w.set(func() { w.faults, w.trouble = rng.IntN(3)*10, rng.IntN(3)*15 })
		for range 10 + rng.IntN(20) {
			switch rng.IntN(12) {
			case 0, 1, 2, 3:
				name++
				w.api.Put(claimPod(fmt.Sprint("p", name), pick(nodes), pick(claims)))
			case 4, 5, 6:
				if pods := list[*corev1.Pod](&w.world, "ns"); len(pods) > 0 {
					p := pods[rng.IntN(len(pods))]
					var o metav1.DeleteOptions
					if rng.IntN(4) == 0 { // as the control plane does where the node is lost
						o.GracePeriodSeconds = ptr.To(int64(0))
					}
					_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), p.Name, o)
				}
			case 7:
				ready(pick(nodes), corev1.ConditionUnknown)
			case 8:
				ready(pick(nodes), corev1.ConditionTrue)
			case 9, 10:
				w.set(func() { w.lifeEnd = rng.IntN(6) })
			case 11:
				time.Sleep(time.Duration(rng.IntN(8)) * time.Minute)
			}
			time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
		}
		// Peace: one pod of each exclusive disk stays, and all is attached as it is
		// wanted.
		w.set(func() { w.faults, w.trouble, w.lifeEnd = 0, 0, -1 })
		for _, n := range nodes {
			ready(n, corev1.ConditionTrue)
		}
		has := map[string]bool{}
		for _, p := range list[*corev1.Pod](&w.world, "ns") {
			c := p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName
			if p.DeletionTimestamp == nil && has[c] && c != "shared" {
				_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{})
			}
			has[c] = has[c] || p.DeletionTimestamp == nil
		}
		for end := time.Now().Add(time.Hour); !w.settled(); w.pass(time.Second) {
			if time.Now().After(end) {
				for _, p := range list[*corev1.Pod](&w.world, "ns") {
					t.Logf("pod %s on %s with %s: %s, deleted %v", p.Name, p.Spec.NodeName, p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName, p.Status.Phase, p.DeletionTimestamp)
				}
				t.Fatalf("never settled:\n%s", w.state())
			}
		}
	}
	time.Sleep(10 * time.Minute)
	synctest.Wait()
	before := len(w.api.Requests())
	time.Sleep(time.Hour)
	synctest.Wait()
	for _, r := range w.api.Requests()[before:] {
		if r.Verb != "get" {
			t.Errorf("a write while nothing happens: %+v", r)
			break
		}
	}
	for _, p := range list[*corev1.Pod](&w.world, "ns") {
		_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{})
	}
	w.pass(10 * time.Minute)
	w.want("no pod is left")
	a := w.running
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := len(a.places) + len(a.onNode) + len(a.owners) + len(a.retries) + len(a.left); n != 0 {
		t.Errorf("remembered of nothing: %v %v %v %v %v", a.places, a.onNode, a.owners, a.retries, a.left)
	}
}

// settled tells that what pods want is attached and mounted, nothing else is, and
// nodes and objects say the same.
func (w *attachWorld) settled() bool {
	want := map[string]bool{}
	for _, p := range list[*corev1.Pod](&w.world, "ns") {
		if p.DeletionTimestamp != nil || p.Status.Phase != corev1.PodRunning {
			return false
		}
		want[p.Spec.NodeName+" "+p.Spec.Volumes[0].PersistentVolumeClaim.ClaimName] = true
	}
	have := map[string]bool{}
	for _, a := range list[*storagev1.VolumeAttachment](&w.world, "") {
		k := a.Spec.NodeName + " " + strings.TrimPrefix(*a.Spec.Source.PersistentVolumeName, "pv-")
		if !want[k] || !a.Status.Attached || a.DeletionTimestamp != nil {
			return false
		}
		have[k] = true
	}
	listed := 0
	for _, n := range list[*corev1.Node](&w.world, "") {
		for _, v := range n.Status.VolumesAttached {
			x, _ := storage.AttachableNamed(v.Name)
			if !want[n.Name+" "+x.Handle] {
				return false
			}
			listed++
		}
	}
	return len(have) == len(want) && listed == len(want)
}
