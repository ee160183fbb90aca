package pod

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"skiff/internal/api/resource"
)

// stored is a valid pod as the store holds it.
func stored(change ...func(*corev1.Pod)) *corev1.Pod {
	p := testPod()
	p.UID, p.ResourceVersion = "u1", "7"
	p = created(p)
	for _, f := range change {
		f(p)
	}
	return p
}

type updateCase struct {
	name string
	old  func(*corev1.Pod)
	set  func(*corev1.Pod)
	want []string
	// generation of the pod after the write; 1 where nothing is said.
	generation int64
}

// runUpdates writes through a door and checks what is refused; the old pod may
// not change by it.
func runUpdates(t *testing.T, s resource.Strategy, cases []updateCase) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			old := stored()
			if c.old != nil {
				c.old(old)
			}
			before := old.DeepCopy()
			p := old.DeepCopy()
			c.set(p)
			setDefaults(p)
			s.PrepareUpdate(testEnv(), p, old)
			same(t, texts(s.ValidateUpdate(testEnv(), p, old)), c.want)
			if want := max(c.generation, 1); p.Generation != want {
				t.Errorf("generation %d, want %d", p.Generation, want)
			}
			if !equal(before, old) {
				t.Error("the old pod changed")
			}
		})
	}
}

func door(name string) resource.Strategy { return *Pod().Subresource(name).Status }

func TestUpdate(t *testing.T) {
	runUpdates(t, Pod().Strategy, []updateCase{
		{name: "nothing", set: func(*corev1.Pod) {}},
		{name: "image", set: func(p *corev1.Pod) { main0(p).Image = "nginx:2" }, generation: 2},
		{name: "labels", set: func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }},
		{name: "status", set: func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }},
		{name: "more containers", set: func(p *corev1.Pod) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "c", Image: "x"})
		}, want: []string{`spec.containers: Forbidden: pod updates may not add or remove containers`}, generation: 2},
		{name: "node", set: func(p *corev1.Pod) { p.Spec.NodeName = "n1" }, generation: 2, want: []string{
			"spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n" +
				"@@ -194,7 +194,7 @@\n  \"ServiceAccountName\": \"\",\n  \"DeprecatedServiceAccount\": \"\",\n  \"AutomountServiceAccountToken\": null,\n- \"NodeName\": \"\",\n+ \"NodeName\": \"n1\",\n  \"HostNetwork\": false,\n  \"HostPID\": false,\n  \"HostIPC\": false,\n"}},
		{name: "deadline", old: func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(5)) },
			set: func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = new(int64(6)) }, generation: 2,
			want: []string{`spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value`}},
		{name: "toleration added", set: func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: "Exists"}} }, generation: 2},
		{name: "toleration gone", old: func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: "Exists"}} },
			set: func(p *corev1.Pod) { p.Spec.Tolerations = nil }, generation: 2,
			want: []string{`spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds`}},
		{name: "gate added", set: func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }, generation: 2,
			want: []string{`spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'`}},
		{name: "narrower while gated", old: func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} },
			set: func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"a": "b"} }, generation: 2},
		{name: "wider while gated", old: func(p *corev1.Pod) {
			p.Spec.SchedulingGates, p.Spec.NodeSelector = []corev1.PodSchedulingGate{{Name: "g"}}, map[string]string{"a": "b"}
		}, set: func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"c": "d"} }, generation: 2,
			want: []string{`spec.nodeSelector: Invalid value: {"c":"d"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)`}},
		{name: "apparmor annotation", set: func(p *corev1.Pod) { p.Annotations = map[string]string{appArmorContainer + "main": "unconfined"} },
			want: []string{`metadata.annotations[container.apparmor.security.beta.kubernetes.io/main]: Forbidden: may not add AppArmor annotations`}},
	})
}

