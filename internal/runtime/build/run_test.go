package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	img := e.mustBuild(t, `FROM busybox
ENV WHO=world
ARG ARGH=1
WORKDIR /work
RUN echo "hello $WHO $ARGH" > hello && pwd > pwd
RUN ["sh", "-c", "echo exec > exec"]
RUN <<EOF
echo script > script
id -u > uid
EOF
RUN <<-"EOF"
	#!/bin/busybox sh
	echo "$0 $WHO" > shebang
	EOF
RUN cat <<A > docs && cat <<B >> docs
one $WHO
A
two
B
RUN rm -rf /usr/lib && mkdir /usr/lib && echo new > /usr/lib/new && rm /bin/md5sum
RUN hostname > name; cat /etc/hosts > hosts; wc -l < /etc/resolv.conf > resolv; ls /dev | sort | tr '\n' ' ' > dev
RUN true
USER app
RUN id > /tmp/id && env > /tmp/env
USER 7:8
RUN id > /tmp/id2
`, nil, func(r *Request) { r.Args = map[string]string{"http_proxy": "proxy.example"} })
	for name, want := range map[string]string{
		"/work/hello": "hello world 1\n", "/work/pwd": "/work\n", "/work/exec": "exec\n", "/work/script": "script\n", "/work/uid": "0\n",
		"/work/shebang": ScriptDir + "/EOF world\n", "/work/docs": "one world\ntwo\n", "/work/name": hostName + "\n",
		"/tmp/id":   "uid=1000(app) gid=1001(app) groups=50(extra),1001(app)\n",
		"/tmp/id2":  "uid=7 gid=8 groups=8\n",
		"/work/dev": "core fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ",
	} {
		if got := e.read(t, img, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	envOut := e.read(t, img, "/tmp/env")
	for _, want := range []string{"HOME=/home/app", "PATH=/bin", "WHO=world", "ARGH=1", "http_proxy=proxy.example", "PWD=/work"} {
		if !strings.Contains(envOut, want+"\n") {
			t.Errorf("environment lacks %s:\n%s", want, envOut)
		}
	}
	if got := e.tree(t, img, "/usr", "/etc"); got != "/etc/\n/etc/group = "+strings.TrimSpace(e.read(t, img, "/etc/group"))+"\n/etc/passwd = "+strings.TrimSpace(e.read(t, img, "/etc/passwd"))+"\n/usr/\n/usr/lib/\n/usr/lib/new = new" {
		t.Errorf("commands left in the image:\n%s", got)
	}
	e.inside(t, img, func(root string) {
		names, err := os.ReadDir(root)
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, n := range names {
			got = append(got, n.Name())
		}
		if s := strings.Join(got, " "); s != "bin etc lib root tmp usr work" {
			t.Errorf("root has %s", s)
		}
		if _, err := os.Lstat(root + "/bin/md5sum"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("removed file: %v", err)
		}
	})
	// What changes nothing makes no layer.
	if n := len(img.DiffIDs); n != 1+1+7+2 {
		t.Errorf("%d layers", n)
	}
}

func TestRunConfined(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	img := e.mustBuild(t, `FROM busybox
RUN (mount -t tmpfs x /tmp || echo no mount; mknod /dev/x b 8 0 || echo no device; \
  mknod /x c 1 3 && (echo y > /x || echo nodev); echo 1 > /proc/sys/kernel/panic || echo ro; \
  grep CapBnd /proc/self/status; touch /sys/x || echo sys ro) > /out 2>/dev/null; rm /x
RUN --network=none ip addr > /net
`, nil)
	out := e.read(t, img, "/out")
	for _, want := range []string{"no mount", "no device", "nodev", "ro\n", "CapBnd:\t00000000a80425fb", "sys ro"} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	if net := e.read(t, img, "/net"); strings.Count(net, "mtu") != 1 || !strings.Contains(net, "127.0.0.1") {
		t.Errorf("--network=none:\n%s", net)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), e.dir) {
		t.Errorf("mounts are left: %v", err)
	}
}

