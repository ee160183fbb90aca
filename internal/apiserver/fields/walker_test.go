package fields

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"skiff/internal/api"
	apiresource "skiff/internal/api/resource"
)

// generator makes values of any API type, small enough that changes meet.
type generator struct{ *rand.Rand }

var words = []string{"a", "b", "c", "web", "sidecar", "10.0.0.1", "kubernetes.io/arch", "TCP", "UDP"}

// odd are words that the walker leaves to the library.
var odd = []string{"a\"b", "<x>", "ü", "back\\slash", "a&b", ""}

func (g generator) word() string {
	if g.IntN(200) == 0 {
		return odd[g.IntN(len(odd))]
	}
	return words[g.IntN(len(words))]
}

func (g generator) fill(v reflect.Value, depth int) {
	switch v.Type() {
	case reflect.TypeFor[metav1.Time]():
		if g.IntN(4) > 0 {
			v.Set(reflect.ValueOf(metav1.Unix(int64(g.IntN(3))*1000, 0)))
		}
		return
	case reflect.TypeFor[metav1.MicroTime]():
		if g.IntN(4) > 0 {
			v.Set(reflect.ValueOf(metav1.NewMicroTime(time.Unix(int64(g.IntN(3)), 5000))))
		}
		return
	case reflect.TypeFor[resource.Quantity]():
		q := resource.MustParse([]string{"1", "1000m", "100m", "1Gi", "1024Mi", "0"}[g.IntN(6)])
		if g.IntN(2) == 0 {
			_ = q.String() // as some callers leave it
		}
		v.Set(reflect.ValueOf(q))
		return
	case reflect.TypeFor[intstr.IntOrString]():
		if g.IntN(2) == 0 {
			v.Set(reflect.ValueOf(intstr.FromInt32(int32(g.IntN(3)))))
		} else {
			v.Set(reflect.ValueOf(intstr.FromString(g.word())))
		}
		return
	case reflect.TypeFor[[]metav1.ManagedFieldsEntry]():
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(g.word())
	case reflect.Bool:
		v.SetBool(g.IntN(2) == 0)
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Int16, reflect.Int8:
		v.SetInt(int64(g.IntN(4)))
	case reflect.Uint8:
		v.SetUint(uint64(g.IntN(4)))
	case reflect.Pointer:
		if g.IntN(3) > 0 {
			v.SetZero()
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		g.fill(v.Elem(), depth+1)
	case reflect.Slice:
		switch g.IntN(5) {
		case 0:
			v.SetZero()
			return
		case 1:
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
			return
		}
		n := 1 + g.IntN(2)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			g.fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		switch g.IntN(5) {
		case 0:
			v.SetZero()
			return
		case 1:
			v.Set(reflect.MakeMap(v.Type()))
			return
		}
		v.Set(reflect.MakeMap(v.Type()))
		for range 1 + g.IntN(2) {
			e := reflect.New(v.Type().Elem()).Elem()
			g.fill(e, depth+1)
			v.SetMapIndex(reflect.ValueOf(g.word()).Convert(v.Type().Key()), e)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Name == "TypeMeta" || !f.IsExported() {
				continue
			}
			if depth > 2 && g.IntN(3) > 0 {
				continue
			}
			if g.IntN(2) == 0 {
				g.fill(v.Field(i), depth+1)
			}
		}
	}
}

// mutate changes some things in a value.
func (g generator) mutate(v reflect.Value, rate int) {
	if g.IntN(rate) == 0 {
		g.fill(v, 1)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			g.mutate(v.Elem(), rate)
		}
	case reflect.Slice:
		if v.Len() > 1 && g.IntN(rate) == 0 {
			a, b := reflect.ValueOf(v.Index(0).Interface()), reflect.ValueOf(v.Index(1).Interface())
			v.Index(0).Set(b)
			v.Index(1).Set(a)
		}
		for i := range v.Len() {
			g.mutate(v.Index(i), rate)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if g.IntN(rate) == 0 {
				v.SetMapIndex(k, reflect.Value{})
			}
		}
	case reflect.Struct:
		if value.TypeReflectEntryOf(v.Type()).CanConvertToUnstructured() {
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.Name == "TypeMeta" || !f.IsExported() || f.Name == "ManagedFields" {
				continue
			}
			g.mutate(v.Field(i), rate)
		}
	}
}