func TestUpdateKeepsWhatWasAllowed(t *testing.T) {
	runUpdates(t, Pod().Strategy, []updateCase{
		{name: "deletion cost", old: func(p *corev1.Pod) { p.Annotations = map[string]string{deletionCost: "x"} },
			set: func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }},
		{name: "huge pages", old: func(p *corev1.Pod) {
			main0(p).Resources = corev1.ResourceRequirements{Limits: quantities("hugepages-2Mi", "3Mi", "cpu", "1"), Requests: quantities("hugepages-2Mi", "3Mi", "cpu", "1")}
		}, set: func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }},
		{name: "disabled field", old: func(p *corev1.Pod) { p.Spec.Volumes[0].EmptyDir.Mode = new(int32(0o700)) },
			set: func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"} }},
	})
}

func TestStatusDoor(t *testing.T) {
	ended := func(p *corev1.Pod) {
		p.Spec.RestartPolicy = corev1.RestartPolicyNever
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}}
	}
	runUpdates(t, door("status"), []updateCase{
		{name: "spec is not for this door", set: func(p *corev1.Pod) { p.Spec.NodeName = "n1"; p.OwnerReferences = []metav1.OwnerReference{{Name: "x"}} }},
		{name: "started again", old: ended, set: func(p *corev1.Pod) {
			p.Status.ContainerStatuses[0].State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
		}, want: []string{`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`}},
		{name: "addresses", set: func(p *corev1.Pod) {
			p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "10.0.0.2"}}
			p.Status.HostIPs = []corev1.HostIP{{IP: "010.0.0.1"}}
		}, want: []string{
			`status.podIPs: Invalid value: [{"IP":"10.0.0.1"},{"IP":"10.0.0.2"}]: may specify no more than one IP for each IP family`,
			"status.hostIPs[0].ip: Invalid value: \"010.0.0.1\": must be equal to `hostIP`",
			`status.hostIPs[0]: Invalid value: "010.0.0.1": must not have leading 0s`}},
		{name: "nominated node", old: func(p *corev1.Pod) { p.Spec.NodeName = "n1" }, set: func(p *corev1.Pod) { p.Status.NominatedNodeName = "N" }, want: []string{
			`status.nominatedNodeName: Invalid value: "N": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`,
			`status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node`}},
		{name: "class", set: func(p *corev1.Pod) { p.Status.QOSClass = corev1.PodQOSGuaranteed },
			want: []string{`status.qosClass: Invalid value: "Guaranteed": field is immutable`}},
		{name: "condition type", set: func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: "a b", ObservedGeneration: -1}}
		}, want: []string{
			`status.conditions[0].observedGeneration: Invalid value: -1: must be a non-negative integer`,
			`status.conditions[0].Type: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`}},
	})
}

func TestStatusKeepsObservedGenerations(t *testing.T) {
	old := stored(func(p *corev1.Pod) {
		p.Status.ObservedGeneration = 4
		p.Status.Conditions = []corev1.PodCondition{{Type: "A", ObservedGeneration: 2}, {Type: "A", ObservedGeneration: 3}}
	})
	p := stored(func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: "A"}, {Type: "A"}, {Type: "B"}}
	})
	door("status").PrepareUpdate(testEnv(), p, old)
	if p.Status.ObservedGeneration != 4 || p.Status.Conditions[0].ObservedGeneration != 2 || p.Status.Conditions[1].ObservedGeneration != 3 || p.Status.Conditions[2].ObservedGeneration != 0 {
		t.Errorf("got %d %+v", p.Status.ObservedGeneration, p.Status.Conditions)
	}
}

