package controller

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"skiff/internal/client"
	"skiff/internal/control"
)

func collectorAlone(d Deps) []*control.Controller { return []*control.Controller{newCollector(d)} }

func configMap(name string, owners ...metav1.OwnerReference) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name + "-uid"), OwnerReferences: owners}}
}

func ownedBy(name string) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: name, UID: types.UID(name + "-uid")}
}

func blocking(o metav1.OwnerReference) metav1.OwnerReference {
	o.BlockOwnerDeletion = ptr.To(true)
	return o
}

func goingWith(finalizer string, cm *corev1.ConfigMap) *corev1.ConfigMap {
	now := metav1.Now()
	cm.DeletionTimestamp, cm.Finalizers = &now, []string{finalizer}
	return cm
}

func names(w *world) []string {
	var out []string
	for _, c := range list[*corev1.ConfigMap](w, "") {
		out = append(out, c.Name)
	}
	slices.Sort(out)
	return out
}

func TestGarbageCollection(t *testing.T) {
	foreign := configMap("child", ownedBy("a"))
	foreign.Namespace = "elsewhere"
	clusterOwned := configMap("child", metav1.OwnerReference{APIVersion: "v1", Kind: "Node", Name: "n", UID: "n-uid"})
	theNode := node("n", "")
	theNode.UID = "n-uid"
	for name, c := range map[string]struct {
		objects []client.Object
		remove  string // a ConfigMap to delete
		want    []string
		event   string
	}{
		"an owner that is there keeps its dependents": {
			objects: []client.Object{configMap("a"), configMap("b", ownedBy("a"))}, want: []string{"a", "b"}},
		"an owner that goes takes its dependents, and theirs": {
			objects: []client.Object{configMap("a"), configMap("b", ownedBy("a")), configMap("c", ownedBy("b"))}, remove: "a", want: nil},
		"one owner of two is enough": {
			objects: []client.Object{configMap("a"), configMap("x"), configMap("b", ownedBy("a"), ownedBy("x"))}, remove: "a", want: []string{"b", "x"}},
		"an owner that never was": {
			objects: []client.Object{configMap("b", ownedBy("a"))}, want: nil},
		"an owner of that name, but another": {
			objects: []client.Object{configMap("a"), configMap("b", func() metav1.OwnerReference { o := ownedBy("a"); o.UID = "former"; return o }())}, want: []string{"a"}},
		"an owner in another namespace": {
			objects: []client.Object{configMap("a"), foreign}, want: []string{"a"}, event: "OwnerRefInvalidNamespace"},
		"a cluster-scoped owner": {
			objects: []client.Object{theNode, clusterOwned}, want: []string{"child"}},
		"a cluster-scoped owner that is gone": {
			objects: []client.Object{clusterOwned}, want: nil},
		"an owner of an unknown kind": {
			objects: []client.Object{configMap("b", metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Thing", Name: "t", UID: "t"})}, want: []string{"b"}},
		"foreground: the owner goes after those that block it": {
			objects: []client.Object{goingWith(metav1.FinalizerDeleteDependents, configMap("a")), configMap("b", blocking(ownedBy("a"))), configMap("c", ownedBy("a"))}, want: nil},
		"foreground: a dependent that does not go holds its owner": {
			objects: []client.Object{
				goingWith(metav1.FinalizerDeleteDependents, configMap("a")),
				func() client.Object {
					c := configMap("b", blocking(ownedBy("a")))
					c.Finalizers = []string{"example.com/hold"}
					return c
				}()},
			want: []string{"a", "b"}},
		"foreground: one that does not block holds nothing": {
			objects: []client.Object{
				goingWith(metav1.FinalizerDeleteDependents, configMap("a")),
				func() client.Object {
					c := configMap("b", ownedBy("a"))
					c.Finalizers = []string{"example.com/hold"}
					return c
				}()},
			want: []string{"b"}},
		"foreground: a dependent with another owner is kept": {
			objects: []client.Object{goingWith(metav1.FinalizerDeleteDependents, configMap("a")), configMap("x"), configMap("b", blocking(ownedBy("a")), ownedBy("x"))},
			want:    []string{"b", "x"}},
		"orphaned": {
			objects: []client.Object{goingWith(metav1.FinalizerOrphanDependents, configMap("a")), configMap("b", blocking(ownedBy("a")))}, want: []string{"b"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, collectorAlone, c.objects...)
				defer w.stop()
				time.Sleep(5 * time.Second)
				if c.remove != "" {
					if err := client.For[*corev1.ConfigMap](w.c).In("ns").Delete(t.Context(), c.remove, metav1.DeleteOptions{}); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Minute)
				if got := names(w); !slices.Equal(got, c.want) {
					t.Errorf("left are %v, want %v", got, c.want)
				}
				for _, cm := range list[*corev1.ConfigMap](w, "") {
					for _, o := range cm.OwnerReferences {
						if o.Name == "a" && cm.DeletionTimestamp == nil && !slices.Contains(c.want, "a") {
							t.Errorf("%s still refers to the owner that is gone", cm.Name)
						}
					}
				}
				var reasons []string
				for _, e := range list[*corev1.Event](w, "") {
					reasons = append(reasons, e.Reason)
				}
				if c.event != "" && !slices.Contains(reasons, c.event) || c.event == "" && len(reasons) > 0 {
					t.Errorf("events are %v, want %q", reasons, c.event)
				}
			})
		})
	}
}

