package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/api/runpod"
	"skiff/internal/cri"
)

func (k *Kubelet) podDir(uid types.UID) string { return k.d.Host.Data("kubelet", "pods", string(uid)) }

func (k *Kubelet) podLogDir(ns, name string, uid types.UID) string {
	return filepath.Join(k.d.PodLogDir, ns+"_"+name+"_"+string(uid))
}

func (k *Kubelet) containerLogDir(pod *corev1.Pod, name string) string {
	return filepath.Join(k.podLogDir(pod.Namespace, pod.Name, pod.UID), name)
}

// removePodDirs removes what a pod that is gone left on the disk.
func (k *Kubelet) removePodDirs(pod *corev1.Pod) {
	if err := os.RemoveAll(k.podDir(pod.UID)); err != nil {
		k.d.Log.Warn("remove pod directory", "pod", pod.Name, "ns", pod.Namespace, "err", err)
	}
	if pod.Name == "" {
		return
	}
	if err := os.RemoveAll(k.podLogDir(pod.Namespace, pod.Name, pod.UID)); err != nil {
		k.d.Log.Warn("remove pod logs", "pod", pod.Name, "ns", pod.Namespace, "err", err)
	}
}

func labels(pod *corev1.Pod) map[string]string {
	return map[string]string{
		labelPodName: pod.Name, labelPodNamespace: pod.Namespace, labelPodUID: string(pod.UID),
	}
}

// cgroupError is what keeps a pod from having its cgroup.
type cgroupError struct{ error }

func (e *cgroupError) Unwrap() error { return e.error }

// sandboxConfig is the CRI form of a pod.
func (w *worker) sandboxConfig(ctx context.Context, pod *corev1.Pod, attempt uint32) (*runtimeapi.PodSandboxConfig, error) {
	l := labels(pod)
	for k, v := range pod.Labels {
		if _, ok := l[k]; !ok {
			l[k] = v
		}
	}
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Labels:       l,
		Annotations:  pod.Annotations,
		LogDirectory: w.k.podLogDir(pod.Namespace, pod.Name, pod.UID),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
	if noNetwork(pod) {
		if w.k.runtimeName != ownRuntime {
			return nil, fmt.Errorf("annotation %s: this node's container runtime, %s, cannot withhold the network", runpod.AnnotationNetwork, w.k.runtimeName)
		}
		c.Annotations = maps.Clone(c.Annotations)
		c.Annotations[cri.AnnotationNetwork] = cri.NetworkNone
	}
	var err error
	if c.DnsConfig, err = w.k.podDNS(pod); err != nil {
		return nil, err
	}
	if !hostNetwork(pod) {
		if c.Hostname, _, err = w.k.podHostname(pod); err != nil {
			return nil, err
		}
	}
	for i := range pod.Spec.Containers {
		for _, p := range pod.Spec.Containers[i].Ports {
			c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{
				HostIp: p.HostIP, HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: criProtocol(p.Protocol),
			})
		}
	}
	if w.k.d.Cgroups != nil {
		if c.Linux.CgroupParent, err = w.k.d.Cgroups.Ensure(pod); err != nil {
			return nil, &cgroupError{err}
		}
	}
	users, err := w.userNamespace(ctx, pod)
	if err != nil {
		return nil, err
	}
	sandboxSecurity(pod, users, c.Linux)
	c.Linux.Resources, c.Linux.Overhead = w.k.sandboxResources(pod)
	return c, nil
}

func criProtocol(p corev1.Protocol) runtimeapi.Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return runtimeapi.Protocol_UDP
	case corev1.ProtocolSCTP:
		return runtimeapi.Protocol_SCTP
	}
	return runtimeapi.Protocol_TCP
}

