package diff

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"skiff/internal/api"
	"skiff/internal/api/resource"
)

// run is one comparison: both servers, what is known, what was found.
type run struct {
	t     *testing.T
	pair  *pair
	known []*known
	asked int
	found []finding
}

type finding struct {
	name string
	req  request
	ds   []difference
	up   answer
	sk   answer
}

var programs = os.Getenv("SKIFF_UPSTREAM")

func begin(t *testing.T, of ranges) *run {
	t.Helper()
	if programs == "" {
		t.Skip("SKIFF_UPSTREAM names no directory with upstream's kube-apiserver and etcd: `make diff` builds them")
	}
	k, err := readKnown("known.yaml")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	p, err := startPair(context.Background(), programs, t.TempDir(), of, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	})
	return &run{t: t, pair: p, known: k}
}

// settling bounds how long a server may take to see what it was told (Until).
const settling = 10 * time.Second

// both sends r, with the variables of each side filled in, to both servers.
func (r *run) both(rq request, um, sm *memory) (up, sk answer) {
	r.t.Helper()
	type result struct {
		a   answer
		err error
	}
	ask := func(s *server, m *memory, out chan<- result) {
		q := rq
		q.path, q.body = m.fill(q.path), m.fill(q.body)
		q.headers = make(map[string]string, len(rq.headers))
		for k, v := range rq.headers {
			q.headers[k] = m.fill(v)
		}
		a, err := s.ask(r.t.Context(), q)
		until, uerr := strconv.Atoi(q.headers["Until"])
		for end := time.Now().Add(settling); uerr == nil && err == nil && a.code != until && time.Now().Before(end); {
			time.Sleep(settling / 100) // between two looks, bounded by end
			a, err = s.ask(r.t.Context(), q)
		}
		out <- result{a, err}
	}
	uc, sc := make(chan result, 1), make(chan result, 1)
	go ask(r.pair.upstream, um, uc)
	go ask(r.pair.skiff, sm, sc)
	u, s := <-uc, <-sc
	if r.t.Context().Err() != nil {
		r.t.Fatalf("%s: %v", rq.name, u.err)
	}
	// A connection that is cut is a difference like any other: upstream may panic.
	if u.err != nil {
		u.a.text = "no answer: " + u.err.Error()
	}
	if s.err != nil {
		s.a.text = "no answer: " + s.err.Error()
	}
	r.asked++
	return u.a, s.a
}

// check sends a request and records how the answers differ.
func (r *run) check(name string, rq request, um, sm *memory) {
	r.t.Helper()
	up, sk := r.both(rq, um, sm)
	um.answers[rq.name], sm.answers[rq.name] = up, sk
	if left := explain(r.known, name, compare(up, sk)); len(left) > 0 {
		r.found = append(r.found, finding{name, rq, left, up, sk})
	}
}

func newMemory(ns string) *memory { return &memory{ns: ns, answers: map[string]answer{}} }

// namespace makes a namespace with the service account that upstream's controllers
// would make, on both sides.
func (r *run) namespace(ns string) {
	r.t.Helper()
	m := newMemory(ns)
	for _, rq := range []request{
		{name: "namespace", method: "POST", path: "/api/v1/namespaces", body: `{"metadata":{"name":"` + ns + `"}}`},
		{name: "account", method: "POST", path: "/api/v1/namespaces/" + ns + "/serviceaccounts", body: `{"metadata":{"name":"default"}}`},
	} {
		up, sk := r.both(rq, m, m)
		for side, a := range map[string]answer{"upstream": up, "skiff": sk} {
			if a.code != 201 && a.code != 409 {
				r.t.Fatalf("%s: make %s %q: %d %v %s", side, rq.name, ns, a.code, a.docs, a.text)
			}
		}
	}
}

func (r *run) scripts(dir string, only *regexp.Regexp) {
	files, err := filepath.Glob(dir + "/*.txt")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range files {
		script := strings.TrimSuffix(filepath.Base(f), ".txt")
		if only != nil && !only.MatchString(dir+"/"+script) {
			continue
		}
		rqs, err := readScript(f)
		if err != nil {
			r.t.Fatal(err)
		}
		ns := "diff-" + script
		r.namespace(ns)
		um, sm := newMemory(ns), newMemory(ns)
		for _, rq := range rqs {
			r.check(dir+"/"+script+"/"+rq.name, rq, um, sm)
		}
	}
}

