package client

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"skiff/internal/codec"
)

// HTTPSConfig says how to reach a server and who asks.
type HTTPSConfig struct {
	// Server is its URL.
	Server string
	// CA verifies it; nil takes the system's authorities.
	CA *x509.CertPool
	// Certificate returns the client certificate; nil sends none.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// Token, where not empty, is sent as a bearer token.
	Token     string
	UserAgent string
}

// HTTPS is the transport to a server elsewhere: protobuf over HTTP/2.
type HTTPS struct {
	cfg  HTTPSConfig
	base *url.URL
	http *http.Client
}

// NewHTTPS returns the transport. Nothing is sent yet.
func NewHTTPS(cfg HTTPSConfig) (*HTTPS, error) {
	u, err := url.Parse(cfg.Server)
	if err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fmt.Errorf("server %q: must be an https URL", cfg.Server)
	}
	t := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: cfg.CA, GetClientCertificate: cfg.Certificate, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 8,
		// A server that vanished must not hold watches for ever.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	return &HTTPS{cfg: cfg, base: u, http: &http.Client{Transport: t}}, nil
}

// Close drops idle connections.
func (h *HTTPS) Close() { h.http.CloseIdleConnections() }

func (h *HTTPS) url(ref Ref, q url.Values) string {
	p := "/api/" + ref.GVR.Version
	if ref.GVR.Group != "" {
		p = "/apis/" + ref.GVR.Group + "/" + ref.GVR.Version
	}
	if ref.Namespace != "" && ref.GVR.Resource != "namespaces" {
		p += "/namespaces/" + ref.Namespace
	}
	u := *h.base
	u.Path = path.Join(u.Path, p, ref.GVR.Resource, ref.Name, ref.Subresource)
	u.RawQuery = q.Encode()
	return u.String()
}

func (h *HTTPS) do(ctx context.Context, method string, ref Ref, q url.Values, contentType, accept string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, h.url(ref, q), bytes.NewReader(body))
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	req.Header.Set("Accept", accept)
	req.Header.Set("User-Agent", h.cfg.UserAgent)
	if h.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+h.cfg.Token)
	}
	resp, err := h.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		if err != nil {
			return nil, err
		}
		return nil, statusError(resp.StatusCode, method, ref, b)
	}
	return resp, nil
}

func statusError(code int, method string, ref Ref, body []byte) error {
	var st metav1.Status
	if gvk, raw, err := open(body); err == nil && gvk.Kind == "Status" {
		if st.Unmarshal(raw) == nil {
			return &apierrors.StatusError{ErrStatus: st}
		}
	}
	if json.Unmarshal(body, &st) == nil && st.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: st}
	}
	return apierrors.NewGenericServerResponse(code, method, ref.GVR.GroupResource(), ref.Name, string(body), 0, true)
}

// open takes a protobuf envelope apart.
func open(b []byte) (schema.GroupVersionKind, []byte, error) {
	var u runtime.Unknown
	if len(b) < 4 || string(b[:4]) != "k8s\x00" {
		return schema.GroupVersionKind{}, nil, errors.New("answer is not protobuf")
	}
	if err := u.Unmarshal(b[4:]); err != nil {
		return schema.GroupVersionKind{}, nil, err
	}
	return schema.FromAPIVersionAndKind(u.APIVersion, u.Kind), u.Raw, nil
}

type unmarshaler interface{ Unmarshal([]byte) error }

// bodies are the kinds of bodies that are not resources.
var bodies = map[schema.GroupVersionKind]func() Object{
	corev1.SchemeGroupVersion.WithKind("Binding"):                func() Object { return &corev1.Binding{} },
	authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"): func() Object { return &authenticationv1.TokenRequest{} },
	policyv1.SchemeGroupVersion.WithKind("Eviction"):             func() Object { return &policyv1.Eviction{} },
	autoscalingv1.SchemeGroupVersion.WithKind("Scale"):           func() Object { return &autoscalingv1.Scale{} },
}

func gvkOf(o Object) (schema.GroupVersionKind, error) {
	switch o.(type) {
	case *corev1.Binding:
		return corev1.SchemeGroupVersion.WithKind("Binding"), nil
	case *authenticationv1.TokenRequest:
		return authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), nil
	case *policyv1.Eviction:
		return policyv1.SchemeGroupVersion.WithKind("Eviction"), nil
	case *autoscalingv1.Scale:
		return autoscalingv1.SchemeGroupVersion.WithKind("Scale"), nil
	}
	for _, k := range Kinds {
		if fmt.Sprintf("%T", k.New()) == fmt.Sprintf("%T", o) {
			return k.GVK, nil
		}
	}
	return schema.GroupVersionKind{}, fmt.Errorf("%T is not in client.Kinds", o)
}

