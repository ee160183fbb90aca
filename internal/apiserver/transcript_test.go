package apiserver_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// A transcript is a series of requests with the answers that upstream's API
// server 1.37 gave to them, masked where every server differs (uid, times,
// resource versions). The same requests must get the same answers here.
//
// A step is
//
//	# title
//	> METHOD path [content type]
//	body
//	< code
//	! warning
//	answer
//
// With SKIFF_UPSTREAM set to the URL of an upstream API server, with the bearer
// token "tok", the answers are recorded anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/transcripts/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts (%v)", err)
	}
	upstream := os.Getenv("SKIFF_UPSTREAM")
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			steps := readSteps(t, file)
			if upstream != "" {
				rt := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // a server of this machine's tests
				defer rt.CloseIdleConnections()
				for _, s := range steps {
					s.got = s.send(t, &http.Client{Transport: rt}, upstream)
				}
				writeSteps(t, file, steps)
				return
			}
			// Entries of managedFields are in the order of their seconds, and those of
			// one second in that of their managers' names, as recorded: what differs in
			// a run over which the second changed tells nothing.
			for try := 0; ; try++ {
				begun := time.Now().Unix()
				f := start(t)
				var wrong []*step
				for _, s := range steps {
					if s.got = s.send(t, http.DefaultClient, f.url); s.got != s.want {
						wrong = append(wrong, s)
					}
				}
				if len(wrong) > 0 && try < 5 && time.Now().Unix() != begun {
					continue
				}
				for _, s := range wrong {
					t.Errorf("%s\n%s %s\n%s\ngot\n%s\nwant\n%s", s.title, s.method, s.path, s.body, s.got, s.want)
				}
				return
			}
		})
	}
}

type step struct {
	title, method, path, media, body string
	want, got                        string
}

func readSteps(t *testing.T, file string) []*step {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var steps []*step
	var s *step
	answer := false
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		line := sc.Text()
		switch {
		case strings.HasPrefix(line, "# "):
			s = &step{title: line[2:]}
			steps = append(steps, s)
			answer = false
		case s == nil:
		case strings.HasPrefix(line, "> "):
			parts := strings.SplitN(line[2:], " ", 3)
			s.method, s.path = parts[0], parts[1]
			if len(parts) == 3 {
				s.media = parts[2]
			}
		case strings.HasPrefix(line, "< "):
			answer = true
			s.want = line + "\n"
		case answer:
			s.want += line + "\n"
		default:
			s.body += line + "\n"
		}
	}
	for _, s := range steps {
		s.want = strings.TrimRight(s.want, "\n") + "\n"
		s.body = strings.TrimSuffix(s.body, "\n")
	}
	return steps
}

func writeSteps(t *testing.T, file string, steps []*step) {
	t.Helper()
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "# %s\n> %s\n", s.title, strings.TrimSpace(s.method+" "+s.path+" "+s.media))
		if s.body != "" {
			b.WriteString(s.body + "\n")
		}
		b.WriteString(s.got + "\n")
	}
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

var (
	versions = regexp.MustCompile(`(resourceVersion\\*":\\*")\d+`)
	times    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`)
	uids     = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
)

func (s *step) send(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), s.method, url+s.path, strings.NewReader(s.body))
	if err != nil {
		t.Fatal(err)
	}
	if s.media != "" {
		req.Header.Set("Content-Type", s.media)
	}
	req.Header.Set("Authorization", "Bearer tok")
	req.Header.Set("User-Agent", "tester/1.0")
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "< %d\n", resp.StatusCode)
	for _, w := range resp.Header.Values("Warning") {
		fmt.Fprintf(&b, "! %s\n", w)
	}
	var v map[string]any
	if err := json.Unmarshal(raw, &v); err != nil {
		b.Write(raw)
	} else {
		if m, ok := v["metadata"].(map[string]any); ok {
			if _, ok := m["resourceVersion"]; ok {
				m["resourceVersion"] = "RV"
			}
		}
		// Upstream lists conflicts in the order of a Go map.
		if d, ok := v["details"].(map[string]any); ok {
			if causes, ok := d["causes"].([]any); ok {
				slices.SortStableFunc(causes, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
			}
		}
		out, err := json.MarshalIndent(v, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		b.Write(out)
	}
	text := times.ReplaceAllString(b.String(), "TIME")
	text = versions.ReplaceAllString(text, "${1}RV")
	return uids.ReplaceAllString(text, "UID") + "\n"
}
