package apiserver

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	pathvalidation "k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/api/resource"
	"skiff/internal/codec"
)

// maxBody is upstream's limit of a request's body, bytes.
const maxBody = 3 * 1024 * 1024

// requestTimeout ends requests that are not watches or streams.
const requestTimeout = 60 * time.Second

// Handler returns the HTTP handler of the whole API.
func (s *Server) Handler() http.Handler { return s.guard(s.serve) }

// guard keeps a request that panics from taking the process down.
func (s *Server) guard(serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
					panic(p)
				}
				s.Log.Error("request handler panicked", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
				s.fail(w, r, apierrors.NewInternalError(fmt.Errorf("%v", p)))
			}
		}()
		serve(w, r)
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache, private")
	user, err := s.Authenticator.Authenticate(r)
	if err != nil {
		s.fail(w, r, apierrors.NewUnauthorized("Unauthorized"))
		return
	}
	if user == nil {
		user = &resource.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}
	}
	if user.Warning != "" {
		w.Header().Add("Warning", "299 - "+strconv.Quote(user.Warning))
	}
	s.serveAs(w, r, user)
}

// serveAs answers a request whose sender is known.
func (s *Server) serveAs(w http.ResponseWriter, r *http.Request, user *resource.User) {
	in := parsePath(r.Method, r.URL)
	in.received = time.Now()
	attr := resource.Attributes{User: *user, Verb: in.verb, Path: r.URL.Path}
	if in.resource {
		attr = resource.Attributes{
			User: *user, Verb: in.verb, Namespace: in.namespace, Group: in.group, Version: in.version,
			Resource: in.plural, Subresource: in.subresource, Name: in.name,
		}
		if in.name == "" && (in.verb == "list" || in.verb == "watch" || in.verb == "deletecollection") {
			q := r.URL.Query()
			attr.FieldSelector, attr.LabelSelector = q.Get("fieldSelector"), q.Get("labelSelector")
			if name, ok := exactName(attr.FieldSelector); ok {
				attr.Name = name
			}
		}
	}
	var err error
	if attr.User, err = s.impersonation.as(r.Context(), r.Header, attr); err == nil {
		err = s.authorize(r.Context(), attr)
	}
	if err != nil {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		s.fail(w, r, err)
		return
	}
	if !in.resource {
		s.serveOther(w, r)
		return
	}
	s.serveResource(w, r, in, attr.User)
}

// authorize returns upstream's 403 where a request is not allowed.
func (s *Server) authorize(ctx context.Context, a resource.Attributes) error {
	d, err := s.Authorizer.Authorize(ctx, a)
	if err == nil && d.Allowed {
		return nil
	}
	reason := d.Reason
	if err != nil && reason == "" {
		reason = err.Error()
	}
	return forbidden(a, reason)
}

var noHTML = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

func forbidden(a resource.Attributes, reason string) error {
	var msg string
	who := fmt.Sprintf("User %q", a.User.Name)
	if a.Path != "" {
		msg = fmt.Sprintf("%s cannot %s path %q", who, a.Verb, a.Path)
	} else {
		what := a.Resource
		if a.Subresource != "" {
			what += "/" + a.Subresource
		}
		msg = fmt.Sprintf("%s cannot %s resource %q in API group %q", who, a.Verb, what, a.Group)
		if a.Namespace != "" {
			msg += fmt.Sprintf(" in the namespace %q", a.Namespace)
		} else {
			msg += " at the cluster scope"
		}
	}
	// What the client sent must not look like HTML.
	if msg = noHTML.Replace(msg); reason != "" {
		msg += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, errors.New(msg))
}

func notServed(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "404 page not found\n")
}

