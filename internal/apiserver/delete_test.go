package apiserver_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
	"skiff/internal/client"
	"skiff/internal/store"
	"skiff/internal/store/mem"
)

// hasty is a store in which others remove what they see marked, as a kubelet does,
// before the one that marked it can.
type hasty struct {
	store.Store
	before func(key string)
}

func (h hasty) Delete(ctx context.Context, key string, rev int64) (int64, error) {
	h.before(key)
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return h.Store.Delete(ctx, key, rev)
}

// A pod that has ended goes at once. Who deletes it is told so, though a kubelet that
// saw the mark was quicker, or wrote to it.
func TestDeleteOvertaken(t *testing.T) {
	st := mem.New(mem.Config{})
	var other func(key string)
	f := startOn(t, hasty{st, func(key string) {
		if other != nil {
			other(key)
		}
	}})
	const at = "/api/v1/namespaces/default/pods"
	create := func(name string) {
		f.want(201, "POST", at, "application/json", `{"metadata":{"name":"`+name+`"},"spec":{"containers":[{"name":"c","image":"i"}]}}`)
		f.want(200, "PATCH", at+"/"+name+"/status", "application/merge-patch+json", `{"status":{"phase":"Succeeded"}}`)
	}
	remove := func(key string) {
		kv, err := st.Get(t.Context(), key, 0)
		if err == nil {
			_, err = st.Delete(t.Context(), key, kv.ModRev)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for name, does := range map[string]func(key string){
		"removed": remove,
		"changed": func(key string) {
			kv, err := st.Get(t.Context(), key, 0)
			if err == nil {
				_, err = st.Update(t.Context(), key, kv.Value, kv.ModRev, store.WriteOptions{})
			}
			if err != nil {
				t.Error(err)
			}
			other = remove
		},
	} {
		create(name)
		calls := 0
		other = func(key string) {
			if strings.HasSuffix(key, "/"+name) && calls == 0 {
				calls++
				other = nil
				does(key)
			}
		}
		if got := f.want(200, "DELETE", at+"/"+name, "", ""); got["kind"] != "Pod" && got["status"] != "Success" {
			t.Errorf("%s: the answer is %v", name, got)
		}
		if calls != 1 {
			t.Errorf("%s: nobody was quicker", name)
		}
		f.want(404, "GET", at+"/"+name, "", "")
	}
}

// A deletion that has marked its object removes it, though whoever asked went away
// meanwhile: nobody else would.
func TestDeleteAbandoned(t *testing.T) {
	st := mem.New(mem.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed := false
	f := startOn(t, hasty{st, func(key string) {
		if !strings.HasSuffix(key, "/default/p") {
			return
		}
		cancel()
		if !changed { // and somebody writes to it
			changed = true
			kv, err := st.Get(t.Context(), key, 0)
			if err == nil {
				_, err = st.Update(t.Context(), key, kv.Value, kv.ModRev, store.WriteOptions{})
			}
			if err != nil {
				t.Error(err)
			}
		}
	}})
	const at = "/api/v1/namespaces/default/pods"
	f.want(201, "POST", at, "application/json", `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`)
	pods := client.For[*corev1.Pod](client.New(f.srv.Local(resource.User{Name: "part"}), "part")).In("default")
	_ = pods.Delete(ctx, "p", metav1.DeleteOptions{}) // whatever it is told
	if !changed {
		t.Error("nothing was marked")
	}
	f.want(404, "GET", at+"/p", "", "")
}
