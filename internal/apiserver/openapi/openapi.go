// Package openapi serves the OpenAPI documents: /openapi/v2 and /openapi/v3, with
// the addresses, hashes, media types and caching rules of upstream.
//
// The documents are made at development time (go generate) from the declared
// resources and committed compressed. They are served from the program's file:
// as they are to clients that take gzip, else decompressed on the way. Nothing is
// kept on the heap.
package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"embed"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

//go:generate go run ./generate

//go:embed documents
var documents embed.FS

// index.json: the hash of every document. v2 stands under its own name.
const indexFile, v2File, v2ProtoFile = "index.json", "v2.json.gz", "v2.pb.gz"

const v2Key = "/openapi/v2"

func v3File(doc string) string { return "v3." + strings.ReplaceAll(doc, "/", "_") + ".json.gz" }

// Files compresses documents into the files of the directory documents.
func Files(v2, v2proto []byte, v3 map[string][]byte) (map[string][]byte, error) {
	out := map[string][]byte{}
	put := func(name string, data []byte) error {
		var b bytes.Buffer
		w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		out[name] = b.Bytes()
		return nil
	}
	hashes := map[string]string{v2Key: hash(v2)}
	if err := put(v2File, v2); err != nil {
		return nil, err
	}
	if err := put(v2ProtoFile, v2proto); err != nil {
		return nil, err
	}
	for doc, data := range v3 {
		hashes[doc] = hash(data)
		if err := put(v3File(doc), data); err != nil {
			return nil, err
		}
	}
	index, err := json.MarshalIndent(hashes, "", " ")
	if err != nil {
		return nil, err
	}
	out[indexFile] = append(index, '\n')
	return out, nil
}

func hash(doc []byte) string { return fmt.Sprintf("%X", sha512.Sum512(doc)) }

// Media types of the documents. Clients ask with the form with @, which is no
// valid media type and never stands in an answer.
const (
	mediaJSON      = "application/json"
	mediaV2Proto   = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	mediaV2ProtoAt = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
)

// Handler serves the documents.
type Handler struct {
	hashes map[string]string
	index  []byte
	tag    string
	since  time.Time
}

type discovery struct {
	Paths map[string]address `json:"paths"`
}

type address struct {
	ServerRelativeURL string `json:"serverRelativeURL"`
}

// New returns a handler of the committed documents.
func New(now time.Time) (*Handler, error) {
	data, err := documents.ReadFile("documents/" + indexFile)
	if err != nil {
		return nil, fmt.Errorf("OpenAPI: %w", err)
	}
	h := &Handler{since: now.UTC().Truncate(time.Second)}
	if err := json.Unmarshal(data, &h.hashes); err != nil {
		return nil, fmt.Errorf("OpenAPI: %w", err)
	}
	d := discovery{Paths: map[string]address{}}
	for doc, sum := range h.hashes {
		if doc != v2Key {
			d.Paths[doc] = address{"/openapi/v3/" + doc + "?hash=" + sum}
		}
	}
	if h.index, err = json.Marshal(d); err != nil {
		return nil, err
	}
	h.tag = hash(h.index)
	return h, nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch p := strings.TrimSuffix(r.URL.Path, "/"); {
	case p == "/openapi/v2":
		h.v2(w, r)
	case p == "/openapi/v3":
		h.discovery(w, r)
	case strings.HasPrefix(p, "/openapi/v3/"):
		h.v3(w, r, strings.TrimPrefix(p, "/openapi/v3/"))
	default:
		http.NotFound(w, r)
	}
}

func (h *Handler) v2(w http.ResponseWriter, r *http.Request) {
	media := negotiate(r.Header.Get("Accept"), mediaJSON, mediaV2Proto, mediaV2ProtoAt)
	file := v2File
	switch media {
	case "":
		w.WriteHeader(http.StatusNotAcceptable)
		return
	case mediaV2Proto, mediaV2ProtoAt:
		file, media = v2ProtoFile, mediaV2Proto
	}
	h.send(w, r, file, media, h.hashes[v2Key])
}

func (h *Handler) discovery(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("Etag", strconv.Quote(h.tag))
	w.Header().Set("Vary", "Accept")
	http.ServeContent(w, r, "", h.since, bytes.NewReader(h.index))
}

func (h *Handler) v3(w http.ResponseWriter, r *http.Request, doc string) {
	sum, ok := h.hashes[doc]
	if !ok || doc == v2Key {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if negotiate(r.Header.Get("Accept"), mediaJSON) == "" {
		w.WriteHeader(http.StatusNotAcceptable)
		return
	}
	// A client that asks for one hash may keep that document for ever; one that
	// has an old hash is sent to the new one.
	if asked := r.URL.Query().Get("hash"); asked != "" {
		if asked != sum {
			u := url.URL{Path: r.URL.Path, RawQuery: url.Values{"hash": {sum}}.Encode()}
			http.Redirect(w, r, u.String(), http.StatusMovedPermanently)
			return
		}
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", h.since.AddDate(1, 0, 0).Format(http.TimeFormat))
	}
	h.send(w, r, v3File(doc), mediaJSON, sum)
}

// send answers with a document, compressed where the client takes it.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, file, media, sum string) {
	head := w.Header()
	head.Set("Content-Type", media)
	head.Set("Etag", strconv.Quote(sum))
	head.Set("Last-Modified", h.since.Format(http.TimeFormat))
	head.Add("Vary", "Accept")
	head.Add("Vary", "Accept-Encoding")
	if match := r.Header.Get("If-None-Match"); match != "" && strings.Contains(match, strconv.Quote(sum)) {
		head.Del("Content-Type")
		w.WriteHeader(http.StatusNotModified)
		return
	}
	f, err := documents.Open("documents/" + file)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer func() { _ = f.Close() }()
	if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		head.Set("Content-Encoding", "gzip")
		if st, err := f.Stat(); err == nil {
			head.Set("Content-Length", strconv.FormatInt(st.Size(), 10))
		}
		w.WriteHeader(http.StatusOK)
		if r.Method != http.MethodHead {
			_, _ = io.Copy(w, f)
		}
		return
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.Copy(w, z) //nolint:gosec // the program's own documents
	}
}

// negotiate picks the first of what the client accepts that is offered; empty
// where nothing is.
func negotiate(accept string, offered ...string) string {
	if accept == "" {
		return offered[0]
	}
	for part := range strings.SplitSeq(accept, ",") {
		media, _, _ := strings.Cut(part, ";")
		media = strings.ToLower(strings.TrimSpace(media))
		if media == "*/*" || media == "application/*" {
			return offered[0]
		}
		for _, o := range offered {
			if media == o {
				return o
			}
		}
	}
	return ""
}
