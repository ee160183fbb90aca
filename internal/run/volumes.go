package run

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (p *plan) volumes() error {
	for _, v := range p.o.Volumes {
		if err := p.volume(v); err != nil {
			return fmt.Errorf("--volume %q: %w", v, err)
		}
	}
	for _, m := range p.o.Mounts {
		if err := p.mount(m); err != nil {
			return fmt.Errorf("--mount %q: %w", m, err)
		}
	}
	for _, t := range p.o.Tmpfs {
		if err := p.tmpfs(t); err != nil {
			return fmt.Errorf("--tmpfs %q: %w", t, err)
		}
	}
	if s := p.o.ShmSize; s != "" {
		n, err := bytesOf("--shm-size", s)
		if err != nil {
			return err
		}
		p.put(memory(n), corev1.VolumeMount{MountPath: "/dev/shm"})
	}
	for _, d := range p.o.Devices {
		if err := p.device(d); err != nil {
			return fmt.Errorf("--device %q: %w", d, err)
		}
	}
	seen := map[string]bool{}
	for _, m := range p.c.VolumeMounts {
		if seen[m.MountPath] {
			return fmt.Errorf("two volumes are to be mounted at %s", m.MountPath)
		}
		seen[m.MountPath] = true
	}
	return nil
}

// put mounts a volume of a source; the same source is one volume.
func (p *plan) put(src corev1.VolumeSource, m corev1.VolumeMount) {
	base := "volume"
	switch {
	case src.HostPath != nil:
		base = "host"
		for _, v := range p.pod.Spec.Volumes {
			if v.HostPath != nil && v.HostPath.Path == src.HostPath.Path {
				m.Name = v.Name
			}
		}
	case src.PersistentVolumeClaim != nil:
		base = "claim"
		for _, v := range p.pod.Spec.Volumes {
			if v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ClaimName == src.PersistentVolumeClaim.ClaimName {
				m.Name = v.Name
			}
		}
	case src.Image != nil:
		base = "image"
	case src.EmptyDir != nil && src.EmptyDir.Medium == corev1.StorageMediumMemory:
		base = "memory"
	}
	if m.Name == "" {
		n := 0
		for _, v := range p.pod.Spec.Volumes {
			if strings.HasPrefix(v.Name, base+"-") {
				n++
			}
		}
		m.Name = base + "-" + strconv.Itoa(n)
		p.pod.Spec.Volumes = append(p.pod.Spec.Volumes, corev1.Volume{Name: m.Name, VolumeSource: src})
	}
	p.c.VolumeMounts = append(p.c.VolumeMounts, m)
}

func hostPath(path string, t corev1.HostPathType) corev1.VolumeSource {
	return corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &t}}
}

func memory(limit int64) corev1.VolumeSource {
	e := &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}
	if limit > 0 {
		q := quantity(limit)
		e.SizeLimit = &q
	}
	return corev1.VolumeSource{EmptyDir: e}
}

// claim is a named volume.
func (p *plan) claim(name string) (corev1.VolumeSource, error) {
	if err := CheckName("volume", name); err != nil {
		return corev1.VolumeSource{}, err
	}
	class := StorageClass
	c := &corev1.PersistentVolumeClaim{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: p.pod.Namespace, Labels: map[string]string{"run.skiff.io/volume": name}},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: &class,
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(ClaimSize)}},
		},
	}
	if !slices.ContainsFunc(p.claims, func(o *corev1.PersistentVolumeClaim) bool { return o.Name == name }) {
		p.claims = append(p.claims, c)
	}
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}, nil
}

var errTarget = errors.New("the path in the container must be absolute, and not /")

func target(path string) (string, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) == "/" {
		return "", errTarget
	}
	return filepath.Clean(path), nil
}

// volume reads [SOURCE:]TARGET[:OPTIONS].
func (p *plan) volume(v string) error {
	parts := strings.Split(v, ":")
	var source, to, options string
	switch len(parts) {
	case 1:
		to = parts[0]
	case 2:
		source, to = parts[0], parts[1]
	case 3:
		source, to, options = parts[0], parts[1], parts[2]
	default:
		return errors.New("must be [SOURCE:]TARGET[:OPTIONS]")
	}
	m := corev1.VolumeMount{}
	var err error
	if m.MountPath, err = target(to); err != nil {
		return err
	}
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		switch o {
		case "rw", "z", "Z", "nocopy", "cached", "delegated", "consistent", "private", "rprivate":
		case "ro":
			m.ReadOnly = true
		default:
			mode, err := propagation(o)
			if err != nil {
				return err
			}
			m.MountPropagation = mode
		}
	}
	switch {
	case len(parts) == 1:
		p.put(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, m)
		return nil
	case source == "":
		return errors.New("the source is missing")
	case strings.HasPrefix(source, "/"), strings.HasPrefix(source, "."), strings.HasPrefix(source, "~"):
		return p.bind(source, m, true)
	case m.MountPropagation != nil:
		return errors.New("propagation is of host paths")
	}
	src, err := p.claim(source)
	if err != nil {
		return err
	}
	p.put(src, m)
	return nil
}

