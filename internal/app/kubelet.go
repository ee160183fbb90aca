package app

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"skiff/internal/cli"
	"skiff/internal/kubelet"
	"skiff/internal/kubelet/eviction"
	"skiff/internal/kubelet/pullrecord"
	"skiff/internal/kubelet/userns"
)

// kubeletSettings are a cli.KubeletConfig that was completed and checked.
type kubeletSettings struct {
	Eviction    eviction.Config
	ImageGC     kubelet.ImageGC
	LogMaxSize  int64
	LogMaxFiles int
	StaticPods  string
	PullPolicy  pullrecord.Policy
	// ParallelPulls is 0 where nothing was said.
	ParallelPulls int
	IDsPerPod     uint32
	Reserved      kubelet.Reserved
}

// reservation reads quantities by the name of their resource.
func reservation(m map[string]string) (corev1.ResourceList, error) {
	out := corev1.ResourceList{}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		switch r := corev1.ResourceName(name); r {
		case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, kubelet.ResourcePIDs:
			q, err := resource.ParseQuantity(m[name])
			if err != nil {
				return nil, fmt.Errorf("failed to parse quantity %q for %q resource: %w", m[name], name, err)
			}
			if q.Sign() < 0 {
				return nil, fmt.Errorf("resource quantity for %q cannot be negative: %s", name, m[name])
			}
			out[r] = q
		default:
			return nil, fmt.Errorf("cannot reserve %q resource", name)
		}
	}
	return out, nil
}

// Enforcements of KubeletConfiguration that there are here.
const (
	enforcePods = "pods"
	enforceNone = "none"
)

// The room that the usual shares of a disk keep free for images at most: collection
// begins before pods are evicted.
const (
	keepForImages = 15 << 30
	keepAtLow     = 20 << 30
)

// parallelPulls is how many images pods pull at once.
func (s *Settings) parallelPulls() int {
	return cmp.Or(s.kubelet.ParallelPulls, s.MaxParallelImagePulls)
}

