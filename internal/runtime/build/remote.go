package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

func isHTTP(src string) bool {
	return (strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")) && !isGit(src)
}

// download is what is known of a URL's content.
type download struct {
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"lastModified,omitempty"`
	Sum          string    `json:"sum"` // SHA-256, hex
	Time         time.Time `json:"time"`
}

// httpSource is a file that ADD fetches. Where its digest is known from before
// (the server says that it did not change, or ADD names its checksum), it is
// fetched only if the layer is not cached.
func (r *run) httpSource(ctx context.Context, link, checksum string) (*source, error) {
	u, err := url.Parse(link)
	if err != nil {
		return nil, err
	}
	name := path.Base(u.Path)
	if name == "." || name == "/" {
		name = "__unnamed__"
	}
	want := ""
	if checksum != "" {
		algorithm, hexa, _ := strings.Cut(checksum, ":")
		if raw, err := hex.DecodeString(hexa); algorithm != "sha256" || err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("checksum %q: must be sha256: and 64 hexadecimal digits", checksum)
		}
		want = strings.ToLower(hexa)
	}
	noted := filepath.Join(r.b.deps.Dir, "http", digestOf(link)[:32]+".json")
	var known download
	if data, err := os.ReadFile(noted); err != nil || json.Unmarshal(data, &known) != nil {
		known = download{}
	}
	src := &source{name: name}
	fetched := ""
	if known.Sum == "" || want != known.Sum {
		if fetched, err = r.fetch(ctx, link, &known, noted); err != nil {
			return nil, err
		}
	}
	if want != "" && known.Sum != want {
		return nil, fmt.Errorf("digest mismatch sha256:%s: sha256:%s", known.Sum, want)
	}
	src.key = digestOf("http", name, known.Sum, known.Time.UTC().Format(time.RFC3339Nano))
	src.fetch = func(ctx context.Context, s *source) error {
		if fetched == "" {
			again := download{}
			full, err := r.fetch(ctx, link, &again, noted)
			if err != nil {
				return err
			}
			if again.Sum != known.Sum {
				return errors.New("its content changed during the build")
			}
			fetched = full
		}
		fi, err := os.Lstat(fetched)
		if err != nil {
			return err
		}
		s.files = []file{{rel: name, full: fetched, info: fi, sum: known.Sum}}
		return nil
	}
	return src, nil
}

// fetch gets a URL into a file; "" where it is as known says. What is then known
// is noted for the next build.
func (r *run) fetch(ctx context.Context, link string, known *download, noted string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", "skiff")
	if known.Sum != "" && known.ETag != "" {
		req.Header.Set("If-None-Match", known.ETag)
	} else if known.Sum != "" && known.LastModified != "" {
		req.Header.Set("If-Modified-Since", known.LastModified)
	}
	resp, err := r.b.http.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && known.Sum != "" {
		return "", nil
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return "", fmt.Errorf("the server answers %s", resp.Status)
	}
	dir, err := r.tempDir()
	if err != nil {
		return "", err
	}
	full := filepath.Join(dir, "file")
	f, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), resp.Body)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	at, err := http.ParseTime(resp.Header.Get("Last-Modified"))
	if err != nil {
		at = time.Unix(0, 0)
	}
	if err := os.Chtimes(full, at, at); err != nil {
		return "", err
	}
	*known = download{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified"), Sum: hex.EncodeToString(h.Sum(nil)), Time: at}
	data, err := json.Marshal(known)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(noted), 0o700)
	}
	if err == nil {
		err = os.WriteFile(noted, data, 0o600) // half of it is no JSON, and ignored
	}
	return full, err
}
