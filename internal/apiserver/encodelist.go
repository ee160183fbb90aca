package apiserver

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/klauspost/compress/gzip"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"skiff/internal/cache"
	"skiff/internal/codec"
)

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
		list, err := s.listBody(a, gvk, l, true)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		var out bytes.Buffer
		buf := bufio.NewWriter(&out)
		if err := errors.Join(list.writeTo(buf), buf.Flush()); err != nil {
			return apierrors.NewInternalError(err)
		}
		body, err := finishJSON(a, bytes.TrimSuffix(out.Bytes(), []byte("\n")))
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

// streamBuffer is how much of a list is handed on at once: several TLS records.
const streamBuffer = 64 << 10

// gatherUpTo is the size of a list, in stored bytes, up to which all of its items'
// bytes are held at once, to tell its length before it: answers without chunks
// are cheaper on both sides. Up to it they are kept anyway.
const gatherUpTo = 32 << 20

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
	body, err := s.listBody(a, gvk, l, size <= gatherUpTo)
	if err != nil {
		return err
	}
	if z == nil && body.size > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(body.size))
	}
	w.WriteHeader(http.StatusOK)
	buf := bufio.NewWriterSize(out, streamBuffer)
	if err := body.writeTo(buf); err != nil {
		// The head is sent: only a broken connection tells the client.
		panic(http.ErrAbortHandler)
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if z != nil {
		return z.Close()
	}
	return nil
}

// listBody is a list about to be written: its frame, and its items' bytes.
type listBody struct {
	head, tail []byte
	items      []*cache.Item
	parts      [][]byte // of the items, where they are gathered
	encode     func(*cache.Item) ([]byte, error)
	proto      bool
	size       int // of everything; 0 where it is not known
}

// listBody prepares a list in JSON, ended by a newline, or protobuf. A protobuf
// list is gathered always: its length stands before it.
func (s *Server) listBody(a answer, gvk schema.GroupVersionKind, l *listResult, gather bool) (*listBody, error) {
	b := &listBody{items: l.items, proto: a.media == codec.Protobuf}
	m := l.meta()
	if b.proto {
		b.encode = func(it *cache.Item) ([]byte, error) { return s.itemProto(l.kind, it) }
		return b, b.gatherProto(gvk, &m)
	}
	b.encode = func(it *cache.Item) ([]byte, error) { return s.itemJSON(l.kind, it) }
	meta, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	b.head = append(append(append(codec.TypeHead(gvk), `"metadata":`...), meta...), `,"items":[`...)
	b.tail = []byte("]}\n")
	if !gather {
		return b, nil
	}
	b.size = len(b.head) + len(b.tail) + max(0, len(l.items)-1)
	b.parts = make([][]byte, len(l.items))
	for i, it := range l.items {
		if b.parts[i], err = b.encode(it); err != nil {
			return nil, err
		}
		b.size += len(b.parts[i])
	}
	return b, nil
}

// gatherProto: a list is field 1 its metadata, field 2 each item (every v1 list),
// in its envelope.
func (b *listBody) gatherProto(gvk schema.GroupVersionKind, m *metav1.ListMeta) error {
	meta, err := m.Marshal()
	if err != nil {
		return err
	}
	b.parts = make([][]byte, len(b.items))
	raw := fieldSize(len(meta))
	for i, it := range b.items {
		if b.parts[i], err = b.encode(it); err != nil {
			return err
		}
		raw += fieldSize(len(b.parts[i]))
	}
	var head, tail bytes.Buffer
	into := &head
	err = codec.EnvelopeTo(split{&into}, gvk, raw, func(w io.Writer) (int, error) {
		if err := writeField(w, 1, meta); err != nil {
			return 0, err
		}
		into = &tail
		return raw, nil
	})
	b.head, b.tail = head.Bytes(), tail.Bytes()
	b.size = len(b.head) + len(b.tail) + raw - fieldSize(len(meta))
	return err
}

// split writes to whichever buffer it points to.
type split struct{ to **bytes.Buffer }

func (s split) Write(p []byte) (int, error) { return (*s.to).Write(p) }

func (b *listBody) writeTo(w *bufio.Writer) error {
	if _, err := w.Write(b.head); err != nil {
		return err
	}
	for i, it := range b.items {
		var part []byte
		if b.parts != nil {
			part = b.parts[i]
		} else {
			var err error
			if part, err = b.encode(it); err != nil {
				return err
			}
		}
		switch {
		case b.proto:
			if err := writeField(w, 2, part); err != nil {
				return err
			}
			continue
		case i > 0:
			if err := w.WriteByte(','); err != nil {
				return err
			}
		}
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	_, err := w.Write(b.tail)
	return err
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
