package main

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

// What `skiff image export` writes can be pulled by name and by digest.
func TestServeImages(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	digest := fmt.Sprintf("%x", sha256.Sum256(manifest))
	archive := filepath.Join(t.TempDir(), "images.tar")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for name, content := range map[string][]byte{
		"blobs/sha256/" + digest: manifest,
		"index.json":             fmt.Appendf(nil, `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","annotations":{"io.containerd.image.name":"registry.k8s.io/e2e/app:1"}}]}`, digest),
	} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := serveImages(archive, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		path, media string
		code        int
	}{
		{"/v2/", "", 200},
		{"/v2/e2e/app/manifests/1", "application/vnd.oci.image.manifest.v1+json", 200},
		{"/v2/e2e/app/manifests/sha256:" + digest, "application/vnd.oci.image.manifest.v1+json", 200},
		{"/v2/e2e/app/blobs/sha256:" + digest, "application/octet-stream", 200},
		{"/v2/e2e/app/manifests/2", "", 404},
		{"/v2/e2e/other/manifests/1", "", 404},
		{"/v2/e2e/app/blobs/1", "", 404},
		{"/other", "", 404},
	} {
		resp, err := http.Get("http://" + m.addr + c.path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.code || c.media != "" && (resp.Header.Get("Content-Type") != c.media || string(body) != string(manifest)) {
			t.Errorf("%s: %d %s %q, %v", c.path, resp.StatusCode, resp.Header.Get("Content-Type"), body, err)
		}
	}
}