// entriesOf reads the entries of an object; times are left out: both sides ask
// the clock.
func entriesOf(t *testing.T, obj Object) string {
	t.Helper()
	list := slices.Clone(obj.GetManagedFields())
	for i := range list {
		list[i].Time = nil
	}
	slices.SortStableFunc(list, func(a, b metav1.ManagedFieldsEntry) int {
		return strings.Compare(fmt.Sprint(a.Operation, a.Manager, a.Subresource, a.APIVersion), fmt.Sprint(b.Operation, b.Manager, b.Subresource, b.APIVersion))
	})
	b, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func order(obj Object) []string {
	var out []string
	for _, e := range obj.GetManagedFields() {
		out = append(out, fmt.Sprint(e.Operation, e.Manager, e.Subresource))
	}
	return out
}

// sameSeconds tells that two runs saw the clock alike.
func sameSeconds(a, b Object) bool {
	var s, o int64
	for _, e := range a.GetManagedFields() {
		if e.Time != nil {
			s += e.Time.Unix()
		}
	}
	for _, e := range b.GetManagedFields() {
		if e.Time != nil {
			o += e.Time.Unix()
		}
	}
	return s == o
}

// changedTimes tells of each entry whether it has another time than before.
func changedTimes(before, after Object) map[string]bool {
	id := func(e metav1.ManagedFieldsEntry) string {
		return fmt.Sprint(e.Operation, e.Manager, e.Subresource, e.APIVersion)
	}
	was := map[string]*metav1.Time{}
	for _, e := range before.GetManagedFields() {
		was[id(e)] = e.Time
	}
	out := map[string]bool{}
	for _, e := range after.GetManagedFields() {
		old, ok := was[id(e)]
		out[id(e)] = !ok || !old.Equal(e.Time)
	}
	return out
}

// Every write through every door of the hot kinds leaves the managed fields that
// the library leaves.
func TestWalkerEqualsLibrary(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 100
	}
	all := api.All()
	for _, r := range all {
		if !hot(r.Plural) {
			continue
		}
		t.Run(r.GVR().String(), func(t *testing.T) {
			m := New(all)
			g := generator{rand.New(rand.NewPCG(1, uint64(len(r.Plural))))}
			doors := []*apiresource.Subresource{nil}
			for i := range r.Subresources {
				if s := &r.Subresources[i]; s.Status != nil && s.NewView == nil && len(s.Status.KeepFields) == 0 {
					doors = append(doors, s)
				}
			}
			walked, total := 0, 0
			for range rounds {
				obj := r.New()
				g.fill(reflect.ValueOf(obj).Elem(), 0)
				obj.SetUID("")
				var live Object
				for step := range 6 {
					door := doors[0]
					if step > 0 {
						door = doors[g.IntN(len(doors))]
					}
					f, err := m.at(r, door)
					if err != nil {
						t.Fatal(err)
					}
					manager := []string{"one", "two", "kubelet", ""}[g.IntN(4)]
					if g.IntN(100) == 0 {
						manager = "m" + fmt.Sprint(g.IntN(30))
					}
					was := r.New()
					if live != nil {
						was = live
					}
					mine := obj.DeepCopyObject().(Object)
					theirs := obj.DeepCopyObject().(Object)
					before := was.DeepCopyObject().(Object)
					total++
					ok := f.walker.update(was, mine, manager)
					if !reflect.DeepEqual(before, was) {
						t.Fatal("the live object was changed")
					}
					want, failed := library(f.FieldManager, was, theirs, manager)
					switch {
					case ok && failed:
						t.Fatalf("the library refuses what the walker takes:\n%v", obj)
					case ok:
						walked++
						if got, want := entriesOf(t, mine), entriesOf(t, want); got != want {
							a, _ := json.Marshal(before)
							b, _ := json.Marshal(obj)
							t.Fatalf("%s by %q:\nfrom %s\nto %s\ngot %s\nwant %s", f.walker.sub, manager, a, b, got, want)
						}
						if sameSeconds(mine, want) && !slices.Equal(order(mine), order(want)) {
							t.Fatalf("order: got %v, want %v", order(mine), order(want))
						}
						if got, want := changedTimes(before, mine), changedTimes(before, want); !reflect.DeepEqual(got, want) {
							t.Fatalf("new times: got %v, want %v", got, want)
						}
					default:
						if !reflect.DeepEqual(mine, obj) {
							t.Fatal("the walker gave up and changed the object")
						}
					}
					if failed {
						break
					}
					live = want.DeepCopyObject().(Object)
					live.SetUID("u")
					if g.IntN(10) == 0 {
						g.age(live)
					}
					obj = live.DeepCopyObject().(Object)
					switch g.IntN(4) {
					case 0: // nothing changes
					case 1:
						g.fill(reflect.ValueOf(obj).Elem(), 0)
					default:
						g.mutate(reflect.ValueOf(obj).Elem(), 12)
					}
					obj.SetUID(apitypes.UID(live.GetUID()))
					switch g.IntN(8) {
					case 0:
						obj.SetManagedFields(nil)
					case 1:
						obj.SetManagedFields([]metav1.ManagedFieldsEntry{})
					}
				}
			}
			t.Logf("%d of %d writes by the walker", walked, total)
			// The rest has items twice, names that JSON quotes, or entries that it
			// did not write.
			if walked < total/3 {
				t.Errorf("the walker took %d of %d writes", walked, total)
			}
		})
	}
}

