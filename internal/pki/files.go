package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// maxFile bounds what is read: a PKI's files are small.
const maxFile = 1 << 20

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func read(file string) ([]byte, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return nil, fmt.Errorf("%s is not a certificate or key file", file)
	}
	return os.ReadFile(file)
}

// damaged is the error of a file that cannot be understood, with a way out.
func damaged(file, want string, err error) error {
	if err == nil {
		return fmt.Errorf("%s holds no %s: restore it from a backup, or remove it to have a new one made", file, want)
	}
	return fmt.Errorf("%s holds no %s (%w): restore it from a backup, or remove it to have a new one made", file, want, err)
}

// readCert reads the first certificate of a file.
func readCert(file string) ([]byte, *x509.Certificate, error) {
	b, err := read(file)
	if err != nil {
		return nil, nil, err
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, nil, damaged(file, "certificate", nil)
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, nil, damaged(file, "certificate", err)
		}
		return b, cert, nil
	}
}

// readKey reads a private key in any of the usual forms, and takes it from others
// who could read it too.
func readKey(file string) (crypto.Signer, error) {
	b, err := read(file)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(file); err == nil && st.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(file, 0o600); err != nil {
			return nil, fmt.Errorf("%s can be read by others: %w", file, err)
		}
	}
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, damaged(file, "private key", nil)
		}
		var key any
		switch block.Type {
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		default:
			continue // the parameters of a curve, say
		}
		if err != nil {
			return nil, damaged(file, "private key", err)
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, damaged(file, "private key that can sign", nil)
		}
		return signer, nil
	}
}

// readPublicKeys reads every public key of a file.
func readPublicKeys(file string) ([]crypto.PublicKey, error) {
	b, err := read(file)
	if err != nil {
		return nil, err
	}
	var keys []crypto.PublicKey
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var key crypto.PublicKey
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			key, err = x509.ParsePKCS1PublicKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, damaged(file, "public key", err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, damaged(file, "public key", nil)
	}
	return keys, nil
}

func ensureServiceAccountKey(keyFile, pubFile string) (crypto.Signer, error) {
	key, err := readKey(keyFile)
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(pubFile); err == nil {
			return nil, fmt.Errorf("%s does not exist, but %s does: restore it from a backup, or remove the other too (tokens given out then end)", keyFile, pubFile)
		}
		made, keyPEM, err := newKey()
		if err != nil {
			return nil, err
		}
		if err := writeFile(keyFile, keyPEM); err != nil {
			return nil, err
		}
		key = made
	} else if err != nil {
		return nil, err
	}
	keys, err := readPublicKeys(pubFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		return key, writeFile(pubFile, encodePEM("PUBLIC KEY", der))
	case err != nil:
		return nil, err
	}
	for _, k := range keys {
		if samePublic(k, key.Public()) {
			return key, nil
		}
	}
	return nil, fmt.Errorf("%s does not hold the public half of %s", pubFile, keyFile)
}

// writeFile replaces file by one with this content: whoever reads it, even after
// a crash, sees the old or the new.
func writeFile(file string, content []byte) (err error) {
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	// CreateTemp makes files of mode 0600.
	f, err := os.CreateTemp(dir, "."+filepath.Base(file)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", file, err)
		}
	}()
	if _, err = f.Write(content); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
