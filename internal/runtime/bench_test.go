package runtime_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/cri"
)

// BenchmarkPodStart is the time from nothing to a running container: a sandbox
// without a network, a container, its start; and each of them. Without a seccomp
// filter, and with the default one.
func BenchmarkPodStart(b *testing.B) {
	b.Run("unconfined", func(b *testing.B) { podStart(b, nil) })
	b.Run("default", func(b *testing.B) {
		podStart(b, &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault})
	})
}

func podStart(b *testing.B, filter *runtimeapi.SecurityProfile) {
	bn := newBench(b)
	r, _ := bn.start(b, nil)
	s := cri.InProcess(r)
	// Wall times measure the machine's load as well: this is the work itself, in
	// the pods' cgroups.
	usage := func() (ns float64) {
		raw, err := os.ReadFile("/sys/fs/cgroup/cpuacct" + bn.inst.CgroupParent + "/cpuacct.usage")
		if err == nil {
			fmt.Sscan(string(raw), &ns)
		}
		return ns
	}
	before := usage()
	times := map[string][]time.Duration{}
	for n := 0; b.Loop(); n++ {
		config := bn.config(b, fmt.Sprint("p", n))
		ctx := b.Context()
		t0 := time.Now()
		sb, err := s.Runtime.RunPodSandbox(ctx, config, "")
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		c := containerConfig("c", "sleep", "1000")
		c.Linux.SecurityContext.Seccomp = filter
		id, err := s.Runtime.CreateContainer(ctx, sb, c, config)
		if err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if err := s.Runtime.StartContainer(ctx, id); err != nil {
			b.Fatal(err)
		}
		t3 := time.Now()
		if err := s.Runtime.RemovePodSandbox(ctx, sb); err != nil {
			b.Fatal(err)
		}
		for k, d := range map[string]time.Duration{"sandbox": t1.Sub(t0), "create": t2.Sub(t1), "start": t3.Sub(t2), "all": t3.Sub(t0), "remove": time.Since(t3)} {
			times[k] = append(times[k], d)
		}
	}
	b.ReportMetric((usage()-before)/1e6/float64(len(times["all"])), "cpu-ms/pod")
	for k, d := range times {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds())/1000, k+"-p50-ms")
	}
}
