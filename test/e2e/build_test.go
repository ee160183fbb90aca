package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// skiff build as its users run it, without a cluster: an image, its files, a
// failure, ^C, and what is left afterwards.
func TestBuild(t *testing.T) {
	c := reserve(t, "build")
	c.importBusybox()
	dir := t.TempDir()
	file := func(name, body string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file("f", "f\n")
	file("Dockerfile", "FROM busybox:1\nARG WHO\nRUN --mount=type=secret,id=s,env=S echo $WHO $S > /out\nCOPY f /f\nCMD [\"/bin/cat\", \"/out\"]\n")
	t.Setenv("S", "secret")
	out, err := c.skiff("build", "--progress", "plain", "--build-arg", "WHO=world", "--secret", "id=s,env=S", "-t", "app:1", "-t", "app:2", "--iidfile", dir+"/iid", dir)
	if err != nil || !strings.Contains(out, "docker.io/library/app:1 docker.io/library/app:2") {
		t.Fatalf("build: %v\n%s", err, out)
	}
	if out, err := c.skiff("build", "--progress", "plain", "--build-arg", "WHO=world", "--secret", "id=s,env=S", "-t", "app:1", dir); err != nil || strings.Count(out, "CACHED") != 2 {
		t.Errorf("again: %v\n%s", err, out)
	}
	if out, err := c.skiff("build", "-q", "--build-arg", "WHO=world", "--secret", "id=s,env=S", "-o", dir+"/files", dir); err != nil {
		t.Errorf("-o: %v\n%s", err, out)
	}
	if b, err := os.ReadFile(dir + "/files/out"); err != nil || string(b) != "world secret\n" {
		t.Errorf("files: %q %v", b, err)
	}
	file("Dockerfile", "FROM busybox:1\nRUN echo some words; exit 5\n")
	if out, err := c.skiff("build", "-q", dir); err == nil || !strings.Contains(out, "some words\n------\nDockerfile:2\n") || !strings.Contains(out, "exit code: 5") {
		t.Errorf("failure: %v\n%s", err, out)
	}
	file("Dockerfile", "FROM busybox:1\nMAINTAINER x\n")
	if out, err := c.skiff("build", "--check", "--progress", "plain", dir); err == nil || !strings.Contains(out, "MaintainerDeprecated") {
		t.Errorf("check: %v\n%s", err, out)
	}
	pushed(t, c, dir)
	interrupted(t, c, dir)
	if out, err := c.skiff("build", "prune", "-a"); err != nil || !strings.Contains(out, "Removed 3 steps and 1 cache mounts") {
		t.Errorf("prune: %v\n%s", err, out)
	}
}

// pushed builds and pushes at once, under both names.
func pushed(t *testing.T, c *cluster, dir string) {
	host := privateRegistry(t)
	config := t.TempDir()
	if err := os.WriteFile(config+"/config.json", fmt.Appendf(nil, `{"auths":{%q:{"username":"joe","password":"secret"}}}`, host), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox:1\nLABEL a=b\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := func(args ...string) (string, error) {
		cmd := c.command(append([]string{"build", "--progress", "plain"}, args...)...)
		cmd.Env = append(cmd.Environ(), "DOCKER_CONFIG="+config, "HOME="+config, "XDG_RUNTIME_DIR="+config)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := build("--push", "-t", host+"/team/app:1", "-t", host+"/team/app:2", "--metadata-file", dir+"/meta", dir)
	if err != nil || strings.Count(out, ": digest: sha256:") != 2 {
		t.Fatalf("build --push: %v\n%s", err, out)
	}
	_, rest, _ := strings.Cut(out, ": digest: ")
	digest, _, _ := strings.Cut(rest, " ")
	if b, err := os.ReadFile(dir + "/meta"); err != nil || !strings.Contains(string(b), digest) {
		t.Errorf("metadata: %s, %v; want %s", b, err, digest)
	}
	for _, ref := range []string{host + "/team/app:1", host + "/team/app:2"} {
		if out, err := c.skiff("image", "rm", ref); err != nil {
			t.Fatalf("rm: %v\n%s", err, out)
		}
	}
	if out, err := c.skiff("image", "pull", "--creds", "joe:secret", host+"/team/app@"+digest); err != nil {
		t.Errorf("pull of what was pushed: %v\n%s", err, out)
	}
	if out, err := c.skiff("image", "rm", host+"/team/app@"+digest); err != nil {
		t.Errorf("rm: %v\n%s", err, out)
	}
	// A base image is pulled with what the user of the command keeps.
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+host+"/team/app:2\nLABEL c=d\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := c.skiff("build", "-t", "onprivate:1", dir); err == nil || !strings.Contains(out, "401 Unauthorized") {
		t.Errorf("a private base image without credentials: %v\n%s", err, out)
	}
	if out, err := build("-t", "onprivate:1", dir); err != nil {
		t.Errorf("a private base image: %v\n%s", err, out)
	}
	for _, ref := range []string{"onprivate:1", host + "/team/app:2"} {
		if out, err := c.skiff("image", "rm", ref); err != nil {
			t.Errorf("rm: %v\n%s", err, out)
		}
	}
	cached(t, c, dir, host+"/team/cache", config)
	if err := os.Remove(config + "/config.json"); err != nil {
		t.Fatal(err)
	}
	if out, err := build("-o", "type=registry", "-t", host+"/team/app:3", dir); err == nil || !strings.Contains(out, "push "+host+"/team/app:3: ") {
		t.Errorf("a push without credentials: %v\n%s", err, out)
	}
	if out, err := c.skiff("image", "rm", host+"/team/app:3"); err != nil {
		t.Errorf("what was built is there: %v\n%s", err, out)
	}
}

// cached builds in an empty store what another has pushed the cache of.
func cached(t *testing.T, c *cluster, dir, ref, config string) {
	other := reserve(t, "build-other")
	other.importBusybox()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox:1\nRUN cat /proc/sys/kernel/random/uuid > /id\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	build := func(c *cluster, want string, args ...string) string {
		t.Helper()
		files := t.TempDir()
		cmd := c.command(append([]string{"build", "--progress", "plain", "-o", files}, append(args, dir)...)...)
		cmd.Env = append(cmd.Environ(), "DOCKER_CONFIG="+config, "HOME="+config, "XDG_RUNTIME_DIR="+config)
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("build %v: %v; want %q:\n%s", args, err, want, out)
		}
		id, err := os.ReadFile(filepath.Join(files, "id"))
		if err != nil {
			t.Fatal(err)
		}
		return string(id)
	}
	made := build(c, "exporting cache to registry "+ref, "--cache-to", "type=registry,ref="+ref+",mode=max")
	if got := build(other, "CACHED", "--cache-from", ref); got != made {
		t.Errorf("the command ran again: %s after %s", got, made)
	}
	build(other, "WARN: --cache-from "+ref+":none: ", "--cache-from", "type=registry,ref="+ref+":none")
}

// interrupted presses ^C in the middle of a command that has daemons.
func interrupted(t *testing.T, c *cluster, dir string) {
	word := fmt.Sprintf("4321%d", os.Getpid())
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM busybox:1\nRUN --mount=type=cache,target=/c (sleep "+word+" &); echo running; sleep "+word+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := c.command("build", "--progress", "plain", dir)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.HasSuffix(lines.Text(), " running") {
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	var rest bytes.Buffer
	for lines.Scan() {
		fmt.Fprintln(&rest, lines.Text())
	}
	if err := cmd.Wait(); err == nil {
		t.Errorf("an interrupted build ended well:\n%s", &rest)
	}
	running, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range running {
		if b, err := os.ReadFile(p); err == nil && bytes.HasPrefix(b, []byte("sleep\x00"+word)) {
			t.Errorf("still running: %s", p)
		}
	}
	for _, pattern := range []string{"/snapshots/keys/*", "/snapshots/tmp/*", "/images/ingest/*", "/build/tmp/*"} {
		if left, _ := filepath.Glob(c.data + pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*/" + c.name, "/sys/fs/cgroup/*/*" + c.name + "*/build/*", "/sys/fs/cgroup/*" + c.name + "*/build/*"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(c.data)) {
		t.Errorf("mounts are left: %v", err)
	}
}
