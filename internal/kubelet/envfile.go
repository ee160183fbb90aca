package kubelet

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// maxEnvFile bounds what is read of a file of variables; containers write it.
const maxEnvFile = 1 << 20

// file sets a variable to what a file in a volume has for a key (KEP-3721): an init
// container wrote it.
func (e *envBuilder) file(variable string, r *corev1.FileKeySelector) error {
	dir, ok := e.volumes[r.VolumeName]
	if !ok {
		return fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", r.VolumeName)
	}
	text, err := readEnvFile(dir, r.Path)
	if err != nil {
		return errors.New("couldn't parse env file")
	}
	value, err := envFileValue(text, r.Key)
	if err != nil {
		return errors.New("couldn't parse env file")
	}
	if value == "" {
		if r.Optional != nil && *r.Optional {
			return nil
		}
		return fmt.Errorf("environment variable key %q not found in file %q", r.Key, filepath.Join(dir, r.Path))
	}
	e.set(variable, value)
	return nil
}

// readEnvFile reads a regular file below dir. Links that lead out of dir are not
// followed, and nothing that a container may have put there holds the reader up.
func readEnvFile(dir, path string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s: not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err == nil && len(b) > maxEnvFile {
		err = fmt.Errorf("%s: larger than %d bytes", path, maxEnvFile)
	}
	return string(b), err
}

// envFileValue is a key's value in a file of lines NAME='VALUE', the syntax of a
// POSIX shell less nearly all of it: values stand in single quotes, over several
// lines where need be, and a comment may follow. A blank after the sign makes the
// value empty, as in a shell. What follows the key is not looked at. "" is the
// answer for a key that is not there.
func envFileValue(text, key string) (string, error) {
	line := 0
	next := func() (s string, ok bool) {
		if text == "" {
			return "", false
		}
		s, text, _ = strings.Cut(text, "\n")
		line++
		return strings.TrimSuffix(s, "\r"), true
	}
	bad := func(at int, what string) error { return fmt.Errorf("line %d: %s", at, what) }
	for {
		s, ok := next()
		if !ok {
			return "", nil
		}
		if s = strings.TrimLeft(s, " \t"); s == "" || s[0] == '#' {
			continue
		}
		name, rest, ok := strings.Cut(s, "=")
		switch {
		case !ok:
			return "", bad(line, "missing '='")
		case strings.TrimRight(name, " \t") == "":
			return "", bad(line, "empty variable name")
		case strings.TrimRight(name, " \t") != name:
			return "", bad(line, "whitespace before '=' is not allowed")
		case strings.HasPrefix(rest, " ") || strings.HasPrefix(rest, "\t"):
			if name == key {
				return "", nil
			}
			continue
		case !strings.HasPrefix(rest, "'"):
			return "", bad(line, "value must be enclosed in single quotes")
		}
		var value strings.Builder
		begun := line
		for rest = rest[1:]; ; value.WriteByte('\n') {
			part, after, closed := strings.Cut(rest, "'")
			value.WriteString(part)
			if closed {
				if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
					return "", bad(line, "unexpected content after closing quote")
				}
				break
			}
			if rest, ok = next(); !ok {
				return "", bad(begun, "unclosed single quote")
			}
		}
		if name == key {
			return value.String(), nil
		}
	}
}