func propagation(word string) (*corev1.MountPropagationMode, error) {
	mode := corev1.MountPropagationMode("")
	switch word {
	case "rshared":
		mode = corev1.MountPropagationBidirectional
	case "rslave":
		mode = corev1.MountPropagationHostToContainer
	case "private", "rprivate":
		return nil, nil
	case "shared", "slave":
		return nil, fmt.Errorf("%q: a pod's mounts propagate with all below them: r%s", word, word)
	default:
		return nil, fmt.Errorf("%q is no option: ro, rw, rshared and rslave are", word)
	}
	return &mode, nil
}

// bind mounts a path of the host; one that is missing becomes a directory where
// make says so.
func (p *plan) bind(path string, m corev1.VolumeMount, make bool) error {
	if rest, home := strings.CutPrefix(path, "~"); home && (rest == "" || rest[0] == '/') {
		dir, ok := p.m.Lookup("HOME")
		if !ok {
			return errors.New("~: HOME is not set")
		}
		path = dir + rest
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(p.m.Dir, path)
	}
	path = filepath.Clean(path)
	t := corev1.HostPathUnset
	if !p.m.Exists(path) {
		if !make {
			return fmt.Errorf("%s does not exist", path)
		}
		t = corev1.HostPathDirectoryOrCreate
	}
	if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional && !p.o.Privileged {
		return errors.New("rshared: only a container that is --privileged may change the host's mounts")
	}
	p.put(hostPath(path, t), m)
	return nil
}

// mount reads --mount's list of KEY=VALUE.
func (p *plan) mount(s string) error {
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return err
	}
	kind, source, to, size, subPath := "volume", "", "", "", ""
	m := corev1.VolumeMount{}
	for _, f := range fields {
		key, value, given := strings.Cut(f, "=")
		switch key = strings.ToLower(key); key {
		case "type":
			kind = value
		case "source", "src":
			source = value
		case "target", "dst", "destination":
			to = value
		case "readonly", "ro":
			if m.ReadOnly = true; given {
				if m.ReadOnly, err = strconv.ParseBool(value); err != nil {
					return fmt.Errorf("%s must be true or false", key)
				}
			}
		case "bind-propagation":
			if m.MountPropagation, err = propagation(value); err != nil {
				return err
			}
		case "bind-recursive":
			if value == "readonly" {
				r := corev1.RecursiveReadOnlyEnabled
				m.RecursiveReadOnly = &r
			} else if value != "enabled" {
				return fmt.Errorf("bind-recursive=%s: must be enabled or readonly", value)
			}
		case "tmpfs-size":
			size = value
		case "volume-subpath", "image-subpath":
			subPath = value
		case "volume-nocopy", "consistency":
		default:
			return fmt.Errorf("%q cannot be honoured", key)
		}
	}
	if m.MountPath, err = target(to); err != nil {
		return err
	}
	m.SubPath = subPath
	switch {
	case kind == "bind" && source != "":
		return p.bind(source, m, false)
	case kind == "volume" && source == "":
		p.put(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}, m)
		return nil
	case kind == "volume":
		src, err := p.claim(source)
		if err != nil {
			return err
		}
		p.put(src, m)
		return nil
	case kind == "image" && source != "":
		m.ReadOnly = true
		p.put(corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: source, PullPolicy: p.c.ImagePullPolicy}}, m)
		return nil
	case kind == "tmpfs" && source == "":
		n := int64(0)
		if size != "" {
			if n, err = bytesOf("tmpfs-size", size); err != nil {
				return err
			}
		}
		p.put(memory(n), m)
		return nil
	case kind == "bind" || kind == "image":
		return errors.New("source is missing")
	case kind == "tmpfs":
		return errors.New("a tmpfs has no source")
	}
	return fmt.Errorf("type %q: must be bind, volume, tmpfs or image", kind)
}

// tmpfs reads TARGET[:OPTIONS].
func (p *plan) tmpfs(s string) error {
	to, options, _ := strings.Cut(s, ":")
	m := corev1.VolumeMount{}
	var err error
	if m.MountPath, err = target(to); err != nil {
		return err
	}
	n := int64(0)
	for _, o := range strings.FieldsFunc(options, func(r rune) bool { return r == ',' }) {
		switch k, v, _ := strings.Cut(o, "="); k {
		case "size":
			if n, err = bytesOf("size", v); err != nil {
				return err
			}
		case "rw":
		case "ro":
			m.ReadOnly = true
		case "mode":
			if v != "1777" && v != "0777" && v != "777" {
				return fmt.Errorf("mode=%s: volumes in memory have mode 0777", v)
			}
		default:
			return fmt.Errorf("%q cannot be honoured: volumes in memory have a size alone", o)
		}
	}
	p.put(memory(n), m)
	return nil
}

// device shows a device of the host at another path; a privileged container has
// all at theirs.
func (p *plan) device(s string) error {
	from, rest, moved := strings.Cut(s, ":")
	to, _, _ := strings.Cut(rest, ":")
	if !strings.HasPrefix(from, "/") {
		return errors.New("must be a path of the host")
	}
	if !moved || !strings.HasPrefix(to, "/") || to == from {
		return nil
	}
	p.put(hostPath(from, corev1.HostPathUnset), corev1.VolumeMount{MountPath: to})
	return nil
}
