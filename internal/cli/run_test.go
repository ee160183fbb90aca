package cli

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"skiff/internal/run"
)

var update = flag.Bool("update", false, "write what the commands say into testdata")

// nowhere is a machine without skiff.
type nowhere struct{ Local }

func (nowhere) Version() string { return "v0" }

// words splits a line as a shell does, with single quotes alone.
func words(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimLeft(line, " ") {
		var word string
		for line != "" && line[0] != ' ' {
			if line[0] == '\'' {
				quoted, rest, ok := strings.Cut(line[1:], "'")
				if !ok {
					t.Fatalf("%s: a quote is not closed", line)
				}
				word, line = word+quoted, rest
				continue
			}
			word, line = word+line[:1], line[1:]
		}
		out = append(out, word)
	}
	return out
}

// TestRunTranscript: what flags become, and what is refused.
func TestRunTranscript(t *testing.T) {
	files := map[string]string{
		"app.env": "# of the app\nA=1\n\n  B=two words\nHOME\nC=$(A) $$\n",
		"labels":  "tier=front\nnote=more than a label may say!\n",
	}
	port := 40000
	here := &run.Machine{
		Dir: "/home/me/site",
		Lookup: func(name string) (string, bool) {
			v, ok := map[string]string{"HOME": "/home/me", "EMPTY": ""}[name]
			return v, ok
		},
		ReadFile: func(path string) ([]byte, error) {
			if b, ok := files[path]; ok {
				return []byte(b), nil
			}
			return nil, os.ErrNotExist
		},
		Exists: func(path string) bool { return !strings.Contains(path, "missing") },
		FreePort: func(_, _ string, from, to int) (int, error) {
			if from == 666 {
				return 0, errors.New("no port is free")
			}
			port++
			return max(port, from), nil
		},
		Exposed: func(image string) ([]string, error) {
			if image == "web:1" {
				return []string{"443/tcp", "53/udp", "80"}, nil
			}
			return nil, errors.New("no such image")
		},
		Gateway: "192.0.2.1",
		Random:  func(int) int { return 3 },
	}
	const file = "testdata/run.txt"
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") {
			if got.Len() > 0 {
				got.WriteString("\n")
			}
			got.WriteString(line)
			continue
		}
		typed, ok := strings.CutPrefix(line, "$ skiff ")
		if !ok {
			continue
		}
		got.WriteString(line)
		var out bytes.Buffer
		c := &command{local: nowhere{}, out: &out, err: &out, here: here}
		root := c.root()
		root.SetOut(io.Discard)
		root.SetArgs(words(t, typed))
		if err := root.ExecuteContext(t.Context()); err != nil {
			fmt.Fprintln(&out, "skiff:", err)
		}
		got.WriteString(out.String())
	}
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, have := strings.SplitAfter(string(b), "\n"), strings.SplitAfter(got.String(), "\n")
	for i := range max(len(want), len(have)) {
		w, h := "", ""
		if i < len(want) {
			w = want[i]
		}
		if i < len(have) {
			h = have[i]
		}
		if w != h {
			t.Fatalf("%s:%d: %q is now %q (go test ./internal/cli -run TestRunTranscript -args -update)", file, i+1, w, h)
		}
	}
}

// TestNames: before a command a name is the cluster's, after run the container's.
func TestNames(t *testing.T) {
	c := &command{local: nowhere{}, out: io.Discard, err: io.Discard, here: &run.Machine{Random: func(int) int { return 0 }}}
	var out bytes.Buffer
	c.out = &out
	root := c.root()
	root.SetArgs([]string{"--name", "town", "run", "--dry-run", "--name", "web", "nginx"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.set.Name != "town" || !strings.Contains(out.String(), "\n  name: web\n") {
		t.Errorf("the cluster is %q, the pod\n%s", c.set.Name, out.String())
	}
}

// TestEscape: the keys that detach are taken out of the input, and nothing else is.
func TestEscape(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		left     bool
	}{
		{"hello", "hello", false},
		{"ab\x10\x11cd", "ab", true},
		{"\x10x\x11", "\x10x\x11", false},
		{"\x10\x10\x11", "\x10", true},
		{"\x11\x10", "\x11", false}, // the first key is held back for the second
	} {
		for _, whole := range []bool{true, false} {
			var in io.Reader = strings.NewReader(tc.in)
			if !whole {
				in = oneByOne{in}
			}
			keys, err := parseKeys(defaultDetachKeys)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(&escapable{in: in, keys: keys})
			if string(b) != tc.want || errors.Is(err, errDetached) != tc.left {
				t.Errorf("%q: %q, %v; want %q, left %v", tc.in, b, err, tc.want, tc.left)
			}
		}
	}
	for _, bad := range []string{"", "ctrl-", "ctrl-1", "ab", "a,,b"} {
		if _, err := parseKeys(bad); err == nil {
			t.Errorf("keys %q are taken", bad)
		}
	}
}

type oneByOne struct{ r io.Reader }

func (o oneByOne) Read(b []byte) (int, error) { return o.r.Read(b[:1]) }

func TestRows(t *testing.T) {
	rows := []run.Row{{ID: strings.Repeat("ab", 32), Image: "nginx", Command: "", Names: "web", Status: "Up 2 seconds", State: "running", RunningFor: "3 seconds ago", Ports: "0.0.0.0:80->80/tcp", Labels: "a=b,c=d"}}
	for _, tc := range []struct {
		form psForm
		want string
	}{
		{psForm{}, "CONTAINER ID   IMAGE   COMMAND   CREATED         STATUS         PORTS                NAMES\nabababababab   nginx   \"\"        3 seconds ago   Up 2 seconds   0.0.0.0:80->80/tcp   web\n"},
		{psForm{quiet: true}, "web\n"},
		{psForm{format: `{{.Names}}: {{ .Status }}`}, "web: Up 2 seconds\n"},
		{psForm{format: `table {{.Names}}\t{{.State}}`}, "NAMES   STATE\nweb     running\n"},
		{psForm{format: `{{.Nothing}}`}, "--format: template: :1:2: executing \"\" at <.Nothing>: can't evaluate field Nothing in type run.Row"},
		{psForm{output: "xml"}, "--output xml: it must be json or yaml"},
	} {
		var out bytes.Buffer
		err := printRows(&out, append([]run.Row{}, rows...), tc.form)
		got := out.String()
		if err != nil {
			got += err.Error()
		}
		if got != tc.want {
			t.Errorf("%+v:\n%q, want\n%q", tc.form, got, tc.want)
		}
	}
	for filter, want := range map[string]bool{
		"name=we": true, "name=x": false, "status=running": true, "status=exited": false, "ancestor=nginx": true, "ancestor=ngin": false,
		"label=a": true, "label=a=b": true, "label=a=c": false, "id=abab": true,
	} {
		keep, err := psFilter([]string{filter})
		if err != nil || keep(rows[0]) != want {
			t.Errorf("filter %s: %v, %v", filter, !want, err)
		}
	}
	if _, err := psFilter([]string{"mood=good"}); err == nil {
		t.Error("a filter that is none is taken")
	}
}

// TestWrapped: a directory and variables of exec are set by a shell.
func TestWrapped(t *testing.T) {
	if got := wrapped([]string{"ls", "-l"}, "/etc", map[string]string{"A": "it's"}); strings.Join(got, "|") != `sh|-c|export A='it'\''s'; cd '/etc' && exec "$@"|sh|ls|-l` {
		t.Errorf("%q", got)
	}
	if got := wrapped([]string{"ls"}, "", nil); strings.Join(got, "|") != "ls" {
		t.Errorf("%q", got)
	}
}
