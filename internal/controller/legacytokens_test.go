package controller

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
	"skiff/internal/control"
)

type plainTokens struct{}

func (plainTokens) IssueLegacy(sa *corev1.ServiceAccount, secret string) (string, error) {
	return strings.Join([]string{sa.Namespace, sa.Name, string(sa.UID), secret}, "/"), nil
}

func account(name string, secrets ...string) *corev1.ServiceAccount {
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid"}}
	for _, s := range secrets {
		sa.Secrets = append(sa.Secrets, corev1.ObjectReference{Name: s})
	}
	return sa
}

func tokenSecret(name string, notes map[string]string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: notes}, Type: corev1.SecretTypeServiceAccountToken}
}

func TestLegacyTokensLive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name, uid = "kubernetes.io/service-account.name", "kubernetes.io/service-account.uid"
		w := newWorld(t, func(d Deps) []*control.Controller {
			d.Tokens, d.RootCA = plainTokens{}, []byte("CA")
			return []*control.Controller{newLegacyTokens(d)}
		}, account("sa", "mine", "other"),
			tokenSecret("mine", map[string]string{name: "sa"}), tokenSecret("orphan", map[string]string{name: "nobody"}), tokenSecret("earlier", map[string]string{name: "sa", uid: "older"}),
			&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "opaque", Annotations: map[string]string{name: "nobody"}}, Type: "Opaque"})
		defer w.stop()
		filled := func() bool {
			s := get[*corev1.Secret](w, "ns", "mine")
			return string(s.Data["token"]) == "ns/sa/uid/mine" && string(s.Data["ca.crt"]) == "CA" && string(s.Data["namespace"]) == "ns" && s.Annotations[uid] == "uid"
		}
		w.until("filled", filled)
		w.until("those without their account are gone", func() bool { return len(list[*corev1.Secret](w, "ns")) == 2 })
		edit(w, "ns", "mine", "", func(s *corev1.Secret) { s.Data["ca.crt"] = []byte("old"); delete(s.Data, "namespace") })
		w.until("filled again", filled)
		edit(w, "ns", "mine", "", func(s *corev1.Secret) { s.Data["token"] = []byte("theirs") })
		time.Sleep(time.Second)
		synctest.Wait()
		if s := get[*corev1.Secret](w, "ns", "mine"); string(s.Data["token"]) != "theirs" {
			t.Errorf("a token that was there became %q", s.Data["token"])
		}
		if err := client.For[*corev1.Secret](w.c).In("ns").Delete(t.Context(), "mine", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("no more listed", func() bool {
			sa := get[*corev1.ServiceAccount](w, "ns", "sa")
			return len(sa.Secrets) == 1 && sa.Secrets[0].Name == "other"
		})
		w.api.Put(tokenSecret("again", map[string]string{name: "sa"}))
		w.until("the next filled", func() bool { return len(get[*corev1.Secret](w, "ns", "again").Data) == 3 })
		if err := client.For[*corev1.ServiceAccount](w.c).In("ns").Delete(t.Context(), "sa", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.until("gone with its account", func() bool { return len(list[*corev1.Secret](w, "ns")) == 1 })
	})
}

func TestJudgeToken(t *testing.T) {
	now := time.Date(2030, 6, 15, 12, 0, 0, 0, time.UTC)
	before := func(days int) time.Time { return now.AddDate(0, 0, -days) }
	const used, invalid = "kubernetes.io/legacy-token-last-used", "kubernetes.io/legacy-token-invalid-since"
	mounts := &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}}}
	for _, c := range []struct {
		name    string
		created time.Time
		labels  map[string]string
		sa      *corev1.ServiceAccount
		pods    []*corev1.Pod
		want    tokenVerdict
	}{
		{"never used", before(400), nil, account("sa", "s"), nil, refuseToken},
		{"young", before(364), nil, account("sa", "s"), nil, keepToken},
		{"used", before(400), map[string]string{used: "2029-06-15"}, account("sa", "s"), nil, keepToken},
		{"not used for a year", before(800), map[string]string{used: "2029-06-14"}, account("sa", "s"), nil, refuseToken},
		{"used some day", before(800), map[string]string{used: "someday"}, account("sa", "s"), nil, keepToken},
		{"asked for", before(800), nil, account("sa"), nil, keepToken},
		{"mounted", before(800), nil, account("sa", "s"), []*corev1.Pod{mounts}, keepToken},
		{"refused lately", before(800), map[string]string{invalid: "2029-06-15"}, account("sa", "s"), nil, keepToken},
		{"refused for a year", before(800), map[string]string{invalid: "2029-06-14"}, account("sa", "s"), nil, deleteToken},
		{"refused some day", before(800), map[string]string{invalid: "someday"}, account("sa", "s"), nil, refuseToken},
		{"used since it is refused", before(800), map[string]string{invalid: "2029-06-14", used: "2030-01-01"}, account("sa", "s"), nil, keepToken},
	} {
		s := tokenSecret("s", nil)
		s.CreationTimestamp, s.Labels = metav1.NewTime(c.created), c.labels
		if got := judgeToken(s, c.sa, c.pods, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestUnusedTokensGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		s := tokenSecret("s", map[string]string{"kubernetes.io/service-account.name": "sa"})
		s.CreationTimestamp = metav1.Now()
		w := newWorld(t, func(d Deps) []*control.Controller {
			return []*control.Controller{newTokenTracking(d), newLegacyTokenCleaner(d)}
		}, account("sa", "s"), s)
		defer w.stop()
		start := time.Now()
		tracking := func() string { return get[*corev1.ConfigMap](w, "kube-system", TokenTracking).Data["since"] }
		w.until("use is noted", func() bool { return len(list[*corev1.ConfigMap](w, "kube-system")) == 1 })
		if tracking() != start.UTC().Format("2006-01-02") {
			t.Errorf("noted since %s", tracking())
		}
		edit(w, "kube-system", TokenTracking, "", func(m *corev1.ConfigMap) { m.Data = nil })
		w.until("put right", func() bool { return tracking() == start.UTC().Format("2006-01-02") })
		time.Sleep(365 * day)
		synctest.Wait()
		if l := get[*corev1.Secret](w, "ns", "s").Labels; len(l) > 0 {
			t.Errorf("labels after a year: %v", l)
		}
		time.Sleep(2 * day)
		synctest.Wait()
		if l := get[*corev1.Secret](w, "ns", "s").Labels; l["kubernetes.io/legacy-token-invalid-since"] == "" {
			t.Error("not refused after a year and two days")
		}
		time.Sleep(364 * day)
		synctest.Wait()
		if len(list[*corev1.Secret](w, "ns")) != 1 {
			t.Error("deleted before a year of refusal")
		}
		time.Sleep(4 * day)
		synctest.Wait()
		if len(list[*corev1.Secret](w, "ns")) != 0 {
			t.Error("there after a year of refusal")
		}
	})
}