func TestResizeDoor(t *testing.T) {
	sized := func(p *corev1.Pod) {
		main0(p).Resources = corev1.ResourceRequirements{Requests: quantities("cpu", "1", "ephemeral-storage", "1Gi")}
		p.Status.QOSClass = corev1.PodQOSBurstable
	}
	runUpdates(t, door("resize"), []updateCase{
		{name: "cpu", old: sized, set: func(p *corev1.Pod) { main0(p).Resources.Requests["cpu"] = quantities("cpu", "2")["cpu"] }, generation: 2},
		{name: "image is not for this door", old: sized, set: func(p *corev1.Pod) { main0(p).Image = "other" }},
		{name: "other resource", old: sized, set: func(p *corev1.Pod) {
			main0(p).Resources.Requests["ephemeral-storage"] = quantities("x", "2Gi")["x"]
		}, want: []string{`spec: Forbidden: only cpu and memory resources are mutable`}, generation: 2},
		{name: "removed", old: sized, set: func(p *corev1.Pod) { delete(main0(p).Resources.Requests, "cpu") }, want: []string{
			`spec: Invalid value: "Burstable": Pod QOS Class may not change as a result of resizing`,
			`spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed`}, generation: 2},
		{name: "renamed", old: sized, set: func(p *corev1.Pod) { main0(p).Name = "other" }, want: []string{
			`spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize`}, generation: 2},
		{name: "static", old: func(p *corev1.Pod) { p.Annotations = map[string]string{mirrorAnnotation: "x"} }, set: func(*corev1.Pod) {}, want: []string{
			`[]: Forbidden: static pods cannot be resized`}},
	})
}

func TestEphemeralContainersDoor(t *testing.T) {
	add := func(p *corev1.Pod) {
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, corev1.EphemeralContainer{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "dbg", Image: "x"}, TargetContainerName: "main"})
		setDefaults(p)
	}
	runUpdates(t, door("ephemeralcontainers"), []updateCase{
		{name: "added", set: add, generation: 2},
		{name: "image is not for this door", set: func(p *corev1.Pod) { main0(p).Image = "other" }},
		{name: "removed", old: add, set: func(p *corev1.Pod) { p.Spec.EphemeralContainers = nil }, generation: 2,
			want: []string{"spec.ephemeralContainers: Forbidden: existing ephemeral containers \"dbg\" may not be removed\n"}},
		{name: "field and target", set: func(p *corev1.Pod) {
			add(p)
			e := &p.Spec.EphemeralContainers[0]
			e.TargetContainerName, e.Ports = "none", []corev1.ContainerPort{{ContainerPort: 1}}
		}, generation: 2, want: []string{
			`spec.ephemeralContainers[0].targetContainerName: Not found: "none"`,
			`spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container`}},
	})
}

func TestGrace(t *testing.T) {
	running := func(p *corev1.Pod) { p.Spec.NodeName = "n1"; p.Status.Phase = corev1.PodRunning }
	for _, c := range []struct {
		name string
		pod  *corev1.Pod
		ask  *int64
		want int64
	}{
		{"own", stored(running), nil, 30},
		{"asked", stored(running), new(int64(5)), 5},
		{"negative", stored(running), new(int64(-5)), 1},
		{"on no node", stored(), nil, 0},
		{"ended", stored(running, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), nil, 0},
	} {
		o := &metav1.DeleteOptions{GracePeriodSeconds: c.ask}
		if !grace(testEnv(), c.pod, o) || *o.GracePeriodSeconds != c.want {
			t.Errorf("%s: %d, want %d", c.name, *o.GracePeriodSeconds, c.want)
		}
	}
}

// onePod are the writes to one pod.
type onePod struct{ pod *corev1.Pod }

func (o *onePod) Get(context.Context, string, string) (resource.Object, error) { return o.pod, nil }

func (o *onePod) Mutate(_ context.Context, _, _ string, dry bool, change func(resource.Object) error) (resource.Object, error) {
	p := o.pod.DeepCopy()
	if err := change(p); err != nil {
		return nil, err
	}
	if !dry {
		o.pod = p
	}
	return p, nil
}

