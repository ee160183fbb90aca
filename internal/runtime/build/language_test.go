package build

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"skiff/internal/runtime/image"
)

// languageCase builds a Dockerfile. docs/dockerfile.md names the case in the row
// of what it shows.
type languageCase struct {
	dockerfile string
	files      map[string]string
	req        func(*Request)
	// out is the file /out of the image, without white space around; "" says
	// nothing.
	out string
	// err is part of the error; unsupported says that it is ErrUnsupported.
	err         string
	unsupported bool
	check       func(*testing.T, *env, *image.Image)
}

// config compares a part of the image's config.
func config[T comparable](get func(*image.Image) T, want T) func(*testing.T, *env, *image.Image) {
	return func(t *testing.T, _ *env, img *image.Image) {
		t.Helper()
		if got := get(img); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// files compares names, modes, owners and contents of files of the image.
func files(want map[string]string) func(*testing.T, *env, *image.Image) {
	return func(t *testing.T, e *env, img *image.Image) {
		t.Helper()
		e.inside(t, img, func(root string) {
			for name, w := range want {
				fi, err := os.Lstat(root + name)
				if w == "" {
					if !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s is there: %v", name, err)
					}
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				got := fi.Mode().String() + owner(fi)
				if fi.Mode().IsRegular() {
					b, _ := os.ReadFile(root + name)
					got += " " + strings.TrimSpace(string(b))
				}
				if got != w {
					t.Errorf("%s: %s, want %s", name, got, w)
				}
			}
		})
	}
}

func args(pairs ...string) func(*Request) {
	return func(r *Request) {
		r.Args = map[string]string{}
		for i := 0; i < len(pairs); i += 2 {
			r.Args[pairs[i]] = pairs[i+1]
		}
	}
}

func list(s []string) string { return strings.Join(s, "|") }

// language has a case for each row of docs/dockerfile.md.
var language = map[string]languageCase{
	// The file.
	"comments":     {dockerfile: "# one\n  # two\nFROM busybox\nRUN echo a \\\n# three\n  b # four > /x\nRUN echo 'a # b' > /out", out: "a # b"},
	"casing":       {dockerfile: "from busybox\nrun echo lower > /out", out: "lower"},
	"continuation": {dockerfile: "FROM busybox\nRUN echo a \\\n\n  b > /out", out: "a b"},
	"crlf":         {dockerfile: "FROM busybox\r\nENV A=b\r\nRUN echo \"[$A]\" > /out\r\n", out: "[b]"},

	"directive-syntax":       {dockerfile: "# syntax=docker/dockerfile:1.7-labs\nFROM busybox\nRUN echo x > /out", out: "x"},
	"directive-syntax-other": {dockerfile: "# syntax=example.com/frontend:1\nFROM busybox", err: "syntax=example.com/frontend:1: frontends other than docker/dockerfile", unsupported: true},
	"directive-escape":       {dockerfile: "# escape=`\nFROM busybox\nENV A=C:\\x B=`$A\nRUN echo `\n  \"$A $B\" > /out", out: `C:\x $A`},
	"directive-check":        {dockerfile: "# check=error=true\nFROM busybox AS Upper\n", err: "lint violation found for rules: StageNameCasing"},
	"directive-check-skip":   {dockerfile: "# check=skip=StageNameCasing;error=true\nFROM busybox AS Upper\nRUN echo x > /out", out: "x"},
	"directive-twice":        {dockerfile: "# escape=`\n# escape=\\\nFROM busybox", err: "only one escape parser directive can be used"},

	// FROM.
	"from":                {dockerfile: "FROM busybox:latest\nRUN echo x > /out", out: "x"},
	"from-scratch":        {dockerfile: "FROM scratch\nCOPY f /out", files: map[string]string{"f": "f"}, out: "f"},
	"from-as":             {dockerfile: "FROM busybox AS one\nRUN echo one > /f\nFROM busybox\nCOPY --from=ONE /f /out", out: "one"},
	"from-stage":          {dockerfile: "FROM busybox AS one\nENV A=env\nRUN echo one > /out\nFROM one\nRUN echo $A >> /out", out: "one\nenv"},
	"from-args":           {dockerfile: "ARG NAME=nothing TAG=latest\nFROM ${NAME}:$TAG\nRUN echo x > /out", req: args("NAME", "busybox"), out: "x"},
	"from-platform":       {dockerfile: "FROM --platform=$BUILDPLATFORM busybox\nRUN echo x > /out", out: "x"},
	"from-platform-image": {dockerfile: "FROM --platform=linux/s390x busybox", err: "pulling for another platform", unsupported: true},
	"from-platform-os":    {dockerfile: "FROM --platform=windows/amd64 busybox", err: `platform "windows/amd64"`, unsupported: true},
	"from-platform-bad":   {dockerfile: "FROM --platform=a/b/c/d busybox", err: "must be os/arch or os/arch/variant"},
	"from-platform-cross": {
		dockerfile: "FROM --platform=$BUILDPLATFORM busybox AS build\nARG TARGETARCH TARGETPLATFORM\nRUN echo $TARGETARCH $TARGETPLATFORM > /f\nFROM scratch\nCOPY --from=build /f /out",
		req:        func(r *Request) { r.Platform = "linux/s390x" }, out: "s390x linux/s390x",
		check: config(func(i *image.Image) string { return i.Config.OS + "/" + i.Config.Architecture }, "linux/s390x"),
	},
	"from-platform-run": {dockerfile: "FROM scratch\nRUN [\"/x\"]", req: func(r *Request) { r.Platform = "linux/s390x" }, err: "RUN on linux/s390x", unsupported: true},
	"from-unused":       {dockerfile: "FROM nothing:1 AS unused\nRUN false\nFROM busybox\nRUN echo x > /out", out: "x"},
	"target":            {dockerfile: "FROM busybox AS one\nRUN echo one > /out\nFROM busybox\nRUN false", req: func(r *Request) { r.Target = "one" }, out: "one"},

	// RUN.
	"run-shell":           {dockerfile: "FROM busybox\nRUN echo \"$HOME\" && echo $0 > /out", out: "/bin/sh"},
	"run-exec":            {dockerfile: "FROM busybox\nRUN [\"sh\", \"-c\", \"echo '$HOME' > /out\"]", out: "$HOME"},
	"run-heredoc":         {dockerfile: "FROM busybox\nRUN <<EOF\necho 'it''s' > /out\necho $HOME >> /out\nEOF\n", out: "its\n/root"},
	"run-heredoc-shebang": {dockerfile: "FROM busybox\nRUN <<EOF\n#!/bin/busybox sh\necho $0 > /out\nEOF\n", out: "/dev/pipes/EOF"},
	"run-heredoc-chomp":   {dockerfile: "FROM busybox\nRUN <<-EOF\n\t\techo a > /out\n\tEOF\n", out: "a"},
	"run-heredoc-files":   {dockerfile: "FROM busybox\nRUN cat <<A > /out && cat <<'B' >> /out\n$HOME\nA\n$HOME\nB\n", out: "/root\n$HOME"},

	"run-mount-bind":          {dockerfile: "FROM busybox\nRUN --mount=target=/c cat /c/f > /out; touch /c/new 2>/dev/null || echo read-only >> /out", files: map[string]string{"f": "f\n"}, out: "f\nread-only"},
	"run-mount-bind-source":   {dockerfile: "FROM busybox\nRUN --mount=type=bind,src=d/f,dst=/g cat /g > /out", files: map[string]string{"d/f": "f"}, out: "f"},
	"run-mount-bind-from":     {dockerfile: "FROM busybox AS a\nRUN mkdir /d && echo a > /d/f\nFROM busybox\nRUN --mount=from=a,source=/d,target=/m cat /m/f > /out", out: "a"},
	"run-mount-bind-image":    {dockerfile: "FROM scratch AS none\nFROM busybox\nRUN --mount=from=busybox:latest,target=/m head -1 /m/etc/group > /out", out: "root:x:0:"},
	"run-mount-bind-rw":       {dockerfile: "FROM busybox AS a\nRUN echo a > /f\nFROM busybox\nRUN --mount=target=/c,rw --mount=from=a,target=/m,readwrite echo b > /c/f && echo c > /m/f && cat /c/f /m/f > /out\nRUN --mount=target=/c --mount=from=a,target=/m cat /c/f /m/f >> /out", files: map[string]string{"f": "f\n"}, out: "b\nc\nf\na"},
	"run-mount-bind-rw-file":  {dockerfile: "FROM busybox\nRUN --mount=source=f,target=/c,rw echo b > /c && cat /c > /out", files: map[string]string{"f": "f\n"}, out: "b"},
	"run-mount-bind-ignored":  {dockerfile: "FROM busybox\nRUN --mount=target=/c find /c -type f | sort > /out", files: map[string]string{".dockerignore": "secret\nd\n!d/kept\n", "secret": "s", "d/x": "x", "d/kept": "k", "f": "f"}, out: "/c/.dockerignore\n/c/d/kept\n/c/f"},
	"run-mount-bind-relative": {dockerfile: "FROM busybox\nWORKDIR /w\nRUN --mount=target=sub cat /w/sub/f > /out", files: map[string]string{"f": "f"}, out: "f"},
	"run-mount-root":          {dockerfile: "FROM busybox\nRUN --mount=target=/ true", err: `invalid mount target "/"`},
	"run-mount-variables":     {dockerfile: "FROM busybox\nARG D=/c\nENV S=f\nRUN --mount=target=$D,source=${S} cat /c > /out", files: map[string]string{"f": "f"}, out: "f"},
	"run-mount-unknown":       {dockerfile: "FROM busybox\nRUN --mount=type=nothing true", err: `unsupported mount type "nothing"`},

	"run-mount-tmpfs":        {dockerfile: "FROM busybox\nRUN --mount=type=tmpfs,target=/t grep ' /t ' /proc/mounts | head -c 5 > /out; touch /t/x", out: "tmpfs", check: files(map[string]string{"/t": ""})},
	"run-mount-tmpfs-size":   {dockerfile: "FROM busybox\nRUN --mount=type=tmpfs,target=/t,size=1m grep -o size=1024k /proc/mounts > /out", out: "size=1024k"},
	"run-mount-cache-mode":   {dockerfile: "FROM busybox\nRUN --mount=type=cache,target=/mode,mode=0750,uid=7,gid=8 stat -c '%a %u:%g' /mode > /out", out: "750 7:8"},
	"run-mount-cache-ro":     {dockerfile: "FROM busybox\nRUN --mount=type=cache,target=/c,id=ro,ro touch /c/x 2>/dev/null || echo read-only > /out", out: "read-only"},
	"run-mount-cache-from":   {dockerfile: "FROM busybox AS a\nRUN mkdir -p /d/e && echo seed > /d/e/f\nFROM busybox\nRUN --mount=type=cache,id=seeded,target=/c,from=a,source=/d cat /c/e/f > /out", out: "seed"},
	"run-mount-secret":       {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok cat /run/secrets/tok > /out; stat -c %a:%u:%g /run/secrets/tok >> /out", req: secret("tok", "s\n"), out: "s\n400:0:0"},
	"run-mount-secret-file":  {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok,target=/etc/tok,mode=0444,uid=3,gid=4 stat -c %a:%u:%g /etc/tok > /out", req: secret("tok", "s"), out: "444:3:4", check: files(map[string]string{"/etc/tok": ""})},
	"run-mount-secret-env":   {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok,env=TOKEN echo $TOKEN > /out; ls /run/secrets 2>/dev/null >> /out || true", req: secret("tok", "s"), out: "s"},
	"run-mount-secret-both":  {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok,env=TOKEN,target=/t cat /t > /out; echo -$TOKEN >> /out", req: secret("tok", "s"), out: "s-s"},
	"run-mount-secret-none":  {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok test ! -e /run/secrets/tok && echo none > /out", out: "none"},
	"run-mount-secret-needs": {dockerfile: "FROM busybox\nRUN --mount=type=secret,id=tok,required true", err: "secret tok: not found"},
	"run-mount-ssh-none":     {dockerfile: "FROM busybox\nRUN --mount=type=ssh echo \"[$SSH_AUTH_SOCK]\" > /out", out: "[]"},
	"run-mount-ssh-needs":    {dockerfile: "FROM busybox\nRUN --mount=type=ssh,id=x,required=true true", err: "unset ssh forward key x"},

	"run-network":           {dockerfile: "FROM busybox\nRUN --network=default readlink /proc/self/ns/net > /out", check: sameNetwork(true)},
	"run-network-host":      {dockerfile: "FROM busybox\nRUN --network=host readlink /proc/self/ns/net > /out", check: sameNetwork(true)},
	"run-network-none":      {dockerfile: "FROM busybox\nRUN --network=none readlink /proc/self/ns/net > /out", check: sameNetwork(false)},
	"run-network-bad":       {dockerfile: "FROM busybox\nRUN --network=x true", err: `invalid network mode "x"`},
	"run-security-sandbox":  {dockerfile: "FROM busybox\nRUN --security=sandbox grep CapEff /proc/self/status > /out", out: "CapEff:\t00000000a80425fb"},
	"run-security-insecure": {dockerfile: "FROM busybox\nRUN --security=insecure mount -t tmpfs x /tmp && echo mounted > /out", req: func(r *Request) { r.Insecure = true }, out: "mounted"},
	"run-security-refused":  {dockerfile: "FROM busybox\nRUN --security=insecure true", err: "security.insecure is not allowed"},
	"run-device":            {dockerfile: "FROM busybox\nRUN --device=vendor.com/d true", err: "RUN --device", unsupported: true},
	"run-unknown-flag":      {dockerfile: "FROM busybox\nRUN --nothing=x true", err: "unknown flag: --nothing"},

	// COPY.
	"copy":                 {dockerfile: "FROM busybox\nCOPY a b d /c/", files: map[string]string{"a": "a", "b": "b", "d/e": "e"}, check: files(map[string]string{"/c/a": "-rw-r--r-- 0:0 a", "/c/b": "-rw-r--r-- 0:0 b", "/c/e": "-rw-r--r-- 0:0 e"})},
	"copy-json":            {dockerfile: "FROM busybox\nCOPY [\"a b\", \"/out\"]", files: map[string]string{"a b": "x"}, out: "x"},
	"copy-wildcard":        {dockerfile: "FROM busybox\nCOPY *.tx[t] d?r/f /c/", files: map[string]string{"a.txt": "a", "b.log": "b", "dir/f": "f"}, check: files(map[string]string{"/c/a.txt": "-rw-r--r-- 0:0 a", "/c/f": "-rw-r--r-- 0:0 f", "/c/b.log": ""})},
	"copy-wildcard-none":   {dockerfile: "FROM busybox\nCOPY nothing* f /c/", files: map[string]string{"f": "f"}, check: files(map[string]string{"/c/f": "-rw-r--r-- 0:0 f"})},
	"copy-missing":         {dockerfile: "FROM busybox\nCOPY nothing /c", err: `"nothing": not found`},
	"copy-variables":       {dockerfile: "FROM busybox\nARG S=f\nENV D=/out\nCOPY $S ${D}", files: map[string]string{"f": "f"}, out: "f"},
	"copy-from-stage":      {dockerfile: "FROM busybox AS a\nRUN echo a > /f\nFROM scratch\nCOPY --from=a f /out", out: "a"},
	"copy-from-number":     {dockerfile: "FROM busybox\nRUN echo a > /f\nFROM scratch\nCOPY --from=0 /f /out", out: "a"},
	"copy-from-image":      {dockerfile: "FROM scratch\nCOPY --from=busybox:latest /etc/group /out", out: "root:x:0:\napp:x:1001:\nextra:x:50:app"},
	"copy-from-later":      {dockerfile: "FROM busybox AS a\nCOPY --from=b /f /f\nFROM a AS b\nRUN echo b > /f", req: func(r *Request) { r.Target = "a" }, err: `cannot copy from stage "b", it needs to be defined before current stage "a"`},
	"copy-from-bad-number": {dockerfile: "FROM busybox\nCOPY --from=7 /f /f", err: "invalid stage index 7"},
	"copy-from-variable":   {dockerfile: "ARG S=a\nFROM busybox AS a\nFROM busybox\nCOPY --from=$S /f /f", err: "variable expansion is not supported for --from"},
	"copy-chown":           {dockerfile: "FROM busybox\nCOPY --chown=12:34 d /new/d\nCOPY --chown=7 f /n", files: map[string]string{"d/f": "f", "f": "f"}, check: files(map[string]string{"/new": "drwxr-xr-x 12:34", "/new/d/f": "-rw-r--r-- 12:34 f", "/n": "-rw-r--r-- 7:7 f"})},
	"copy-chown-names":     {dockerfile: "FROM busybox\nCOPY --chown=app:extra f /1\nCOPY --chown=app f /2\nCOPY --chown=:extra f /3", files: map[string]string{"f": "f"}, check: files(map[string]string{"/1": "-rw-r--r-- 1000:50 f", "/2": "-rw-r--r-- 1000:1001 f", "/3": "-rw-r--r-- 0:50 f"})},
	"copy-chmod":           {dockerfile: "FROM busybox\nARG M=0640\nCOPY --chmod=$M f /1\nCOPY --chmod=4755 f /2", files: map[string]string{"f": "f"}, check: files(map[string]string{"/1": "-rw-r----- 0:0 f", "/2": "urwxr-xr-x 0:0 f"})},
	"copy-chmod-symbolic":  {dockerfile: "FROM busybox\nCOPY --chmod=u=rwX,go=rX d /d\nCOPY --chmod=a+x f /x\nCOPY --chmod=g-r,o= f /y", files: map[string]string{"f": "f", "d/f": "f"}, check: files(map[string]string{"/d/f": "-rw-r--r-- 0:0 f", "/x": "-rwxr-xr-x 0:0 f", "/y": "-rw------- 0:0 f"})},
	"copy-chmod-bad":       {dockerfile: "FROM busybox\nCOPY --chmod=u*x f /x", files: map[string]string{"f": "f"}, err: "invalid chmod parameter: 'u*x'"},
	"copy-chmod-range":     {dockerfile: "FROM busybox\nCOPY --chmod=10000 f /x", files: map[string]string{"f": "f"}, err: "invalid chmod parameter: '10000'. it should be octal string and between 0 and 07777"},
	"copy-link":            {dockerfile: "FROM busybox\nRUN mkdir /d && echo x > /d/x\nCOPY --link --chown=3:4 f /d/\nRUN cat /d/x /d/f > /out", files: map[string]string{"f": "f"}, out: "x\nf"},
	"copy-link-names":      {dockerfile: "FROM busybox\nCOPY --link --chown=app f /d/", files: map[string]string{"f": "f"}, err: "user and group names can't be resolved when used with --link"},
	"copy-parents":         {dockerfile: "FROM busybox\nCOPY --parents a/b/f a/./b/g /c/", files: map[string]string{"a/b/f": "f", "a/b/g": "g"}, check: files(map[string]string{"/c/a/b/f": "-rw-r--r-- 0:0 f", "/c/b/g": "-rw-r--r-- 0:0 g"})},
	"copy-parents-deep":    {dockerfile: "FROM busybox\nCOPY --parents **/*.go /c/", files: map[string]string{"a/b/f.go": "f", "g.go": "g", "a/h.c": "h"}, check: files(map[string]string{"/c/a/b/f.go": "-rw-r--r-- 0:0 f", "/c/g.go": "-rw-r--r-- 0:0 g", "/c/a/h.c": ""})},
	"copy-exclude":         {dockerfile: "FROM busybox\nCOPY --exclude=*.log --exclude=sub d /c/", files: map[string]string{"d/a": "a", "d/b.log": "b", "d/sub/c": "c"}, check: files(map[string]string{"/c/a": "-rw-r--r-- 0:0 a", "/c/b.log": "", "/c/sub": ""})},
	"copy-heredoc":         {dockerfile: "FROM busybox\nARG V=1\nCOPY <<EOF /out\nit's $V \"quoted\" \\$V\nEOF\n", out: "it's 1 \"quoted\" $V"},
	"copy-heredoc-raw":     {dockerfile: "FROM busybox\nARG V=1\nCOPY <<\"EOF\" /out\n$V \\$V\nEOF\n", out: `$V \$V`},
	"copy-heredoc-names":   {dockerfile: "FROM busybox\nCOPY --chmod=755 <<one <<-two f /c/\n1\none\n\t2\n\ttwo\n", files: map[string]string{"f": "f"}, check: files(map[string]string{"/c/one": "-rwxr-xr-x 0:0 1", "/c/two": "-rwxr-xr-x 0:0 2", "/c/f": "-rwxr-xr-x 0:0 f"})},
	"copy-url":             {dockerfile: "FROM busybox\nCOPY http://example.com/x /x", err: "source can't be a URL for COPY"},
	"copy-git":             {dockerfile: "FROM busybox\nCOPY https://example.com/x.git /x", err: "source can't be a git ref for COPY"},
	"copy-two-to-file":     {dockerfile: "FROM busybox\nCOPY f g /x", files: map[string]string{"f": "f", "g": "g"}, err: "when using COPY with more than one source file, the destination must be a directory and end with a /"},
	"copy-from-itself":     {dockerfile: "FROM busybox\nCOPY --from=0 /x /y", err: "it needs to be defined before current stage"},

	// ADD.
	"add":                 {dockerfile: "FROM busybox\nADD --chown=1:2 --chmod=600 f /x\nADD --link f /y", files: map[string]string{"f": "f"}, check: files(map[string]string{"/x": "-rw------- 1:2 f", "/y": "-rw-r--r-- 0:0 f"})},
	"add-exclude":         {dockerfile: "FROM busybox\nADD --exclude=*.log d /c/", files: map[string]string{"d/a": "a", "d/b.log": "b"}, check: files(map[string]string{"/c/a": "-rw-r--r-- 0:0 a", "/c/b.log": ""})},
	"add-heredoc":         {dockerfile: "FROM busybox\nADD <<EOF /out\nx\nEOF\n", out: "x"},
	"add-checksum-local":  {dockerfile: "FROM busybox\nADD --checksum=sha256:00 f /x", files: map[string]string{"f": "f"}, err: "checksum requires HTTP(S) or Git sources"},
	"add-archive":         {dockerfile: "FROM busybox\nADD a.tar /x/", files: map[string]string{"a.tar": tarOf("in/f", "f")}, check: files(map[string]string{"/x/in/f": "-rw------- 9:0 f"})},
	"add-archive-chown":   {dockerfile: "FROM busybox\nADD --chown=5:6 a.tar /x/", files: map[string]string{"a.tar": tarOf("in/f", "f")}, check: files(map[string]string{"/x/in/f": "-rw------- 5:6 f"})},
	"add-unpack-false":    {dockerfile: "FROM busybox\nADD --unpack=false a.tar /x/\nRUN wc -c < /x/a.tar > /out", files: map[string]string{"a.tar": tarOf("in/f", "f")}, out: "2048"},
	"add-git-ssh-refused": {dockerfile: "FROM busybox\nADD --checksum=x a b /x", err: "checksum can't be specified for multiple sources"},

	// What changes the config alone.
	"cmd-shell":        {dockerfile: "FROM busybox\nCMD echo $HOME", check: config(func(i *image.Image) string { return list(i.Config.Config.Cmd) }, "/bin/sh|-c|echo $HOME")},
	"cmd-exec":         {dockerfile: "FROM busybox\nCMD [\"a\", \"b c\"]", check: config(func(i *image.Image) string { return list(i.Config.Config.Cmd) }, "a|b c")},
	"entrypoint-shell": {dockerfile: "FROM busybox\nCMD [\"x\"]\nENTRYPOINT exec top -b", check: config(func(i *image.Image) string { return list(i.Config.Config.Entrypoint) + " " + list(i.Config.Config.Cmd) }, "/bin/sh|-c|exec top -b x")},
	"entrypoint-exec":  {dockerfile: "FROM busybox\nENTRYPOINT [\"a\"]", check: config(func(i *image.Image) string { return list(i.Config.Config.Entrypoint) + " " + list(i.Config.Config.Cmd) }, "a ")},
	"env":              {dockerfile: "FROM busybox\nENV A=1 B=\"x y\" C=a\\ b\nENV A=2 D=$A\nRUN echo \"$A/$B/$C/$D\" > /out", out: "2/x y/a b/1"},
	"env-legacy":       {dockerfile: "FROM busybox\nENV A b c\nRUN echo \"$A\" > /out", out: "b c"},
	"label":            {dockerfile: "FROM busybox\nENV V=1\nLABEL a=$V \"b c\"='d e'", check: config(func(i *image.Image) string { return i.Config.Config.Labels["a"] + i.Config.Config.Labels["b c"] }, "1d e")},
	"expose":           {dockerfile: "FROM busybox\nARG P=80\nEXPOSE $P 53/udp 9000-9001/TCP 1/sctp", check: config(func(i *image.Image) string { return keys(i.Config.Config.ExposedPorts) }, "1/sctp|53/udp|80/tcp|9000/tcp|9001/tcp")},
	"expose-bad":       {dockerfile: "FROM busybox\nEXPOSE 70000", err: "invalid containerPort: 70000"},
	"volume": {dockerfile: "FROM busybox\nVOLUME /a /b\nVOLUME [\"/c d\"]\nRUN echo kept > /a/out || mkdir /a && echo kept > /a/f", check: func(t *testing.T, e *env, i *image.Image) {
		config(func(i *image.Image) string { return keys(i.Config.Config.Volumes) }, "/a|/b|/c d")(t, e, i)
		files(map[string]string{"/a/f": "-rw-r--r-- 0:0 kept"})(t, e, i)
	}},
	"user":                {dockerfile: "FROM busybox\nARG U=app\nUSER $U:extra\nRUN id -un > /tmp/u; id -gn >> /tmp/u\nUSER 0\nRUN cp /tmp/u /out", out: "app\nextra"},
	"workdir":             {dockerfile: "FROM busybox\nENV D=/a\nWORKDIR $D\nWORKDIR b/../c\nRUN pwd > /out", out: "/a/c", check: config(func(i *image.Image) string { return i.Config.Config.WorkingDir }, "/a/c")},
	"workdir-user":        {dockerfile: "FROM busybox\nUSER app\nWORKDIR /tmp/a/b", check: files(map[string]string{"/tmp/a": "drwxr-xr-x 1000:1001", "/tmp/a/b": "drwxr-xr-x 1000:1001"})},
	"stopsignal":          {dockerfile: "FROM busybox\nARG S=QUIT\nSTOPSIGNAL SIG$S", check: config(func(i *image.Image) string { return i.Config.Config.StopSignal }, "SIGQUIT")},
	"stopsignal-bad":      {dockerfile: "FROM busybox\nSTOPSIGNAL SIGNONE", err: "invalid signal: SIGNONE"},
	"shell":               {dockerfile: "FROM busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-ec\"]\nRUN echo $0 > /out\nCMD x", out: "sh", check: config(func(i *image.Image) string { return list(i.Config.Config.Cmd) }, "/bin/busybox|sh|-ec|x")},
	"shell-not-json":      {dockerfile: "FROM busybox\nSHELL sh -c", err: "SHELL requires the arguments to be in JSON form"},
	"maintainer":          {dockerfile: "FROM busybox\nMAINTAINER me <me@x>", check: config(func(i *image.Image) string { return i.Config.Author }, "me <me@x>")},
	"healthcheck":         {dockerfile: "FROM busybox\nHEALTHCHECK CMD true", check: config(func(i *image.Image) string { return list(i.Config.Config.Healthcheck.Test) }, "CMD-SHELL|true")},
	"healthcheck-exec":    {dockerfile: "FROM busybox\nHEALTHCHECK CMD [\"a\", \"b\"]", check: config(func(i *image.Image) string { return list(i.Config.Config.Healthcheck.Test) }, "CMD|a|b")},
	"healthcheck-none":    {dockerfile: "FROM busybox\nHEALTHCHECK NONE", check: config(func(i *image.Image) string { return list(i.Config.Config.Healthcheck.Test) }, "NONE")},
	"healthcheck-options": {dockerfile: "FROM busybox AS a\nHEALTHCHECK --interval=5s --timeout=2s --start-period=3s --start-interval=1s --retries=4 CMD true\nFROM a\nLABEL x=y", check: healthOptions},
	"healthcheck-bad":     {dockerfile: "FROM busybox\nHEALTHCHECK --interval=1us CMD true", err: "cannot be less than 1ms"},

	"onbuild":          {dockerfile: "FROM busybox AS a\nONBUILD RUN echo trigger > /out\nONBUILD ENV X=y\nFROM a\nRUN echo $X >> /out", out: "trigger\ny", check: config(func(i *image.Image) int { return len(i.Config.Config.OnBuild) }, 0)},
	"onbuild-from":     {dockerfile: "FROM busybox AS src\nRUN echo src > /f\nFROM busybox AS a\nONBUILD COPY --from=src /f /out\nFROM a", out: "src"},
	"onbuild-grand":    {dockerfile: "FROM busybox AS a\nONBUILD RUN echo once >> /out\nFROM a AS b\nFROM b", out: "once"},
	"onbuild-heredoc":  {dockerfile: "FROM busybox AS a\nONBUILD RUN <<EOF\necho doc > /out\nEOF\nFROM a", out: "doc"},
	"onbuild-chained":  {dockerfile: "FROM busybox\nONBUILD ONBUILD RUN x", err: "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"},
	"onbuild-not-from": {dockerfile: "FROM busybox\nONBUILD FROM x", err: "FROM isn't allowed as an ONBUILD trigger"},

	// ARG.
	"arg":              {dockerfile: "FROM busybox\nARG A=1 B=$A C\nRUN echo \"$A/$B/$C\" > /out", req: args("C", "3"), out: "1/1/3"},
	"arg-given":        {dockerfile: "FROM busybox\nARG A=1\nRUN echo $A > /out", req: args("A", "2"), out: "2"},
	"arg-before-from":  {dockerfile: "ARG A=1\nFROM busybox\nRUN echo \"[$A]\" > /out\nARG A\nRUN echo \"[$A]\" >> /out", out: "[]\n[1]"},
	"arg-scope":        {dockerfile: "FROM busybox AS a\nARG A=1\nFROM busybox\nRUN echo \"[$A]\" > /out", out: "[]"},
	"arg-inherited":    {dockerfile: "FROM busybox AS a\nARG A=1\nFROM a\nRUN echo \"[$A]\" > /out", out: "[1]"},
	"arg-then-env":     {dockerfile: "FROM busybox\nARG A=1\nENV A=2\nRUN echo $A > /out", req: args("A", "3"), out: "2"},
	"arg-not-in-image": {dockerfile: "FROM busybox\nARG A=1\nRUN true", check: config(func(i *image.Image) string { v, _ := lookupEnv(i.Config.Config.Env, "A"); return v }, "")},
	"arg-platform":     {dockerfile: "FROM busybox AS last\nARG TARGETOS TARGETARCH BUILDOS TARGETSTAGE TARGETVARIANT\nRUN test $TARGETARCH && echo \"$TARGETOS/$BUILDOS/$TARGETSTAGE/$TARGETVARIANT\" > /out", out: "linux/linux/last/"},
	"arg-proxy":        {dockerfile: "FROM busybox\nRUN echo $HTTP_PROXY $http_proxy > /out", req: args("http_proxy", "p"), out: "p p", check: config(func(i *image.Image) string { return list(i.Config.Config.Env) }, "PATH=/bin")},
	"arg-hostname":     {dockerfile: "FROM busybox\nRUN hostname > /out", req: args("BUILDKIT_SANDBOX_HOSTNAME", "sandbox"), out: "sandbox"},
	"arg-check":        {dockerfile: "FROM busybox AS Upper", req: args("BUILDKIT_DOCKERFILE_CHECK", "error=true"), err: "lint violation found for rules: StageNameCasing"},
	"arg-epoch":        {dockerfile: "FROM scratch\nCOPY f /out", files: map[string]string{"f": "f"}, req: args("SOURCE_DATE_EPOCH", "1000"), check: config(func(i *image.Image) int64 { return i.Config.Created.Unix() + i.Config.History[0].Created.Unix() }, 2000)},
	"arg-epoch-bad":    {dockerfile: "FROM scratch\nCOPY f /out", req: args("SOURCE_DATE_EPOCH", "x"), err: "invalid SOURCE_DATE_EPOCH"},

	// .dockerignore.
	"ignore":           {dockerfile: "FROM busybox\nCOPY . /c/", files: map[string]string{".dockerignore": "# no\n*.log\n**/tmp\n/d/x?\n", "a": "a", "b.log": "b", "d/b.log": "kept", "d/tmp/f": "f", "d/x1": "x"}, check: files(map[string]string{"/c/a": "-rw-r--r-- 0:0 a", "/c/b.log": "", "/c/d/b.log": "-rw-r--r-- 0:0 kept", "/c/d/tmp": "", "/c/d/x1": ""})},
	"ignore-exception": {dockerfile: "FROM busybox\nCOPY . /c/", files: map[string]string{".dockerignore": "d\n!d/keep\n", "d/keep": "k", "d/x": "x"}, check: files(map[string]string{"/c/d/keep": "-rw-r--r-- 0:0 k", "/c/d/x": ""})},
	"ignore-own":       {dockerfile: "FROM busybox\nCOPY . /c/", files: map[string]string{".dockerignore": "a\n", "My.dockerignore": "b\n", "a": "a", "b": "b"}, req: func(r *Request) { r.Dockerfile = "My" }, check: files(map[string]string{"/c/a": "-rw-r--r-- 0:0 a", "/c/b": ""})},
	"ignore-named":     {dockerfile: "FROM busybox\nCOPY secret /c/", files: map[string]string{".dockerignore": "secret\n", "secret": "s"}, err: "not found, or excluded by .dockerignore"},

	// Variables.
	"expand":           {dockerfile: "FROM scratch\nENV A=x\nLABEL l=$A-${A}y-$B-", check: labelL("x-xy--")},
	"expand-default":   {dockerfile: "FROM scratch\nENV E=\nLABEL l=${A:-d}${A-d}${E:-d}${E-d}", check: labelL("ddd")},
	"expand-alternate": {dockerfile: "FROM scratch\nENV A=x E=\nLABEL l=${A:+1}${A+2}${E:+3}${E+4}${N+5}", check: labelL("124")},
	"expand-required":  {dockerfile: "FROM scratch\nLABEL l=\"${A:?is needed}\"", err: "A: is needed"},
	"expand-unset":     {dockerfile: "FROM scratch\nLABEL l=${A?}", err: "A: is not allowed to be unset"},
	"expand-prefix":    {dockerfile: "FROM scratch\nENV A=foobarbaz\nLABEL l=${A#f*b}-${A##f*b}", check: labelL("arbaz-az")},
	"expand-suffix":    {dockerfile: "FROM scratch\nENV A=foobarbaz\nLABEL l=${A%b*}-${A%%b*}", check: labelL("foobar-foo")},
	"expand-replace":   {dockerfile: "FROM scratch\nENV A=foobarbaz\nLABEL l=${A/ba/fo}-${A//ba/fo}", check: labelL("fooforbaz-fooforfoz")},
	"expand-nested":    {dockerfile: "FROM scratch\nENV A=x\nLABEL l=${B:-${A}y}", check: labelL("xy")},
	"expand-escape":    {dockerfile: "FROM scratch\nENV A=x\nLABEL l=\\$A-'$A'-\"$A\"", check: labelL("$A-$A-x")},
	"expand-bad":       {dockerfile: "FROM scratch\nLABEL l=${A:-b", err: "missing '}'"},
	"expand-not":       {dockerfile: "FROM busybox\nARG A=x\nCMD echo $A\nENTRYPOINT [\"$A\"]", check: config(func(i *image.Image) string { return list(i.Config.Config.Cmd) + list(i.Config.Config.Entrypoint) }, "/bin/sh|-c|echo $A$A")},

	// What skiff build's flags do.
	"flag-label":        {dockerfile: "FROM scratch\nLABEL l=1", req: func(r *Request) { r.Labels = map[string]string{"l": "2"} }, check: labelL("2")},
	"flag-network":      {dockerfile: "FROM busybox\nRUN readlink /proc/self/ns/net > /out", req: func(r *Request) { r.Network = "none" }, check: sameNetwork(false)},
	"flag-add-host":     {dockerfile: "FROM busybox\nRUN grep thing /etc/hosts > /out", req: func(r *Request) { r.Hosts = map[string]string{"thing": "192.0.2.7"} }, out: "192.0.2.7\tthing"},
	"flag-shm-size":     {dockerfile: "FROM busybox\nRUN grep /dev/shm /proc/mounts | grep -o size=2048k > /out", req: func(r *Request) { r.ShmSize = 2 << 20 }, out: "size=2048k"},
	"flag-platform-bad": {dockerfile: "FROM scratch", req: func(r *Request) { r.Platform = "a/b/c/d" }, err: "must be os/arch or os/arch/variant"},
	"flag-output-bad":   {dockerfile: "FROM scratch", req: func(r *Request) { r.Output = &Output{Type: "registry", Dest: "/x"} }, err: `output type "registry"`, unsupported: true},
	"build-context-bad": {dockerfile: "FROM x", req: func(r *Request) { r.Contexts = map[string]string{"x": "oci-layout://y"} }, err: "oci-layout", unsupported: true},
	"build-context-name": {dockerfile: "FROM other:1\nRUN echo x > /out", req: func(r *Request) {
		r.Contexts = map[string]string{"docker.io/library/other:1": "docker-image://busybox"}
	}, out: "x"},
}

func secret(id, value string) func(*Request) {
	return func(r *Request) { r.Secrets = map[string][]byte{id: []byte(value)} }
}

func labelL(want string) func(*testing.T, *env, *image.Image) {
	return config(func(i *image.Image) string { return i.Config.Config.Labels["l"] }, want)
}

// sameNetwork tells whether the command whose network namespace is in /out had
// this machine's.
func sameNetwork(want bool) func(*testing.T, *env, *image.Image) {
	return func(t *testing.T, e *env, img *image.Image) {
		own, err := os.Readlink("/proc/self/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(e.read(t, img, "/out")); (got == own) != want {
			t.Errorf("the command's network is %s, this process's %s", got, own)
		}
	}
}

func healthOptions(t *testing.T, e *env, img *image.Image) {
	raw := rawConfig(t, e, img)
	want := `"Healthcheck":{"Interval":5000000000,"Retries":4,"StartInterval":1000000000,"StartPeriod":3000000000,"Test":["CMD-SHELL","true"],"Timeout":2000000000}`
	if !strings.Contains(raw, want) {
		t.Errorf("config lacks %s:\n%s", want, raw)
	}
}

func TestLanguage(t *testing.T) {
	e := setup(t)
	e.busybox(t)
	for name, tc := range language {
		t.Run(name, func(t *testing.T) {
			var change []func(*Request)
			if tc.req != nil {
				change = append(change, tc.req)
			}
			img, err := e.build(t, tc.dockerfile, tc.files, change...)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("got %v, want %s", err, tc.err)
				}
				if errors.Is(err, ErrUnsupported) != tc.unsupported {
					t.Errorf("%v: unsupported should be %v", err, tc.unsupported)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, e.log.out.String())
			}
			if tc.out == "" && tc.check == nil {
				t.Fatal("the case checks nothing")
			}
			if tc.out != "" {
				if got := strings.TrimSpace(e.read(t, img, "/out")); got != tc.out {
					t.Errorf("/out is %q, want %q", got, tc.out)
				}
			}
			if tc.check != nil {
				tc.check(t, e, img)
			}
		})
	}
}