// serveResource finds the resource and its door, and calls the verb.
func (s *Server) serveResource(w http.ResponseWriter, r *http.Request, in info, user resource.User) {
	k := s.kinds[schema.GroupVersionResource{Group: in.group, Version: in.version, Resource: in.plural}]
	if k == nil || (k.Namespaced && in.namespace == "" && in.name != "") {
		if k == nil && in.name == "" && in.plural == "" {
			s.serveOther(w, r)
			return
		}
		s.notFound(w, r, in)
		return
	}
	if !k.Namespaced && in.namespace != "" && (in.plural != "namespaces" || in.name != in.namespace) {
		s.notFound(w, r, in)
		return
	}
	rq := &request{verb: in.verb, kind: k, namespace: in.namespace, name: in.name, user: user, manager: optionsManager(r.UserAgent())}
	if in.plural == "namespaces" {
		rq.namespace = ""
	}
	if in.subresource != "" {
		if rq.sub = k.Subresource(in.subresource); rq.sub == nil {
			s.notFound(w, r, in)
			return
		}
		if rq.sub.Connect {
			s.measured(w, r, rq, in, (*Server).connect)
			return
		}
	}
	if k.Deprecated != "" {
		rq.warn(k.Deprecated)
	}
	if !k.hasObjects() && in.name != "" && rq.sub == nil {
		s.notFound(w, r, in)
		return
	}
	if err := rq.acceptable(r); err != nil {
		s.fail(w, r, err)
		return
	}
	if !allowed(rq, in) || r.Method == http.MethodHead {
		s.fail(w, r, noRoute(http.StatusMethodNotAllowed, ""))
		return
	}
	s.measured(w, r, rq, in, (*Server).answer)
}

// answer calls the verb of a request that a route takes.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, rq *request, in info) {
	if msgs := pathvalidation.IsValidPathSegmentName(in.name); rq.kind.hasObjects() && len(msgs) > 0 {
		s.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("Name parameter invalid: %q: %s", in.name, strings.Join(msgs, ";"))))
		return
	}
	ctx := r.Context()
	if in.verb != "watch" {
		timeout := requestTimeout
		if t := r.URL.Query().Get("timeout"); t != "" {
			d, err := time.ParseDuration(t)
			if err != nil {
				s.fail(w, r, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err)))
				return
			}
			if d > 0 && d < timeout {
				timeout = d
			}
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if err := s.verb(ctx, w, r, rq, in); err != nil {
		s.writeWarnings(w, rq)
		s.fail(w, r, err)
	}
}

// acceptable refuses a request whose answer the client would not take before
// anything is done. Where there is no Table of the answer, clauses that ask for one
// do not count.
func (rq *request) acceptable(r *http.Request) error {
	noTable := !rq.kind.hasObjects() || rq.sub != nil && rq.sub.Post != nil
	if rq.verb == "watch" {
		return watchable(r)
	}
	if accept := r.Header.Get("Accept"); noTable && strings.Contains(accept, "as=Table") {
		left := slices.DeleteFunc(strings.Split(accept, ","), func(c string) bool { return strings.Contains(c, "as=Table") })
		if len(left) == 0 {
			return notAcceptable()
		}
		r.Header.Set("Accept", strings.Join(left, ","))
	}
	_, err := negotiate(r)
	if rq.verb == "list" && errors.Is(err, errUnknownMedia) {
		// The route of lists is that of watches.
		return noRoute(http.StatusNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+strings.Join(append(slices.Clone(accepted), watched...), ", "))
	}
	return err
}

// watched are the media types of watches.
var watched = []string{codec.JSON + ";stream=watch", codec.Protobuf + ";stream=watch"}

// watchable refuses a watch in a form that no stream has.
func watchable(r *http.Request) error {
	a, err := negotiate(r)
	if err == nil && a.media == codec.YAML {
		return onlyAccepted(watched)
	}
	return err
}

// allowed tells whether a resource or a door has the verb.
func allowed(rq *request, in info) bool {
	if in.pathWatch && in.name != "" {
		return true
	}
	verbs := rq.kind.ServedVerbs()
	if rq.sub != nil {
		verbs = rq.sub.Verbs
	}
	for _, v := range verbs {
		if v == in.verb {
			switch {
			case in.name == "":
				return v != "update" && v != "patch" && v != "get" &&
					(v != "create" && v != "deletecollection" || !rq.kind.Namespaced || rq.namespace != "")
			case rq.sub == nil:
				return v != "create"
			}
			return true
		}
	}
	return false
}