// objects sends the valid objects of each file of objects/, and their mutations.
func (r *run) objects(only *regexp.Regexp) {
	files, err := filepath.Glob("objects/*.yaml")
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			r.t.Fatal(err)
		}
		var docs []map[string]any
		for _, part := range strings.Split(string(b), "\n---\n") {
			js, err := yaml.YAMLToJSON([]byte(part))
			if err != nil {
				r.t.Fatalf("%s: %v", f, err)
			}
			d, err := decodeObject(js)
			if err != nil {
				r.t.Fatalf("%s: %v", f, err)
			}
			docs = append(docs, d)
		}
		file := strings.TrimSuffix(filepath.Base(f), ".yaml")
		if only != nil && !only.MatchString("objects/"+file) {
			continue
		}
		res := resourceOf(docs[0])
		if res == nil {
			r.t.Fatalf("%s: skiff serves no %v %v", f, docs[0]["apiVersion"], docs[0]["kind"])
		}
		r.kind("objects/"+file, res, docs)
	}
}

func resourceOf(o map[string]any) *resource.Resource {
	for _, res := range api.All() {
		if gv := res.GroupVersion.String(); gv == o["apiVersion"] && res.Kind == o["kind"] {
			return res
		}
	}
	return nil
}

// collection is where a resource is listed.
func collection(res *resource.Resource, ns string) string {
	root := "/apis/" + res.GroupVersion.String()
	if res.GroupVersion.Group == "" {
		root = "/api/" + res.GroupVersion.Version
	}
	if res.Namespaced {
		return root + "/namespaces/" + ns + "/" + res.Plural
	}
	return root + "/" + res.Plural
}

// fields that a mutation leaves alone: the server sets them, or they differ per
// side.
var untouched = map[string]bool{"metadata.managedFields": true}

func (r *run) kind(label string, res *resource.Resource, docs []map[string]any) {
	ns := "diff-" + strings.ToLower(strings.NewReplacer("objects/", "", ".", "-").Replace(label))
	r.namespace(ns)
	m := func() (a, b *memory) { return newMemory(ns), newMemory(ns) }
	path := collection(res, ns)
	body := func(o map[string]any) string {
		b, err := json.Marshal(o)
		if err != nil {
			r.t.Fatal(err)
		}
		return string(b)
	}
	t := reflect.TypeOf(res.New()).Elem()
	stored := res.Prefix != "" || res.Twin != nil
	for i, d := range docs {
		um, sm := m()
		name := fmt.Sprintf("%s/%d", label, i)
		obj, _ := d["metadata"].(map[string]any)
		item := path + "/" + fmt.Sprint(obj["name"])
		say := func(step, method, p, b string, h map[string]string) {
			r.check(name+"/"+step, request{name: step, method: method, path: p, body: b, headers: h}, um, sm)
		}
		none := map[string]string{}
		say("create", "POST", path, body(d), none)
		if a := um.answers["create"]; a.code != 201 {
			r.t.Errorf("%s: upstream refuses the object, so that its mutations say nothing: %d %v", name, a.code, a.docs)
		}
		if stored {
			say("again", "POST", path, body(d), none)
			say("get", "GET", item, "", none)
			say("update", "PUT", item, body(d), none)
			say("table", "GET", item, "", map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"})
			say("status", "GET", item+"/status", "", none)
		}
		// The rules of metadata that all kinds share are tried on one of them.
		shallow := map[string]bool{"metadata": res.Kind != "ConfigMap"}
		if res.Kind != "Pod" {
			shallow["spec.template.spec"], shallow["template.spec"], shallow["spec.jobTemplate.spec.template.spec"] = true, true, true
		}
		for _, mu := range mutations(t, d, shallow) {
			if untouched[strings.SplitN(mu.name, "=", 2)[0]] {
				continue
			}
			if !stored {
				say("create "+mu.name, "POST", path, body(mu.object), none)
				continue
			}
			if !strings.HasPrefix(mu.name, "status") {
				// A name of its own: the object itself is there already.
				o := mu.object
				if md, ok := o["metadata"].(map[string]any); ok && md["name"] == obj["name"] && !strings.HasPrefix(mu.name, "metadata.name") {
					o = set(o, []string{"metadata", "name"}, rename(fmt.Sprint(obj["name"]))).(map[string]any)
				}
				say("create "+mu.name, "POST", path+"?dryRun=All", body(o), none)
				say("update "+mu.name, "PUT", item+"?dryRun=All", body(mu.object), none)
				if name := nameOf(mu.object); name == nameOf(d) {
					say("apply "+mu.name, "PATCH", item+"?dryRun=All&force=true&fieldManager=m", body(mu.object), map[string]string{"Content-Type": applyPatch})
				}
			} else if res.Subresource("status") != nil {
				say("status "+mu.name, "PUT", item+"/status?dryRun=All", body(mu.object), none)
			}
		}
		if stored {
			verbs(say, res, path, item, d, i == 0)
		} else {
			reviewVerbs(say, path, d)
		}
		if stored {
			say("list", "GET", path+"?labelSelector=kubernetes.io/bootstrapping!%3Drbac-defaults&fieldSelector=metadata.name%3D"+fmt.Sprint(obj["name"]), "", none)
			say("delete", "DELETE", item, "", none)
			say("gone", "GET", item, "", none)
		}
	}
}

// report writes everything found, and a summary by cause.
func (r *run) report() string {
	var full strings.Builder
	causes := map[string][]string{}
	for _, f := range r.found {
		fmt.Fprintf(&full, "== %s\n%s %s\n%s\n", f.name, f.req.method, f.req.path, clip(f.req.body, 3000))
		for _, d := range f.ds {
			fmt.Fprintf(&full, "    %s\n", d)
			c := cause(d)
			causes[c] = append(causes[c], f.name)
		}
		full.WriteString("\n")
	}
	dir := os.Getenv("SKIFF_DIFF_OUT")
	if dir == "" {
		dir = r.t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	keys := make([]string, 0, len(causes))
	for k := range causes {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		if len(causes[a]) != len(causes[b]) {
			return len(causes[a]) > len(causes[b])
		}
		return a < b
	})
	var sum strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&sum, "%5d  %s\n       e.g. %s\n", len(causes[k]), k, causes[k][0])
	}
	for name, text := range map[string]string{"differences.txt": full.String(), "causes.txt": sum.String()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	return dir
}

