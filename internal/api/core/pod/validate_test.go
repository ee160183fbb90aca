package pod

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

var testNow = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testEnv() resource.Env {
	return resource.Env{Now: func() time.Time { return testNow }, Features: resource.DefaultFeatures()}
}

// testPod is a valid pod as a client sends it.
func testPod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{
				{Name: "tmp", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
				{Name: "cfg", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "cfg"}}}},
			},
			InitContainers: []corev1.Container{{Name: "init", Image: "busybox"}},
			Containers: []corev1.Container{
				{Name: "main", Image: "nginx", VolumeMounts: []corev1.VolumeMount{{Name: "tmp", MountPath: "/tmp"}}},
				{Name: "side", Image: "nginx:1"},
			},
		},
	}
}

// created takes a pod through what a create does before it is validated.
func created(p *corev1.Pod) *corev1.Pod {
	setDefaults(p)
	prepareCreate(testEnv(), p)
	return p
}

func texts(errs field.ErrorList) []string {
	var out []string
	for _, e := range errs {
		out = append(out, e.Error())
	}
	return out
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func quantities(kv ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(kv); i += 2 {
		out[corev1.ResourceName(kv[i])] = apiresource.MustParse(kv[i+1])
	}
	return out
}

func main0(p *corev1.Pod) *corev1.Container { return &p.Spec.Containers[0] }

type createCase struct {
	name string
	set  func(*corev1.Pod)
	want []string
}

func runCreate(t *testing.T, cases []createCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := testPod()
			c.set(p)
			same(t, texts(validateCreate(testEnv(), created(p))), c.want)
		})
	}
}

func TestCreateValid(t *testing.T) {
	same(t, texts(validateCreate(testEnv(), created(testPod()))), nil)
}

func TestCreateMeta(t *testing.T) {
	runCreate(t, []createCase{
		{"name", func(p *corev1.Pod) { p.Name = "Web" }, []string{
			`metadata.name: Invalid value: "Web": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`}},
		{"finalizer", func(p *corev1.Pod) { p.Finalizers = []string{"mine"} }, []string{
			`metadata.finalizers[0]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified`}},
		{"mirror", func(p *corev1.Pod) { p.Annotations = map[string]string{mirrorAnnotation: "x"} }, []string{
			`metadata.annotations[kubernetes.io/config.mirror]: Invalid value: "x": must set spec.nodeName if mirror pod annotation is set`}},
		{"deletion cost", func(p *corev1.Pod) { p.Annotations = map[string]string{deletionCost: "+5"} }, []string{
			`metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: "+5": must be a 32bit integer`}},
		{"tolerations annotation", func(p *corev1.Pod) { p.Annotations = map[string]string{tolerationsAnnotation: `{}`} }, []string{
			`metadata.annotations: Invalid value: "scheduler.alpha.kubernetes.io/tolerations": json: cannot unmarshal object into Go value of type []core.Toleration`}},
		{"apparmor annotation", func(p *corev1.Pod) { p.Annotations = map[string]string{appArmorContainer + "nobody": "bad"} }, []string{
			`metadata.annotations[container.apparmor.security.beta.kubernetes.io/nobody]: Invalid value: "nobody": container not found`,
			`metadata.annotations[container.apparmor.security.beta.kubernetes.io/nobody]: Invalid value: "bad": invalid AppArmor profile name: "bad"`}},
		{"seccomp annotation and field", func(p *corev1.Pod) {
			p.Annotations = map[string]string{seccompPod: "unconfined"}
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
		}, []string{`spec.securityContext.seccompProfile.type: Forbidden: seccomp type in annotation and field must match`}},
	})
}

