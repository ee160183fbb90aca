package kubelet

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/client"
)

// certified are Volumes whose content is certificates.
type certified struct {
	volumes
	sources *Sources
	content []string // of each Setup
}

func (c *certified) Setup(ctx context.Context, pod *corev1.Pod) (map[string]string, time.Time, error) {
	p := pod.Spec.Volumes[0].Projected.Sources[0].PodCertificate
	key, chain, refresh, err := c.sources.Certificate(ctx, pod, p, "v", 0, nil)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("MountVolume.SetUp failed for volume %q : %w", "v", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.content = append(c.content, string(key)+string(chain))
	return map[string]string{"v": "/volumes/v"}, refresh, nil
}

func (c *certified) last() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.content) == 0 {
		return ""
	}
	return c.content[len(c.content)-1]
}

func certifiedPod() *corev1.Pod {
	p := newPod("web", "a")
	p.Spec.ServiceAccountName = "robot"
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{PodCertificate: &corev1.PodCertificateProjection{SignerName: "example.com/s", KeyType: "ED25519", CredentialBundlePath: "all.pem"}},
	}}}}}
	return p
}

func withCertificates(c *certified) func(*world) {
	return func(w *world) {
		w.api.Put(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		w.api.Put(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "robot"}})
		w.deps = func(d *Deps) {
			d.Sources = NewSources(SourcesDeps{Client: d.Client, NodeName: d.NodeName, Events: d.Events, Log: d.Log})
			c.sources, d.Volumes = d.Sources, c
		}
	}
}

// sign answers the newest request for a certificate.
func (w *world) sign(condition, chain string, refresh time.Duration) {
	w.t.Helper()
	requests := client.For[*certificatesv1.PodCertificateRequest](w.api.Client())
	all, _, err := requests.List(context.Background(), metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range all {
		if len(r.Status.Conditions) > 0 {
			continue
		}
		r = r.DeepCopy()
		r.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: "Why", Message: "so"}}
		if chain != "" {
			r.Status.CertificateChain = "-----BEGIN CERTIFICATE-----\n" + chain + "\n-----END CERTIFICATE-----\n"
			r.Status.BeginRefreshAt = &metav1.Time{Time: time.Now().Add(refresh)}
			r.Status.NotAfter = &metav1.Time{Time: time.Now().Add(2 * refresh)}
		}
		if _, err := requests.UpdateStatus(context.Background(), r); err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
		return
	}
	w.t.Fatal("nobody asked for a certificate")
}

func (w *world) metrics() string {
	rec := httptest.NewRecorder()
	w.k.serveMetrics(rec, httptest.NewRequest("GET", "/metrics", nil))
	return rec.Body.String()
}

// TestPodCertificate: a pod starts when its certificate is there, has a new one in
// time, and leaves nothing.
func TestPodCertificate(t *testing.T) {
	c := &certified{}
	run(t, withCertificates(c), func(w *world) {
		w.create(certifiedPod())
		w.after(2 * time.Second)
		w.wantEvent(`FailedMount: MountVolume.SetUp failed for volume "v" : credential bundle is not issued yet`)
		w.wantPhase("web", corev1.PodPending)
		if m := w.metrics(); !strings.Contains(m, `kubelet_podcertificate_states{signer_name="example.com/s",state="not_yet_issued"} 1`) {
			t.Error(m)
		}
		w.sign(certificatesv1.PodCertificateRequestConditionTypeIssued, "AAAA", time.Hour)
		w.wantPhase("web", corev1.PodRunning)
		if got := c.last(); !strings.Contains(got, "PRIVATE KEY") || !strings.Contains(got, "AAAA") {
			t.Error(got)
		}
		// Up to five minutes are added to the signer's time.
		w.after(59 * time.Minute)
		if got := c.last(); !strings.Contains(got, "AAAA") {
			t.Error(got)
		}
		w.after(7 * time.Minute)
		w.sign(certificatesv1.PodCertificateRequestConditionTypeIssued, "BBBB", time.Hour)
		if got := c.last(); !strings.Contains(got, "BBBB") {
			t.Error(got)
		}
		if m := w.metrics(); !strings.Contains(m, `kubelet_podcertificate_states{signer_name="example.com/s",state="fresh"} 1`) {
			t.Error(m)
		}
		w.delete("web", 0)
		w.after(time.Minute)
		if w.exists("web") || strings.Contains(w.metrics(), "podcertificate") {
			t.Error(w.metrics())
		}
	})
}

func TestPodCertificateDenied(t *testing.T) {
	c := &certified{}
	run(t, withCertificates(c), func(w *world) {
		w.create(certifiedPod())
		w.sign(certificatesv1.PodCertificateRequestConditionTypeDenied, "", 0)
		w.after(5 * time.Minute)
		w.wantPhase("web", corev1.PodPending)
		w.wantEvent(`was denied, reason="Why", message="so"`)
		w.wantEvent(`FailedMount: MountVolume.SetUp failed for volume "v" : PodCertificateRequest was permanently denied: reason="Why" message="so"`)
		if c.last() != "" {
			t.Error(c.content)
		}
	})
}