var (
	indexIn  = regexp.MustCompile(`\[\d+\]`)
	quotedIn = regexp.MustCompile(`\\?"[^"]*\\?"`)
)

// cause is a difference without what is particular to one request.
func cause(d difference) string {
	short := func(s string) string { return clip(quotedIn.ReplaceAllString(s, "Q"), 160) }
	path := indexIn.ReplaceAllString(d.path, "[]")
	if strings.HasPrefix(path, "body.message") || strings.HasPrefix(path, "body.details") {
		return path + ": " + clip(d.upstream, 200) + " | " + clip(d.skiff, 200)
	}
	return path + ": " + short(d.upstream) + " | " + short(d.skiff)
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// TestAnswers is the comparison. SKIFF_DIFF_ONLY, a regular expression over names
// such as objects/pods, cases/patch or dual/services, runs a part.
func TestAnswers(t *testing.T) {
	only := part(t)
	if only != nil && strings.HasPrefix(only.String(), "dual") {
		t.Skip("SKIFF_DIFF_ONLY asks for cases of TestDualStack alone")
	}
	r := begin(t, singleStack)
	r.scripts("cases", only)
	r.objects(only)
	r.judge(only != nil)
}

// TestDualStack is the comparison of what differs in a cluster of two IP families.
func TestDualStack(t *testing.T) {
	only := part(t)
	if only != nil && !only.MatchString("dual/services") {
		t.Skip("SKIFF_DIFF_ONLY asks for other cases")
	}
	r := begin(t, dualStack)
	r.scripts("dual", only)
	r.judge(true)
}

// part is what SKIFF_DIFF_ONLY asks for; nil where it is everything.
func part(t *testing.T) *regexp.Regexp {
	t.Helper()
	s := os.Getenv("SKIFF_DIFF_ONLY")
	if s == "" {
		return nil
	}
	return regexp.MustCompile(s)
}

// judge reports what was found. Of a part nothing is said about known differences
// that did not occur.
func (r *run) judge(partial bool) {
	t := r.t
	t.Helper()
	dir := r.report()
	kinds := 0
	for _, k := range r.known {
		kinds++
		if k.met == 0 && !partial && !k.Sometimes {
			t.Errorf("known.yaml: %s: %s: no longer occurs: remove the entry", k.Case, k.Difference)
		}
	}
	t.Logf("%d requests, %d known differences, %d requests that differ", r.asked, kinds, len(r.found))
	for i, f := range r.found {
		if i == 20 {
			t.Errorf("and %d more: %s/differences.txt, by cause in causes.txt", len(r.found)-i, dir)
			break
		}
		var lines []string
		for _, d := range f.ds {
			lines = append(lines, d.String())
		}
		t.Errorf("%s: %s %s\n    %s", f.name, f.req.method, f.req.path, strings.Join(lines, "\n    "))
	}
	if len(r.found) > 0 {
		t.Errorf("answers differ; everything is in %s/differences.txt", dir)
	}
}
