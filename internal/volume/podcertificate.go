package volume

import (
	"context"
	"encoding/pem"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// addCertificate adds the key and the certificates of a source (KEP-4317): both in
// one file, or in a file each, or all three. All of them change at once.
func addCertificate(ctx context.Context, m *Mount, files map[string]file, p *corev1.PodCertificateProjection, source int, def *int32) (time.Time, error) {
	dir, err := m.Memory()
	if err != nil {
		return time.Time{}, err
	}
	held := func() (key, chain []byte) { return heldCertificate(dir, p) }
	key, chain, refresh, err := m.Sources.Certificate(ctx, m.Pod, p, m.Volume.Name, source, held)
	if err != nil {
		return time.Time{}, err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{p.CredentialBundlePath, append(key[:len(key):len(key)], chain...)},
		{p.KeyPath, key},
		{p.CertificateChainPath, chain},
	} {
		if f.path != "" {
			files[f.path] = private(m, f.data, def)
		}
	}
	return refresh, nil
}

// heldCertificate reads what addCertificate wrote; nil where that is not there.
func heldCertificate(dir string, p *corev1.PodCertificateProjection) (key, chain []byte) {
	read := func(path string) []byte {
		if path == "" || checkPath(path) != nil {
			return nil
		}
		data, err := os.ReadFile(filepath.Join(dir, dataLink, path))
		if err != nil {
			return nil
		}
		return data
	}
	if all := read(p.CredentialBundlePath); all != nil {
		if _, rest := pem.Decode(all); len(rest) < len(all) {
			return all[:len(all)-len(rest)], rest
		}
	}
	if key, chain = read(p.KeyPath), read(p.CertificateChainPath); key == nil || chain == nil {
		return nil, nil
	}
	return key, chain
}
