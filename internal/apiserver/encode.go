package apiserver

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/yaml"

	"skiff/internal/cache"
	"skiff/internal/codec"
)

// answer is what a client wants an answer to look like.
type answer struct {
	media string // codec.JSON, codec.YAML or codec.Protobuf
	// as is "", "Table", "PartialObjectMetadata" or "PartialObjectMetadataList",
	// of group meta.k8s.io and version v.
	as, v  string
	pretty bool
	gzip   bool
	stream bool
}

var accepted = []string{codec.JSON, codec.YAML, codec.Protobuf}

// negotiate reads the Accept header: the first clause that can be served wins, as
// upstream. Transformations are taken where the kind allows them.
func negotiate(r *http.Request) (answer, error) {
	a := answer{media: codec.JSON}
	ua := r.UserAgent()
	p := r.URL.Query().Get("pretty")
	a.pretty = p == "1" || p == "true" || (p == "" && (strings.HasPrefix(ua, "curl") || strings.HasPrefix(ua, "Wget") || strings.HasPrefix(ua, "Mozilla/5.0")))
	a.gzip = strings.Contains(r.Header.Get("Accept-Encoding"), "gzip")
	header := r.Header.Get("Accept")
	if header == "" {
		return a, nil
	}
	known := false
	for _, clause := range byPreference(header) {
		mt, params, err := mime.ParseMediaType(clause)
		if err != nil {
			continue
		}
		switch mt {
		case codec.JSON, "*/*":
			a.media = codec.JSON
		case codec.YAML:
			a.media = codec.YAML
		case codec.Protobuf:
			a.media = codec.Protobuf
		default:
			continue
		}
		known = true
		a.stream = params["stream"] == "watch"
		as := params["as"]
		if as == "" {
			return a, nil
		}
		if params["g"] != metav1.GroupName || (params["v"] != "v1" && params["v"] != "v1beta1") {
			continue
		}
		switch as {
		case "Table":
			if a.media == codec.Protobuf {
				continue // there is none
			}
			fallthrough
		case "PartialObjectMetadata", "PartialObjectMetadataList":
			a.as, a.v = as, params["v"]
			return a, nil
		}
	}
	if !known {
		return a, errUnknownMedia
	}
	return a, notAcceptable()
}

// errUnknownMedia answers an Accept header of which no media type is known.
var errUnknownMedia = noRoute(http.StatusNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+strings.Join(accepted, ", "))

// byPreference returns the clauses of an Accept header, those of a higher quality
// (RFC 9110, 12.4.2) first.
func byPreference(header string) []string {
	clauses := strings.Split(header, ",")
	for i, c := range clauses {
		clauses[i] = strings.TrimSpace(c)
	}
	if !strings.Contains(header, "q=") {
		return clauses
	}
	quality := func(clause string) float64 {
		_, params, err := mime.ParseMediaType(clause)
		q, qerr := strconv.ParseFloat(params["q"], 64)
		if err != nil || qerr != nil {
			return 1
		}
		return q
	}
	slices.SortStableFunc(clauses, func(a, b string) int { return cmp.Compare(quality(b), quality(a)) })
	return clauses
}

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		err = storeError(err)
		if !errors.As(err, &api) {
			api = apierrors.NewInternalError(err)
		}
	}
	st := api.Status()
	if st.Code == 0 {
		st.Code = http.StatusInternalServerError
	}
	if d := st.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(d.RetryAfterSeconds)))
	}
	a, aerr := negotiate(r)
	if aerr != nil {
		a = answer{media: codec.JSON}
	}
	s.send(w, a, int(st.Code), &st, statusKind)
}

