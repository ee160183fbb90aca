package fields

import (
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

// hot tells the kinds that are written often enough to be worth a walker.
func hot(plural string) bool {
	switch plural {
	case "pods", "nodes", "leases", "events", "endpointslices", "endpoints", "replicasets", "deployments", "statefulsets", "jobs", "configmaps":
		return true
	}
	return false
}

// walker does what the library's Update does for one door of one kind, on Go
// structs and in one pass. What is out of the ordinary (items twice in a list,
// names that JSON quotes, managed fields that it did not write) it leaves to the
// library, whose bytes it must equal.
type walker struct {
	of         reflect.Type
	plan       *plan
	skip       *exclusion
	apiVersion string
	sub        string
	sets       *interned
}

// walkerFor returns nil where the library is to do it.
func (m *Managers) walkerFor(r *resource.Resource, sub *resource.Subresource) *walker {
	s := &r.Strategy
	w := &walker{apiVersion: r.GroupVersion.String()}
	if sub != nil {
		if sub.Status == nil || sub.NewView != nil {
			return nil
		}
		s, w.sub = sub.Status, sub.Name
	}
	if !hot(r.Plural) || len(s.KeepFields) > 0 {
		return nil
	}
	gvk := r.GVK()
	if m.plans[gvk] == nil {
		p := planFor(m.types.parse, r.New())
		if p == nil {
			return nil
		}
		m.plans[gvk] = &planned{plan: p, sets: newInterned()}
	}
	w.of = reflect.TypeOf(r.New())
	w.plan, w.sets = m.plans[gvk].plan, m.plans[gvk].sets
	w.skip = exclude(s.ResetFields)
	return w
}

// planned is what the doors of a kind share.
type planned struct {
	plan *plan
	sets *interned
}

const maxUpdaters = 10 // of managed fields; more are merged (the library's)

// entry is a manager's entry with its fields as a set.
type entry struct {
	metav1.ManagedFieldsEntry
	set *set
}

// update sets obj's managed fields to what manager's making obj out of live
// leaves; false, and obj as it was, where the library is to do it. live is empty
// on creation.
func (w *walker) update(live, obj Object, manager string) bool {
	given := obj.GetManagedFields()
	entries, ok := w.entries(live.GetManagedFields(), given)
	if !ok || !plain(manager) || reflect.TypeOf(live) != w.of || reflect.TypeOf(obj) != w.of {
		return false
	}
	if len(entries) == 0 && live.GetUID() != "" {
		// Not followed from the start, and so not from here.
		obj.SetManagedFields(nil)
		return true
	}
	obj.SetManagedFields(nil)
	out, ok := w.managed(entries, live, obj, manager)
	if !ok {
		obj.SetManagedFields(given)
		return false
	}
	obj.SetManagedFields(out)
	return true
}

// entries reads the managed fields that count: those that the request gives, or
// live's.
func (w *walker) entries(live, given []metav1.ManagedFieldsEntry) ([]entry, bool) {
	source := live
	if w.sub == "" && given != nil {
		if len(given) == 0 || (len(given) == 1 && given[0] == (metav1.ManagedFieldsEntry{})) {
			return nil, false // a reset
		}
		source = given
	}
	out := make([]entry, len(source), len(source)+1)
	for i := range source {
		e := &source[i]
		if (e.Operation != metav1.ManagedFieldsOperationUpdate && e.Operation != metav1.ManagedFieldsOperationApply) ||
			e.APIVersion != w.apiVersion || e.FieldsType != "FieldsV1" || e.FieldsV1 == nil || !plain(e.Manager) || !plain(e.Subresource) {
			return nil, false
		}
		for j := range out[:i] {
			if out[j].is(e.Manager, e.Operation, e.Subresource) {
				return nil, false
			}
		}
		s, ok := w.sets.parse(e.FieldsV1, w.plan)
		if !ok {
			return nil, false
		}
		out[i] = entry{*e, s}
	}
	return out, true
}

func (e *entry) is(manager string, op metav1.ManagedFieldsOperationType, sub string) bool {
	return e.Manager == manager && e.Operation == op && e.Subresource == sub
}

func (w *walker) managed(entries []entry, live, obj Object, manager string) ([]metav1.ManagedFieldsEntry, bool) {
	var c comparison
	var d set
	c.compare(w.plan, objectValue(live), objectValue(obj), w.skip, &d)
	if c.failed {
		return nil, false
	}
	d.in, d.gone = false, false
	// Whoever else had a field that changed or went has it no more.
	for i := range entries {
		e := &entries[i]
		if left := e.set.without(&d); left != e.set {
			e.set, e.FieldsV1 = left, nil
		}
	}
	stripMeta(&d)
	if !d.empty() {
		if manager == "" {
			manager = "unknown"
		}
		i := slices.IndexFunc(entries, func(e entry) bool { return e.is(manager, metav1.ManagedFieldsOperationUpdate, w.sub) })
		if i < 0 {
			i = len(entries)
			entries = append(entries, entry{metav1.ManagedFieldsEntry{
				Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: w.apiVersion, FieldsType: "FieldsV1", Subresource: w.sub,
			}, &set{}})
		}
		e := &entries[i]
		if both := e.set.with(&d); both != e.set {
			e.set, e.FieldsV1 = both, nil
		}
		e.Time = &metav1.Time{Time: time.Now().UTC()}
	}
	entries = slices.DeleteFunc(entries, func(e entry) bool { return e.set.empty() })
	updaters := 0
	for i := range entries {
		if entries[i].Operation == metav1.ManagedFieldsOperationUpdate {
			updaters++
		}
	}
	if updaters > maxUpdaters {
		return nil, false
	}
	return w.encode(entries), true
}

func (w *walker) encode(entries []entry) []metav1.ManagedFieldsEntry {
	if len(entries) == 0 {
		return nil
	}
	out := make([]metav1.ManagedFieldsEntry, len(entries))
	for i := range entries {
		e := &entries[i]
		if e.FieldsV1 == nil {
			e.FieldsV1 = w.sets.encode(e.set)
		}
		out[i] = e.ManagedFieldsEntry
	}
	seconds := func(t *metav1.Time) int64 {
		if t == nil {
			return 0
		}
		return t.Unix()
	}
	slices.SortFunc(out, func(a, b metav1.ManagedFieldsEntry) int {
		if c := strings.Compare(string(a.Operation), string(b.Operation)); c != 0 {
			return c
		}
		if x, y := seconds(a.Time), seconds(b.Time); x != y {
			if x < y {
				return -1
			}
			return 1
		}
		if c := strings.Compare(a.Manager, b.Manager); c != 0 {
			return c
		}
		return strings.Compare(a.Subresource, b.Subresource)
	})
	return out
}

// unmanaged are the fields of metadata that nobody is noted for.
var unmanaged = []string{
	"f:clusterName", "f:creationTimestamp", "f:generation", "f:managedFields", "f:name", "f:namespace", "f:resourceVersion",
	"f:selfLink", "f:uid",
}

// stripMeta takes from a comparison what belongs to the system.
func stripMeta(d *set) {
	for i := range d.kids {
		if d.kids[i].text != "f:metadata" {
			continue
		}
		d.kids[i].in = false
		for j := range d.kids[i].kids {
			if k := &d.kids[i].kids[j]; slices.Contains(unmanaged, k.text) {
				k.in = false
			}
		}
	}
}

// interned keeps the sets that objects of a kind have over and over: templates
// repeat them by the thousand. FieldsV1 of equal bytes are equal.
type interned struct {
	mu       sync.Mutex
	now, old map[metav1.FieldsV1]*set
}

// keepSets bounds each of the two generations of a kind's sets.
const keepSets = 256

func newInterned() *interned { return &interned{now: map[metav1.FieldsV1]*set{}} }

// parse returns the set that raw is; false where the library must read it.
func (n *interned) parse(raw *metav1.FieldsV1, p *plan) (*set, bool) {
	n.mu.Lock()
	s, ok := n.now[*raw]
	if !ok {
		if s, ok = n.old[*raw]; ok {
			n.put(*raw, s)
		}
	}
	n.mu.Unlock()
	if ok {
		return s, true
	}
	if s, ok = parseSet(raw.GetRawString()); !ok || !s.granular(p) {
		return nil, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.put(*raw, s)
	return s, true
}

// put adds a set; the caller holds mu.
func (n *interned) put(raw metav1.FieldsV1, s *set) {
	if len(n.now) >= keepSets {
		n.old, n.now = n.now, make(map[metav1.FieldsV1]*set, keepSets)
	}
	n.now[raw] = s
}

// encode returns the bytes of s, which is given away.
func (n *interned) encode(s *set) *metav1.FieldsV1 {
	raw := &metav1.FieldsV1{}
	raw.SetRawBytes(s.appendJSON(make([]byte, 0, 1024)))
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.now[*raw]; !ok {
		n.put(*raw, s)
	}
	return raw
}
