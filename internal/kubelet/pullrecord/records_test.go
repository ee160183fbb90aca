package pullrecord

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var epoch = time.Unix(1_800_000_000, 0)

func open(t *testing.T, dir, policy string) *Records {
	t.Helper()
	p, _, err := ParsePolicy(policy, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir, p, func() time.Time { return epoch }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func secret(uid, name, hash string) Secret {
	return Secret{UID: uid, Namespace: "ns", Name: name, CredentialHash: hash}
}

func of(s ...Secret) Credentials { return Credentials{KubernetesSecrets: s} }

// may asks for an image, with secrets; asked tells whether they were looked for.
func may(r *Records, image, ref string, s ...Secret) (ok, asked bool) {
	ok = r.MayUse(Present{Image: image, Ref: ref}, func() []Secret { asked = true; return s })
	return ok, asked
}

// TestUse: who may use what was pulled how, as upstream's kubelet decides it, now and
// after a restart.
func TestUse(t *testing.T) {
	joe, ann := secret("1", "joe", "h1"), secret("2", "ann", "h2")
	for _, tc := range []struct {
		name   string
		policy string
		pulled []Credentials // of app:1, one pull after the other
		image  string
		with   []Secret
		want   bool
		asked  bool
	}{
		{name: "preloaded", image: "other:1", want: true},
		{name: "preloaded, all are verified", policy: AlwaysVerify, image: "other:1"},
		{name: "anonymous", pulled: []Credentials{{NodePodsAccessible: true}}, image: "app:1", want: true},
		{name: "anonymous, all are verified", policy: AlwaysVerify, pulled: []Credentials{{NodePodsAccessible: true}}, image: "app:1", want: true},
		{name: "another's secret", pulled: []Credentials{of(joe)}, image: "app:1", asked: true},
		{name: "another's secret, nothing is verified", policy: NeverVerify, pulled: []Credentials{of(joe)}, image: "app:1", want: true},
		{name: "the same secret", pulled: []Credentials{of(joe)}, image: "app:1", with: []Secret{ann, joe}, want: true, asked: true},
		{name: "the same secret, another tag", pulled: []Credentials{of(joe)}, image: "app:2", with: []Secret{joe}, want: true, asked: true},
		{name: "a wrong secret", pulled: []Credentials{of(joe)}, image: "app:1", with: []Secret{ann}, asked: true},
		{name: "a secret that says the same", pulled: []Credentials{of(joe)}, image: "app:1", with: []Secret{secret("9", "copy", "h1")}, want: true, asked: true},
		{name: "the secret was changed", pulled: []Credentials{of(joe)}, image: "app:1", with: []Secret{secret("1", "joe", "new")}, want: true, asked: true},
		{name: "a secret of the same name, another one", pulled: []Credentials{of(joe)}, image: "app:1", with: []Secret{secret("9", "joe", "new")}, asked: true},
		{name: "hashes that nobody knows are not equal", pulled: []Credentials{of(secret("1", "joe", ""))}, image: "app:1", with: []Secret{secret("9", "copy", "")}, asked: true},
		{name: "two pulls", pulled: []Credentials{of(joe), of(ann)}, image: "app:1", with: []Secret{joe}, want: true, asked: true},
		{name: "anonymous later", pulled: []Credentials{of(joe), {NodePodsAccessible: true}}, image: "app:1", want: true},
		{name: "anonymous first", pulled: []Credentials{{NodePodsAccessible: true}, of(joe)}, image: "app:1", want: true},
		{name: "nobody knows", pulled: []Credentials{{}}, image: "app:1", with: []Secret{joe}},
		{name: "the same image by another name", pulled: []Credentials{of(joe)}, image: "mirror/app:1", with: []Secret{joe}},
	} {
		dir := t.TempDir()
		r := open(t, dir, tc.policy)
		for _, c := range tc.pulled {
			if err := r.Begin("app:1"); err != nil {
				t.Fatal(err)
			}
			r.Pulled("app:1", "id", c)
		}
		for _, when := range []string{"at once", "after a restart"} {
			ref := "id"
			if tc.image == "other:1" {
				ref = "other"
			}
			if ok, asked := may(r, tc.image, ref, tc.with...); ok != tc.want || asked != tc.asked {
				t.Errorf("%s, %s: %v, secrets looked for: %v", tc.name, when, ok, asked)
			}
			r = open(t, dir, tc.policy)
		}
	}
}

// TestLearn: a secret that says the same as one that opened the registry counts from
// then on, also when it is changed.
func TestLearn(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	if err := r.Begin("app"); err != nil {
		t.Fatal(err)
	}
	r.Pulled("app", "id", of(secret("1", "joe", "h1")))
	for _, s := range []Secret{secret("2", "copy", "h1"), secret("2", "copy", "h2"), secret("3", "third", "h2")} {
		if ok, _ := may(r, "app", "id", s); !ok {
			t.Fatalf("%+v is refused", s)
		}
		r = open(t, dir, "")
	}
	// A record that is full learns nothing more.
	for i := range 2 * mostSecrets {
		if ok, _ := may(r, "app", "id", secret(fmt.Sprint("u", i), "n", "h1")); !ok {
			t.Fatalf("secret %d is refused", i)
		}
	}
	if n := len(r.pulled["id"].CredentialMapping["app"].KubernetesSecrets); n != mostSecrets {
		t.Errorf("%d secrets are known", n)
	}
	if ok, _ := may(r, "app", "id", secret("u1", "n", "changed")); ok {
		t.Error("a full record learns a changed secret")
	}
}

// TestPreloadedName: a name that was given to an image here is not the pull's.
func TestPreloadedName(t *testing.T) {
	r := open(t, t.TempDir(), "")
	if err := r.Begin("reg/app:1"); err != nil {
		t.Fatal(err)
	}
	r.Pulled("reg/app:1", "id", of(secret("1", "joe", "h")))
	none := func() []Secret { return nil }
	if !r.MayUse(Present{Image: "app:1", Ref: "id", Preloaded: true}, none) {
		t.Error("a preloaded name is verified")
	}
	if r.MayUse(Present{Image: "reg/app:1", Ref: "id"}, none) {
		t.Error("the pulled name is not")
	}
}

// TestInterrupted: a pull that a killed process began counts as a pull with credentials
// that nobody knows.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	for _, image := range []string{"app:1", "gone:1", "broken:1"} {
		if err := r.Begin(image); err != nil {
			t.Fatal(err)
		}
	}
	r = open(t, dir, "")
	if ok, _ := may(r, "app:1", "id"); ok {
		t.Error("before it is settled, the image is anybody's")
	}
	why := errors.New("no answer")
	err := r.Adopt(func(image string) (string, error) {
		switch image {
		case "app:1":
			return "id", nil
		case "broken:1":
			return "", why
		}
		return "", nil
	})
	if !errors.Is(err, why) {
		t.Errorf("adopt: %v", err)
	}
	r = open(t, dir, "")
	if pulling, pulled, _ := r.Figures(); pulling != 1 || pulled != 1 {
		t.Errorf("%d pulls, %d images", pulling, pulled)
	}
	for image, want := range map[string]bool{"app:1": false, "gone:1": true, "broken:1": false} {
		ref := map[string]string{"app:1": "id"}[image]
		if ok, _ := may(r, image, ref, secret("1", "joe", "h")); ok != want {
			t.Errorf("%s: %v", image, ok)
		}
	}
}

