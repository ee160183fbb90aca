package cli

import (
	"encoding/csv"
	"fmt"
	"path/filepath"
	"strings"

	"skiff/internal/admin"
)

// cacheValue is one value of --cache-from or --cache-to, as docker buildx reads them:
// KEY=VALUE fields, or references alone.
type cacheValue struct {
	flag, text string
	fields     map[string]string
}

// cacheValues reads the values of a flag.
func cacheValues(flag string, in []string) ([]cacheValue, error) {
	var out []cacheValue
	for _, text := range in {
		if !strings.Contains(text, "=") {
			refs, err := csv.NewReader(strings.NewReader(text)).Read()
			if err != nil {
				return nil, fmt.Errorf("%s %q: must be a reference, or fields such as type=registry,ref=REF", flag, text)
			}
			for _, ref := range refs {
				if ref == "" {
					return nil, fmt.Errorf("%s %q: a reference is empty", flag, text)
				}
				out = append(out, cacheValue{flag, text, map[string]string{"type": "registry", "ref": ref}})
			}
			continue
		}
		fields, err := csvFields(text, "type", "ref", "src", "dest", "digest", "tag", "mode", "compression", "ignore-error", "oci-mediatypes", "image-manifest")
		if err != nil {
			return nil, fmt.Errorf("%s %w", flag, err)
		}
		out = append(out, cacheValue{flag, text, fields})
	}
	return out, nil
}

func (v cacheValue) errorf(format string, args ...any) error {
	return fmt.Errorf("%s %q: %s", v.flag, v.text, fmt.Sprintf(format, args...))
}

// only tells of a field that the type does not have.
func (v cacheValue) only(keys ...string) error {
	allowed := map[string]bool{"type": true}
	for _, k := range keys {
		allowed[k] = true
	}
	for k := range v.fields {
		if !allowed[k] {
			return v.errorf("type=%s has no key %q (there are %s)", v.fields["type"], k, strings.Join(keys, ", "))
		}
	}
	return nil
}

// needs tells of a field that is missing.
func (v cacheValue) needs(key, what string) error {
	if v.fields[key] == "" {
		return v.errorf("type=%s needs %s=%s", v.fields["type"], key, what)
	}
	return nil
}

// unsupported is the error of another type than those there are.
func (v cacheValue) unsupported(there string) error {
	switch t := v.fields["type"]; t {
	case "":
		return v.errorf("type is missing: must be %s", there)
	case "gha", "s3", "azblob":
		return v.errorf("type %q is not supported, being a service's own: must be %s", t, there)
	default:
		return v.errorf("type %q: must be %s", t, there)
	}
}

// cacheSources reads --cache-from.
func cacheSources(in []string) ([]admin.CacheFrom, error) {
	values, err := cacheValues("--cache-from", in)
	if err != nil {
		return nil, err
	}
	var out []admin.CacheFrom
	for _, v := range values {
		f := v.fields
		c := admin.CacheFrom{Type: f["type"], Ref: f["ref"], Tag: f["tag"], Digest: f["digest"]}
		switch c.Type {
		case "registry":
			if err = v.only("ref"); err == nil {
				err = v.needs("ref", "REFERENCE")
			}
		case "local":
			if err = v.only("src", "tag", "digest"); err == nil {
				err = v.needs("src", "DIRECTORY")
			}
			if err == nil {
				c.Src, err = filepath.Abs(f["src"])
			}
		default:
			err = v.unsupported("registry or local")
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// cacheTargets reads --cache-to.
func cacheTargets(in []string) ([]admin.CacheTo, error) {
	values, err := cacheValues("--cache-to", in)
	if err != nil {
		return nil, err
	}
	var out []admin.CacheTo
	for _, v := range values {
		c, err := v.target()
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (v cacheValue) target() (admin.CacheTo, error) {
	f := v.fields
	c := admin.CacheTo{Type: f["type"], Ref: f["ref"], Tag: f["tag"], Mode: f["mode"], Compression: f["compression"]}
	var err error
	switch c.Type {
	case "inline":
		if err = v.only("mode"); err == nil && c.Mode == "max" {
			err = v.errorf("type=inline has mode=min alone: an image carries what its own layers came from")
		}
	case "registry":
		if err = v.only("ref", "mode", "compression", "ignore-error", "oci-mediatypes", "image-manifest"); err == nil {
			err = v.needs("ref", "REFERENCE")
		}
	case "local":
		if err = v.only("dest", "tag", "mode", "compression", "ignore-error", "oci-mediatypes", "image-manifest"); err == nil {
			err = v.needs("dest", "DIRECTORY")
		}
		if err == nil {
			c.Dest, err = filepath.Abs(f["dest"])
		}
	default:
		err = v.unsupported("inline, registry or local")
	}
	if err != nil {
		return c, err
	}
	if c.Mode != "" && c.Mode != "min" && c.Mode != "max" {
		return c, v.errorf("mode %q: must be min or max", c.Mode)
	}
	switch c.Compression {
	case "", "gzip", "zstd":
	case "uncompressed", "none":
		c.Compression = "none"
	default:
		return c, v.errorf("compression %q: must be gzip, zstd or uncompressed", c.Compression)
	}
	for _, k := range []string{"oci-mediatypes", "image-manifest"} { // a cache is so in any case
		if given, ok := f[k]; ok && given != "true" {
			return c, v.errorf("%s=%s: must be true", k, given)
		}
	}
	switch given, ok := f["ignore-error"]; {
	case !ok, given == "false":
	case given == "true":
		c.IgnoreError = true
	default:
		return c, v.errorf("ignore-error=%s: must be true or false", given)
	}
	return c, nil
}