// send encodes and writes one object that is not an item of the cache.
func (s *Server) send(w http.ResponseWriter, a answer, code int, obj runtime.Object, gvk schema.GroupVersionKind) {
	body, err := encode(a, obj, gvk)
	if err != nil {
		s.Log.Error("encode answer", "kind", gvk.Kind, "err", err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.sendBytes(w, a, code, body)
}

func encode(a answer, obj runtime.Object, gvk schema.GroupVersionKind) ([]byte, error) {
	if a.media == codec.Protobuf {
		bare, err := codec.Bare(obj)
		if err != nil {
			return nil, err
		}
		return codec.Envelope(gvk, bare)
	}
	b, err := codec.Object(obj)
	if err != nil {
		return nil, err
	}
	return finishJSON(a, codec.WithType(gvk, b))
}

// finishJSON makes JSON what was asked for: YAML, indented, or with a final
// newline.
func finishJSON(a answer, b []byte) ([]byte, error) {
	switch {
	case a.media == codec.YAML:
		return yaml.JSONToYAML(b)
	case a.pretty:
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
	return append(b, '\n'), nil
}

// gzipFrom is the size, bytes, from which an answer is compressed (upstream's).
const gzipFrom = 128 * 1024

func (s *Server) sendBytes(w http.ResponseWriter, a answer, code int, body []byte) {
	w.Header().Set("Content-Type", a.media)
	if a.gzip && len(body) > gzipFrom {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Add("Vary", "Accept-Encoding")
		w.WriteHeader(code)
		z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err == nil {
			_, err = z.Write(body)
		}
		if err == nil {
			err = z.Close()
		}
		s.sent(err)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(code)
	_, err := w.Write(body)
	s.sent(err)
}

// sent notes that an answer did not reach its client, which is not ours to mend.
func (s *Server) sent(err error) {
	if err != nil {
		s.Log.Debug("write answer", "err", err)
	}
}

// itemJSON and itemProto return an item's bytes without its type.
func (s *Server) itemJSON(k *kind, it *cache.Item) ([]byte, error) {
	if k.Twin == nil {
		return it.Encoded(cache.JSON, func(o Object) ([]byte, error) { return codec.Object(o) })
	}
	obj := it.Object()
	if obj == nil {
		return nil, fmt.Errorf("stored object %q does not decode", it.Key)
	}
	return codec.Object(k.Twin.FromStored(obj))
}

func (s *Server) itemProto(k *kind, it *cache.Item) ([]byte, error) {
	if k.Twin == nil {
		return it.Encoded(cache.Protobuf, func(o Object) ([]byte, error) { return codec.Bare(o) })
	}
	obj := it.Object()
	if obj == nil {
		return nil, fmt.Errorf("stored object %q does not decode", it.Key)
	}
	return codec.Bare(k.Twin.FromStored(obj))
}

func (s *Server) writeItem(w http.ResponseWriter, r *http.Request, rq *request, it *cache.Item) error {
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	if a.as != "" {
		obj := it.Object()
		if obj == nil {
			return apierrors.NewInternalError(fmt.Errorf("stored object %q does not decode", it.Key))
		}
		return s.writeTransformed(w, r, rq, a, http.StatusOK, s.fromStored(rq.kind, obj))
	}
	var body []byte
	if a.media == codec.Protobuf {
		bare, err := s.itemProto(rq.kind, it)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if body, err = codec.Envelope(rq.kind.gvk, bare); err != nil {
			return apierrors.NewInternalError(err)
		}
	} else {
		b, err := s.itemJSON(rq.kind, it)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if body, err = finishJSON(a, codec.WithType(rq.kind.gvk, b)); err != nil {
			return apierrors.NewInternalError(err)
		}
	}
	s.writeWarnings(w, rq)
	s.sendBytes(w, a, http.StatusOK, body)
	return nil
}

// writeAny writes an object or a Status.
func (s *Server) writeAny(w http.ResponseWriter, r *http.Request, rq *request, code int, obj runtime.Object, gvk schema.GroupVersionKind) error {
	if obj == nil {
		obj = &metav1.Status{Status: metav1.StatusSuccess, Code: int32(code)}
	}
	if st, ok := obj.(*metav1.Status); ok {
		a, err := negotiate(r)
		if err != nil {
			return err
		}
		if st.Code != 0 {
			code = int(st.Code)
		}
		s.writeWarnings(w, rq)
		s.send(w, a, code, st, statusKind)
		return nil
	}
	o, ok := obj.(Object)
	if !ok {
		// Bodies without metadata of their own (Binding answers with a Status).
		a, err := negotiate(r)
		if err != nil {
			return err
		}
		s.writeWarnings(w, rq)
		s.send(w, a, code, obj, gvk)
		return nil
	}
	return s.writeObject(w, r, rq, code, o, gvk)
}

func (s *Server) writeObject(w http.ResponseWriter, r *http.Request, rq *request, code int, obj Object, gvk schema.GroupVersionKind) error {
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	if a.as != "" {
		return s.writeTransformed(w, r, rq, a, code, obj)
	}
	s.writeWarnings(w, rq)
	s.send(w, a, code, obj, gvk)
	return nil
}

// writeList streams a list: its items' bytes are shared with everybody else.
func (s *Server) writeList(w http.ResponseWriter, r *http.Request, rq *request, l *listResult) error {
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	s.writeWarnings(w, rq)
	if a.as != "" {
		return s.writeTransformedList(w, r, a, l)
	}
	gvk := l.kind.GroupVersion.WithKind(l.kind.Kind + "List")
	if a.media == codec.YAML || a.pretty {
		var buf bytes.Buffer
		if err := s.encodeList(&buf, a, gvk, l); err != nil {
			return apierrors.NewInternalError(err)
		}
		body, err := finishJSON(a, buf.Bytes())
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		s.sendBytes(w, a, http.StatusOK, body)
		return nil
	}
	// The bytes of all items exist already, or are about to: only their frame is
	// new, and nothing holds the whole answer.
	w.Header().Set("Content-Type", a.media)
	s.sent(s.streamList(w, a, gvk, l))
	return nil
}

// streamBuffer is how much of a list is handed on at once.
const streamBuffer = 64 << 10

func (s *Server) streamList(w http.ResponseWriter, a answer, gvk schema.GroupVersionKind, l *listResult) error {
	size := 0
	for _, it := range l.items {
		size += it.Size()
	}
	var out io.Writer = w
	var z *gzip.Writer
	if a.gzip && size > gzipFrom {
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Add("Vary", "Accept-Encoding")
		var err error
		if z, err = gzip.NewWriterLevel(w, gzip.BestSpeed); err != nil {
			return err
		}
		out = z
	}
	w.WriteHeader(http.StatusOK)
	buf := bufio.NewWriterSize(out, streamBuffer)
	if err := s.encodeList(buf, a, gvk, l); err != nil {
		// The head is sent: only a broken connection tells the client.
		panic(http.ErrAbortHandler)
	}
	if a.media != codec.Protobuf {
		if err := buf.WriteByte('\n'); err != nil {
			return err
		}
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if z != nil {
		return z.Close()
	}
	return nil
}

// listWriter is what a list is encoded to.
type listWriter interface {
	io.Writer
	io.ByteWriter
	io.StringWriter
}

func (s *Server) encodeList(w listWriter, a answer, gvk schema.GroupVersionKind, l *listResult) error {
	m := l.meta()
	if a.media == codec.Protobuf {
		return s.encodeProtoList(w, gvk, &m, l)
	}
	head, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := w.Write(codec.TypeHead(gvk)); err != nil {
		return err
	}
	if _, err := w.WriteString(`"metadata":` + string(head) + `,"items":[`); err != nil {
		return err
	}
	for i, it := range l.items {
		b, err := s.itemJSON(l.kind, it)
		if err != nil {
			return err
		}
		if i > 0 {
			if err := w.WriteByte(','); err != nil {
				return err
			}
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	_, err = w.WriteString("]}")
	return err
}

// encodeProtoList writes a list in its envelope. A list is field 1 its metadata,
// field 2 each item (every v1 list).
func (s *Server) encodeProtoList(w io.Writer, gvk schema.GroupVersionKind, m *metav1.ListMeta, l *listResult) error {
	head, err := m.Marshal()
	if err != nil {
		return err
	}
	parts := make([][]byte, len(l.items))
	size := fieldSize(len(head))
	for i, it := range l.items {
		if parts[i], err = s.itemProto(l.kind, it); err != nil {
			return err
		}
		size += fieldSize(len(parts[i]))
	}
	return codec.EnvelopeTo(w, gvk, size, func(w io.Writer) (int, error) {
		if err := writeField(w, 1, head); err != nil {
			return 0, err
		}
		for _, p := range parts {
			if err := writeField(w, 2, p); err != nil {
				return 0, err
			}
		}
		return size, nil
	})
}

// writeField writes a bytes field whose number fits one byte.
func writeField(w io.Writer, field byte, v []byte) error {
	var lead [16]byte
	if _, err := w.Write(binary.AppendUvarint(append(lead[:0], field<<3|2), uint64(len(v)))); err != nil {
		return err
	}
	_, err := w.Write(v)
	return err
}

// fieldSize is the length of a bytes field of n bytes, whose number fits one byte.
func fieldSize(n int) int {
	size := 2 + n
	for v := n; v >= 0x80; v >>= 7 {
		size++
	}
	return size
}

// httpWatch streams a watch until its end.
func (s *Server) httpWatch(ctx context.Context, w http.ResponseWriter, r *http.Request, rq *request, o *metav1.ListOptions) error {
	a, err := negotiate(r)
	if err != nil {
		return err
	}
	st, err := s.openWatch(ctx, rq, o)
	if err != nil {
		return err
	}
	defer st.close()
	flush, ok := w.(http.Flusher)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("unable to start watch - can't get http.Flusher: %#v", w))
	}
	a.pretty = false
	switch a.media {
	case codec.Protobuf:
		w.Header().Set("Content-Type", codec.Protobuf+";stream=watch")
	default:
		a.media = codec.JSON
		w.Header().Set("Content-Type", codec.JSON)
	}
	s.writeWarnings(w, rq)
	w.WriteHeader(http.StatusOK)
	flush.Flush()
	enc := &frameWriter{s: s, rq: rq, st: st, a: a, w: w, q: r.URL.Query().Get("includeObject")}
	for {
		frames, err := st.next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.sent(enc.fail(err))
			flush.Flush()
			return nil
		case frames == nil:
			return nil
		}
		for _, f := range frames {
			if err := enc.write(f); err != nil {
				s.sent(err)
				return nil
			}
		}
		flush.Flush()
	}
}

// frameWriter encodes the events of one watch.
type frameWriter struct {
	s    *Server
	rq   *request
	st   *stream
	a    answer
	w    io.Writer
	q    string
	rows bool // a Table's columns were sent
	buf  []byte
}

func (e *frameWriter) write(f frame) error {
	k := e.rq.kind
	if e.a.as != "" {
		return e.writeTransformed(f)
	}
	if e.a.media == codec.Protobuf {
		var bare []byte
		var err error
		if f.item == nil {
			bare, err = codec.Bare(e.st.bookmark(f))
		} else {
			bare, err = e.s.itemProto(k, f.item)
		}
		if err != nil {
			return err
		}
		env, err := codec.Envelope(k.gvk, bare)
		if err != nil {
			return err
		}
		return e.proto(f.typ, env)
	}
	var obj []byte
	var err error
	if f.item == nil {
		obj, err = codec.Object(e.st.bookmark(f))
	} else {
		obj, err = e.s.itemJSON(k, f.item)
	}
	if err != nil {
		return err
	}
	return e.json(f.typ, k.gvk, obj)
}

// json writes one JSON frame; object has no type yet.
func (e *frameWriter) json(t watch.EventType, gvk schema.GroupVersionKind, object []byte) error {
	b := append(e.buf[:0], `{"type":"`...)
	b = append(b, t...)
	b = append(b, `","object":`...)
	b = append(b, `{"kind":`...)
	b = strconv.AppendQuote(b, gvk.Kind)
	b = append(b, `,"apiVersion":`...)
	b = strconv.AppendQuote(b, gvk.GroupVersion().String())
	if len(object) > 2 {
		b = append(b, ',')
		b = append(b, object[1:]...)
	} else {
		b = append(b, '}')
	}
	b = append(b, "}\n"...)
	e.buf = b
	_, err := e.w.Write(b)
	return err
}

// proto writes one length-delimited protobuf frame.
func (e *frameWriter) proto(t watch.EventType, envelope []byte) error {
	ev := metav1.WatchEvent{Type: string(t), Object: runtime.RawExtension{Raw: envelope}}
	n := ev.Size()
	if cap(e.buf) < n+4 {
		e.buf = make([]byte, n+4)
	}
	b := e.buf[:n+4]
	binary.BigEndian.PutUint32(b, uint32(n))
	if _, err := ev.MarshalToSizedBuffer(b[4:]); err != nil {
		return err
	}
	_, err := e.w.Write(b)
	return err
}

func (e *frameWriter) fail(err error) error {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		api = apierrors.NewInternalError(err)
	}
	st := api.Status()
	gvk := statusKind
	if e.a.media == codec.Protobuf {
		bare, err := codec.Bare(&st)
		if err != nil {
			return err
		}
		env, err := codec.Envelope(gvk, bare)
		if err != nil {
			return err
		}
		return e.proto(watch.Error, env)
	}
	b, err := codec.Object(&st)
	if err != nil {
		return err
	}
	return e.json(watch.Error, gvk, b)
}

// statusKind is how a Status names itself.
var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}