// TestIntents: pulls of one image side by side have one file, which goes with the last.
func TestIntents(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	files := func() int {
		l, err := os.ReadDir(filepath.Join(dir, "pulling"))
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	for range 2 {
		if err := r.Begin("app"); err != nil {
			t.Fatal(err)
		}
	}
	r.Failed("app")
	if files() != 1 {
		t.Errorf("%d files while one goes on", files())
	}
	r.Failed("app")
	if files() != 0 {
		t.Errorf("%d files after the last", files())
	}
	if ok, _ := may(r, "app", "id"); !ok {
		t.Error("what no pull brought is not preloaded")
	}
}

// TestDamaged: a file that cannot be read makes nothing accessible.
func TestDamaged(t *testing.T) {
	for _, content := range []string{"", "{", `{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v9"}`} {
		dir := t.TempDir()
		r := open(t, dir, "")
		if err := r.Begin("app"); err != nil {
			t.Fatal(err)
		}
		r.Pulled("app", "id", Credentials{NodePodsAccessible: true})
		if err := os.WriteFile(filepath.Join(dir, "pulled", fileName("id")), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r = open(t, dir, "")
		if ok, _ := may(r, "app", "id"); ok {
			t.Errorf("%q: the image may be used", content)
		}
		if err := r.Begin("app"); err != nil {
			t.Fatal(err)
		}
		r.Pulled("app", "id", Credentials{NodePodsAccessible: true})
		if ok, _ := may(r, "app", "id"); !ok {
			t.Errorf("%q: a new pull does not mend it", content)
		}
	}
}

// TestPrune: images that are gone are forgotten, not those of pulls since.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	now := epoch
	r, err := Open(dir, Policy{}, func() time.Time { return now }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"old", "here", "new"} {
		if ref == "new" {
			now = now.Add(time.Minute)
		}
		if err := r.Begin(ref); err != nil {
			t.Fatal(err)
		}
		r.Pulled(ref, ref, of(secret("1", "joe", "h")))
	}
	if err := r.Prune(map[string]bool{"here": true}, now); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Records{r, open(t, dir, "")} {
		for ref, known := range map[string]bool{"old": false, "here": true, "new": true} {
			if ok, _ := may(x, ref, ref); ok == known {
				t.Errorf("%s: known %v", ref, !ok)
			}
		}
	}
}

// TestFiles: they are upstream's, and say nothing of the credentials themselves.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	r := open(t, dir, "")
	if err := r.Begin("reg/app:1"); err != nil {
		t.Fatal(err)
	}
	hash := Hash(&runtimeapi.AuthConfig{Username: "joe", Password: "geheim"})
	r.Pulled("reg/app:1", "sha256:1", of(secret("1", "joe", hash)))
	b, err := os.ReadFile(filepath.Join(dir, "pulled", fileName("sha256:1")))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf(`"imageRef":"sha256:1","credentialMapping":{"reg/app":{"kubernetesSecrets":[{"uid":"1","namespace":"ns","name":"joe","credentialHash":%q}]}}}`, hash)
	if !strings.HasSuffix(string(b), want) || !strings.HasPrefix(string(b), `{"kind":"ImagePulledRecord","apiVersion":"kubelet.config.k8s.io/v1beta1","lastUpdatedTime":"`) {
		t.Errorf("the file is %s", b)
	}
	if hash == Hash(&runtimeapi.AuthConfig{Username: "joe", Password: "other"}) || strings.Contains(string(b), "geheim") {
		t.Error("the hash is not of the credentials")
	}
}