func TestCreateSpec(t *testing.T) {
	runCreate(t, []createCase{
		{"no containers", func(p *corev1.Pod) { p.Spec.Containers = nil }, []string{`spec.containers: Required value`}},
		{"ephemeral", func(p *corev1.Pod) {
			p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e", Image: "x"}}}
		}, []string{`spec.ephemeralContainers: Forbidden: cannot be set on create`}},
		{"restart policy", func(p *corev1.Pod) { p.Spec.RestartPolicy = "Sometimes" }, []string{
			`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`}},
		{"dns none", func(p *corev1.Pod) { p.Spec.DNSPolicy = corev1.DNSNone }, []string{
			"spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"}},
		{"dns config", func(p *corev1.Pod) {
			p.Spec.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"x"}, Options: []corev1.PodDNSConfigOption{{}}}
		}, []string{
			`spec.dnsConfig.nameservers[0]: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`,
			`spec.dnsConfig.options[0]: Required value: must not be empty`}},
		{"toleration", func(p *corev1.Pod) {
			p.Spec.Tolerations = []corev1.Toleration{{Operator: "Like", Effect: "Gone", TolerationSeconds: new(int64(1))}}
		}, []string{
			"spec.tolerations[0].operator: Invalid value: \"Like\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
			"spec.tolerations[0].effect: Invalid value: \"Gone\": effect must be 'NoExecute' when `tolerationSeconds` is set",
			`spec.tolerations[0].operator: Unsupported value: "Like": supported values: "Equal", "Exists"`,
			`spec.tolerations[0].effect: Unsupported value: "Gone": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`}},
		{"deadline", func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(0)) }, []string{
			`spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive`}},
		{"gated and bound", func(p *corev1.Pod) {
			p.Spec.NodeName, p.Spec.SchedulingGates = "n", []corev1.PodSchedulingGate{{Name: "a"}, {Name: "a"}}
		}, []string{
			`spec.schedulingGates[1]: Duplicate value: "a"`,
			`spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared`}},
		{"host users", func(p *corev1.Pod) { p.Spec.HostUsers, p.Spec.HostNetwork, p.Spec.HostPID = new(false), true, true }, []string{
			"spec.hostNetwork: Forbidden: when `hostUsers` is false",
			"spec.HostPID: Forbidden: when `hostUsers` is false"}},
		{"os", func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: "plan9"} }, []string{
			`spec.os: Unsupported value: "plan9": supported values: "linux", "windows"`}},
		{"claims", func(p *corev1.Pod) { p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "a"}} }, []string{
			"spec.resourceClaims[0]: Invalid value: {\"Name\":\"a\",\"ResourceClaimName\":null,\"ResourceClaimTemplateName\":null}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"}},
	})
}

func TestCreateContainer(t *testing.T) {
	runCreate(t, []createCase{
		{"names", func(p *corev1.Pod) { p.Spec.Containers[1].Name, p.Spec.InitContainers[0].Name = "main", "main" }, []string{
			`spec.containers[1].name: Duplicate value: "main"`, `spec.initContainers[0].name: Duplicate value: "main"`}},
		{"image", func(p *corev1.Pod) { main0(p).Image = ""; p.Spec.Containers[1].Image = " x" }, []string{
			`spec.containers[0].image: Required value`,
			`spec.containers[1].image: Invalid value: " x": must not have leading or trailing whitespace`}},
		{"pull policy", func(p *corev1.Pod) { main0(p).ImagePullPolicy = "Maybe" }, []string{
			`spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"`}},
		{"ports", func(p *corev1.Pod) {
			main0(p).Ports = []corev1.ContainerPort{{Name: "a"}, {Name: "a", ContainerPort: 70000, Protocol: "X"}, {ContainerPort: 1, HostPort: 5}, {ContainerPort: 2, HostPort: 5}}
		}, []string{
			`spec.containers[0].ports[0].containerPort: Required value`,
			`spec.containers[0].ports[1].name: Duplicate value: "a"`,
			`spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive`,
			`spec.containers[0].ports[1].protocol: Unsupported value: "X": supported values: "SCTP", "TCP", "UDP"`,
			`spec.containers[0].ports[3].hostPort: Duplicate value: "TCP//5"`}},
		{"env", func(p *corev1.Pod) {
			main0(p).Env = []corev1.EnvVar{{Name: "a=b"}, {Name: "F", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.phase"}}},
				{Name: "N", ValueFrom: &corev1.EnvVarSource{}}, {Name: "U", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "spec.x"}}}}
		}, []string{
			`spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='`,
			`spec.containers[0].env[1].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`,
			"spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
			`spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: "spec.x": error converting fieldPath: field label not supported: spec.x`}},
		{"divisor", func(p *corev1.Pod) {
			main0(p).Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu", Divisor: apiresource.MustParse("2")}}}}
		}, []string{`spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: "limits.cpu": only divisor's values 1m and 1 are supported with the cpu resource`}},
		{"probe", func(p *corev1.Pod) {
			main0(p).LivenessProbe = &corev1.Probe{SuccessThreshold: 2, PeriodSeconds: -1}
			main0(p).ReadinessProbe = &corev1.Probe{TerminationGracePeriodSeconds: new(int64(1)), ProbeHandler: corev1.ProbeHandler{
				Exec: &corev1.ExecAction{}, TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}}}
		}, []string{
			`spec.containers[0].livenessProbe: Required value: must specify a handler type`,
			`spec.containers[0].livenessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0`,
			`spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1`,
			`spec.containers[0].readinessProbe.exec.command: Required value`,
			`spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type`,
			`spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 1: must not be set for readinessProbes`}},
		{"init probe", func(p *corev1.Pod) { p.Spec.InitContainers[0].StartupProbe = &corev1.Probe{} }, []string{
			`spec.initContainers[0].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always`}},
		{"restart rules", func(p *corev1.Pod) {
			main0(p).RestartPolicyRules = []corev1.ContainerRestartRule{{Action: "Leave"}}
		}, []string{
			`spec.containers[0].restartPolicy: Required value: must specify restartPolicy when restart rules are used`,
			`spec.containers[0].restartPolicyRules[0].action: Unsupported value: "Leave": supported values: "Restart", "RestartAllContainers"`,
			`spec.containers[0].restartPolicyRules[0].exitCodes: Required value: must be specified`}},
		{"sleep", func(p *corev1.Pod) {
			main0(p).Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 31}}}
		}, []string{`spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)`}},
	})
}

