package apiserver

import "crypto/tls"

// insecureTLS is for proxied pods and services alone: their certificates are
// nobody's to check (upstream's proxies do the same).
func insecureTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true} //nolint:gosec // see above
}
