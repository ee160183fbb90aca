package e2e

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// privateRegistry is a registry on loopback that lets joe in, with the password
// "secret".
func privateRegistry(t *testing.T) (host string) {
	t.Helper()
	reg := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	ts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "joe" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(ts.Close)
	return strings.TrimPrefix(ts.URL, "http://")
}

// TestImages: what a docker user does with images, and pods that pull from a
// private registry.
func TestImages(t *testing.T) {
	c := start(t, "images")
	c.carried = true
	c.importBusybox()
	host := privateRegistry(t)
	ref := host + "/team/app:1"
	config := t.TempDir()
	try := func(in string, args ...string) (string, error) {
		cmd := c.command(append([]string{"image"}, args...)...)
		cmd.Env = append(cmd.Environ(), "DOCKER_CONFIG="+config, "HOME="+config, "XDG_RUNTIME_DIR="+config)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	do := func(want string, args ...string) string {
		t.Helper()
		out, err := try("", args...)
		if err != nil || !strings.Contains(out, want) {
			t.Fatalf("skiff image %s: %v; want %q:\n%s", strings.Join(args, " "), err, want, out)
		}
		return out
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := try("", args...); err == nil || !strings.Contains(out, want) {
			t.Errorf("skiff image %s: %v; want an error with %q:\n%s", strings.Join(args, " "), err, want, out)
		}
	}

	do("", "tag", "busybox:1", ref)
	refused("push access denied", "push", ref)
	if out, err := try("wrong", "login", "-u", "joe", "--password-stdin", host); err == nil || !strings.Contains(out, "incorrect username or password") {
		t.Errorf("login with a wrong password: %v\n%s", err, out)
	}
	if out, err := try("secret\n", "login", "-u", "joe", "--password-stdin", host); err != nil || !strings.Contains(out, "Login Succeeded") {
		t.Fatalf("login: %v\n%s", err, out)
	}
	out := do("1: digest: sha256:", "push", ref)
	if !strings.Contains(out, ": Pushed\n") {
		t.Errorf("push says\n%s", out)
	}
	digest := strings.Fields(out[strings.Index(out, "digest: "):])[1]
	if out := do("digest: "+digest, "push", ref); !strings.Contains(out, ": Layer already exists\n") {
		t.Errorf("the second push says\n%s", out)
	}
	// busybox:1 is the same image still, now in the blobs that the registry has.
	if a, b := do("", "inspect", "-f", "{{.Id}}", ref), do("", "inspect", "-f", "{{.Id}}", "busybox:1"); a != b {
		t.Errorf("%s is %s, busybox:1 %s", ref, a, b)
	}
	do("Untagged: "+ref, "rm", ref)
	do("Status: Downloaded newer image for "+ref, "pull", ref)
	do("Status: Image is up to date for "+ref, "pull", ref)
	if out := do("", "pull", "-q", host+"/team/app@"+digest); out != host+"/team/app@"+digest+"\n" {
		t.Errorf("pull -q says %q", out)
	}
	do("Removing login credentials for "+host, "logout", host)
	refused("pull access denied, repository does not exist or may require authorization", "pull", ref)
	do("Digest: "+digest, "pull", "--creds", "joe:secret", ref)
	refused("no match for platform linux/s390x in manifest: not found", "pull", "--platform", "linux/s390x", "--creds", "joe:secret", ref)

	do("skiff image import", "history", ref)
	do(`"RepoTags"`, "inspect", ref)
	if out := do("", "ls", "-q", "--filter", "reference="+host+"/*/app"); strings.Count(out, "\n") != 1 {
		t.Errorf("ls by reference: %q", out)
	}
	do(digest, "ls", "--digests", ref)

	// Pods: without a secret, with the pod's, with the service account's.
	do("Untagged: "+ref, "rm", ref) // what is pulled by hand is every pod's
	podOf := func(name, image, policy, more string) {
		c.apply(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 0\n"+
			"  containers: [{name: main, image: %q, imagePullPolicy: %s, command: [sleep, \"1000\"]}]\n%s\n", name, image, policy, more))
	}
	pod := func(name, more string) { podOf(name, ref, "Always", more) }
	pod("refused", "")
	c.told("refused", "ImagePullBackOff",
		fmt.Sprintf(`Failed to pull image %q: rpc error: code = Unknown desc = failed to pull and unpack image %q: failed to resolve reference %q: pull access denied`, ref, ref, ref))
	c.kubectl("create", "secret", "docker-registry", "joe", "--docker-server="+host, "--docker-username=joe", "--docker-password=secret")
	pod("secret", "  imagePullSecrets: [{name: joe}]")
	c.waitPod("secret", ".status.phase", "Running")
	c.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: puller}\nimagePullSecrets: [{name: joe}]")
	pod("account", "  serviceAccountName: puller")
	c.waitPod("account", ".status.phase", "Running")
	pod("missing", "  imagePullSecrets: [{name: nosuch}, {name: joe}]")
	c.waitPod("missing", ".status.phase", "Running")
	c.eventually("the missing secret is told", func() (bool, string) {
		out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=missing")
		return strings.Contains(out, "Unable to retrieve some image pull secrets (nosuch); attempting to pull the image may not succeed."), out
	})

	// What a secret brought is no other pod's, now and after a restart; what was brought
	// by hand is everybody's, also where it is the same image.
	c.kubectl("create", "secret", "docker-registry", "eve", "--docker-server="+host, "--docker-username=eve", "--docker-password=guess")
	for _, when := range []string{"now", "later"} {
		podOf("thief-"+when, ref, "IfNotPresent", "  imagePullSecrets: [{name: eve}]")
		c.told("thief-"+when, "ImagePullBackOff", fmt.Sprintf(`Failed to pull image %q`, ref))
		podOf("sly-"+when, ref, "Never", "")
		c.told("sly-"+when, "ErrImageNeverPull", fmt.Sprintf(`Container image %q is not present with pull policy of Never`, ref))
		podOf("friend-"+when, ref, "IfNotPresent", "  imagePullSecrets: [{name: joe}]")
		c.waitPod("friend-"+when, ".status.phase", "Running")
		if out := c.kubectl("get", "events", "--field-selector", "involvedObject.name=friend-"+when); strings.Contains(out, "Pulling image") ||
			!strings.Contains(out, fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", ref)) {
			t.Errorf("events of a pod with the secret:\n%s", out)
		}
		podOf("local-"+when, "busybox:1", "IfNotPresent", "")
		c.waitPod("local-"+when, ".status.phase", "Running")
		if when == "now" {
			c.kill9()
			c.up()
		}
	}
	do("Digest: "+digest, "pull", "--creds", "joe:secret", ref)
	podOf("given", ref, "IfNotPresent", "")
	c.waitPod("given", ".status.phase", "Running")
	c.kubectl("delete", "pod", "given", "thief-now", "thief-later", "sly-now", "sly-later", "friend-now", "friend-later", "local-now", "local-later", "--now")

	// Who uses an image is told, and what is used stays.
	do("Untagged: docker.io/library/busybox:1", "rm", "busybox:1")
	refused("image is in use by container main of pod default/", "rm", ref)
	do("Total reclaimed space: ", "prune", "-a", "-f")
	do(ref, "ls")
	c.kubectl("delete", "pod", "--all", "--now")
	c.eventually("the containers are gone", func() (bool, string) {
		out, err := try("", "prune", "-a", "-f")
		return err == nil && strings.Contains(out, "Untagged: "+ref) && strings.Contains(out, "Deleted: sha256:"), out
	})
	if out := do("", "ls", "-q"); out != "" {
		t.Errorf("left: %s", out)
	}
}