func TestBinding(t *testing.T) {
	ok := func() *corev1.Binding {
		return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{"a": "b"}, Labels: map[string]string{"zone": "z"}},
			Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}
	}
	for _, c := range []struct {
		name string
		old  func(*corev1.Pod)
		set  func(*corev1.Binding)
		want string
		code int32
	}{
		{name: "bound"},
		{name: "twice", old: func(p *corev1.Pod) { p.Spec.NodeName = "n0" }, code: 409,
			want: `Operation cannot be fulfilled on pods/binding "web": pod web is already assigned to node "n0"`},
		{name: "deleted", old: func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: testNow} }, code: 409,
			want: `Operation cannot be fulfilled on pods/binding "web": pod web is being deleted, cannot be assigned to a host`},
		{name: "gated", old: func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "g"}} }, code: 409,
			want: `Operation cannot be fulfilled on pods/binding "web": pod web has non-empty .spec.schedulingGates`},
		{name: "another pod", set: func(b *corev1.Binding) { b.UID = "u2" }, code: 409,
			want: `Operation cannot be fulfilled on pods "web": StorageError: invalid object, Code: 4, Key: /registry/pods/default/web, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: u2, UID in object meta: u1`},
		{name: "no node", set: func(b *corev1.Binding) { b.Target = corev1.ObjectReference{Kind: "Pod"} }, code: 500,
			want: `[target.kind: Unsupported value: "Pod": supported values: "Node", "<empty>", target.name: Required value]`},
		{name: "name", set: func(b *corev1.Binding) { b.Name = "x" }, code: 400, want: `name in URL does not match name in Binding object`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ops, b := &onePod{stored()}, ok()
			if c.old != nil {
				c.old(ops.pod)
			}
			if c.set != nil {
				c.set(b)
			}
			_, err := bind(t.Context(), testEnv(), ops, "default", "web", b, metav1.CreateOptions{})
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				p := ops.pod
				_, cond := condition(&p.Status, corev1.PodScheduled)
				if p.Spec.NodeName != "n1" || cond == nil || cond.Status != corev1.ConditionTrue || p.Annotations["a"] != "b" || p.Labels["zone"] != "z" {
					t.Errorf("bound pod is %+v", p)
				}
				return
			}
			status, ok := err.(apierrors.APIStatus)
			if !ok || status.Status().Code != c.code || err.Error() != c.want {
				t.Errorf("got %v, want %d %s", err, c.code, c.want)
			}
			if ops.pod.Spec.NodeName == "n1" {
				t.Error("bound all the same")
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	p := testPod()
	p.Spec.HostNetwork = true
	p.Spec.DeprecatedServiceAccount = "sa"
	p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "any"})
	main0(p).Ports = []corev1.ContainerPort{{ContainerPort: 80}}
	main0(p).Resources.Limits = quantities("cpu", "0.0001")
	main0(p).LivenessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{}}}
	setDefaults(p)
	again := p.DeepCopy()
	setDefaults(again)
	if !equal(p, again) {
		t.Error("defaults are not idempotent")
	}
	s, m := p.Spec, main0(p)
	request := m.Resources.Requests["cpu"]
	for what, ok := range map[string]bool{
		"spec": s.RestartPolicy == corev1.RestartPolicyAlways && s.DNSPolicy == corev1.DNSClusterFirst && s.SchedulerName == "default-scheduler" &&
			*s.TerminationGracePeriodSeconds == 30 && *s.EnableServiceLinks && s.SecurityContext != nil,
		"service account": s.ServiceAccountName == "sa",
		"volumes":         s.Volumes[2].EmptyDir != nil && *s.Volumes[1].ConfigMap.DefaultMode == 0o644,
		"container":       m.ImagePullPolicy == corev1.PullAlways && m.TerminationMessagePath == "/dev/termination-log" && m.TerminationMessagePolicy == corev1.TerminationMessageReadFile,
		"tagged image":    s.Containers[1].ImagePullPolicy == corev1.PullIfNotPresent,
		"port":            m.Ports[0].HostPort == 80 && m.Ports[0].Protocol == corev1.ProtocolTCP,
		"requests":        request.String() == "1m",
		"probe":           m.LivenessProbe.PeriodSeconds == 10 && m.LivenessProbe.TimeoutSeconds == 1 && m.LivenessProbe.HTTPGet.Path == "/",
	} {
		if !ok {
			t.Errorf("%s: %+v", what, p)
		}
	}
}

