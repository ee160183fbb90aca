package kubelet

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/client/clienttest"
	"skiff/internal/cri/fake"
	"skiff/internal/host"
)

// BenchmarkPodStart measures what the kubelet itself, with its writes to an API in
// memory, adds to the start of a pod.
func BenchmarkPodStart(b *testing.B) {
	api, rt := clienttest.New(), fake.New("nginx")
	dir := b.TempDir()
	k, err := New(Deps{
		Client: api.Client(), Runtime: rt, Images: rt, Log: slog.New(slog.DiscardHandler), NoNode: true,
		Host:     host.Instance{Name: "bench", DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run")},
		NodeName: node, NodeIPs: []net.IP{net.ParseIP("127.0.0.1")},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	defer func() { cancel(); <-done }()
	b.ResetTimer()
	for i := range b.N {
		name := fmt.Sprint("p", i)
		api.Put(newPod(name, "a"))
		for {
			if p, ok := k.pods.Get("default", name); ok && p.Status.Phase == corev1.PodRunning {
				break
			}
			time.Sleep(20 * time.Microsecond)
		}
	}
}