// age makes managed fields such as other servers and clients leave: entries of
// apply, of another version, of an older form.
func (g generator) age(obj Object) {
	list := obj.GetManagedFields()
	for i := range list {
		switch g.IntN(6) {
		case 0:
			list[i].Operation = metav1.ManagedFieldsOperationApply
		case 1:
			list[i].APIVersion = "gone/v1"
		case 2:
			list[i].FieldsV1 = metav1.NewFieldsV1(`{"f:spec":{"f:nodeSelector":{"f:a":{}},".":{}}}`)
		case 3:
			list[i].FieldsV1 = metav1.NewFieldsV1(`{}`)
		}
	}
	obj.SetManagedFields(list)
}

func library(f *managedfields.FieldManager, live, obj Object, manager string) (out Object, failed bool) {
	got, err := f.Update(shallow(live), obj, manager)
	if err != nil {
		return nil, true
	}
	out = got.(Object)
	return out, false
}

// A pod as a template makes it is the walker's.
func TestWalkerTakesPods(t *testing.T) {
	m, r := pods(t)
	f, err := m.at(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := pod(r)
	// As a controller makes it.
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "5", Controller: ptr.To(true)}}
	if !f.walker.update(r.New(), p, "m") {
		t.Fatal("left to the library")
	}
	if n := len(p.ManagedFields); n != 1 {
		t.Fatalf("%d entries", n)
	}
	status, err := m.at(r, r.Subresource("status"))
	if err != nil {
		t.Fatal(err)
	}
	live := p.DeepCopy()
	live.UID = "u"
	next := live.DeepCopy()
	next.Status.Phase = "Running"
	if !status.walker.update(live, next, "kubelet") {
		t.Fatal("the status was left to the library")
	}
	if n := len(next.ManagedFields); n != 2 {
		t.Fatalf("%d entries", n)
	}
}

func TestParseSet(t *testing.T) {
	for _, raw := range []string{
		`{}`, `{"f:a":{}}`, `{"f:a":{".":{},"f:b":{}}}`,
		`{"f:p":{"k:{\"containerPort\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{}},"k:{\"containerPort\":8080,\"protocol\":\"TCP\"}":{".":{}}}}`,
		`{"f:finalizers":{".":{},"v:\"a\"":{},"v:\"b\"":{}}}`,
	} {
		s, ok := parseSet(raw)
		if raw == `{}` {
			if !ok || !s.empty() {
				t.Errorf("%s: not empty", raw)
			}
			continue
		}
		// A key with nothing below it is written as a member alone.
		want := !strings.Contains(raw, `{".":{}}`)
		if ok != want {
			t.Errorf("%s: %v, want %v", raw, ok, want)
		}
	}
	for _, raw := range []string{``, `{`, `{"f:b":{},"f:a":{}}`, `{"f:a":{}} `, `{"i:0":{}}`, `{"f:a":{".":{}}}`, `{"f:a":1}`, strings.Repeat(`{"f:a":`, 200) + `{}` + strings.Repeat(`}`, 200)} {
		if _, ok := parseSet(raw); ok {
			t.Errorf("%q was taken", raw)
		}
	}
}

func BenchmarkPodStatus(b *testing.B) {
	m, r := pods(b)
	live, err := m.Update(r, "", nil, pod(r), "m")
	if err != nil {
		b.Fatal(err)
	}
	live.SetUID("u")
	next := live.DeepCopyObject()
	for b.Loop() {
		obj := shallow(next.(Object))
		obj.SetLabels(map[string]string{"a": "c"})
		if _, err := m.Update(r, "status", live, obj, "kubelet"); err != nil {
			b.Fatal(err)
		}
	}
}
