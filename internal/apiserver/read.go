package apiserver

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	internalvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/cache"
	"skiff/internal/store"
)

// get reads one object: "" and "0" as upstream (linearizable, and whatever there
// is), a revision as "not older than".
func (s *Server) get(ctx context.Context, rq *request, o *metav1.GetOptions) (*cache.Item, error) {
	if err := s.await(ctx, o.ResourceVersion); err != nil {
		return nil, err
	}
	it := rq.kind.col.Get(rq.key())
	if it == nil {
		return nil, rq.notFound()
	}
	return it, nil
}

// tooLargeWait is how long a read waits for a revision that the server has not
// seen yet.
const tooLargeWait = 3 * time.Second

// await brings the cache to what a resourceVersion demands.
func (s *Server) await(ctx context.Context, rv string) error {
	switch rv {
	case "":
		_, err := s.cache.Fresh(ctx)
		return storeError(err)
	case "0":
		return nil
	}
	n, err := parseRV(rv)
	if err != nil {
		return err
	}
	return s.awaitRev(ctx, n)
}

func (s *Server) awaitRev(ctx context.Context, n int64) error {
	wait, cancel := context.WithTimeout(ctx, tooLargeWait)
	defer cancel()
	if err := s.cache.WaitFor(wait, n); err != nil {
		if ctx.Err() != nil {
			return storeError(ctx.Err())
		}
		if errors.Is(err, store.ErrClosed) {
			return storeError(err)
		}
		return tooLarge(n, s.cache.Revision())
	}
	return nil
}

func tooLarge(want, have int64) error {
	err := apierrors.NewTimeoutError(fmt.Sprintf("Too large resource version: %d, current: %d", want, have), 1)
	err.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: metav1.CauseTypeResourceVersionTooLarge, Message: "Too large resource version"}}
	return err
}

func parseRV(rv string) (int64, error) {
	n, err := strconv.ParseUint(rv, 10, 63)
	if err != nil {
		return 0, plain(fmt.Sprintf("resourceVersion: Invalid value: %q: %v", rv, err))
	}
	return int64(n), nil
}

// parseListRV is parseRV for a list, which answers a bad version as a bad request.
func parseListRV(rv string) (int64, error) {
	n, err := parseRV(rv)
	if err != nil {
		return 0, apierrors.NewBadRequest("invalid resource version: " + err.Error())
	}
	return n, nil
}

// filter is a parsed pair of selectors.
type filter struct {
	labels labels.Selector
	fields fields.Selector
	kind   *kind
	scope  cache.Scope
}

// parseFilter reads selectors and narrows the scope where they name one object or
// one node.
func parseFilter(rq *request, o *metav1.ListOptions) (*filter, error) {
	f := &filter{kind: rq.kind, scope: cache.Scope{Namespace: rq.namespace, Name: rq.name}}
	if o.LabelSelector != "" {
		sel, err := labels.Parse(o.LabelSelector)
		if err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
		if !sel.Empty() {
			f.labels = sel
		}
	}
	if o.FieldSelector == "" {
		return f, nil
	}
	sel, err := fields.ParseSelector(o.FieldSelector)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	known := fields.Set{}
	if rq.kind.Selectable != nil {
		known = rq.kind.Selectable(rq.kind.New())
	}
	for _, r := range sel.Requirements() {
		if _, ok := known[r.Field]; ok || r.Field == "metadata.name" || r.Field == "metadata.namespace" {
			continue
		}
		if rq.kind.Selectable == nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("%q is not a known field selector: only \"metadata.name\", \"metadata.namespace\"", r.Field))
		}
		text := "field label not supported: " + r.Field
		if f := rq.kind.UnknownField; f != nil {
			text = f(r.Field)
		}
		return nil, apierrors.NewBadRequest(text)
	}
	if sel.Empty() {
		return f, nil
	}
	f.fields = sel
	if name, ok := sel.RequiresExactMatch("metadata.name"); ok && name != "" {
		if rq.name != "" && rq.name != name {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector metadata.name doesn't match requested name: %q != %q", name, rq.name))
		}
		if rq.kind.Namespaced == (rq.namespace != "") {
			f.scope.Name = name
		}
	}
	if node, ok := sel.RequiresExactMatch("spec.nodeName"); ok && node != "" && f.scope.Name == "" && rq.kind.Plural == "pods" {
		f.scope.Node = node
	}
	return f, nil
}

func (f *filter) empty() bool { return f.labels == nil && f.fields == nil }

func (f *filter) inScope(it *cache.Item) bool {
	if f.scope.Namespace != "" && f.kind.Namespaced && !strings.HasPrefix(it.Key, f.scope.Namespace+"/") {
		return false
	}
	return f.scope.Name == "" || it.Key == keyOf(f.kind.Namespaced, f.scope.Namespace, f.scope.Name)
}

// matches tells whether an item is selected. Namespace and name are its scope's.
func (f *filter) matches(it *cache.Item) bool {
	if it == nil || !f.inScope(it) {
		return false
	}
	if f.empty() {
		return true
	}
	obj := it.Object()
	if obj == nil {
		return false
	}
	// Before all, what costs nothing: a node's pods are few of many.
	if f.scope.Node != "" && nodeOf(obj) != f.scope.Node {
		return false
	}
	if f.labels != nil && !f.labels.Matches(labels.Set(obj.GetLabels())) {
		return false
	}
	if f.fields == nil {
		return true
	}
	set := fields.Set{}
	if f.kind.Selectable != nil {
		if f.kind.Twin != nil {
			obj = f.kind.Twin.FromStored(obj)
		}
		set = f.kind.Selectable(obj)
	}
	set["metadata.name"] = obj.GetName()
	if f.kind.Namespaced {
		set["metadata.namespace"] = obj.GetNamespace()
	}
	return f.fields.Matches(set)
}

