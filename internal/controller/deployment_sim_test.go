package controller

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

// deployment is a Deployment as the API server stores it: with defaults.
func deployment(name string, replicas int32, image string) *appsv1.Deployment {
	quarter := intstr.FromString("25%")
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "d-uid", Generation: 1},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &quarter, MaxUnavailable: &quarter},
			},
			RevisionHistoryLimit: ptr.To(int32(10)), ProgressDeadlineSeconds: ptr.To(int32(600)),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": name}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image}}},
			},
		},
	}
}

func rolloutControllers(d Deps) []*control.Controller {
	return []*control.Controller{newDeployment(d), newReplicaSet(d)}
}

func (w *world) rolledOut(name string) bool {
	d := get[*appsv1.Deployment](w, "ns", name)
	if d.Status.ObservedGeneration < d.Generation || !complete(d, &d.Status) {
		return false
	}
	live := 0
	for _, p := range list[*corev1.Pod](w, "ns") {
		if podActive(p) {
			if p.Spec.Containers[0].Image != d.Spec.Template.Spec.Containers[0].Image {
				return false
			}
			live++
		}
	}
	return live == int(*d.Spec.Replicas)
}

// watchdog checks what must hold at every moment.
type watchdog struct {
	mu        sync.Mutex
	t         *testing.T
	api       *client.Client
	pods      map[string]*corev1.Pod
	sets      map[string]*appsv1.ReplicaSet
	peak      map[string]int32 // the highest size a ReplicaSet was asked for since its pods last agreed with it
	d         *appsv1.Deployment
	fenced    bool // sizes have been stable: maxSurge and maxUnavailable must hold
	available int32
}

func (g *watchdog) check() {
	if g.d == nil || !g.fenced {
		return
	}
	n := *g.d.Spec.Replicas
	sum := int32(0)
	for _, rs := range g.sets {
		sum += *rs.Spec.Replicas
	}
	if most := n + maxSurge(g.d); sum > most {
		g.t.Errorf("ReplicaSets add up to %d, maxSurge allows %d", sum, most)
	}
	ready := int32(0)
	for _, p := range g.pods {
		if podActive(p) && podReady(p) {
			ready++
		}
	}
	if least := n - maxUnavailable(g.d); ready < least {
		g.t.Errorf("%d pods are available, maxUnavailable demands %d", ready, least)
	}
}

func (w *world) guard() *watchdog {
	g := &watchdog{t: w.t, pods: map[string]*corev1.Pod{}, sets: map[string]*appsv1.ReplicaSet{}, peak: map[string]int32{}}
	client.InformerFor[*corev1.Pod](w.deps.Informers).OnChange(func(ch client.Change[*corev1.Pod]) {
		g.mu.Lock()
		defer g.mu.Unlock()
		p := ch.Object()
		if ch.Deleted() {
			delete(g.pods, p.Name)
		} else {
			g.pods[p.Name] = p
		}
		owner := metav1.GetControllerOf(p)
		if owner == nil {
			g.t.Errorf("pod %s has no controller", p.Name)
			return
		}
		if isNew := any(ch.Old) == any((*corev1.Pod)(nil)); isNew {
			count := int32(0)
			for _, o := range g.pods {
				if podActive(o) && metav1.GetControllerOf(o).UID == owner.UID {
					count++
				}
			}
			if count > g.peak[owner.Name] {
				g.t.Errorf("ReplicaSet %s has %d pods and never wanted more than %d: made twice", owner.Name, count, g.peak[owner.Name])
			}
		}
		g.check()
	})
	client.InformerFor[*appsv1.ReplicaSet](w.deps.Informers).OnChange(func(ch client.Change[*appsv1.ReplicaSet]) {
		g.mu.Lock()
		defer g.mu.Unlock()
		rs := ch.Object()
		if ch.Deleted() {
			delete(g.sets, rs.Name)
			return
		}
		g.sets[rs.Name] = rs
		if rs.Status.ObservedGeneration == rs.Generation && rs.Status.Replicas == *rs.Spec.Replicas {
			g.peak[rs.Name] = *rs.Spec.Replicas
		}
		g.peak[rs.Name] = max(g.peak[rs.Name], *rs.Spec.Replicas)
		g.check()
	})
	client.InformerFor[*appsv1.Deployment](w.deps.Informers).OnChange(func(ch client.Change[*appsv1.Deployment]) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.d = ch.New
	})
	return g
}

func (g *watchdog) fence(on bool) { g.mu.Lock(); g.fenced = on; g.mu.Unlock() }

func TestSimulatedRollouts(t *testing.T) {
	seeds := 15
	if s := os.Getenv("SKIFF_SIM_SEEDS"); s != "" {
		seeds, _ = strconv.Atoi(s)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { simulate(t, uint64(seed)) })
		})
	}
}