// containerConfig is the CRI form of a container that is to be made.
func (w *worker) containerConfig(ctx context.Context, pod *corev1.Pod, o *observed, s start, restarts int, imageRef string, images map[string]*runtimeapi.ImageSpec, ips []string) (*runtimeapi.ContainerConfig, error) {
	c := s.container
	env, err := w.environment(ctx, pod, c, ips)
	if err != nil {
		return nil, err
	}
	uid, user, err := w.k.imageUser(ctx, c.Image)
	if err != nil {
		return nil, err
	}
	if err := verifyNonRoot(pod, c, uid, user); err != nil {
		return nil, err
	}
	mounts, err := w.mounts(ctx, pod, c, env, images, ips)
	if err != nil {
		return nil, err
	}
	logDir := w.k.containerLogDir(pod, c.Name)
	if err := os.MkdirAll(logDir, 0o755); err != nil {
		return nil, fmt.Errorf("create container log directory for container %s failed: %w", c.Name, err)
	}
	users, err := w.userNamespace(ctx, pod)
	if err != nil {
		return nil, err
	}
	security, err := containerSecurity(pod, users, c, uid, user)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		m.UidMappings, m.GidMappings = users.Uids, users.Gids
	}
	if s.ephemeral != nil && s.ephemeral.TargetContainerName != "" {
		t := o.latest(s.ephemeral.TargetContainerName)
		if t == nil {
			return nil, fmt.Errorf("unable to find target container %v", s.ephemeral.TargetContainerName)
		}
		if security.NamespaceOptions.Pid == runtimeapi.NamespaceMode_CONTAINER {
			security.NamespaceOptions.Pid, security.NamespaceOptions.TargetId = runtimeapi.NamespaceMode_TARGET, t.id
		}
	}
	l := labels(pod)
	l[labelContainerName] = c.Name
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(restarts)},
		Image:       &runtimeapi.ImageSpec{Image: imageRef, UserSpecifiedImage: c.Image},
		WorkingDir:  c.WorkingDir,
		Labels:      l,
		Annotations: containerAnnotations(pod, c, restarts),
		Mounts:      mounts,
		LogPath:     filepath.Join(c.Name, strconv.Itoa(restarts)+".log"),
		Stdin:       c.Stdin, StdinOnce: c.StdinOnce, Tty: c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{Resources: w.k.containerResources(pod, c), SecurityContext: security},
	}
	w.keepFiles(pod, o, s, config.Annotations)
	cdi, err := w.k.devices.CDI(pod, c)
	if err != nil {
		return nil, err
	}
	for _, name := range cdi {
		config.CDIDevices = append(config.CDIDevices, &runtimeapi.CDIDevice{Name: name})
	}
	vars := map[string]string{}
	for _, e := range env {
		vars[e.Name] = e.Value
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: e.Name, Value: []byte(e.Value)})
	}
	for _, v := range c.Command {
		config.Command = append(config.Command, expand(v, vars))
	}
	for _, v := range c.Args {
		config.Args = append(config.Args, expand(v, vars))
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if n, ok := runtimeapi.Signal_value[string(*c.Lifecycle.StopSignal)]; ok {
			config.StopSignal = runtimeapi.Signal(n)
		}
	}
	return config, nil
}

