package diff

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// request is one step of a script. In path and body, ${ns} is the script's
// namespace, and ${STEP.a.b.0.c} the value at that path of what the same server
// answered to STEP.
type request struct {
	name    string
	method  string
	path    string
	headers map[string]string
	body    string
}

// readScript reads a file of requests:
//
//	-- NAME --
//	METHOD PATH
//	Header: value
//
//	body
//
// Lines that begin with '#' before the first request, and between a name and its
// method, are comments. Variables may stand in headers too. A body with a JSON content type (the default), or with
// protobuf's, may be written as YAML. Headers of the script's own: As names the
// user, Raw leaves the body as it is, Pad makes it longer by that many bytes, and
// Until asks again, for a while, until the answer has that code: upstream sees new
// roles and bindings by a watch, some time after the answer to their creation.
func readScript(path string) ([]request, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []request
	seen := map[string]bool{}
	for i, part := range strings.Split("\n"+string(b), "\n-- ")[1:] {
		name, rest, ok := strings.Cut(part, " --\n")
		if !ok || strings.Contains(name, "\n") {
			return nil, fmt.Errorf("%s: request %d does not begin with \"-- NAME --\"", path, i+1)
		}
		if seen[name] {
			return nil, fmt.Errorf("%s: two requests are named %q", path, name)
		}
		seen[name] = true
		r := request{name: name, headers: map[string]string{}}
		head, body, _ := strings.Cut(rest, "\n\n")
		sc := bufio.NewScanner(strings.NewReader(head))
		for sc.Scan() {
			line := strings.TrimSpace(sc.Text())
			switch {
			case line == "" || strings.HasPrefix(line, "#"):
			case r.method == "":
				r.method, r.path, _ = strings.Cut(line, " ")
			default:
				k, v, ok := strings.Cut(line, ":")
				if !ok {
					return nil, fmt.Errorf("%s: %s: %q is no header", path, name, line)
				}
				r.headers[k] = strings.TrimSpace(v)
			}
		}
		if r.path == "" {
			return nil, fmt.Errorf("%s: %s: no METHOD PATH", path, name)
		}
		r.body = strings.TrimRight(body, "\n")
		out = append(out, r)
	}
	return out, nil
}

// wire returns the body as sent.
func (r request) wire() (contentType string, body []byte, err error) {
	contentType = r.headers["Content-Type"]
	if r.body == "" {
		return contentType, nil, nil
	}
	if contentType == "" {
		contentType = "application/json"
	}
	raw := r.headers["Raw"] != ""
	if !raw && contentType == protoType {
		b, err := toProto([]byte(r.body))
		if err != nil {
			return "", nil, fmt.Errorf("%s: body: %w", r.name, err)
		}
		return contentType, b, nil
	}
	if !raw && strings.HasPrefix(contentType, "application/") && strings.Contains(contentType, "json") {
		b, err := yaml.YAMLToJSON([]byte(r.body))
		if err != nil {
			return "", nil, fmt.Errorf("%s: body: %w", r.name, err)
		}
		return contentType, b, nil
	}
	if n, err := strconv.Atoi(r.headers["Pad"]); err == nil {
		return contentType, append([]byte(r.body), bytes.Repeat([]byte(" "), n)...), nil
	}
	return contentType, []byte(r.body), nil
}

var variable = regexp.MustCompile(`\$\{([^}]+)\}`)

// memory holds what one server answered within a script.
type memory struct {
	ns      string
	answers map[string]answer
}

// fill replaces the variables of s.
func (m *memory) fill(s string) string {
	return variable.ReplaceAllStringFunc(s, func(v string) string {
		v = v[2 : len(v)-1]
		if v == "ns" {
			return m.ns
		}
		parts := strings.Split(v, ".")
		a, ok := m.answers[parts[0]]
		if !ok || len(a.docs) == 0 {
			return "NO-ANSWER-" + parts[0]
		}
		cur := a.docs[0]
		for _, p := range parts[1:] {
			switch x := cur.(type) {
			case map[string]any:
				cur = x[p]
			case []any:
				var i int
				if _, err := fmt.Sscan(p, &i); err != nil || i >= len(x) {
					return "NO-VALUE-" + v
				}
				cur = x[i]
			default:
				return "NO-VALUE-" + v
			}
		}
		if s, ok := cur.(string); ok {
			return s
		}
		b, err := json.Marshal(cur)
		if err != nil {
			return "NO-VALUE-" + v
		}
		return string(b)
	})
}