func (s *Server) verb(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, in info) error {
	q := r.URL.Query()
	if rq.kind.Live != nil {
		return s.httpLive(ctx, w, r, rq, q)
	}
	switch in.verb {
	case "get":
		return s.httpGet(ctx, w, r, rq, q)
	case "list", "watch":
		var o metav1.ListOptions
		if err := metav1.Convert_url_Values_To_v1_ListOptions(&q, &o, nil); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if in.verb == "watch" {
			return s.httpWatch(ctx, w, r, rq, &o)
		}
		l, err := s.list(ctx, rq, &o)
		if err != nil {
			return err
		}
		return s.writeList(w, r, rq, l)
	case "create":
		return s.httpCreate(ctx, w, r, rq, q)
	case "update":
		return s.httpUpdate(ctx, w, r, rq, q)
	case "patch":
		return s.httpPatch(ctx, w, r, rq, q)
	case "delete", "deletecollection":
		return s.httpDelete(ctx, w, r, rq, q)
	}
	return apierrors.NewMethodNotSupported(rq.gr(), in.verb)
}

func (s *Server) httpGet(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	var o metav1.GetOptions
	if err := metav1.Convert_url_Values_To_v1_GetOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	it, err := s.get(ctx, rq, &o)
	if err != nil {
		return err
	}
	if rq.sub != nil && rq.sub.View != nil {
		obj := it.Object()
		if obj == nil {
			return apierrors.NewInternalError(fmt.Errorf("stored object %q does not decode", it.Key))
		}
		view, err := rq.sub.View(obj)
		if err != nil {
			return err
		}
		return s.writeObject(w, r, rq, http.StatusOK, view, rq.sub.Kind)
	}
	return s.writeItem(w, r, rq, it)
}

func (s *Server) httpCreate(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	var o metav1.CreateOptions
	if err := metav1.Convert_url_Values_To_v1_CreateOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := metav1validation.ValidateCreateOptions(&o); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "CreateOptions"}, "", errs)
	}
	gvk, into := rq.kind.gvk, rq.kind.New()
	if rq.sub != nil {
		gvk, into = rq.sub.Kind, rq.sub.NewBody()
	}
	body, err := s.decodeBody(w, r, rq, gvk, into, o.FieldValidation)
	if err != nil {
		return err
	}
	if rq.sub != nil {
		out, err := s.post(ctx, rq, body, o)
		if err != nil {
			return err
		}
		return s.writeAny(w, r, rq, http.StatusCreated, out, gvk)
	}
	out, err := s.create(ctx, rq, body, &o)
	if err != nil {
		return err
	}
	return s.writeObject(w, r, rq, http.StatusCreated, out, gvk)
}

// post answers a create on a subresource.
func (s *Server) post(ctx context.Context, rq *request, body Object, o metav1.CreateOptions) (Object, error) {
	if rq.sub.Post == nil {
		return nil, apierrors.NewMethodNotSupported(rq.gr(), "create")
	}
	env := s.env(rq, dryRun(o.DryRun))
	if err := checkNamespace(rq.kind, rq.namespace, body); err != nil {
		return nil, err
	}
	if rq.sub.Default != nil {
		rq.sub.Default(body)
	}
	if rq.sub.Echoed {
		var err error
		if body, err = s.manage(rq, nil, body, o.FieldManager); err != nil {
			return nil, err
		}
	}
	a := &Attributes{
		Operation: OpCreate, Resource: rq.kind.Resource, Subresource: rq.sub.Name, Namespace: rq.namespace, Name: rq.name,
		Object: body, Options: &o, User: rq.user, DryRun: env.DryRun, Env: env, Warn: rq.warn,
	}
	if err := s.admit(ctx, a); err != nil {
		return nil, err
	}
	if err := s.validateAdmission(ctx, a); err != nil {
		return nil, err
	}
	return rq.sub.Post(ctx, env, ops{s: s, rq: rq}, rq.namespace, rq.name, a.Object, o)
}