// A Deployment whose strategy and size are changed in the middle of a rollout goes on.
func TestRecreateInTheMiddleOfARollout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, rolloutControllers)
		defer w.stop()
		w.kubelet(time.Second, rand.New(rand.NewPCG(1, 1)), func(p *corev1.Pod) bool { return p.Spec.Containers[0].Image == "bad" })
		w.api.Put(deployment("web", 8, "v0"))
		w.until("first rollout", func() bool { return w.rolledOut("web") })
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = "bad" })
		w.until("two sizes", func() bool {
			active := 0
			for _, rs := range list[*appsv1.ReplicaSet](w, "ns") {
				if *rs.Spec.Replicas > 0 {
					active++
				}
			}
			return active == 2
		})
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) {
			d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
			d.Spec.Replicas = ptr.To(int32(5))
			d.Spec.Template.Spec.Containers[0].Image = "v1"
		})
		w.until("recreated", func() bool { return w.rolledOut("web") })
	})
}

func simulate(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	d := deployment("web", rng.Int32N(20), "v0")
	steps := func() intstr.IntOrString {
		if rng.IntN(2) == 0 {
			return intstr.FromString(fmt.Sprintf("%d%%", rng.IntN(101)))
		}
		return intstr.FromInt32(rng.Int32N(4))
	}
	*d.Spec.Strategy.RollingUpdate.MaxSurge, *d.Spec.Strategy.RollingUpdate.MaxUnavailable = steps(), steps()
	d.Spec.MinReadySeconds = rng.Int32N(3)
	w := newWorld(t, rolloutControllers)
	defer w.stop()
	var mu sync.Mutex
	frng := rand.New(rand.NewPCG(seed, 2))
	rate := 0
	w.api.refuse(func(verb string, ref client.Ref) error {
		mu.Lock()
		defer mu.Unlock()
		if ref.GVR.Resource == "events" || rate == 0 || frng.IntN(100) >= rate {
			return nil
		}
		switch frng.IntN(3) {
		case 0:
			return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, errors.New("injected"))
		case 1:
			return apierrors.NewInternalError(errors.New("injected"))
		}
		return errors.New("connection reset")
	})
	setRate := func(n int) { mu.Lock(); rate = n; mu.Unlock() }
	w.kubelet(2*time.Second, rand.New(rand.NewPCG(seed, 3)), nil)
	g := w.guard()
	w.api.Put(d)
	w.until("first rollout", func() bool { return w.rolledOut("web") })
	image := 0
	for round := range 6 {
		setRate(rng.IntN(3) * 10)
		// Rollouts, of which the next may start before the last is done: sizes
		// stay, so the fence must hold throughout.
		g.fence(d.Spec.MinReadySeconds == 0)
		for range 1 + rng.IntN(3) {
			image = rng.IntN(image + 2)
			edit(w, "ns", "web", "", func(d *appsv1.Deployment) {
				d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", image)
			})
			time.Sleep(time.Duration(rng.IntN(6)) * time.Second)
		}
		w.until("rollout", func() bool { return w.rolledOut("web") })
		g.fence(false)
		// Everything else, which must end well.
		for range rng.IntN(6) {
			switch rng.IntN(5) {
			case 0:
				n := rng.Int32N(25)
				edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Replicas = &n })
			case 1:
				if pods := list[*corev1.Pod](w, "ns"); len(pods) > 0 {
					p := pods[rng.IntN(len(pods))]
					_ = client.For[*corev1.Pod](w.c).In("ns").Delete(t.Context(), p.Name, metav1.DeleteOptions{})
				}
			case 2:
				if pods := list[*corev1.Pod](w, "ns"); len(pods) > 0 {
					edit(w, "ns", pods[rng.IntN(len(pods))].Name, "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })
				}
			case 3:
				edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Paused = !d.Spec.Paused })
			case 4:
				image++
				edit(w, "ns", "web", "", func(d *appsv1.Deployment) {
					d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", image)
				})
			}
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
		}
		edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Paused = false })
		w.until(fmt.Sprintf("recovery in round %d", round), func() bool { return w.rolledOut("web") })
	}
	setRate(0)
	time.Sleep(time.Minute)
	before := len(w.api.Requests())
	time.Sleep(time.Hour)
	if after := len(w.api.Requests()); after != before {
		t.Errorf("%d writes while nothing happens, the first %+v", after-before, w.api.Requests()[before])
	}
	got := get[*appsv1.Deployment](w, "ns", "web")
	if c := condition(&got.Status, appsv1.DeploymentProgressing); c == nil || c.Reason != "NewReplicaSetAvailable" || c.Status != corev1.ConditionTrue {
		t.Errorf("Progressing is %v", c)
	}
	if c := condition(&got.Status, appsv1.DeploymentAvailable); c == nil || c.Status != corev1.ConditionTrue {
		t.Errorf("Available is %v", c)
	}
	if c := condition(&got.Status, appsv1.DeploymentReplicaFailure); c != nil {
		t.Errorf("ReplicaFailure is %v", c)
	}
	if n := len(list[*appsv1.ReplicaSet](w, "ns")); n > 11 {
		t.Errorf("%d ReplicaSets, history allows 10 and the new one", n)
	}
}
