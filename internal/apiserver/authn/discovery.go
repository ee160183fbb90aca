package authn

import (
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// The paths at which others learn how to verify tokens (OpenID Connect Discovery
// 1.0, section 4).
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	KeysPath          = "/openid/v1/jwks"
)

// Discovery returns the handler of both paths. base is where this server is
// reached, as "https://host:port".
func (t *Tokens) Discovery(base string) (http.Handler, error) {
	var set jose.JSONWebKeySet
	for id, k := range t.keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: k, KeyID: id, Algorithm: string(algorithmOf(k)), Use: "sig"})
	}
	slices.SortFunc(set.Keys, func(a, b jose.JSONWebKey) int { return cmp.Compare(a.KeyID, b.KeyID) })
	var algs []string
	for _, k := range set.Keys {
		algs = append(algs, k.Algorithm)
	}
	slices.Sort(algs)
	keys, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("service account keys: %w", err)
	}
	config, err := json.Marshal(struct {
		Issuer   string   `json:"issuer"`
		Keys     string   `json:"jwks_uri"`
		Response []string `json:"response_types_supported"`
		Subject  []string `json:"subject_types_supported"`
		Signing  []string `json:"id_token_signing_alg_values_supported"`
	}{t.issuer, base + KeysPath, []string{"id_token"}, []string{"public"}, slices.Compact(algs)})
	if err != nil {
		return nil, fmt.Errorf("service account issuer: %w", err)
	}
	mux := http.NewServeMux()
	for path, doc := range map[string]struct {
		media string
		body  []byte
	}{
		ConfigurationPath: {"application/json", config},
		KeysPath:          {"application/jwk-set+json", keys},
	} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", doc.media)
			w.Header().Set("Cache-Control", "public, max-age=3600")
			_, _ = w.Write(doc.body) // a client that went is its own affair
		})
	}
	return mux, nil
}

// algorithmOf a key of service accounts: RSA, or ECDSA on three curves.
func algorithmOf(k crypto.PublicKey) jose.SignatureAlgorithm {
	if e, ok := k.(*ecdsa.PublicKey); ok {
		switch e.Curve.Params().BitSize {
		case 384:
			return jose.ES384
		case 521:
			return jose.ES512
		}
		return jose.ES256
	}
	return jose.RS256
}
