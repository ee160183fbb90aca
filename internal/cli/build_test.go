package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"skiff/internal/admin"
	"skiff/internal/host"
)

// fakeLocal serves builds: it takes the request, and answers with events.
type fakeLocal struct {
	Local
	got    admin.BuildRequest
	events []admin.BuildEvent
	mode   string
	// answers to what events ask, by ID.
	answers map[string]admin.BuildAnswer
}

func (*fakeLocal) Version() string { return "v0" }

func (*fakeLocal) Find(Settings) (host.Instance, bool, error) {
	return host.Instance{Name: "none", RunDir: "/nonexistent", DataDir: "/nonexistent"}, true, nil
}

func (f *fakeLocal) Images(context.Context, host.Instance) (http.Handler, func() error, error) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /build", func(w http.ResponseWriter, r *http.Request) {
		if err := json.NewDecoder(r.Body).Decode(&f.got); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, e := range f.events {
			json.NewEncoder(w).Encode(e)
		}
	})
	mux.HandleFunc("POST /build/answers/{id}", func(w http.ResponseWriter, r *http.Request) {
		var a admin.BuildAnswer
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		f.answers[r.PathValue("id")] = a
	})
	mux.HandleFunc("POST /build/prune", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(admin.BuildPruned{Steps: 3, Caches: 1, Bytes: 2 << 20})
	})
	return mux, func() error { return nil }, nil
}

// Credentials has a user of each reference's own name.
func (f *fakeLocal) Credentials(_ context.Context, ref string) (*admin.Auth, error) {
	switch {
	case strings.HasPrefix(ref, "helper/"):
		return nil, errors.New("no helper")
	case strings.HasPrefix(ref, "none/"):
		return nil, nil
	}
	return &admin.Auth{Username: ref}, nil
}

func (f *fakeLocal) BuildProgress(_ io.Writer, mode string) (admin.BuildProgress, error) {
	f.mode = mode
	return quietProgress{}, nil
}

type quietProgress struct{}

func (quietProgress) Start(int, int, string)   {}
func (quietProgress) Output(int, []byte)       {}
func (quietProgress) Done(int, bool, error)    {}
func (quietProgress) Warn(string, int, string) {}
func (quietProgress) Close() error             { return nil }

