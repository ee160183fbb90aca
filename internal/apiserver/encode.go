package apiserver

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	if a.media == codec.JSON && !a.pretty {
		buf := s.buffers.get()
		defer s.buffers.put(buf)
		if err := codec.AppendTyped(buf, gvk, obj); err == nil {
			s.sendBytes(w, a, code, buf.Bytes())
			return
		}
	}
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

// buffers are for answers on their way out.
type buffers struct{ pool sync.Pool }

// mostPooled is the size from which a buffer is not worth keeping, bytes.
const mostPooled = 64 << 10

func (p *buffers) get() *bytes.Buffer {
	if b, ok := p.pool.Get().(*bytes.Buffer); ok {
		return b
	}
	return &bytes.Buffer{}
}

func (p *buffers) put(b *bytes.Buffer) {
	if b.Cap() <= mostPooled {
		b.Reset()
		p.pool.Put(b)
	}
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
		if a.media == codec.JSON && !a.pretty && len(b) > len("{}") {
			s.writeWarnings(w, rq)
			buf := s.buffers.get()
			defer s.buffers.put(buf)
			buf.Write(codec.TypeHead(rq.kind.gvk))
			buf.Write(b[1:])
			buf.WriteByte('\n')
			s.sendBytes(w, a, http.StatusOK, buf.Bytes())
			return nil
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

// statusKind is how a Status names itself.
var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}
