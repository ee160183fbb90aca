package cli

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// KubeletConfig are settings of the node's kubelet: those of KubeletConfiguration
// (kubelet.config.k8s.io/v1beta1) that mean something here, under their names. What is
// left out is as upstream has it, but for shares of disks, which are bounded: see
// docs/adr/015-shares-of-disks.md.
type KubeletConfig struct {
	// Below EvictionHard pods are evicted at once; below EvictionSoft when that lasted
	// for EvictionSoftGracePeriod, and until there is EvictionMinimumReclaim more.
	// An empty EvictionHard is no threshold; without one there are the usual ones.
	EvictionHard            map[string]string `json:"evictionHard,omitzero"`
	EvictionSoft            map[string]string `json:"evictionSoft,omitempty"`
	EvictionSoftGracePeriod map[string]string `json:"evictionSoftGracePeriod,omitempty"`
	EvictionMinimumReclaim  map[string]string `json:"evictionMinimumReclaim,omitempty"`
	// MergeDefaultEvictionSettings adds the usual thresholds to those of EvictionHard.
	MergeDefaultEvictionSettings bool `json:"mergeDefaultEvictionSettings,omitempty"`
	// EvictionPressureTransitionPeriod is how long a condition of pressure stays after
	// its last cause; 5m. EvictionMaxPodGracePeriod bounds, in seconds, the grace period
	// of pods that go for a soft threshold.
	EvictionPressureTransitionPeriod metav1.Duration `json:"evictionPressureTransitionPeriod,omitzero"`
	EvictionMaxPodGracePeriod        int32           `json:"evictionMaxPodGracePeriod,omitempty"`
	// Images that nothing uses go when ImageGCHighThresholdPercent (85) of their disk is
	// in use, until ImageGCLowThresholdPercent (80) is; those that are known for less
	// than ImageMinimumGCAge (2m) stay, those unused for ImageMaximumGCAge go in any case.
	ImageGCHighThresholdPercent *int32          `json:"imageGCHighThresholdPercent,omitempty"`
	ImageGCLowThresholdPercent  *int32          `json:"imageGCLowThresholdPercent,omitempty"`
	ImageMinimumGCAge           metav1.Duration `json:"imageMinimumGCAge,omitzero"`
	ImageMaximumGCAge           metav1.Duration `json:"imageMaximumGCAge,omitzero"`
	// A container's log is rotated at ContainerLogMaxSize (10Mi), and ContainerLogMaxFiles
	// (5) are kept of it.
	ContainerLogMaxSize  string `json:"containerLogMaxSize,omitempty"`
	ContainerLogMaxFiles *int32 `json:"containerLogMaxFiles,omitempty"`
	// SystemReserved and KubeReserved are kept from pods: cpu, memory, ephemeral-storage
	// and pid. EnforceNodeAllocatable says whether all pods together are held to what is
	// left: pods (the default) or none.
	SystemReserved         map[string]string `json:"systemReserved,omitempty"`
	KubeReserved           map[string]string `json:"kubeReserved,omitempty"`
	EnforceNodeAllocatable []string          `json:"enforceNodeAllocatable,omitempty"`
	// UserNamespaces are settings of pods with a user namespace of their own.
	UserNamespaces *UserNamespaces `json:"userNamespaces,omitempty"`
	// ImagePullCredentialsVerificationPolicy says which images that are present a pod may
	// use only with credentials of its own: NeverVerifyPreloadedImages (those that a pod
	// pulled; the default), NeverVerify, AlwaysVerify or NeverVerifyAllowlistedImages, with
	// PreloadedImagesVerificationAllowlist: names without tag, or such as example.com/team/*.
	ImagePullCredentialsVerificationPolicy string   `json:"imagePullCredentialsVerificationPolicy,omitempty"`
	PreloadedImagesVerificationAllowlist   []string `json:"preloadedImagesVerificationAllowlist,omitempty"`
	// SerializeImagePulls pulls one image at a time, MaxParallelImagePulls (5) so many.
	SerializeImagePulls   *bool  `json:"serializeImagePulls,omitempty"`
	MaxParallelImagePulls *int32 `json:"maxParallelImagePulls,omitempty"`
	// StaticPodPath is a directory of manifests of pods that run on this node by
	// themselves.
	StaticPodPath string `json:"staticPodPath,omitempty"`
}

// UserNamespaces are settings of pods with hostUsers false.
type UserNamespaces struct {
	// IDsPerPod is how many user and group IDs each has, a multiple of 65536, which is
	// the default. Such pods that ran with another number cannot start again.
	IDsPerPod *int64 `json:"idsPerPod,omitempty"`
}
