package cli

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

func pairs(flag string, in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range in {
		k, v, ok := strings.Cut(p, "=")
		if k == "" {
			return nil, fmt.Errorf("%s %q: must be NAME=VALUE", flag, p)
		}
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue
			}
		}
		out[k] = v
	}
	return out, nil
}

// annotations are of the manifest, there being no index.
func annotations(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, a := range in {
		k, v, ok := strings.Cut(a, "=")
		if kind, rest, typed := strings.Cut(k, ":"); typed && slices.Contains([]string{"manifest", "manifest-descriptor", "index", "index-descriptor"}, kind) {
			if kind != "manifest" {
				return nil, fmt.Errorf("--annotation %q: only a manifest can have annotations: the image has no index", a)
			}
			k = rest
		}
		if !ok || k == "" {
			return nil, fmt.Errorf("--annotation %q: must be NAME=VALUE", a)
		}
		out[k] = v
	}
	return out, nil
}

// csvFields reads key=value fields, as docker's flags have them.
func csvFields(s string, allowed ...string) (map[string]string, error) {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	out := map[string]string{}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		k = strings.ToLower(k)
		if !ok {
			return nil, fmt.Errorf("%q: field %q must be KEY=VALUE", s, f)
		}
		if !slices.Contains(allowed, k) {
			return nil, fmt.Errorf("%q: unknown key %q (there are %s)", s, k, strings.Join(allowed, ", "))
		}
		out[k] = v
	}
	return out, nil
}

// secrets reads --secret. Without src and env, the variable of that name is
// taken, or else the file.
func secrets(in []string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, s := range in {
		f, err := csvFields(s, "type", "id", "src", "source", "env")
		if err != nil {
			return nil, fmt.Errorf("--secret %w", err)
		}
		src := f["src"] + f["source"]
		id := f["id"]
		if id == "" {
			return nil, fmt.Errorf("--secret %q: id is missing", s)
		}
		if t := f["type"]; t != "" && t != "file" && t != "env" {
			return nil, fmt.Errorf("--secret %q: type must be file or env", s)
		}
		name := f["env"]
		switch {
		case f["type"] == "env" && name == "":
			name = src
			if name == "" {
				name = id
			}
			src = ""
		case src == "" && name == "" && f["type"] == "":
			if _, ok := os.LookupEnv(id); ok {
				name = id
			}
		}
		if name != "" {
			v, ok := os.LookupEnv(name)
			if !ok {
				return nil, fmt.Errorf("--secret %q: there is no environment variable %s", s, name)
			}
			out[id] = []byte(v)
			continue
		}
		if src == "" {
			src = id
		}
		if out[id], err = os.ReadFile(src); err != nil {
			return nil, fmt.Errorf("--secret %q: %w", s, err)
		}
		if len(out[id]) > maxSecret {
			return nil, fmt.Errorf("--secret %q: %s is larger than %d KiB", s, src, maxSecret>>10)
		}
	}
	return out, nil
}

// maxSecret is docker's limit, bytes.
const maxSecret = 500 << 10

// agents reads --ssh.
func agents(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range in {
		id, path, ok := strings.Cut(s, "=")
		if !ok {
			path = os.Getenv("SSH_AUTH_SOCK")
			if path == "" {
				return nil, fmt.Errorf("--ssh %s: SSH_AUTH_SOCK is not set: is an agent running?", s)
			}
		}
		fi, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", s, err)
		}
		if fi.Mode()&os.ModeSocket == 0 {
			return nil, fmt.Errorf("--ssh %s: %s is no socket: keys as files are not supported; give an agent's socket", s, path)
		}
		if path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		out[id] = path
	}
	return out, nil
}

// contexts reads --build-context.
func contexts(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range in {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" || v == "" {
			return nil, fmt.Errorf("--build-context %q: must be NAME=DIRECTORY or NAME=docker-image://IMAGE", s)
		}
		if !strings.Contains(v, "://") {
			st, err := os.Stat(v)
			if err == nil && !st.IsDir() {
				err = errors.New("must be a directory")
			}
			if err == nil {
				v, err = filepath.Abs(v)
			}
			if err != nil {
				return nil, fmt.Errorf("--build-context %q: %w", s, err)
			}
		}
		out[k] = v
	}
	return out, nil
}

// hosts reads --add-host: NAME:ADDRESS or NAME=ADDRESS.
func hosts(in []string) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range in {
		i := strings.IndexAny(s, ":=")
		if i <= 0 {
			return nil, fmt.Errorf("--add-host %q: must be NAME:ADDRESS", s)
		}
		addr := strings.Trim(s[i+1:], "[]")
		if net.ParseIP(addr) == nil {
			return nil, fmt.Errorf("--add-host %q: %q is no address", s, addr)
		}
		out[s[:i]] = addr
	}
	return out, nil
}

// byteSize reads 64m, 1g, 1024; 0 where it is empty.
func byteSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	units := map[string]int64{"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30}
	unit := strings.TrimLeft(strings.ToLower(s), "0123456789")
	n, err := strconv.ParseInt(s[:len(s)-len(unit)], 10, 64)
	by, ok := units[unit]
	if err != nil || !ok || n <= 0 || n > (1<<62)/by {
		return 0, errors.New("must be a number of bytes, which may end with b, k, m or g")
	}
	return n * by, nil
}
