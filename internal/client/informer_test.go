package client_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/client/clienttest"
)

func configMap(ns, name, v string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Data: map[string]string{"v": v}}
}

func TestInformerFollowsChanges(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	api := clienttest.New(configMap("a", "one", "1"), configMap("b", "two", "1"))
	c := api.Client()
	set := client.NewInformers(c, slog.Default())
	inf := client.InformerFor[*corev1.ConfigMap](set)
	inf.AddIndex("v", func(o *corev1.ConfigMap) []string { return []string{o.Data["v"]} })
	changes := make(chan client.Change[*corev1.ConfigMap], 10)
	inf.OnChange(func(ch client.Change[*corev1.ConfigMap]) {
		if !ch.Deleted() {
			if _, ok := inf.Get(ch.New.Namespace, ch.New.Name); !ok {
				t.Error("a handler saw an object that Get does not show")
			}
		}
		changes <- ch
	})
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	if err := set.WaitSynced(ctx); err != nil {
		t.Fatal(err)
	}
	if got := len(inf.ByIndex("v", "1")); got != 2 {
		t.Fatalf("index has %d objects, want 2", got)
	}
	for range 2 {
		<-changes
	}
	cms := client.For[*corev1.ConfigMap](c)
	if _, err := cms.In("a").Patch(ctx, "one", types.MergePatchType, []byte(`{"data":{"v":"2"}}`), ""); err != nil {
		t.Fatal(err)
	}
	if ch := <-changes; ch.Old.Data["v"] != "1" || ch.New.Data["v"] != "2" {
		t.Fatalf("change is %v", ch)
	}
	if got := len(inf.ByIndex("v", "1")); got != 1 {
		t.Fatalf("index has %d objects, want 1", got)
	}
	if err := cms.In("b").Delete(ctx, "two", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if ch := <-changes; !ch.Deleted() || ch.Object().Name != "two" {
		t.Fatalf("change is %v", ch)
	}
	if got := inf.Len(); got != 1 {
		t.Fatalf("informer has %d objects, want 1", got)
	}
	replayed := 0
	inf.OnChange(func(client.Change[*corev1.ConfigMap]) { replayed++ })
	if replayed != 1 {
		t.Fatalf("a late handler saw %d objects, want 1", replayed)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestStillInformers(t *testing.T) {
	set := client.Still(configMap("a", "one", "1"), configMap("b", "two", "1"))
	all := client.InformerFor[*corev1.ConfigMap](set)
	if err := set.WaitSynced(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := all.Get("a", "one"); !ok || all.Len() != 2 {
		t.Errorf("shows %v", all.List("", nil))
	}
	if one := client.InformerOf[*corev1.ConfigMap](set, "b", metav1.ListOptions{}); one.Len() != 1 {
		t.Errorf("namespace b shows %v", one.List("", nil))
	}
	if none := client.InformerFor[*corev1.Secret](set); none.Len() != 0 {
		t.Errorf("secrets %v", none.List("", nil))
	}
}
