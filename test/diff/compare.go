package diff

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// answer is what a server said to one request.
type answer struct {
	code        int
	contentType string
	warnings    []string
	headers     map[string]string
	// docs are the JSON documents of the body (a watch sends several); text is the
	// body where it is no JSON.
	docs []any
	text string
}

// difference is one place where two answers differ.
type difference struct {
	path     string
	upstream string
	skiff    string
}

func (d difference) String() string {
	return fmt.Sprintf("%s\n        upstream: %s\n        skiff:    %s", d.path, d.upstream, d.skiff)
}

// line is the difference in one line, as known.yaml's patterns see it.
func (d difference) line() string {
	return d.path + ": " + d.upstream + " | " + d.skiff
}

const absent = "(absent)"

// compare lists the differences of two answers, masked.
func compare(up, sk answer) []difference {
	var out []difference
	add := func(path string, a, b any) {
		out = append(out, difference{path, show(a), show(b)})
	}
	if up.code != sk.code {
		add("code", up.code, sk.code)
	}
	if up.contentType != sk.contentType {
		add("contentType", up.contentType, sk.contentType)
	}
	for _, h := range comparedHeaders {
		if a, b := up.headers[h], sk.headers[h]; a != b {
			add("header."+h, a, b)
		}
	}
	uw, sw := maskAll(up.warnings), maskAll(sk.warnings)
	if !reflect.DeepEqual(uw, sw) {
		add("warnings", uw, sw)
	}
	if len(up.docs) != len(sk.docs) {
		add("documents", len(up.docs), len(sk.docs))
	}
	for i := range min(len(up.docs), len(sk.docs)) {
		path := "body"
		if len(up.docs) > 1 {
			path += "[" + strconv.Itoa(i) + "]"
		}
		a, b := mask(up.docs[i]), mask(sk.docs[i])
		// A refusal on one side only differs from the object in everything.
		if x, y := refusal(a), refusal(b); (x == "") != (y == "") {
			out = append(out, difference{path, orObject(x), orObject(y)})
			continue
		}
		walk(path, a, b, &out)
	}
	if a, b := maskText(up.text), maskText(sk.text); a != b {
		add("text", a, b)
	}
	return out
}

// refusal is the message of a Status of failure, "" for anything else.
func refusal(v any) string {
	if m, ok := v.(map[string]any); ok && m["kind"] == "Status" && m["status"] == "Failure" {
		return show(m["message"])
	}
	return ""
}

func orObject(message string) string {
	if message == "" {
		return "(object)"
	}
	return message
}

func maskAll(in []string) []string {
	out := make([]string, 0, len(in))
	for _, s := range in {
		out = append(out, maskText(s))
	}
	return out
}

func walk(path string, a, b any, out *[]difference) {
	switch x := a.(type) {
	case map[string]any:
		y, ok := b.(map[string]any)
		if !ok {
			break
		}
		keys := map[string]bool{}
		for k := range x {
			keys[k] = true
		}
		for k := range y {
			keys[k] = true
		}
		names := make([]string, 0, len(keys))
		for k := range keys {
			names = append(names, k)
		}
		sort.Strings(names)
		for _, k := range names {
			xv, xok := x[k]
			yv, yok := y[k]
			p := path + "." + k
			switch {
			case !xok:
				*out = append(*out, difference{p, absent, show(yv)})
			case !yok:
				*out = append(*out, difference{p, show(xv), absent})
			default:
				walk(p, xv, yv, out)
			}
		}
		return
	case []any:
		y, ok := b.([]any)
		if !ok {
			break
		}
		if walkNamed(path, x, y, out) {
			return
		}
		for i := range max(len(x), len(y)) {
			p := path + "[" + strconv.Itoa(i) + "]"
			switch {
			case i >= len(x):
				*out = append(*out, difference{p, absent, show(y[i])})
			case i >= len(y):
				*out = append(*out, difference{p, show(x[i]), absent})
			default:
				walk(p, x[i], y[i], out)
			}
		}
		return
	}
	if !reflect.DeepEqual(a, b) {
		*out = append(*out, difference{path, show(a), show(b)})
	}
}

// walkNamed compares two lists by the names of their items, where these are not
// the same: what one side has more of does not shift the rest. The order of what
// both have is compared too.
func walkNamed(path string, x, y []any, out *[]difference) bool {
	xn, xm := names(x)
	yn, ym := names(y)
	if xm == nil || ym == nil || slices.Equal(xn, yn) {
		return false
	}
	both := func(in []string) []string {
		var out []string
		for _, n := range in {
			if xm[n] != nil && ym[n] != nil {
				out = append(out, n)
			}
		}
		return out
	}
	if a, b := both(xn), both(yn); !slices.Equal(a, b) {
		*out = append(*out, difference{path + " (order)", show(a), show(b)})
	}
	for _, n := range xn {
		p := path + "[" + n + "]"
		if ym[n] == nil {
			*out = append(*out, difference{p, show(xm[n]), absent})
			continue
		}
		walk(p, xm[n], ym[n], out)
	}
	for _, n := range yn {
		if xm[n] == nil {
			*out = append(*out, difference{path + "[" + n + "]", absent, show(ym[n])})
		}
	}
	return true
}

// names are the names of a list's items (rules are named by what they say), with their namespaces where the names alone
// are not enough; the map is nil unless each has one of its own.
func names(list []any) ([]string, map[string]any) {
	if order, byName := namesIn(list, false); byName != nil {
		return order, byName
	}
	return namesIn(list, true)
}

func namesIn(list []any, namespaces bool) ([]string, map[string]any) {
	order, byName := make([]string, 0, len(list)), make(map[string]any, len(list))
	for _, e := range list {
		m, ok := e.(map[string]any)
		if !ok {
			return nil, nil
		}
		meta, _ := m["metadata"].(map[string]any)
		name := ""
		for _, v := range []any{meta["name"], m["name"], m["resource"], m["subresource"]} {
			if s, ok := v.(string); ok && s != "" {
				name = s
				break
			}
		}
		if name == "" && m["verbs"] != nil && m["resources"] != nil {
			name = show(m) // a rule has no name but what it says
		}
		if ns, ok := meta["namespace"].(string); ok && namespaces && name != "" {
			name = ns + "/" + name
		}
		if name == "" || byName[name] != nil {
			return nil, nil
		}
		order, byName[name] = append(order, name), m
	}
	return order, byName
}

func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	r := strings.NewReplacer(`\u003c`, "<", `\u003e`, ">", `\u0026`, "&")
	s := r.Replace(string(b))
	if len(s) > 1200 {
		s = s[:1200] + "..."
	}
	return s
}
