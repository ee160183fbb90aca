package registry

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// CheckInsecure tells what is wrong with an entry of Deps.Insecure.
func CheckInsecure(entry string) error {
	if strings.Contains(entry, "://") {
		return fmt.Errorf("%q: must be a domain such as registry.example.com:5000, without a scheme", entry)
	}
	if strings.Contains(entry, "/") {
		if _, err := netip.ParsePrefix(entry); err != nil {
			return fmt.Errorf("%q: must be a domain such as registry.example.com:5000, or a range such as 10.0.0.0/8", entry)
		}
		return nil
	}
	if entry == "" || strings.ContainsAny(entry, " @?#") {
		return fmt.Errorf("%q: must be a domain such as registry.example.com:5000", entry)
	}
	return nil
}

// insecure tells whether a registry is one of Deps.Insecure.
func (c *Client) insecure(domain string) bool {
	host := domain
	if h, _, err := net.SplitHostPort(domain); err == nil {
		host = h
	}
	addr, noAddr := netip.ParseAddr(strings.Trim(host, "[]"))
	for _, e := range c.deps.Insecure {
		if e == domain || e == host {
			return true
		}
		if p, err := netip.ParsePrefix(e); err == nil && noAddr == nil && p.Contains(addr) {
			return true
		}
	}
	return false
}

// transport is how a host is reached: with the certificates that its directory
// has.
func (c *Client) transport(host string, insecure bool) http.RoundTripper {
	if c.deps.Transport != nil {
		return c.deps.Transport
	}
	key := host
	if insecure {
		key = "insecure " + host
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.transports[key]; t != nil {
		return t
	}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       20 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // blobs are what they are
	}
	conf, err := c.tls(host, insecure)
	if err != nil {
		return failing{err}
	}
	t.TLSClientConfig = conf
	c.transports[key] = t
	return t
}

// failing is how a host is reached whose certificates cannot be read.
type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

// tls reads a host's directories (docker: "Verify repository client with
// certificates").
func (c *Client) tls(host string, insecure bool) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	for _, top := range c.deps.Certs {
		dir := filepath.Join(top, host)
		entries, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("certificates of %s: %w", host, err)
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			switch filepath.Ext(e.Name()) {
			case ".crt":
				pem, err := os.ReadFile(path)
				if err != nil {
					return nil, fmt.Errorf("certificates of %s: %w", host, err)
				}
				if conf.RootCAs == nil {
					if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
						conf.RootCAs = x509.NewCertPool()
					}
				}
				if !conf.RootCAs.AppendCertsFromPEM(pem) {
					return nil, fmt.Errorf("certificates of %s: %s: no certificate in it", host, path)
				}
			case ".cert":
				pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
				if err != nil {
					return nil, fmt.Errorf("certificates of %s: %w", host, err)
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
		}
	}
	return conf, nil
}