func TestCreateVolumes(t *testing.T) {
	runCreate(t, []createCase{
		{"two types", func(p *corev1.Pod) { p.Spec.Volumes[1].HostPath = &corev1.HostPathVolumeSource{Path: "/x"} }, []string{
			`spec.volumes[1].configMap: Forbidden: may not specify more than 1 volume type`}},
		{"twice", func(p *corev1.Pod) { p.Spec.Volumes[1].Name = "tmp" }, []string{`spec.volumes[1].name: Duplicate value: "tmp"`}},
		{"path", func(p *corev1.Pod) {
			p.Spec.Volumes[1].ConfigMap.Items = []corev1.KeyToPath{{Key: "a", Path: "../b"}, {Path: "/c", Mode: new(int32(0o1000))}, {Key: "d", Path: "..e"}}
		}, []string{
			`spec.volumes[1].configMap.items[0].path: Invalid value: "../b": must not contain '..'`,
			`spec.volumes[1].configMap.items[1].key: Required value`,
			`spec.volumes[1].configMap.items[1].path: Invalid value: "/c": must be a relative path`,
			`spec.volumes[1].configMap.items[1].mode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive`,
			`spec.volumes[1].configMap.items[2].path: Invalid value: "..e": must not start with '..'`}},
		{"host path type", func(p *corev1.Pod) {
			p.Spec.Volumes[1].VolumeSource = corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/x", Type: new(corev1.HostPathType("Pipe"))}}
		}, []string{
			`spec.volumes[1].hostPath.type: Unsupported value: "Pipe": supported values: "", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"`}},
		{"projected", func(p *corev1.Pod) {
			p.Spec.Volumes[1].VolumeSource = corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{ExpirationSeconds: new(int64(5)), Path: "t"}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}, Items: []corev1.KeyToPath{{Key: "a", Path: "x"}, {Key: "b", Path: "x"}}}},
			}}}
		}, []string{
			`spec.volumes[1].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes`,
			`spec.volumes[1].projected: Invalid value: "c": conflicting duplicate paths`,
			`spec.volumes[1].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set`}},
		{"mounts", func(p *corev1.Pod) {
			main0(p).VolumeMounts = []corev1.VolumeMount{{Name: "none", MountPath: "/a"}, {Name: "tmp", MountPath: "/a", SubPath: "../x"},
				{Name: "cfg", MountPath: "/c", RecursiveReadOnly: new(corev1.RecursiveReadOnlyEnabled), MountPropagation: new(corev1.MountPropagationBidirectional)}}
		}, []string{
			`spec.containers[0].volumeMounts[0].name: Not found: "none"`,
			`spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/a": must be unique`,
			`spec.containers[0].volumeMounts.subPath: Invalid value: "../x": must not contain '..'`,
			`spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers`,
			`spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true`,
			`spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when mountPropagation is None or not specified`}},
		{"devices", func(p *corev1.Pod) {
			main0(p).VolumeDevices = []corev1.VolumeDevice{{Name: "cfg", DevicePath: "/x/../y"}}
		}, []string{
			`spec.containers[0].volumeDevices[0].name: Invalid value: "cfg": can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode`,
			`spec.containers[0].volumeDevices[0].devicePath: Invalid value: "/x/../y": can not contain backsteps ('..')`}},
	})
}

