package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"skiff/internal/api/resource"
)

// TestDiscovery verifies a token with nothing but what the documents say.
func TestDiscovery(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	older, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := NewTokens(TokensConfig{
		Issuer: "https://issuer.example", Audiences: []string{"https://issuer.example"}, Key: key,
		Verify: []crypto.PublicKey{key.Public(), older.Public()}, Now: time.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	h, err := tokens.Discovery("https://192.0.2.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	ask := func(method, path, media string, into any) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != media || w.Header().Get("Cache-Control") != "public, max-age=3600" {
			t.Fatalf("%s: %d %v", path, w.Code, w.Header())
		}
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatal(err)
		}
	}
	var config map[string]any
	ask("GET", "/.well-known/openid-configuration", "application/json", &config)
	want := `{"id_token_signing_alg_values_supported":["ES256","ES384"],"issuer":"https://issuer.example","jwks_uri":"https://192.0.2.1:6443/openid/v1/jwks","response_types_supported":["id_token"],"subject_types_supported":["public"]}`
	if got, err := json.Marshal(config); err != nil || string(got) != want {
		t.Errorf("configuration is %s (%v), want %s", got, err, want)
	}
	var set jose.JSONWebKeySet
	ask("GET", "/openid/v1/jwks", "application/jwk-set+json", &set)
	if len(set.Keys) != 2 {
		t.Fatalf("%d keys", len(set.Keys))
	}
	for _, k := range set.Keys {
		if !k.IsPublic() {
			t.Errorf("key %s is not a public one", k.KeyID)
		}
	}
	token, _, err := tokens.Issue(t.Context(), resource.TokenSpec{Namespace: "ns", ServiceAccount: "sa", Audiences: []string{"me"}, Lifetime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	if err := parsed.Claims(set, &claims); err != nil || claims.Issuer != config["issuer"] {
		t.Errorf("claims %+v, %v", claims, err)
	}
}