func TestImageTag(t *testing.T) {
	digest := "@sha256:" + strings.Repeat("0", 64)
	for image, want := range map[string]string{
		"nginx": "latest", "nginx:1": "1", "nginx:latest": "latest", "a/b": "latest", "localhost/a:2": "2", "reg:5000/a": "latest",
		"nginx" + digest: "", "nginx:1" + digest: "1", "Nginx": "", "UPPER/a": "latest", "": "", strings.Repeat("a", 64): "",
		"nginx@sha256:00": "", "a//b": "", "docker.io/a": "latest",
	} {
		if got := imageTag(image); got != want {
			t.Errorf("%q: %q, want %q", image, got, want)
		}
	}
}

func TestDisabledFieldsAreDropped(t *testing.T) {
	p := testPod()
	p.Spec.EvictionResponders = []corev1.EvictionResponder{{}}
	p.Spec.Volumes[0].EmptyDir.Mode = new(int32(1))
	p.Spec.Volumes[1].ConfigMap.DefaultUser = new(int64(1))
	main0(p).VolumeMounts[0].BindMountOptions = []string{"noexec"}
	main0(p).Lifecycle = &corev1.Lifecycle{StopSignal: new(corev1.SIGTERM)}
	created(p)
	if p.Spec.EvictionResponders != nil || p.Spec.Volumes[0].EmptyDir.Mode != nil || p.Spec.Volumes[1].ConfigMap.DefaultUser != nil ||
		main0(p).VolumeMounts[0].BindMountOptions != nil || main0(p).Lifecycle != nil {
		t.Errorf("left: %+v", p.Spec)
	}
}

func TestWarnings(t *testing.T) {
	p := testPod()
	p.Name = "web.x"
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "a"}, {Name: "a"}}
	main0(p).Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "$(A)2"}, {Name: "A", Value: "3"}}
	main0(p).Ports = []corev1.ContainerPort{{Name: "p", ContainerPort: 80}}
	p.Spec.Containers[1].Ports = []corev1.ContainerPort{{Name: "p", ContainerPort: 80}}
	p.Spec.NodeSelector = map[string]string{"beta.kubernetes.io/os": "linux"}
	p.Spec.Volumes[1].ConfigMap.Items = []corev1.KeyToPath{{Key: "a", Path: "x"}, {Key: "b", Path: "x/y"}}
	created(p)
	same(t, warnings(testEnv(), p, nil), []string{
		`metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [must not contain dots]`,
		`spec.nodeSelector[beta.kubernetes.io/os]: deprecated since v1.14; use "kubernetes.io/os" instead`,
		`volume "cfg" (ConfigMap "cfg"): overlapping paths: "x/y" with "x"`,
		`spec.imagePullSecrets[1].name: duplicate name "a"`,
		`spec.containers[0].env[2]: hides previous definition of "A", which may be dropped when using apply`,
		`spec.containers[1].ports[0]: duplicate port definition with spec.containers[0].ports[0]`,
		`spec.containers[1].ports[0]: duplicate port name "p" with spec.containers[0].ports[0], services and probes that select ports by name will use spec.containers[0].ports[0]`,
	})
	if w := warnings(testEnv(), p, p); w != nil {
		t.Errorf("an update warns: %v", w)
	}
}

