package scheduler

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	extenderv1 "k8s.io/kube-scheduler/extender/v1"

	"skiff/internal/client/clienttest"
)

// webhook is an extender on loopback.
type webhook struct {
	t *testing.T
	*httptest.Server
	api *clienttest.API

	mu     sync.Mutex
	asked  []string // verbs and pods
	broken bool
}

func newWebhook(t *testing.T, api *clienttest.API, secure bool) *webhook {
	w := &webhook{t: t, api: api}
	if secure {
		w.Server = httptest.NewTLSServer(w)
	} else {
		w.Server = httptest.NewServer(w)
	}
	t.Cleanup(w.Close)
	return w
}

func (w *webhook) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	verb := strings.TrimPrefix(r.URL.Path, "/ext/")
	if w.broken {
		http.Error(rw, "no", http.StatusTeapot)
		return
	}
	var out any
	switch verb {
	case "filter", "prioritize":
		var a extenderv1.ExtenderArgs
		w.decode(r, &a)
		w.asked = append(w.asked, verb+" "+a.Pod.Name)
		out = w.judge(verb, &a)
	case "bind":
		var a extenderv1.ExtenderBindingArgs
		w.decode(r, &a)
		w.asked = append(w.asked, verb+" "+a.PodName)
		res := extenderv1.ExtenderBindingResult{}
		b := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: a.Node}}
		b.Namespace, b.Name, b.UID = a.PodNamespace, a.PodName, a.PodUID
		if err := w.api.Bind(r.Context(), []*corev1.Binding{b})[0]; err != nil {
			res.Error = err.Error()
		}
		out = res
	case "preempt":
		var a extenderv1.ExtenderPreemptionArgs
		w.decode(r, &a)
		w.asked = append(w.asked, fmt.Sprintf("%s %s on %d", verb, a.Pod.Name, len(a.NodeNameToMetaVictims)))
		// Nothing may be ended on node a.
		delete(a.NodeNameToMetaVictims, "a")
		out = extenderv1.ExtenderPreemptionResult{NodeNameToMetaVictims: a.NodeNameToMetaVictims}
	}
	if err := json.NewEncoder(rw).Encode(out); err != nil {
		w.t.Error(err)
	}
}

func (w *webhook) decode(r *http.Request, into any) {
	if err := json.NewDecoder(r.Body).Decode(into); err != nil {
		w.t.Error(err)
	}
}

// judge refuses node a, and likes node c.
func (w *webhook) judge(verb string, a *extenderv1.ExtenderArgs) any {
	var names []string
	if a.NodeNames != nil {
		names = *a.NodeNames
	} else {
		for _, n := range a.Nodes.Items {
			names = append(names, n.Name)
		}
	}
	if verb == "prioritize" {
		list := extenderv1.HostPriorityList{}
		for _, n := range names {
			h := extenderv1.HostPriority{Host: n}
			if n == "c" {
				h.Score = 10
			}
			list = append(list, h)
		}
		return list
	}
	res := extenderv1.ExtenderFilterResult{FailedNodes: extenderv1.FailedNodesMap{}}
	if slices.Contains(names, "a") {
		res.FailedNodes["a"] = "node a is mine"
	}
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == "a" })
	if a.NodeNames != nil {
		res.NodeNames = &names
		return res
	}
	res.Nodes = &corev1.NodeList{}
	for _, n := range a.Nodes.Items {
		if n.Name != "a" {
			res.Nodes.Items = append(res.Nodes.Items, n)
		}
	}
	return res
}

func (w *webhook) heard(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.asked, what)
}

func TestExtender(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cache %t", cached), func(t *testing.T) {
			api := clienttest.New(node("a"), node("b"), node("c"))
			w := newWebhook(t, api, false)
			r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext/', filterVerb: filter, prioritizeVerb: prioritize, weight: 5, bindVerb: bind, nodeCacheCapable: %t}\n", w.URL, cached))
			api.Put(pod("p"))
			r.until("p is where the extender likes it", func() bool { return r.node("p") == "c" })
			for _, what := range []string{"filter p", "prioritize p", "bind p"} {
				if !w.heard(what) {
					t.Errorf("the extender was not asked to %s", what)
				}
			}
		})
	}
}

func TestExtenderRefuses(t *testing.T) {
	api := clienttest.New(node("a"))
	w := newWebhook(t, api, false)
	r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext', filterVerb: filter}\n", w.URL))
	api.Put(pod("p"))
	r.waits("p", "0/1 nodes are available: 1 node a is mine. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
}

// Only pods that ask for what it manages are an extender's; what it manages alone is
// not the scheduler's to count.
func TestExtenderManagedResources(t *testing.T) {
	api := clienttest.New(node("a"), node("b"))
	w := newWebhook(t, api, false)
	r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext', filterVerb: filter, managedResources: [{name: x.io/thing, ignoredByScheduler: true}]}\n", w.URL))
	api.Put(pod("plain"))
	r.until("plain is bound", func() bool { return r.node("plain") != "" })
	if w.heard("filter plain") {
		t.Error("asked about a pod that is none of its business")
	}
	api.Put(pod("p", "x.io/thing", "3"))
	r.until("p is bound", func() bool { return r.node("p") == "b" })
}

func TestExtenderBroken(t *testing.T) {
	for _, ignorable := range []bool{false, true} {
		api := clienttest.New(node("a"))
		w := newWebhook(t, api, false)
		w.broken = true
		r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext', filterVerb: filter, ignorable: %t}\n", w.URL, ignorable))
		api.Put(pod("p"))
		if ignorable {
			r.until("p is bound", func() bool { return r.node("p") == "a" })
			continue
		}
		r.until("p waits", func() bool { return r.message("p") != "" })
		want := fmt.Sprintf("SchedulerError: failed filter with extender at URL %s/ext/filter, code 418", w.URL)
		if got := r.message("p"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestExtenderTLS(t *testing.T) {
	api := clienttest.New(node("b"))
	w := newWebhook(t, api, true)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Certificate().Raw})
	data, err := json.Marshal(ca)
	if err != nil {
		t.Fatal(err)
	}
	r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext', filterVerb: filter, enableHTTPS: true, tlsConfig: {caData: %s}}\n", w.URL, data))
	api.Put(pod("p"))
	r.until("p is bound", func() bool { return r.node("p") == "b" })
	if !w.heard("filter p") {
		t.Error("the extender was not asked")
	}
}

func TestExtenderPreempts(t *testing.T) {
	api := clienttest.New(node("a"), node("b"), on(withPriority(pod("least", "cpu", "4"), 1), "a"), on(withPriority(pod("more", "cpu", "4"), 5), "b"))
	w := newWebhook(t, api, false)
	r := runConfigured(t, api, fmt.Sprintf("extenders:\n- {urlPrefix: '%s/ext', preemptVerb: preempt, nodeCacheCapable: true}\n", w.URL))
	high := withPriority(pod("high", "cpu", "4"), 10)
	high.UID = types.UID("high")
	api.Put(high)
	r.until("more is to end, since least must not", func() bool { return len(r.ending()) > 0 })
	if got := strings.Join(r.ending(), " "); got != "more" || !w.heard("preempt high on 2") {
		t.Errorf("%s end; asked %v", got, w.asked)
	}
}
