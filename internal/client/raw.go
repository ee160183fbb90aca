package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// maxRaw bounds an answer that is read whole.
const maxRaw = 256 << 20

// Raw gets a path of the server: what has no kind (a log, discovery), or one that
// this program does not know. accept is the form wanted, anything where it is empty.
func (h *HTTPS) Raw(ctx context.Context, p string, q url.Values, accept string) ([]byte, error) {
	resp, err := h.get(ctx, p, q, accept)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxRaw))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	if resp.StatusCode >= 400 {
		var st metav1.Status
		if json.Unmarshal(b, &st) == nil && st.Status == metav1.StatusFailure {
			return nil, &apierrors.StatusError{ErrStatus: st}
		}
		return nil, apierrors.NewGenericServerResponse(resp.StatusCode, "get", schema.GroupResource{}, "", strings.TrimSpace(string(b)), 0, true)
	}
	return b, nil
}

// get asks for a path; the answer may be an error's.
func (h *HTTPS) get(ctx context.Context, p string, q url.Values, accept string) (*http.Response, error) {
	u := *h.base
	u.Path = path.Join(u.Path, p)
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	req.Header.Set("User-Agent", h.cfg.UserAgent)
	if h.cfg.Token != "" {
		req.Header.Set("Authorization", "Bearer "+h.cfg.Token)
	}
	return h.http.Do(req)
}