func TestAppArmorAnnotationBecomesField(t *testing.T) {
	var warned []string
	env := testEnv()
	env.Warn = func(s string) { warned = append(warned, s) }
	p := testPod()
	p.Annotations = map[string]string{appArmorContainer + "main": "localhost/p", appArmorContainer + "side": "bad"}
	setDefaults(p)
	prepareCreate(env, p)
	if a := main0(p).SecurityContext.AppArmorProfile; a == nil || *a.LocalhostProfile != "p" || p.Spec.Containers[1].SecurityContext != nil {
		t.Errorf("got %+v", p.Spec.Containers)
	}
	same(t, warned, []string{
		`metadata.annotations[container.apparmor.security.beta.kubernetes.io/main]: deprecated since v1.30; use the "appArmorProfile" field instead`,
		`metadata.annotations[container.apparmor.security.beta.kubernetes.io/side]: deprecated since v1.30; use the "appArmorProfile" field instead`,
	})
}

func TestRow(t *testing.T) {
	ended := func(code int32, reason string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}}
	}
	waiting := func(reason string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	for _, c := range []struct {
		name          string
		set           func(*corev1.Pod)
		ready, status string
	}{
		{"pending", func(*corev1.Pod) {}, "0/2", "Pending"},
		{"gated", func(p *corev1.Pod) {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: "SchedulingGated"}}
		}, "0/2", "SchedulingGated"},
		{"init", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", State: running}}
		}, "0/2", "Init:0/1"},
		{"init failed", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", State: ended(3, "")}}
		}, "0/2", "Init:ExitCode:3"},
		{"init crashes", func(p *corev1.Pod) {
			p.Status.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", State: waiting("CrashLoopBackOff")}}
		}, "0/2", "Init:CrashLoopBackOff"},
		{"running", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Ready: true, State: running}, {Name: "side", Ready: true, State: running}}
		}, "2/2", "Running"},
		{"crashing", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: waiting("CrashLoopBackOff")}, {Name: "side", Ready: true, State: running}}
		}, "1/2", "CrashLoopBackOff"},
		{"completed", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: ended(0, "Completed")}, {Name: "side", State: ended(0, "Completed")}}
		}, "0/2", "Completed"},
		{"half completed", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: ended(0, "Completed")}, {Name: "side", Ready: true, State: running}}
		}, "1/2", "NotReady"},
		{"failed", func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodFailed
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", State: ended(2, "")}}
		}, "0/2", "ExitCode:2"},
		{"terminating", func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: testNow} }, "0/2", "Terminating"},
		{"node lost", func(p *corev1.Pod) {
			p.DeletionTimestamp, p.Status.Reason = &metav1.Time{Time: testNow}, "NodeLost"
		}, "0/2", "Unknown"},
	} {
		p := stored(c.set)
		cells := row(p, testNow)
		if cells[1] != c.ready || cells[2] != c.status {
			t.Errorf("%s: %v, want %s %s", c.name, cells, c.ready, c.status)
		}
	}
}

func TestRowRestartsAndWide(t *testing.T) {
	p := stored(func(p *corev1.Pod) {
		p.CreationTimestamp = metav1.NewTime(testNow.Add(-time.Hour))
		p.Spec.NodeName, p.Spec.ReadinessGates = "n1", []corev1.PodReadinessGate{{ConditionType: "a"}, {ConditionType: "b"}}
		p.Status.Phase = corev1.PodRunning
		p.Status.PodIPs = []corev1.PodIP{{IP: "10.0.0.1"}}
		p.Status.Conditions = []corev1.PodCondition{{Type: "a", Status: corev1.ConditionTrue}}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "main", Ready: true, RestartCount: 3, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(testNow.Add(-5 * time.Minute))}}}}
	})
	want := []any{"web", "1/2", "Running", "3 (5m ago)", "60m", "10.0.0.1", "n1", "<none>", "1/2"}
	got := row(p, testNow)
	if len(got) != len(columns()) {
		t.Fatalf("%d cells for %d columns", len(got), len(columns()))
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("cell %d is %v, want %v", i, got[i], want[i])
		}
	}
}