// listResult is the answer to a list, before encoding.
type listResult struct {
	kind      *kind
	items     []*cache.Item
	rev       int64
	cont      string
	remaining *int64
}

func (l *listResult) meta() metav1.ListMeta {
	return metav1.ListMeta{ResourceVersion: strconv.FormatInt(l.rev, 10), Continue: l.cont, RemainingItemCount: l.remaining}
}

type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	StartKey        string `json:"start"`
}

func encodeContinue(key string, rev int64) string {
	b, err := json.Marshal(continueToken{APIVersion: "meta.k8s.io/v1", ResourceVersion: rev, StartKey: key + "\x00"})
	if err != nil {
		panic(err) // two strings and a number
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func decodeContinue(token string) (after string, rev int64, err error) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return "", 0, fmt.Errorf("continue key is not valid: %w", err)
	}
	var t continueToken
	if err := json.Unmarshal(data, &t); err != nil {
		return "", 0, fmt.Errorf("continue key is not valid: %w", err)
	}
	switch {
	case t.APIVersion != "meta.k8s.io/v1":
		return "", 0, fmt.Errorf("continue key is not valid: server does not recognize this encoded version %v", t.APIVersion)
	case t.ResourceVersion == 0:
		return "", 0, errors.New("continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
	case t.StartKey == "":
		return "", 0, errors.New("continue key is not valid: encoded start key empty (version meta.k8s.io/v1)")
	}
	if full := "/" + strings.TrimPrefix(t.StartKey, "/"); path.Clean(full) != full {
		return "", 0, fmt.Errorf("continue key is not valid: %s", t.StartKey)
	}
	return strings.TrimSuffix(t.StartKey, "\x00"), t.ResourceVersion, nil
}

func validateListOptions(o *metav1.ListOptions) error {
	var in internalversion.ListOptions
	v1 := *o
	v1.LabelSelector, v1.FieldSelector = "", "" // checked by parseFilter
	if err := internalversion.Convert_v1_ListOptions_To_internalversion_ListOptions(&v1, &in, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	internalversion.SetListOptionsDefaults(&in, true)
	if errs := internalvalidation.ValidateListOptions(&in, true); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	return nil
}

// list reads a collection.
func (s *Server) list(ctx context.Context, rq *request, o *metav1.ListOptions) (*listResult, error) {
	if err := validateListOptions(o); err != nil {
		return nil, err
	}
	f, err := parseFilter(rq, o)
	if err != nil {
		return nil, err
	}
	snap, after, err := s.listSnapshot(ctx, rq, o)
	if err != nil {
		return nil, err
	}
	limit := o.Limit
	if o.ResourceVersion == "0" {
		limit = 0 // whatever there is comes whole, as from upstream's cache
	}
	l := &listResult{kind: rq.kind, rev: snap.Rev}
	prefix := ""
	if rq.kind.Namespaced && rq.namespace != "" {
		prefix = rq.namespace + "/"
	}
	rest := int64(0)
	snap.Ascend(prefix, after, func(it *cache.Item) bool {
		full := limit > 0 && int64(len(l.items)) >= limit
		if full && f.empty() {
			rest++
			return true
		}
		if !f.matches(it) {
			return true
		}
		if full {
			rest = 1
			return false
		}
		l.items = append(l.items, it)
		return true
	})
	if rest > 0 {
		l.cont = encodeContinue(l.items[len(l.items)-1].Key, snap.Rev)
		if f.empty() {
			l.remaining = &rest
		}
		rq.kind.col.Keep(snap)
	}
	return l, nil
}

// listSnapshot finds the state that a list's options ask for.
func (s *Server) listSnapshot(ctx context.Context, rq *request, o *metav1.ListOptions) (*cache.Snapshot, string, error) {
	col := rq.kind.col
	if o.Continue != "" {
		after, rev, err := decodeContinue(o.Continue)
		if err != nil {
			return nil, "", apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
		}
		if o.ResourceVersion != "" && o.ResourceVersion != "0" {
			return nil, "", apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		if rev < 0 { // the inconsistent rest of an expired list
			if err := s.await(ctx, ""); err != nil {
				return nil, "", err
			}
			return col.Snapshot(), after, nil
		}
		snap, err := col.At(ctx, rev)
		if errors.Is(err, store.ErrCompacted) {
			return nil, "", expiredContinue(after)
		}
		return snap, after, storeError(err)
	}
	match := o.ResourceVersionMatch
	exact := match == metav1.ResourceVersionMatchExact || (match == "" && o.Limit > 0 && o.ResourceVersion != "" && o.ResourceVersion != "0")
	if !exact {
		if _, err := parseListRV(o.ResourceVersion); err != nil && o.ResourceVersion != "" {
			return nil, "", err
		}
		if err := s.await(ctx, o.ResourceVersion); err != nil {
			return nil, "", err
		}
		return col.Snapshot(), "", nil
	}
	rev, err := parseListRV(o.ResourceVersion)
	if err != nil {
		return nil, "", err
	}
	if err := s.awaitRev(ctx, rev); err != nil {
		return nil, "", err
	}
	snap, err := col.At(ctx, rev)
	if errors.Is(err, store.ErrCompacted) {
		return nil, "", apierrors.NewResourceExpired("The resourceVersion for the provided list is too old.")
	}
	return snap, "", storeError(err)
}

func expiredContinue(after string) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old " +
		"to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to " +
		"retrieve the remainder of the results. Continuing with the provided " +
		"token results in an inconsistent list - objects that were created, " +
		"modified, or deleted between the time the first chunk was returned " +
		"and now may show up in the list.")
	err.ErrStatus.ListMeta.Continue = encodeContinue(after, -1)
	return err
}
