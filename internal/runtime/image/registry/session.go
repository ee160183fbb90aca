package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skiff/internal/runtime/image"
)

// session is one repository of one registry, with what it takes to be let in.
type session struct {
	name   image.Name
	repo   name.Repository
	client *http.Client
	// verb is what is refused where access is.
	verb string
	// namespace is the registry that a mirror is asked for; a mirror of several
	// needs it.
	namespace string
}

// session opens a repository. It asks the registry how it wants to be asked, and
// gets a token where it wants one.
func (c *Client) session(ctx context.Context, n image.Name, repo name.Repository, a image.Access, actions string, more ...string) (*session, error) {
	base := &retrying{inner: &watched{c.transport(repo.RegistryStr(), a.Insecure), c.deps.Stall}, attempts: maxBroken, backoff: c.deps.Backoff}
	s := &session{name: n, repo: repo, verb: "pull"}
	if actions == transport.PushScope {
		s.verb = "push"
	}
	scopes := append([]string{repo.Scope(actions)}, more...)
	rt, err := transport.NewWithContext(ctx, repo.Registry, authenticator(a.Auth), transport.NewUserAgent(base, "skiff"), scopes)
	if err != nil {
		return nil, s.kindOf(err)
	}
	s.client = &http.Client{Transport: rt}
	return s, nil
}

func authenticator(a *image.Auth) authn.Authenticator {
	if a == nil || *a == (image.Auth{ServerAddress: a.ServerAddress}) {
		return authn.Anonymous
	}
	return authn.FromConfig(authn.AuthConfig{
		Username: a.Username, Password: a.Password, Auth: a.Auth,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	})
}

// do sends a request for a path within the repository.
func (s *session) do(ctx context.Context, method, path string, with func(*http.Request)) (*http.Response, error) {
	// The scheme is the one that answered; the session's transport puts it in.
	u := url.URL{Scheme: "https", Host: s.repo.RegistryStr(), Path: "/v2/" + s.repo.RepositoryStr() + "/" + path}
	if s.namespace != "" {
		u.RawQuery = url.Values{"ns": {s.namespace}}.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if with != nil {
		with(req)
	}
	return s.client.Do(req)
}

// manifest fetches a manifest or index by tag or digest, and verifies it.
func (s *session) manifest(ctx context.Context, identifier string) (v1.Descriptor, []byte, error) {
	resp, err := s.do(ctx, http.MethodGet, "manifests/"+identifier, func(r *http.Request) {
		r.Header["Accept"] = accept
	})
	if err != nil {
		return v1.Descriptor{}, nil, s.kindOf(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return v1.Descriptor{}, nil, s.status(resp)
	}
	if resp.ContentLength > image.MaxJSON {
		return v1.Descriptor{}, nil, tooLong(identifier)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, image.MaxJSON+1))
	if err != nil {
		return v1.Descriptor{}, nil, s.kindOf(err)
	}
	if len(raw) > image.MaxJSON {
		return v1.Descriptor{}, nil, tooLong(identifier)
	}
	digest, size, err := v1.SHA256(strings.NewReader(string(raw)))
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	want := resp.Header.Get("Docker-Content-Digest")
	if strings.HasPrefix(identifier, "sha256:") {
		want = identifier
	}
	if want != "" && want != digest.String() {
		return v1.Descriptor{}, nil, withKind(image.ErrCorrupt, fmt.Errorf("manifest %s: %w: its content has digest %s", want, image.ErrCorrupt, digest))
	}
	mt, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return v1.Descriptor{MediaType: mediaType(strings.TrimSpace(mt), raw), Digest: digest, Size: size}, raw, nil
}

func tooLong(identifier string) error {
	return withKind(image.ErrCorrupt, fmt.Errorf("manifest %s: %w: longer than %d bytes", identifier, image.ErrCorrupt, image.MaxJSON))
}

// mediaType is what a manifest says it is, and otherwise what the registry says.
func mediaType(said string, raw []byte) types.MediaType {
	if own := image.ManifestType(raw); own != "" {
		return own
	}
	return types.MediaType(said)
}

// status is the error that an answer is.
func (s *session) status(resp *http.Response) error {
	defer resp.Body.Close()
	return s.kindOf(transport.CheckError(resp))
}

// kindOf sorts what went wrong into the kinds that callers distinguish, in the
// words that users of other runtimes know.
func (s *session) kindOf(err error) error {
	var sorted *kindError
	if err == nil || errors.As(err, &sorted) {
		return err
	}
	var te *transport.Error
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted): // what was then said without TLS says less
		return withKind(image.ErrUnavailable, fmt.Errorf("failed to do request: %w", untrusted))
	case errors.As(err, &te) && te.StatusCode == http.StatusNotFound:
		return withKind(image.ErrNotFound, fmt.Errorf("%s: not found", s.name))
	case errors.As(err, &te) && te.StatusCode == http.StatusUnauthorized:
		return withKind(image.ErrUnauthorized,
			fmt.Errorf("%s access denied, repository does not exist or may require authorization: %s", s.verb, unexpected(te)))
	case errors.As(err, &te) && te.StatusCode == http.StatusForbidden:
		return withKind(image.ErrUnauthorized, errors.New(unexpected(te)))
	case errors.As(err, &te):
		return withKind(image.ErrUnavailable, errors.New(unexpected(te)))
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	}
	return withKind(image.ErrUnavailable, fmt.Errorf("failed to do request: %w", err))
}

// unexpected is an answer in words, with what the registry said of it.
func unexpected(te *transport.Error) string {
	text := fmt.Sprintf("%d %s", te.StatusCode, http.StatusText(te.StatusCode))
	if r := te.Request; r != nil {
		// Queries may hold what nobody else should know.
		text = fmt.Sprintf("unexpected status from %s request to %s://%s%s: %s", r.Method, r.URL.Scheme, r.URL.Host, r.URL.Path, text)
	}
	for _, d := range te.Errors {
		if d.Message != "" {
			text += ": " + strings.ToLower(string(d.Code)) + ": " + d.Message
		}
	}
	return text
}

// kindError reads as err and is a kind as well.
type kindError struct{ kind, err error }

func withKind(kind, err error) error { return &kindError{kind, err} }

func (e *kindError) Error() string   { return e.err.Error() }
func (e *kindError) Unwrap() []error { return []error{e.kind, e.err} }