func TestRunMounts(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = `FROM busybox AS other
RUN mkdir /o && echo other > /o/f
FROM busybox
RUN --mount=type=cache,target=/cache --mount=type=tmpfs,target=/t echo x >> /cache/n && wc -l < /cache/n > /count && touch /t/x
RUN --mount=type=bind,target=/ctx --mount=type=bind,from=other,source=/o,target=/other cat /ctx/file /other/f > /both; touch /ctx/x 2>/dev/null || echo ro >> /both
`
	img := e.mustBuild(t, df, map[string]string{"file": "file\n"})
	if got := e.read(t, img, "/count") + e.read(t, img, "/both"); got != "1\nfile\nother\nro\n" {
		t.Errorf("got %q", got)
	}
	img = e.mustBuild(t, df, map[string]string{"file": "file\n"}, func(r *Request) { r.NoCache = true })
	if got := e.read(t, img, "/count"); got != "2\n" {
		t.Errorf("cache mount is not kept: %q", got)
	}
	e.inside(t, img, func(root string) {
		for _, target := range []string{"/cache", "/t", "/ctx", "/other", "/run"} {
			if _, err := os.Lstat(root + target); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left in the image: %v", target, err)
			}
		}
	})
	img = e.mustBuild(t, df, map[string]string{"file": "changed\n"})
	if got := e.read(t, img, "/both"); got != "changed\nother\nro\n" {
		t.Errorf("changed bind source: %q", got)
	}
}

func TestRunSecrets(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	const df = `FROM busybox
RUN --mount=type=secret,id=one --mount=type=secret,id=two,target=/etc/two,mode=0440,uid=5 --mount=type=secret,id=three,env=THREE \
  --mount=type=secret,id=missing \
  (stat -c '%a %u' /run/secrets/one /etc/two; cat /run/secrets/one /etc/two; echo $THREE; ls /run/secrets) | sort > /tmp/out
`
	secrets := func(r *Request) {
		r.Secrets = map[string][]byte{"one": []byte("s1\n"), "two": []byte("s2\n"), "three": []byte("s3")}
	}
	img := e.mustBuild(t, df, nil, secrets)
	if got := e.read(t, img, "/tmp/out"); got != "400 0\n440 5\none\ns1\ns2\ns3\n" {
		t.Errorf("got %q", got)
	}
	e.inside(t, img, func(root string) {
		for _, p := range []string{"/run", "/etc/two"} {
			if _, err := os.Lstat(root + p); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left in the image: %v", p, err)
			}
		}
	})
	if strings.Contains(fmt.Sprint(img.Config), "s3") {
		t.Error("a secret is in the image's config")
	}
	if _, err := e.build(t, "FROM busybox\nRUN --mount=type=secret,id=x,required=true true", nil); err == nil || !strings.Contains(err.Error(), "secret x: not found") {
		t.Error(err)
	}
}

// A cancelled build ends at once, and with it everything it started.
func TestCancel(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	begin := time.Now()
	_, err := e.builder.Build(ctx, Request{
		Content:  []byte("FROM busybox\nUSER app\nRUN (sleep 98765 &) ; sleep 98765 & echo started; wait"),
		Progress: &onOutput{recorder: &recorder{}, do: cancel},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("took %s", d)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if b, _ := os.ReadFile(p); bytes.Contains(b, []byte("98765")) && bytes.HasPrefix(b, []byte("sleep")) {
			t.Errorf("still runs: %s %q", p, b)
		}
	}
	for _, d := range []string{"snapshots/keys", "snapshots/tmp", "images/ingest"} {
		if left, _ := os.ReadDir(filepath.Join(e.dir, d)); len(left) > 0 {
			t.Errorf("%s: %v", d, left)
		}
	}
}

// onOutput does something when a command first writes.
type onOutput struct {
	*recorder
	do   func()
	once sync.Once
}

func (s *onOutput) Output(n int, b []byte) { s.once.Do(s.do) }