func TestCreateResources(t *testing.T) {
	runCreate(t, []createCase{
		{"more than the limit", func(p *corev1.Pod) {
			main0(p).Resources = corev1.ResourceRequirements{Limits: quantities("cpu", "1"), Requests: quantities("cpu", "2", "example.com/x", "1")}
		}, []string{
			`spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`,
			`spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources`}},
		{"names", func(p *corev1.Pod) { main0(p).Resources.Limits = quantities("pods", "1", "what", "1", "cpu", "-1") }, []string{
			`spec.containers[0].resources.limits[cpu]: Invalid value: "-1": must be greater than or equal to 0`,
			`spec.containers[0].resources.limits[pods]: Invalid value: "pods": must be a standard resource for containers`,
			`spec.containers[0].resources.limits[what]: Invalid value: "what": must be a standard resource type or fully qualified`,
			`spec.containers[0].resources.limits[what]: Invalid value: "what": must be a standard resource for containers`,
			`spec.containers[0].resources.requests[cpu]: Invalid value: "-1": must be greater than or equal to 0`,
			`spec.containers[0].resources.requests[pods]: Invalid value: "pods": must be a standard resource for containers`,
			`spec.containers[0].resources.requests[what]: Invalid value: "what": must be a standard resource type or fully qualified`,
			`spec.containers[0].resources.requests[what]: Invalid value: "what": must be a standard resource for containers`}},
		{"huge pages", func(p *corev1.Pod) { main0(p).Resources.Limits = quantities("hugepages-2Mi", "3Mi") }, []string{
			`spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi`,
			`spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi`,
			`spec.containers[0].resources: Forbidden: HugePages require cpu or memory`}},
		{"of the pod", func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: quantities("cpu", "1"), Limits: quantities("cpu", "1")}
			main0(p).Resources = corev1.ResourceRequirements{Requests: quantities("cpu", "2"), Limits: quantities("cpu", "2")}
		}, []string{
			`spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 2`,
			`spec.resources.containers[0][cpu].limits: Invalid value: "2": must be less than or equal to pod limits of 1`}},
		{"claims", func(p *corev1.Pod) { main0(p).Resources.Claims = []corev1.ResourceClaim{{Name: "g"}} }, []string{
			`spec.containers[0].resources.claims[0]: Not found: "g": must be one of the names in pod.spec.resourceClaims which is empty`}},
	})
}

func TestCreateSecurity(t *testing.T) {
	runCreate(t, []createCase{
		{"escalation", func(p *corev1.Pod) {
			main0(p).SecurityContext = &corev1.SecurityContext{Privileged: new(true), AllowPrivilegeEscalation: new(false)}
		}, []string{
			"spec.containers[0].securityContext: Invalid value: {\"Capabilities\":null,\"Privileged\":true,\"SELinuxOptions\":null,\"WindowsOptions\":null,\"RunAsUser\":null,\"RunAsGroup\":null,\"RunAsNonRoot\":null,\"ReadOnlyRootFilesystem\":null,\"AllowPrivilegeEscalation\":false,\"ProcMount\":null,\"SeccompProfile\":null,\"AppArmorProfile\":null}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true"}},
		{"seccomp", func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: "Odd", LocalhostProfile: new("x")}}
		}, []string{
			`spec.securityContext.seccompProfile.type: Unsupported value: "Odd": supported values: "Localhost", "RuntimeDefault", "Unconfined"`,
			`spec.securityContext.seccompProfile.localhostProfile: Invalid value: {"Type":"Odd","LocalhostProfile":"x"}: can only be set when seccomp type is Localhost`}},
		{"sysctls", func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "net.ipv4.x"}, {Name: "A"}, {Name: "kernel.shmall"}, {Name: "kernel.shmall"}}}
		}, []string{
			`spec.securityContext.sysctls[0].name: Invalid value: "net.ipv4.x": may not be specified when 'hostNetwork' is true`,
			`spec.securityContext.sysctls[1].name: Invalid value: "A": must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`,
			`spec.securityContext.sysctls[3].name: Duplicate value: "kernel.shmall"`}},
		{"windows on linux", func(p *corev1.Pod) {
			p.Spec.OS = &corev1.PodOS{Name: corev1.Linux}
			main0(p).SecurityContext = &corev1.SecurityContext{WindowsOptions: &corev1.WindowsSecurityContextOptions{}}
		}, []string{`spec.containers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a linux pod`}},
		{"users", func(p *corev1.Pod) { p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: new(int64(-1))} }, []string{
			`spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive`}},
	})
}

func TestCreateAffinity(t *testing.T) {
	runCreate(t, []createCase{
		{"node terms", func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "k", Operator: "In"}, {Key: "k", Operator: "Near"}},
					MatchFields:      []corev1.NodeSelectorRequirement{{Key: "spec.x", Operator: "In", Values: []string{"a"}}}}}},
				PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 101}}}}
		}, []string{
			"spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
			`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].operator: Invalid value: "Near": not a valid selector operator`,
			`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].key: Invalid value: "spec.x": not a valid field selector key`,
			`spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100`}},
		{"pod terms", func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{
				RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{MatchLabelKeys: []string{"a"}}}}}
		}, []string{
			`spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not set`,
			`spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty`,
			`spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must be non-empty`,
			`spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Invalid value: "": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`}},
		{"spread", func(p *corev1.Pod) {
			p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{
				{TopologyKey: "z", WhenUnsatisfiable: corev1.ScheduleAnyway, MinDomains: new(int32(1))}, {MaxSkew: 1, TopologyKey: "z", WhenUnsatisfiable: corev1.ScheduleAnyway}}
		}, []string{
			`spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero`,
			`spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: "{z, ScheduleAnyway}"`,
			`spec.topologySpreadConstraints[0].minDomains: Invalid value: 1: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway`}},
	})
}