func newOf(gvk schema.GroupVersionKind) (Object, error) {
	if f, ok := bodies[gvk]; ok {
		return f(), nil
	}
	for _, k := range Kinds {
		if k.GVK == gvk {
			return k.New(), nil
		}
	}
	return nil, fmt.Errorf("answer is of unknown kind %s", gvk)
}

// decode reads an object from a protobuf envelope; a Status is nil.
func decode(b []byte) (Object, error) {
	gvk, raw, err := open(b)
	if err != nil {
		return nil, err
	}
	if gvk.Kind == "Status" {
		return nil, nil
	}
	o, err := newOf(gvk)
	if err != nil {
		return nil, err
	}
	m, ok := o.(unmarshaler)
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf decoding", o)
	}
	return o, m.Unmarshal(raw)
}

func readObject(resp *http.Response, err error) (Object, error) {
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	return decode(b)
}

func encodeBody(o Object) ([]byte, error) {
	gvk, err := gvkOf(o)
	if err != nil {
		return nil, err
	}
	bare, err := codec.Bare(o)
	if err != nil {
		return nil, err
	}
	return codec.Envelope(gvk, bare)
}

func listQuery(o metav1.ListOptions) url.Values {
	q := url.Values{}
	put := func(k, v string) {
		if v != "" {
			q.Set(k, v)
		}
	}
	put("labelSelector", o.LabelSelector)
	put("fieldSelector", o.FieldSelector)
	put("resourceVersion", o.ResourceVersion)
	put("resourceVersionMatch", string(o.ResourceVersionMatch))
	put("continue", o.Continue)
	if o.Limit > 0 {
		q.Set("limit", strconv.FormatInt(o.Limit, 10))
	}
	if o.AllowWatchBookmarks {
		q.Set("allowWatchBookmarks", "true")
	}
	if o.SendInitialEvents != nil {
		q.Set("sendInitialEvents", strconv.FormatBool(*o.SendInitialEvents))
	}
	if o.TimeoutSeconds != nil {
		q.Set("timeoutSeconds", strconv.FormatInt(*o.TimeoutSeconds, 10))
	}
	return q
}

func writeQuery(dryRun []string, manager, validation string) url.Values {
	q := url.Values{}
	for _, d := range dryRun {
		q.Add("dryRun", d)
	}
	if manager != "" {
		q.Set("fieldManager", manager)
	}
	if validation != "" {
		q.Set("fieldValidation", validation)
	}
	return q
}

// Get implements Transport.
func (h *HTTPS) Get(ctx context.Context, ref Ref, o metav1.GetOptions) (Object, error) {
	q := url.Values{}
	if o.ResourceVersion != "" {
		q.Set("resourceVersion", o.ResourceVersion)
	}
	return readObject(h.do(ctx, http.MethodGet, ref, q, "", codec.Protobuf, nil))
}

// List implements Transport.
func (h *HTTPS) List(ctx context.Context, ref Ref, o metav1.ListOptions) (*List, error) {
	k := KindFor(ref.GVR)
	if k == nil {
		return nil, fmt.Errorf("%s is not in client.Kinds", ref.GVR)
	}
	resp, err := h.do(ctx, http.MethodGet, ref, listQuery(o), "", codec.Protobuf, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	_, raw, err := open(b)
	if err != nil {
		return nil, err
	}
	l := k.NewList()
	m, ok := l.(unmarshaler)
	if !ok {
		return nil, fmt.Errorf("%T has no protobuf decoding", l)
	}
	if err := m.Unmarshal(raw); err != nil {
		return nil, err
	}
	acc, err := meta.ListAccessor(l)
	if err != nil {
		return nil, err
	}
	out := &List{ListMeta: metav1.ListMeta{ResourceVersion: acc.GetResourceVersion(), Continue: acc.GetContinue(), RemainingItemCount: acc.GetRemainingItemCount()}}
	return out, meta.EachListItem(l, func(o runtime.Object) error {
		obj, ok := o.(Object)
		if !ok {
			return fmt.Errorf("item is a %T", o)
		}
		out.Items = append(out.Items, obj)
		return nil
	})
}

type httpsWatch struct{ out chan Event }

func (w *httpsWatch) Events() <-chan Event { return w.out }

// Watch implements Transport.
func (h *HTTPS) Watch(ctx context.Context, ref Ref, o metav1.ListOptions) (Watch, error) {
	q := listQuery(o)
	q.Set("watch", "1")
	resp, err := h.do(ctx, http.MethodGet, ref, q, "", codec.Protobuf+";stream=watch", nil)
	if err != nil {
		return nil, err
	}
	w := &httpsWatch{out: make(chan Event, 64)}
	go func() {
		defer close(w.out)
		defer resp.Body.Close()
		r := bufio.NewReaderSize(resp.Body, 64<<10)
		for {
			e, err := readFrame(r)
			if ctx.Err() != nil || errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				e = Event{Type: watch.Error, Err: err}
			}
			select {
			case w.out <- e:
			case <-ctx.Done():
				return
			}
			if e.Type == watch.Error {
				return
			}
		}
	}()
	return w, nil
}