func (s *Server) httpUpdate(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	var o metav1.UpdateOptions
	if err := metav1.Convert_url_Values_To_v1_UpdateOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if errs := metav1validation.ValidateUpdateOptions(&o); len(errs) > 0 {
		return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "UpdateOptions"}, "", errs)
	}
	if rq.sub != nil && rq.sub.SetView != nil {
		body, err := s.decodeBody(w, r, rq, rq.sub.Kind, rq.sub.NewView(), o.FieldValidation)
		if err != nil {
			return err
		}
		if err := rq.checkPatched(body); err != nil {
			return err
		}
		out, err := s.putView(ctx, rq, &o, func(Object) (Object, error) { return body, nil })
		if err != nil {
			return err
		}
		return s.writeObject(w, r, rq, http.StatusOK, out, rq.sub.Kind)
	}
	body, err := s.decodeBody(w, r, rq, rq.kind.gvk, rq.kind.New(), o.FieldValidation)
	if err != nil {
		return err
	}
	out, created, err := s.put(ctx, rq, body, &o)
	if err != nil {
		return err
	}
	return s.writeObject(w, r, rq, okOrCreated(created), out, rq.kind.gvk)
}

func okOrCreated(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

var patchTypes = map[string]types.PatchType{
	string(types.JSONPatchType): types.JSONPatchType, string(types.MergePatchType): types.MergePatchType,
	string(types.StrategicMergePatchType): types.StrategicMergePatchType, string(types.ApplyYAMLPatchType): types.ApplyPatchType,
}

func (s *Server) httpPatch(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	var o metav1.PatchOptions
	if err := metav1.Convert_url_Values_To_v1_PatchOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	ct, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	t, ok := patchTypes[strings.TrimSpace(ct)]
	if !ok {
		return noRoute(http.StatusUnsupportedMediaType, "415: Unsupported Media Type")
	}
	data, err := readBody(w, r)
	if err != nil {
		return err
	}
	out, created, err := s.patch(ctx, rq, t, data, &o)
	if err != nil {
		return err
	}
	gvk := rq.kind.gvk
	if rq.sub != nil && rq.sub.SetView != nil {
		gvk = rq.sub.Kind
	}
	return s.writeObject(w, r, rq, okOrCreated(created), out, gvk)
}

func (s *Server) httpDelete(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, q url.Values) error {
	var o metav1.DeleteOptions
	data, err := readBody(w, r)
	if err != nil {
		return err
	}
	if len(data) > 0 {
		mt, err := bodyType(r)
		if err != nil {
			return err
		}
		gvk := metav1.SchemeGroupVersion.WithKind("DeleteOptions")
		if _, got, err := s.codec.Decode(mt, data, false, gvk, &o); err != nil {
			return apierrors.NewBadRequest(err.Error())
		} else if got != nil && got.Kind != "DeleteOptions" {
			return apierrors.NewBadRequest(fmt.Sprintf("no kind %q is registered for version %q in scheme \"pkg/runtime/scheme.go:111\"", got.Kind, got.GroupVersion()))
		}
	} else if err := metav1.Convert_url_Values_To_v1_DeleteOptions(&q, &o, nil); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if rq.verb == "deletecollection" {
		var lo metav1.ListOptions
		if err := metav1.Convert_url_Values_To_v1_ListOptions(&q, &lo, nil); err != nil {
			return apierrors.NewBadRequest(err.Error())
		}
		if errs := metav1validation.ValidateDeleteOptions(&o); len(errs) > 0 {
			return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "DeleteOptions"}, "", errs)
		}
		l, err := s.deleteCollection(ctx, rq, &o, &lo)
		if err != nil {
			return err
		}
		return s.writeList(w, r, rq, l)
	}
	out, gone, err := s.delete(ctx, rq, &o)
	if err != nil {
		return err
	}
	code := http.StatusOK
	if !gone && o.OrphanDependents != nil && !*o.OrphanDependents { //nolint:staticcheck // still accepted, as upstream
		code = http.StatusAccepted
	}
	return s.writeAny(w, r, rq, code, out, rq.kind.gvk)
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	// With room for what is said to come, and for seeing its end.
	buf := bytes.NewBuffer(make([]byte, 0, min(max(r.ContentLength, 0), maxBody)+bytes.MinRead))
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, maxBody))
	data := buf.Bytes()
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", maxBody))
	case err != nil:
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return data, nil
}

func unsupportedMedia(accepted []string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnsupportedMediaType, Reason: metav1.StatusReasonUnsupportedMediaType,
		Message: fmt.Sprintf("the body of the request was in an unknown format - accepted media types include: %v", strings.Join(accepted, ", ")),
	}}
}