// skiffBuild runs a command line against the fake.
func skiffBuild(t *testing.T, f *fakeLocal, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: so do commands for images")
	}
	var out, errs bytes.Buffer
	c := &command{local: f, out: &out, err: &errs}
	root := c.root()
	root.SetArgs(append([]string{"build"}, args...))
	root.SetOut(&errs)
	root.SetErr(&errs)
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// Each flag, as the builder hears of it.
func TestBuildFlags(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	for name, body := range map[string]string{"Dockerfile": "FROM scratch", "sub/Other": "FROM other", "tok": "secret"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(body), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("SSH_AUTH_SOCK", socket)
	t.Setenv("FROM_ENV", "value")
	image := admin.BuildEvent{Image: &admin.Image{ID: "sha256:0123456789abcdef", Digest: "sha256:fedc", Names: []string{"a:1"}, Size: 1024}}

	type req = admin.BuildRequest
	for _, tc := range []struct {
		args []string
		want func(*req)
	}{
		{nil, func(r *req) {}},
		{[]string{"sub"}, func(r *req) { r.Context = dir + "/sub" }},
		{[]string{"-t", "a:1", "--tag", "b"}, func(r *req) { r.Tags = []string{"a:1", "b"} }},
		{[]string{"-f", "sub/Other"}, func(r *req) { r.Dockerfile, r.Content = dir+"/sub/Other", []byte("FROM other") }},
		{[]string{"-f", "Other", "sub"}, func(r *req) {
			r.Context, r.Dockerfile, r.Content = dir+"/sub", dir+"/sub/Other", []byte("FROM other")
		}},
		{[]string{"--target", "x", "--platform", "linux/arm64"}, func(r *req) { r.Target, r.Platform = "x", "linux/arm64" }},
		{[]string{"--build-arg", "A=b=c", "--build-arg", "FROM_ENV", "--build-arg", "NOT_SET"}, func(r *req) { r.Args = map[string]string{"A": "b=c", "FROM_ENV": "value"} }},
		{[]string{"--label", "a=b", "--annotation", "c=d", "--annotation", "manifest:e=f"}, func(r *req) {
			r.Labels, r.Annotations = map[string]string{"a": "b"}, map[string]string{"c": "d", "e": "f"}
		}},
		{[]string{"--secret", "id=a,src=tok", "--secret", "id=b,env=FROM_ENV", "--secret", "id=FROM_ENV", "--secret", "id=tok", "--secret", "type=env,id=FROM_ENV"}, func(r *req) {
			r.Secrets = map[string][]byte{"a": []byte("secret"), "b": []byte("value"), "FROM_ENV": []byte("value"), "tok": []byte("secret")}
		}},
		{[]string{"--ssh", "default", "--ssh", "x=agent"}, func(r *req) { r.SSH = map[string]string{"default": socket, "x": dir + "/agent"} }},
		{[]string{"--build-context", "a=sub", "--build-context", "b=docker-image://x"}, func(r *req) {
			r.Contexts = map[string]string{"a": dir + "/sub", "b": "docker-image://x"}
		}},
		{[]string{"--no-cache", "--pull", "--no-cache-filter", "a,b"}, func(r *req) { r.NoCache, r.Pull, r.NoCacheFilter = true, true, []string{"a", "b"} }},
		{[]string{"--allow", "security.insecure", "--network", "none", "--add-host", "h:192.0.2.1", "--add-host", "v6=[2001:db8::1]", "--shm-size", "1m"}, func(r *req) {
			r.Insecure, r.Network, r.Hosts, r.ShmSize = true, "none", map[string]string{"h": "192.0.2.1", "v6": "2001:db8::1"}, 1<<20
		}},
		{[]string{"--cache-from", "a:1,b", "--cache-from", "type=registry,ref=c", "--cache-from", "type=local,src=cache,tag=t", "--cache-from", "type=local,src=cache,digest=sha256:0"}, func(r *req) {
			r.CacheFrom = []admin.CacheFrom{
				{Type: "registry", Ref: "a:1"}, {Type: "registry", Ref: "b"},
				{Type: "registry", Ref: "c"},
				{Type: "local", Src: dir + "/cache", Tag: "t"}, {Type: "local", Src: dir + "/cache", Digest: "sha256:0"},
			}
		}},
		{[]string{"--cache-to", "a:1", "--cache-to", "type=inline", "--cache-to", "type=registry,ref=c,mode=max,compression=uncompressed,ignore-error=true,oci-mediatypes=true,image-manifest=true", "--cache-to", "type=local,dest=cache,tag=t,compression=zstd"}, func(r *req) {
			r.CacheTo = []admin.CacheTo{
				{Type: "registry", Ref: "a:1"}, {Type: "inline"},
				{Type: "registry", Ref: "c", Mode: "max", Compression: "none", IgnoreError: true},
				{Type: "local", Dest: dir + "/cache", Tag: "t", Compression: "zstd"},
			}
		}},
		{[]string{"-o", "out"}, func(r *req) { r.OutputType, r.OutputDest = "local", dir+"/out" }},
		{[]string{"-o", "type=oci,dest=x.tar"}, func(r *req) { r.OutputType, r.OutputDest = "oci", dir+"/x.tar" }},
		{[]string{"-o", "type=image,name=n:1"}, func(r *req) { r.Tags = []string{"n:1"} }},
		{[]string{"-o", "type=docker", "--load"}, func(r *req) {}},
		{[]string{"--check"}, func(r *req) { r.Check = true }},
		{[]string{"--call", "check"}, func(r *req) { r.Check = true }},
	} {
		want := req{Context: dir, Answers: true}
		tc.want(&want)
		f := &fakeLocal{events: []admin.BuildEvent{image}}
		if _, _, err := skiffBuild(t, f, tc.args...); err != nil {
			t.Errorf("%v: %v", tc.args, err)
			continue
		}
		if !reflect.DeepEqual(f.got, want) {
			t.Errorf("%v:\ngot  %+v\nwant %+v", tc.args, f.got, want)
		}
	}

	for want, args := range map[string][]string{
		`--cache-from "type=gha": type "gha" is not supported, being a service's own: must be registry or local`: {"--cache-from", "type=gha"},
		`--cache-from "type=registry": type=registry needs ref=REFERENCE`:                                        {"--cache-from", "type=registry"},
		`--cache-from "type=local": type=local needs src=DIRECTORY`:                                              {"--cache-from", "type=local"},
		`--cache-from "ref=a": type is missing: must be registry or local`:                                       {"--cache-from", "ref=a"},
		`--cache-from "type=local,src=a,mode=max": type=local has no key "mode" (there are src, tag, digest)`:    {"--cache-from", "type=local,src=a,mode=max"},
		`--cache-from "a,": a reference is empty`:                                                                {"--cache-from", "a,"},
		`--cache-from "type=local,src": field "src" must be KEY=VALUE`:                                           {"--cache-from", "type=local,src"},
		`type "x": must be registry or local`:                                                                    {"--cache-from", "type=x"},
		`type "s3" is not supported`:                                                                             {"--cache-to", "type=s3,ref=x"},
		`unknown key "bucket"`:                                                                                   {"--cache-to", "type=s3,bucket=b"},
		`type=registry needs ref=REFERENCE`:                                                                      {"--cache-to", "type=registry,mode=max"},
		`type=local needs dest=DIRECTORY`:                                                                        {"--cache-to", "type=local"},
		`mode "most": must be min or max`:                                                                        {"--cache-to", "type=registry,ref=a,mode=most"},
		`type=inline has mode=min alone`:                                                                         {"--cache-to", "type=inline,mode=max"},
		`compression "estargz": must be gzip, zstd or uncompressed`:                                              {"--cache-to", "type=registry,ref=a,compression=estargz"},
		`image-manifest=false: must be true`:                                                                     {"--cache-to", "type=registry,ref=a,image-manifest=false"},
		`ignore-error=maybe: must be true or false`:                                                              {"--cache-to", "type=registry,ref=a,ignore-error=maybe"},

		"must be a directory":            {"nothing"},
		"a repository or URL as":         {"https://example.com/x.git"},
		"must be NAME=VALUE":             {"--build-arg", "=x"},
		"no such file":                   {"--secret", "id=a,src=gone"},
		"there is no environment":        {"--secret", "id=a,env=GONE"},
		"id is missing":                  {"--secret", "src=tok"},
		"unknown key":                    {"--secret", "id=a,what=x"},
		"is no socket":                   {"--ssh", "default=tok"},
		"must be NAME=DIRECTORY":         {"--build-context", "a"},
		"only a manifest":                {"--annotation", "index:a=b"},
		"--network \"x\"":                {"--network", "x"},
		"is no address":                  {"--add-host", "h:x"},
		"--shm-size \"x\"":               {"--shm-size", "x"},
		"--allow \"x\"":                  {"--allow", "x"},
		"for one platform at a time":     {"--platform", "linux/a,linux/b"},
		"a tag is needed":                {"-o", "type=registry"},
		"--push and --output type=local": {"--push", "-t", "a", "-o", "out"},
		"--push and --check":             {"--push", "-t", "a", "--check"},
		"--output type \"x\"":            {"-o", "type=x"},
		"--output can be given once":     {"-o", "a", "-o", "b"},
		"--call \"outline\"":             {"--call", "outline"},
		"--push: a tag is needed":        {"--push"},
		"needs dest=DIRECTORY":           {"-o", "type=local"},
		"failed to read, says the fake.": {"."},
	} {
		f := &fakeLocal{events: []admin.BuildEvent{{Error: "failed to read, says the fake.", Excerpt: "Dockerfile:1\n"}}}
		_, stderr, err := skiffBuild(t, f, args...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %s", args, err, want)
		}
		if args[0] == "." && stderr != "Dockerfile:1\n" {
			t.Errorf("excerpt: %q", stderr)
		}
	}

	// What is told, and written, afterwards.
	f := &fakeLocal{events: []admin.BuildEvent{image}}
	out, _, err := skiffBuild(t, f, "-q", "--iidfile", "iid", "--metadata-file", "meta")
	if err != nil || out != "sha256:0123456789abcdef\n" || f.mode != "quiet" {
		t.Errorf("quiet: %q, %s, %v", out, f.mode, err)
	}
	if iid, _ := os.ReadFile("iid"); string(iid) != "sha256:0123456789abcdef" {
		t.Errorf("iidfile: %s", iid)
	}
	if meta, _ := os.ReadFile("meta"); !strings.Contains(string(meta), `"containerimage.digest": "sha256:fedc"`) {
		t.Errorf("metadata: %s", meta)
	}
	if out, _, err := skiffBuild(t, f, "--progress", "plain"); err != nil || out != "Built 0123456789ab a:1 (1.0KiB)\n" || f.mode != "plain" {
		t.Errorf("built: %q, %s, %v", out, f.mode, err)
	}
	// What it asks for in between is answered.
	f.events = []admin.BuildEvent{{Ask: &admin.BuildAsk{ID: "1", Ref: "a/b"}}, {Ask: &admin.BuildAsk{ID: "2", Ref: "helper/x"}}, {Ask: &admin.BuildAsk{ID: "3", Ref: "none/x"}}, image}
	f.answers = map[string]admin.BuildAnswer{}
	if _, _, err := skiffBuild(t, f); err != nil {
		t.Error(err)
	}
	if want := map[string]admin.BuildAnswer{"1": {Auth: &admin.Auth{Username: "a/b"}}, "2": {Error: "no helper"}, "3": {}}; !reflect.DeepEqual(f.answers, want) {
		t.Errorf("answers %+v, want %+v", f.answers, want)
	}
	f.events = []admin.BuildEvent{{Warn: &admin.BuildWarn{Text: "w"}}, {Ended: true}}
	var code exitCode
	if out, _, err := skiffBuild(t, f, "--check"); !errors.As(err, &code) || code != 1 || !strings.Contains(out, "1 warnings") {
		t.Errorf("check: %q, %v", out, err)
	}
	if out, _, err := skiffBuild(t, f, "prune", "-a"); err != nil || out != "Removed 3 steps and 1 cache mounts: 2.0MiB reclaimed\n" {
		t.Errorf("prune: %q, %v", out, err)
	}
}
