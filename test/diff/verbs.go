package diff

import (
	"encoding/json"
	"net/url"
	"strings"

	"sigs.k8s.io/yaml"

	"skiff/internal/api/resource"
)

const (
	jsonPatch  = "application/json-patch+json"
	mergePatch = "application/merge-patch+json"
	strategic  = "application/strategic-merge-patch+json"
	applyPatch = "application/apply-patch+yaml"

	asTable   = "application/json;as=Table;v=v1;g=meta.k8s.io"
	asPartial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
	asList    = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
)

// ask is one request about an object: see run.kind.
type ask func(step, method, path, body string, headers map[string]string)

// verbs sends the requests that every stored kind answers: reads in all encodings
// and forms, every type of patch, apply by several managers, unknown fields,
// watches, deletions that do not happen. obj exists at item.
func verbs(say ask, res *resource.Resource, path, item string, obj map[string]any, watch bool) {
	read := func(step, at, accept string) { say(step, "GET", at, "", map[string]string{"Accept": accept}) }
	send := func(step, method, at, contentType string, body any) {
		say(step, method, at, text(body), map[string]string{"Content-Type": contentType})
	}
	name := nameOf(obj)
	only := "fieldSelector=" + url.QueryEscape("metadata.name="+name)
	other := set(obj, []string{"metadata", "name"}, rename(name)).(map[string]any)
	otherItem := path + "/" + rename(name)
	head := func(metadata map[string]any) map[string]any {
		metadata["name"] = name
		return map[string]any{"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": metadata}
	}

	for _, f := range []struct{ step, accept string }{
		{"yaml", "application/yaml"}, {"protobuf", protoType}, {"partial", asPartial}, {"table", asTable},
		{"partial-protobuf", protoType + ";as=PartialObjectMetadata;v=v1;g=meta.k8s.io"},
		{"first-of", "application/json;as=Table;v=v9;g=meta.k8s.io,application/json"},
	} {
		read("get "+f.step, item, f.accept)
	}
	for _, f := range []struct{ step, accept string }{{"yaml", "application/yaml"}, {"protobuf", protoType}, {"partial", asList}, {"table", asTable}} {
		read("list "+f.step, path+"?"+only, f.accept)
	}
	read("table of objects", path+"?includeObject=Object&"+only, asTable)
	read("list nothing", path+"?labelSelector=never%3Dthere&limit=1", "")
	read("list by unknown field", path+"?fieldSelector=spec.nothing%3Dx", "")

	y, err := yaml.Marshal(other)
	if err != nil {
		panic(err) // it came from YAML
	}
	say("create yaml", "POST", path+"?dryRun=All", string(y), map[string]string{"Content-Type": "application/yaml"})
	send("create protobuf", "POST", path+"?dryRun=All", protoType, other)
	send("update protobuf", "PUT", item+"?dryRun=All", protoType, obj)
	for _, v := range []string{"Strict", "Warn", "Ignore"} {
		unknown(say, v, path, item, obj, other)
	}

	// Before there is a second manager, whose place in the message depends on seconds.
	send("json patch of kind", "PATCH", item, jsonPatch, []any{map[string]any{"op": "replace", "path": "/kind", "value": "Other"}})

	label := map[string]any{"metadata": map[string]any{"labels": map[string]any{"m": "1"}, "annotations": map[string]any{"m": "1"}}}
	send("merge patch", "PATCH", item, mergePatch, label)
	send("merge patch again", "PATCH", item, mergePatch, label)
	send("merge patch removes", "PATCH", item, mergePatch, map[string]any{"metadata": map[string]any{"labels": map[string]any{"m": nil}}})
	send("strategic patch", "PATCH", item+"?fieldManager=s", strategic, map[string]any{"metadata": map[string]any{"labels": map[string]any{"s": "1"}, "finalizers": []any{"example.com/f"}}})
	send("strategic patch removes", "PATCH", item, strategic, map[string]any{"metadata": map[string]any{"$deleteFromPrimitiveList/finalizers": []any{"example.com/f"}}})
	send("json patch", "PATCH", item, jsonPatch, []any{map[string]any{"op": "add", "path": "/metadata/annotations", "value": map[string]any{"j": "1"}}})
	send("json patch tests", "PATCH", item, jsonPatch, []any{map[string]any{"op": "test", "path": "/metadata/name", "value": "other"}})
	send("merge patch bad", "PATCH", item, mergePatch, map[string]any{"metadata": map[string]any{"labels": map[string]any{"-bad-": "x y"}}})
	send("merge patch whole", "PATCH", item+"?dryRun=All", mergePatch, obj)
	send("strategic patch whole", "PATCH", item+"?dryRun=All", strategic, obj)

	labelled := func(v string) map[string]any { return map[string]any{"labels": map[string]any{"shared": v}} }
	mine := set(obj, []string{"metadata", "labels"}, map[string]any{"shared": "one"})
	send("apply", "PATCH", item+"?fieldManager=one", applyPatch, mine)
	send("apply again", "PATCH", item+"?fieldManager=one", applyPatch, mine)
	send("apply forced", "PATCH", item+"?fieldManager=one&force=true", applyPatch, mine)
	send("apply conflict", "PATCH", item+"?fieldManager=two", applyPatch, head(labelled("two")))
	send("apply shared", "PATCH", item+"?fieldManager=three", applyPatch, head(labelled("one")))
	send("apply takes", "PATCH", item+"?fieldManager=two&force=true", applyPatch, head(labelled("two")))
	send("apply less", "PATCH", item+"?fieldManager=one", applyPatch, head(map[string]any{}))
	send("apply nothing", "PATCH", item+"?fieldManager=two", applyPatch, head(map[string]any{}))
	send("apply new", "PATCH", otherItem+"?fieldManager=one&force=true", applyPatch, other)
	send("apply new less", "PATCH", otherItem+"?fieldManager=one&dryRun=All", applyPatch, map[string]any{
		"apiVersion": obj["apiVersion"], "kind": obj["kind"], "metadata": map[string]any{"name": rename(name)},
	})
	say("delete new", "DELETE", otherItem+"?gracePeriodSeconds=0", "", nil)

	if res.Subresource("status") != nil {
		st := map[string]any{"metadata": map[string]any{"labels": map[string]any{"not": "this"}}, "status": obj["status"]}
		send("status merge patch", "PATCH", item+"/status?dryRun=All", mergePatch, st)
		send("status strategic patch", "PATCH", item+"/status?dryRun=All", strategic, st)
		send("status json patch", "PATCH", item+"/status?dryRun=All", jsonPatch, []any{map[string]any{"op": "add", "path": "/status", "value": obj["status"]}})
		with := head(map[string]any{"annotations": map[string]any{"not": "this"}})
		with["status"], with["spec"] = obj["status"], obj["spec"]
		send("status apply", "PATCH", item+"/status?fieldManager=one", applyPatch, with)
		send("status apply less", "PATCH", item+"/status?fieldManager=one", applyPatch, head(map[string]any{}))
	}

	if watch {
		at := path + "?watch=true&timeoutSeconds=1&resourceVersion=${create.metadata.resourceVersion}&" + only
		read("watch", at, "")
		read("watch protobuf", at, protoType+";stream=watch")
	}
	send("delete of another", "DELETE", item, "application/json", map[string]any{"preconditions": map[string]any{"uid": "other"}})
	say("delete dry", "DELETE", item+"?dryRun=All", "", nil)
	say("delete collection dry", "DELETE", path+"?dryRun=All&"+only, "", nil)
}