func containerAnnotations(pod *corev1.Pod, c *corev1.Container, restarts int) map[string]string {
	a := map[string]string{
		annotationHash:          strconv.FormatUint(containerHash(c), 16),
		annotationRestartCount:  strconv.Itoa(restarts),
		annotationMessagePath:   c.TerminationMessagePath,
		annotationMessagePolicy: string(c.TerminationMessagePolicy),
	}
	if g := pod.DeletionGracePeriodSeconds; g != nil {
		a[annotationDeletionGrace] = strconv.FormatInt(*g, 10)
	}
	if g := pod.Spec.TerminationGracePeriodSeconds; g != nil {
		a[annotationTerminationGrace] = strconv.FormatInt(*g, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		if b, err := json.Marshal(c.Lifecycle.PreStop); err == nil {
			a[annotationPreStop] = string(b)
		}
	}
	if made := annotated(c); made != nil {
		if b, err := json.Marshal(made); err == nil {
			a[annotationResources] = string(b)
		}
	}
	if len(c.Ports) > 0 {
		if b, err := json.Marshal(c.Ports); err == nil {
			a[annotationPorts] = string(b)
		}
	}
	return a
}

// mounts are the container's volume mounts, its /etc/hosts and its termination
// message file. The runtime itself mounts volumes that are images.
func (w *worker) mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, env []corev1.EnvVar, images map[string]*runtimeapi.ImageSpec, ips []string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	hosts := true
	vars := map[string]string{}
	for _, e := range env {
		vars[e.Name] = e.Value
	}
	for i, m := range c.VolumeMounts {
		path, ok := w.volumes.paths[m.Name]
		if !ok {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			var err error
			if sub, err = expandStrict(m.SubPathExpr, vars); err != nil {
				return nil, err
			}
		}
		if sub != "" {
			if filepath.IsAbs(sub) {
				return nil, fmt.Errorf("error SubPath `%s` must not be an absolute path", sub)
			}
			if hasDotDot(sub) {
				return nil, fmt.Errorf("unable to provision SubPath `%s`: must not contain '..'", sub)
			}
		}
		image := images[m.Name]
		if sub != "" && image == nil {
			var err error
			if path, err = w.k.d.Volumes.SubPath(ctx, pod, c.Name, i, m, sub); err != nil {
				w.log().Debug("prepare subPath", "container", c.Name, "err", err)
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q", m.Name, c.Name)
			}
		}
		target := m.MountPath
		if !filepath.IsAbs(target) {
			target = filepath.Join("/", target)
		}
		if filepath.Clean(target) == "/etc/hosts" {
			hosts = false
		}
		mount := &runtimeapi.Mount{HostPath: path, ContainerPath: target, Readonly: m.ReadOnly || readOnlyVolume(pod, m.Name)}
		if image != nil {
			mount.HostPath, mount.Image, mount.ImageSubPath = "", image, sub
		}
		if m.MountPropagation != nil {
			switch *m.MountPropagation {
			case corev1.MountPropagationHostToContainer:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
			case corev1.MountPropagationBidirectional:
				mount.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}
		}
		if m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
			mount.RecursiveReadOnly = true
		}
		out = append(out, mount)
	}
	if hosts && (len(ips) > 0 || hostNetwork(pod) || noNetwork(pod)) {
		path, err := w.k.writeHosts(pod, ips)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: "/etc/hosts"})
	}
	if c.TerminationMessagePath != "" {
		path, err := w.messageFile(pod, c)
		if err != nil {
			return nil, err
		}
		out = append(out, &runtimeapi.Mount{HostPath: path, ContainerPath: filepath.Join("/", c.TerminationMessagePath)})
	}
	return out, nil
}

// readOnlyVolume tells of the volumes that containers never write to: by their
// kind, or because the pod wants a claim so.
func readOnlyVolume(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name {
			return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil || v.Image != nil ||
				v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
		}
	}
	return false
}

func hasDotDot(p string) bool {
	for _, e := range strings.Split(p, "/") {
		if e == ".." {
			return true
		}
	}
	return false
}

// messageFile makes the file that the container finds at its
// terminationMessagePath; every instance has its own.
func (w *worker) messageFile(pod *corev1.Pod, c *corev1.Container) (string, error) {
	dir := filepath.Join(w.k.podDir(pod.UID), "containers", c.Name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("make directory of container %s: %w", c.Name, err)
	}
	path := filepath.Join(dir, rand.String(8))
	if err := os.WriteFile(path, nil, 0o666); err != nil {
		return "", fmt.Errorf("make termination message file: %w", err)
	}
	// The umask has no say here.
	if err := os.Chmod(path, 0o666); err != nil {
		return "", fmt.Errorf("make termination message file: %w", err)
	}
	return path, nil
}

var logFile = regexp.MustCompile(`^(\d+)\.log(\..*)?$`)

// restartsByLogs counts a container's instances by the log files they left.
func restartsByLogs(dir string) int {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	restarts := 0
	for _, e := range entries {
		m := logFile.FindStringSubmatch(e.Name())
		if m == nil || e.IsDir() {
			continue
		}
		if n, err := strconv.Atoi(m[1]); err == nil && n+1 > restarts {
			restarts = n + 1
		}
	}
	return restarts
}
