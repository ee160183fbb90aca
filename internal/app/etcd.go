package app

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
)

// checkEtcd checks what is said of an external etcd, and makes its files' paths
// absolute: a later start may be in another directory.
func (c *Config) checkEtcd() error {
	for _, e := range c.Etcd {
		if u, err := url.Parse(e); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return &ConfigError{"etcd", fmt.Sprintf("%q: must be a URL such as https://10.0.0.5:2379", e)}
		}
	}
	if (c.EtcdCert == "") != (c.EtcdKey == "") {
		return &ConfigError{"etcdKey", "etcdCert and etcdKey go together"}
	}
	for _, f := range []struct {
		field string
		path  *string
	}{{"etcdCA", &c.EtcdCA}, {"etcdCert", &c.EtcdCert}, {"etcdKey", &c.EtcdKey}} {
		if *f.path == "" {
			continue
		}
		if len(c.Etcd) == 0 {
			return &ConfigError{f.field, "is for an external etcd; say where that is with etcd"}
		}
		abs, err := filepath.Abs(*f.path)
		if err != nil {
			return &ConfigError{f.field, err.Error()}
		}
		*f.path = abs
	}
	return nil
}

// etcdTLS is nil where no endpoint speaks TLS.
func (s *Settings) etcdTLS() (*tls.Config, error) {
	wanted := false
	for _, e := range s.Etcd {
		if u, err := url.Parse(e); err == nil && u.Scheme == "https" {
			wanted = true
		}
	}
	if !wanted {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.EtcdCA != "" {
		b, err := os.ReadFile(s.EtcdCA)
		if err != nil {
			return nil, &ConfigError{"etcdCA", err.Error()}
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(b) {
			return nil, &ConfigError{"etcdCA", s.EtcdCA + " holds no certificate in PEM form"}
		}
	}
	if s.EtcdCert != "" {
		pair, err := tls.LoadX509KeyPair(s.EtcdCert, s.EtcdKey)
		if err != nil {
			return nil, &ConfigError{"etcdCert", err.Error()}
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}