// maxFrame bounds one event: an object is at most 1.5 MiB in the store.
const maxFrame = 16 << 20

func readFrame(r io.Reader) (Event, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return Event{}, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrame {
		return Event{}, fmt.Errorf("watch event of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return Event{}, err
	}
	var e metav1.WatchEvent
	if err := e.Unmarshal(b); err != nil {
		return Event{}, err
	}
	if e.Type == string(watch.Error) {
		gvk, raw, err := open(e.Object.Raw)
		if err != nil {
			return Event{}, err
		}
		var st metav1.Status
		if gvk.Kind != "Status" || st.Unmarshal(raw) != nil {
			return Event{}, fmt.Errorf("watch error of kind %s", gvk)
		}
		return Event{Type: watch.Error, Err: &apierrors.StatusError{ErrStatus: st}}, nil
	}
	o, err := decode(e.Object.Raw)
	return Event{Type: watch.EventType(e.Type), Object: o}, err
}

// Create implements Transport.
func (h *HTTPS) Create(ctx context.Context, ref Ref, obj Object, o metav1.CreateOptions) (Object, error) {
	b, err := encodeBody(obj)
	if err != nil {
		return nil, err
	}
	return readObject(h.do(ctx, http.MethodPost, ref, writeQuery(o.DryRun, o.FieldManager, o.FieldValidation), codec.Protobuf, codec.Protobuf, b))
}

// Update implements Transport.
func (h *HTTPS) Update(ctx context.Context, ref Ref, obj Object, o metav1.UpdateOptions) (Object, error) {
	b, err := encodeBody(obj)
	if err != nil {
		return nil, err
	}
	return readObject(h.do(ctx, http.MethodPut, ref, writeQuery(o.DryRun, o.FieldManager, o.FieldValidation), codec.Protobuf, codec.Protobuf, b))
}

// Patch implements Transport.
func (h *HTTPS) Patch(ctx context.Context, ref Ref, t types.PatchType, patch []byte, o metav1.PatchOptions) (Object, error) {
	q := writeQuery(o.DryRun, o.FieldManager, o.FieldValidation)
	if o.Force != nil {
		q.Set("force", strconv.FormatBool(*o.Force))
	}
	return readObject(h.do(ctx, http.MethodPatch, ref, q, string(t), codec.Protobuf, patch))
}

// Delete implements Transport.
func (h *HTTPS) Delete(ctx context.Context, ref Ref, o metav1.DeleteOptions) (Object, error) {
	b, err := deleteBody(o)
	if err != nil {
		return nil, err
	}
	return readObject(h.do(ctx, http.MethodDelete, ref, nil, codec.JSON, codec.Protobuf, b))
}

func deleteBody(o metav1.DeleteOptions) ([]byte, error) {
	o.Kind, o.APIVersion = "DeleteOptions", "v1"
	return json.Marshal(o)
}

// DeleteCollection implements Transport.
func (h *HTTPS) DeleteCollection(ctx context.Context, ref Ref, o metav1.DeleteOptions, lo metav1.ListOptions) error {
	b, err := deleteBody(o)
	if err != nil {
		return err
	}
	resp, err := h.do(ctx, http.MethodDelete, ref, listQuery(lo), codec.JSON, codec.Protobuf, b)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// bindAtOnce bounds the bindings in flight together.
const bindAtOnce = 32

// Bind implements Transport: one request each, several at a time.
func (h *HTTPS) Bind(ctx context.Context, bindings []*corev1.Binding) []error {
	errs := make([]error, len(bindings))
	slots := make(chan struct{}, bindAtOnce)
	var wg sync.WaitGroup
	for i, b := range bindings {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			_, errs[i] = h.Create(ctx, Ref{
				GVR: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: b.Namespace, Name: b.Name, Subresource: "binding",
			}, b, metav1.CreateOptions{})
		})
	}
	wg.Wait()
	return errs
}
