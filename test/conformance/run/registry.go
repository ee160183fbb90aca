package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
)

// mirror serves the images of an OCI layout in a tar to those who pull (OCI
// distribution spec, the pull category): tests with pull policy Always ask a
// registry for what is on the node already.
type mirror struct {
	addr    string
	file    *os.File
	blobs   map[string]span       // by digest
	names   map[string]descriptor // by name with tag
	types   map[string]string     // media type of a manifest, by digest
	server  *http.Server
	stopped chan error
}

type span struct{ offset, size int64 }

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Annotations map[string]string `json:"annotations"`
}

// serveImages serves an archive at a free port of address.
func serveImages(archive, address string) (*mirror, error) {
	m := &mirror{blobs: map[string]span{}, names: map[string]descriptor{}, types: map[string]string{}, stopped: make(chan error, 1)}
	var err error
	if m.file, err = os.Open(archive); err != nil {
		return nil, err
	}
	if err := m.index(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", archive, err), m.file.Close())
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		return nil, errors.Join(err, m.file.Close())
	}
	m.addr = l.Addr().String()
	m.server = &http.Server{Handler: m}
	go func() { m.stopped <- m.server.Serve(l) }()
	return m, nil
}

func (m *mirror) close() error {
	err := m.server.Close()
	if serr := <-m.stopped; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return errors.Join(err, m.file.Close())
}

// index notes where each blob is, and what names mean.
func (m *mirror) index() error {
	r := tar.NewReader(m.file)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		if name == "index.json" {
			var index struct{ Manifests []descriptor }
			if err := json.NewDecoder(r).Decode(&index); err != nil {
				return err
			}
			for _, d := range index.Manifests {
				m.names[d.Annotations["io.containerd.image.name"]] = d
				m.types[d.Digest] = d.MediaType
			}
			continue
		}
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && h.Typeflag == tar.TypeReg {
			offset, err := m.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			m.blobs["sha256:"+hex] = span{offset, h.Size}
		}
	}
	if len(m.names) == 0 {
		return errors.New("holds no images with names")
	}
	return nil
}

// ServeHTTP answers /v2/, /v2/NAME/manifests/REFERENCE and /v2/NAME/blobs/DIGEST.
func (m *mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.NotFound(w, r)
		return
	}
	if rest == "" {
		return
	}
	dir, ref := path.Split(rest)
	repo, kind := path.Split(strings.TrimSuffix(dir, "/"))
	digest, media := ref, "application/octet-stream"
	if kind == "manifests" {
		if d, ok := m.names["registry.k8s.io/"+strings.TrimSuffix(repo, "/")+":"+ref]; ok {
			digest = d.Digest
		}
		media = m.types[digest]
	}
	b, ok := m.blobs[digest]
	if !ok || media == "" || kind != "manifests" && kind != "blobs" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", media)
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("Content-Length", fmt.Sprint(b.size))
	if r.Method == http.MethodGet {
		_, _ = io.Copy(w, io.NewSectionReader(m.file, b.offset, b.size)) // a client that went away
	}
}
