package resource

// Features are the feature gates that rules look at, with upstream 1.37's names
// and defaults; a gate that is not listed is off.
type Features map[string]bool

// Enabled tells whether a gate is on.
func (f Features) Enabled(name string) bool { return f[name] }

// DefaultFeatures returns upstream 1.37's defaults of the gates that skiff's rules
// ask for; but GenericWorkload, gang scheduling, is on.
func DefaultFeatures() Features {
	return Features{
		"PodLevelResources":                              true,
		"InPlacePodVerticalScaling":                      true,
		"PodObservedGenerationTracking":                  true,
		"SidecarContainers":                              true,
		"ImageVolume":                                    true,
		"UserNamespacesSupport":                          true,
		"RecursiveReadOnlyMounts":                        true,
		"SupplementalGroupsPolicy":                       true,
		"PodReadyToStartContainersCondition":             true,
		"DynamicResourceAllocation":                      true,
		"ContainerRestartRules":                          true,
		"HostnameOverride":                               true,
		"EnvFiles":                                       true,
		"RelaxedEnvironmentVariableValidation":           true,
		"RelaxedDNSSearchValidation":                     true,
		"RelaxedServiceNameValidation":                   true,
		"ServiceTrafficDistribution":                     true,
		"PreferSameTrafficDistribution":                  true,
		"DeploymentReplicaSetTerminatingReplicas":        true,
		"MultiCIDRServiceAllocator":                      true,
		"PodDeletionCost":                                true,
		"MatchLabelKeysInPodTopologySpread":              true,
		"MatchLabelKeysInPodTopologySpreadSelectorMerge": true,
		"InPlacePodLevelResourcesVerticalScaling":        true,
		"RestartAllContainersOnContainerExits":           true,
		"SELinuxMount":                                   true,
		"SELinuxChangePolicy":                            true,
		"ProcMountType":                                  true,
		"NodeInclusionPolicyInPodTopologySpread":         true,
		"MatchLabelKeysInPodAffinity":                    true,
		"ClusterTrustBundleProjection":                   true,
		"PodCertificateRequest":                          true,
		"PodLevelResourcesFixDefaulting":                 true,
		"PodLevelResourcesFixKubeletQOSClass":            true,
		"DRAExtendedResource":                            true,
		"ResourceHealthStatus":                           true,
		"ResourceHealthStatusMessage":                    true,
		"ClearingNominatedNodeNameAfterBinding":          true,
		"PodTopologyLabelsAdmission":                     true,
		"InPlacePodVerticalScalingInitContainers":        true,
		"StrictIPCIDRValidation":                         true,
		"VolumeAttributesClass":                          true,
		"NodeDeclaredFeatures":                           true,
		"KubeletInUserNamespace":                         true,
		"MaxUnavailableStatefulSet":                      true,
		"MutablePodResourcesForSuspendedJobs":            true,
		"MutableSchedulingDirectivesForSuspendedJobs":    true,
		"HPAScaleToZero":                                 true,
		"DRAConsumableCapacity":                          true,
		"GenericWorkload":                                true,
	}
}