// unknown sends fields that no kind has, through every door.
func unknown(say ask, directive, path, item string, obj, other map[string]any) {
	odd := func(o map[string]any) map[string]any {
		o = set(o, []string{"nope"}, 1).(map[string]any)
		if o["spec"] != nil {
			o = set(o, []string{"spec", "nope"}, map[string]any{"a": 1}).(map[string]any)
		}
		return set(o, []string{"metadata", "nope"}, "x").(map[string]any)
	}
	q := "?dryRun=All&fieldValidation=" + directive
	say("create unknown "+directive, "POST", path+q, text(odd(other)), nil)
	say("update unknown "+directive, "PUT", item+q, text(odd(obj)), nil)
	for _, t := range []string{mergePatch, strategic} {
		say(t+" unknown "+directive, "PATCH", item+q, text(map[string]any{"nope": 1, "metadata": map[string]any{"nope": 2}}), map[string]string{"Content-Type": t})
	}
	add := []any{map[string]any{"op": "add", "path": "/nope", "value": 1, "odd": 1}}
	say("json patch unknown "+directive, "PATCH", item+q, text(add), map[string]string{"Content-Type": jsonPatch})
	// One field only: upstream tells of several what a Go map yields first.
	say("apply unknown "+directive, "PATCH", item+q+"&fieldManager=u&force=true", text(set(obj, []string{"nope"}, 1)), map[string]string{"Content-Type": applyPatch})
	twice := "{" + `"metadata":{"name":"a","name":"b"},` + `"kind":"x"}`
	say("create twice "+directive, "POST", path+q, twice, map[string]string{"Raw": "yes"})
}

// reviewVerbs are those of a kind that is only asked.
func reviewVerbs(say ask, path string, obj map[string]any) {
	for _, f := range []struct{ step, accept string }{{"yaml", "application/yaml"}, {"protobuf", protoType}, {"table", asTable}, {"partial", asPartial}} {
		say("create as "+f.step, "POST", path, text(obj), map[string]string{"Accept": f.accept})
	}
	say("create protobuf", "POST", path, text(obj), map[string]string{"Content-Type": protoType})
	say("create dry", "POST", path+"?dryRun=All", text(obj), nil)
	for _, v := range []string{"Strict", "Warn", "Ignore"} {
		say("create unknown "+v, "POST", path+"?fieldValidation="+v, text(set(obj, []string{"nope"}, 1)), nil)
	}
	say("get", "GET", path, "", nil)
	say("put", "PUT", path+"/x", text(obj), nil)
	say("delete", "DELETE", path, "", nil)
}

func nameOf(obj map[string]any) string {
	m, _ := obj["metadata"].(map[string]any)
	s, _ := m["name"].(string)
	return s
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps, slices and scalars
	}
	return string(b)
}

// rename gives an object that exists another name of the same form.
func rename(name string) string {
	if strings.Count(name, ".") == 3 && strings.Trim(name, "0123456789.") == "" {
		return name[:strings.LastIndex(name, ".")] + ".222"
	}
	return name + "2"
}