// kubelet completes and checks the settings of the kubelet.
func (c *Config) kubelet() (s kubeletSettings, err error) {
	k := c.Kubelet
	if k == nil {
		k = &cli.KubeletConfig{}
	}
	wrong := func(field, format string, args ...any) (kubeletSettings, error) {
		return s, &ConfigError{"kubelet." + field, fmt.Sprintf(format, args...)}
	}
	if s.Eviction.Thresholds, err = eviction.Parse(eviction.Settings{
		Hard: k.EvictionHard, Soft: k.EvictionSoft, SoftGrace: k.EvictionSoftGracePeriod, MinimumReclaim: k.EvictionMinimumReclaim,
		MergeDefaults: k.MergeDefaultEvictionSettings,
	}); err != nil {
		return wrong("eviction", "%v", err)
	}
	if k.EvictionPressureTransitionPeriod.Duration < 0 {
		return wrong("evictionPressureTransitionPeriod", "%v: must not be negative", k.EvictionPressureTransitionPeriod.Duration)
	}
	if s.Eviction.Transition = k.EvictionPressureTransitionPeriod.Duration; s.Eviction.Transition == 0 {
		s.Eviction.Transition = 5 * time.Minute
	}
	s.Eviction.MaxPodGrace = int64(k.EvictionMaxPodGracePeriod)

	g := &s.ImageGC
	*g = kubelet.ImageGC{High: 85, Low: 80, KeepHigh: keepForImages, KeepLow: keepAtLow, MinAge: 2 * time.Minute, MaxAge: k.ImageMaximumGCAge.Duration}
	for _, p := range []struct {
		field string
		given *int32
		to    *int
		keep  *int64
	}{
		{"imageGCHighThresholdPercent", k.ImageGCHighThresholdPercent, &g.High, &g.KeepHigh},
		{"imageGCLowThresholdPercent", k.ImageGCLowThresholdPercent, &g.Low, &g.KeepLow},
	} {
		if p.given == nil {
			continue
		}
		if *p.to, *p.keep = int(*p.given), 0; *p.to < 0 || *p.to > 100 {
			return wrong(p.field, "%d: must be between 0 and 100, inclusive", *p.to)
		}
	}
	if g.Low >= g.High {
		return wrong("imageGCLowThresholdPercent", "%d: must be less than imageGCHighThresholdPercent %d", g.Low, g.High)
	}
	if k.ImageMinimumGCAge.Duration != 0 {
		g.MinAge = k.ImageMinimumGCAge.Duration
	}
	switch {
	case g.MinAge < 0:
		return wrong("imageMinimumGCAge", "%v: must not be negative", g.MinAge)
	case g.MaxAge < 0:
		return wrong("imageMaximumGCAge", "%v: must not be negative", g.MaxAge)
	case g.MaxAge > 0 && g.MaxAge <= g.MinAge:
		return wrong("imageMaximumGCAge", "%v: must be greater than imageMinimumGCAge %v", g.MaxAge, g.MinAge)
	}
	if k.ContainerLogMaxSize != "" {
		q, err := resource.ParseQuantity(k.ContainerLogMaxSize)
		if err != nil {
			return wrong("containerLogMaxSize", "%q: %v", k.ContainerLogMaxSize, err)
		}
		// Upstream takes a size that is not positive for no rotation.
		if s.LogMaxSize = q.Value(); s.LogMaxSize <= 0 {
			s.LogMaxSize = -1
		}
	}
	if n := k.ContainerLogMaxFiles; n != nil {
		if s.LogMaxFiles = int(*n); s.LogMaxFiles <= 1 {
			return wrong("containerLogMaxFiles", "%d: must be greater than 1", s.LogMaxFiles)
		}
	}
	var field string
	if s.PullPolicy, field, err = pullrecord.ParsePolicy(k.ImagePullCredentialsVerificationPolicy, k.PreloadedImagesVerificationAllowlist); err != nil {
		return wrong(field, "%v", err)
	}
	serial := k.SerializeImagePulls != nil && *k.SerializeImagePulls
	if n := k.MaxParallelImagePulls; n != nil {
		switch s.ParallelPulls = int(*n); {
		case *n < 1:
			return wrong("maxParallelImagePulls", "%d: must be a positive number", *n)
		case *n > 1 && serial:
			return wrong("maxParallelImagePulls", "%d: must be 1 while serializeImagePulls is true", *n)
		}
	}
	if serial {
		s.ParallelPulls = 1
	}
	if s.Reserved.System, err = reservation(k.SystemReserved); err != nil {
		return wrong("systemReserved", "%v", err)
	}
	if s.Reserved.Kube, err = reservation(k.KubeReserved); err != nil {
		return wrong("kubeReserved", "%v", err)
	}
	for _, e := range k.EnforceNodeAllocatable {
		switch {
		case e != enforcePods && e != enforceNone:
			return wrong("enforceNodeAllocatable", "%q: must be %q or %q", e, enforcePods, enforceNone)
		case e == enforceNone && len(k.EnforceNodeAllocatable) > 1:
			return wrong("enforceNodeAllocatable", "may not contain additional enforcements when %q is specified", enforceNone)
		}
		s.Reserved.Unenforced = e == enforceNone
	}
	if u := k.UserNamespaces; u != nil && u.IDsPerPod != nil {
		switch n := *u.IDsPerPod; {
		case n < userns.Unit:
			return wrong("userNamespaces.idsPerPod", "%d: must not be less than %d", n, userns.Unit)
		case n%userns.Unit != 0:
			return wrong("userNamespaces.idsPerPod", "%d: must be a multiple of %d", n, userns.Unit)
		case n > math.MaxUint32:
			return wrong("userNamespaces.idsPerPod", "%d: must not be more than %d", n, int64(math.MaxUint32))
		default:
			s.IDsPerPod = uint32(n)
		}
	}
	if k.StaticPodPath != "" && !filepath.IsAbs(k.StaticPodPath) {
		return wrong("staticPodPath", "%q: must be an absolute path", k.StaticPodPath)
	}
	s.StaticPods = k.StaticPodPath
	return s, nil
}