func TestCircleInTheForegroundIsBroken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := goingWith(metav1.FinalizerDeleteDependents, configMap("a", blocking(ownedBy("b"))))
		b := goingWith(metav1.FinalizerDeleteDependents, configMap("b", blocking(ownedBy("c"))))
		c := configMap("c", blocking(ownedBy("a")))
		w := newWorld(t, collectorAlone, a, b, c)
		defer w.stop()
		time.Sleep(time.Minute)
		if got := names(w); len(got) != 0 {
			t.Errorf("left are %v", got)
		}
	})
}

// The collector must not believe a graph that lags: an owner created a moment ago
// is looked up before its dependent is deleted.
func TestNothingIsDeletedOnTheWordOfALaggingInformer(t *testing.T) {
	for seed := range 6 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(uint64(seed), 7))
				w := newWorld(t, func(d Deps) []*control.Controller {
					return []*control.Controller{newDeployment(d), newReplicaSet(d), newCollector(d)}
				})
				defer w.stop()
				w.kubelet(time.Second, rand.New(rand.NewPCG(uint64(seed), 8)), nil)
				w.api.Put(deployment("web", 5, "v0"))
				w.until("rolled out", func() bool { return w.rolledOut("web") })
				for i := range 5 {
					edit(w, "ns", "web", "", func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("v", i+1) })
					time.Sleep(time.Duration(rng.IntN(4000)) * time.Millisecond)
				}
				w.until("rolled out", func() bool { return w.rolledOut("web") })
				for _, r := range w.api.Requests() {
					if r.Verb == "delete" && r.Ref.GVR.Resource == "replicasets" {
						t.Errorf("deleted %s, whose owner is there", r.Ref.Name)
					}
				}
				if err := client.For[*appsv1.Deployment](w.c).In("ns").Delete(context.Background(), "web", metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				w.until("all is gone", func() bool {
					return len(list[*appsv1.ReplicaSet](w, "ns"))+len(list[*corev1.Pod](w, "ns")) == 0
				})
			})
		})
	}
}

func TestCollectorWorksWhileAKindCannotBeWatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorldOn(t, func(s *server) {
			s.Intercept = func(verb string, ref client.Ref, _ client.Object) error {
				if verb == "watch" && ref.GVR.Resource == "priorityclasses" {
					return apierrors.NewNotFound(ref.GVR.GroupResource(), "")
				}
				return nil
			}
		}, collectorAlone)
		defer w.stop()
		w.api.Put(configMap("a"))
		w.api.Put(configMap("b", ownedBy("a")))
		time.Sleep(time.Second)
		if err := client.For[*corev1.ConfigMap](w.c).In("ns").Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := names(w); len(got) != 0 {
			t.Errorf("left are %v", got)
		}
	})
}

func TestCollectorRetriesOnConflict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, collectorAlone, configMap("b", ownedBy("a")))
		defer w.stop()
		failures := 3
		w.api.refuse(func(verb string, ref client.Ref) error {
			if verb == "delete" && failures > 0 {
				failures--
				return apierrors.NewConflict(ref.GVR.GroupResource(), ref.Name, fmt.Errorf("injected"))
			}
			return nil
		})
		time.Sleep(time.Minute)
		if got := names(w); len(got) != 0 || failures != 0 {
			t.Errorf("left are %v after %d refusals", got, 3-failures)
		}
	})
}