var bodyTypes = []string{codec.JSON, codec.YAML, codec.Protobuf}

func bodyType(r *http.Request) (string, error) {
	header := r.Header.Get("Content-Type")
	if header == "" {
		return codec.JSON, nil
	}
	ct, _, err := mime.ParseMediaType(header)
	if err == nil && slices.Contains(bodyTypes, ct) {
		return ct, nil
	}
	return "", unsupportedMedia(bodyTypes)
}

// decodeBody reads an object of the kind expected, as upstream checks it.
func (s *Server) decodeBody(w http.ResponseWriter, r *http.Request, rq *request, gvk schema.GroupVersionKind, into Object, directive string) (Object, error) {
	mt, err := bodyType(r)
	if err != nil {
		return nil, err
	}
	data, err := readBody(w, r)
	if err != nil {
		return nil, err
	}
	strict := directive != metav1.FieldValidationIgnore && mt != codec.Protobuf
	obj, got, err := s.codec.Decode(mt, data, strict, gvk, into)
	bad := func(err error) error { return decodeError(err, gvk, got, data) }
	if se, ok := runtime.AsStrictDecodingError(err); ok && obj != nil {
		if err := rq.strictness(directive, se.Errors(), bad); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, bad(err)
	}
	if rq.sub != nil && rq.sub.Older != nil {
		if older := rq.sub.Older(obj); older != nil {
			return older, nil
		}
	}
	if obj != nil && reflect.TypeOf(obj) != reflect.TypeOf(into) {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: converting (%s.%s) to (%s.%s): unknown conversion",
			got.Kind, got.Version, gvk.Kind, got.Version, got.Kind, internalPackage(gvk.Group), gvk.Kind))
	}
	if got.GroupVersion() != gvk.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)", got.GroupVersion().String(), gvk.GroupVersion().String()))
	}
	if f := rq.kind.Readable; f != nil && gvk == rq.kind.gvk {
		if err := f(into); err != nil {
			return nil, bad(err)
		}
	}
	return into, nil
}

func decodeError(err error, want schema.GroupVersionKind, got *schema.GroupVersionKind, body []byte) error {
	if got != nil && got.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", got.Kind, got.Version, want.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, summary(body)))
}

// summary shows the beginning of a body that is not an object, in upstream's form:
// what looks like JSON as text, anything else in hexadecimal.
func summary(body []byte) string {
	const most = 30
	if len(body) == 0 {
		return "<empty>"
	}
	start, more := body, ""
	if len(body) > most {
		start, more = body[:most], " ..."
	}
	if body[0] == '{' {
		return string(start) + more
	}
	return hex.EncodeToString(start) + more
}

// internalPackage is the package of upstream's internal types of a group, which
// the message of an impossible conversion names.
func internalPackage(group string) string {
	if group == "" || group == "events.k8s.io" {
		return "core"
	}
	name, _, _ := strings.Cut(group, ".")
	return name
}

// noRoute is upstream's answer where no route fits the request: it knows nothing
// of the resource.
func noRoute(code int, message string) error {
	return apierrors.NewGenericServerResponse(code, "", schema.GroupResource{}, "", message, 0, false)
}

// notFound answers a request for what is not served: in the API's form within a
// group version that is.
func (s *Server) notFound(w http.ResponseWriter, r *http.Request, in info) {
	for _, k := range s.order {
		// What lies below /api is one server's, whatever the version.
		if k.GroupVersion.Group == in.group && (in.group == "" || k.GroupVersion.Version == in.version) {
			s.fail(w, r, noRoute(http.StatusNotFound, ""))
			return
		}
	}
	notServed(w)
}

// exactName finds the name that a field selector asks for.
func exactName(selector string) (string, bool) {
	for part := range strings.SplitSeq(selector, ",") {
		if v, ok := strings.CutPrefix(part, "metadata.name="); ok {
			return strings.TrimPrefix(v, "="), true
		}
	}
	return "", false
}

func (s *Server) writeWarnings(w http.ResponseWriter, rq *request) {
	for _, text := range rq.warnings {
		w.Header().Add("Warning", "299 - "+strconv.Quote(text))
	}
}
