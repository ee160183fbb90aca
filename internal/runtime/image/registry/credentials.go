package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"skiff/internal/runtime/image"
)

// Credentials are kept where docker keeps them: in $DOCKER_CONFIG/config.json or
// ~/.docker/config.json, or with the helper that credsStore or credHelpers name
// there. Where docker has none, podman's auth.json is read.

// Credentials finds what the user keeps for the registry of n; nil for none. A
// credential helper that fails is an error.
func Credentials(ctx context.Context, n image.Name) (*image.Auth, error) {
	repo, err := name.NewRepository(n.Repository())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", image.ErrInvalidName, err)
	}
	a, err := authn.Resolve(ctx, authn.DefaultKeychain, repo)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", n.Domain, err)
	}
	if a == authn.Anonymous {
		return nil, nil
	}
	c, err := authn.Authorization(ctx, a)
	if err != nil {
		return nil, fmt.Errorf("credentials of %s: %w", n.Domain, err)
	}
	return &image.Auth{
		Username: c.Username, Password: c.Password, Auth: c.Auth,
		IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}, nil
}

// Verify tells whether a registry takes credentials.
func (c *Client) Verify(ctx context.Context, domain string, a image.Access) error {
	var options []name.Option
	if a.Insecure || c.insecure(domain) {
		options = append(options, name.Insecure)
	}
	reg, err := name.NewRegistry(hostOf(domain), options...)
	if err != nil {
		return fmt.Errorf("registry %q: %w", domain, err)
	}
	refused := func(err error) error {
		var te *transport.Error
		if errors.As(err, &te) && (te.StatusCode == http.StatusUnauthorized || te.StatusCode == http.StatusForbidden) {
			return withKind(image.ErrUnauthorized, fmt.Errorf("login to %s: unauthorized: incorrect username or password", reg.Name()))
		}
		return fmt.Errorf("login to %s: %w", reg.Name(), err)
	}
	base := &retrying{inner: &watched{c.transport(reg.RegistryStr(), len(options) > 0), c.deps.Stall}, attempts: maxBroken, backoff: c.deps.Backoff}
	rt, err := transport.NewWithContext(ctx, reg, authenticator(a.Auth), transport.NewUserAgent(base, "skiff"), nil)
	if err != nil {
		return refused(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+reg.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return refused(err)
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return refused(err)
	}
	return nil
}

// hostOf is the registry that a user means by what docker login takes: a domain, a
// URL, or nothing for docker.io.
func hostOf(domain string) string {
	_, rest, ok := strings.Cut(domain, "://")
	if !ok {
		rest = domain
	}
	rest, _, _ = strings.Cut(rest, "/")
	if rest == "" || rest == "docker.io" {
		return name.DefaultRegistry
	}
	return rest
}

// keyOf is what a registry's credentials are kept under.
func keyOf(domain string) string {
	if h := hostOf(domain); h != name.DefaultRegistry {
		return h
	}
	return authn.DefaultAuthKey
}

func loadConfig() (*configfile.ConfigFile, error) {
	f, err := config.Load(os.Getenv("DOCKER_CONFIG"))
	if err != nil {
		return nil, fmt.Errorf("docker's config file: %w", err)
	}
	return f, nil
}

// Keep keeps credentials and returns where: a file, or a helper's name.
func Keep(domain string, a image.Auth) (string, error) {
	f, err := loadConfig()
	if err != nil {
		return "", err
	}
	key := keyOf(domain)
	if err := f.GetCredentialsStore(key).Store(types.AuthConfig{
		ServerAddress: key, Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken,
	}); err != nil {
		return "", fmt.Errorf("keep credentials of %s: %w", hostOf(domain), err)
	}
	if h := f.CredentialHelpers[key]; h != "" {
		return "docker-credential-" + h, nil
	}
	if f.CredentialsStore != "" {
		return "docker-credential-" + f.CredentialsStore, nil
	}
	return f.GetFilename(), nil
}

// Forget forgets what is kept for a registry; false where that was nothing.
func Forget(domain string) (bool, error) {
	f, err := loadConfig()
	if err != nil {
		return false, err
	}
	key := keyOf(domain)
	store := f.GetCredentialsStore(key)
	had, err := store.Get(key)
	if err != nil {
		return false, fmt.Errorf("credentials of %s: %w", hostOf(domain), err)
	}
	if had.Username == "" && had.Password == "" && had.IdentityToken == "" && had.Auth == "" {
		return false, nil
	}
	if err := store.Erase(key); err != nil {
		return false, fmt.Errorf("forget credentials of %s: %w", hostOf(domain), err)
	}
	return true, nil
}
