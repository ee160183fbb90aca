package pod

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func (c *check) envName(p *field.Path, name string) {
	if c.features.Enabled("RelaxedEnvironmentVariableValidation") {
		c.all(p, name, validation.IsRelaxedEnvVarName(name))
	} else {
		c.all(p, name, validation.IsEnvVarName(name))
	}
}

func (c *check) env(p *field.Path, vars []corev1.EnvVar) {
	for i, v := range vars {
		vp := p.Index(i)
		if c.filled(vp.Child("name"), v.Name) {
			c.envName(vp.Child("name"), v.Name)
		}
		if v.ValueFrom != nil {
			c.envSource(vp.Child("valueFrom"), v)
		}
	}
}

func (c *check) envSource(p *field.Path, v corev1.EnvVar) {
	from, n := v.ValueFrom, 0
	if from.FieldRef != nil {
		n++
		c.fieldRef(p.Child("fieldRef"), from.FieldRef, envFields)
	}
	if from.ResourceFieldRef != nil {
		n++
		c.resourceRef(p.Child("resourceFieldRef"), from.ResourceFieldRef, false)
	}
	if r := from.ConfigMapKeyRef; r != nil {
		n++
		c.keyRef(p.Child("configMapKeyRef"), r.Name, r.Key)
	}
	if r := from.SecretKeyRef; r != nil {
		n++
		c.keyRef(p.Child("secretKeyRef"), r.Name, r.Key)
	}
	if r := from.FileKeyRef; r != nil {
		n++
		c.fileRef(p.Child("fileKeyRef"), r)
	}
	switch {
	case n == 0 && c.features.Enabled("EnvFiles"):
		c.invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case n == 0:
		c.invalid(p, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`")
	case v.Value != "":
		c.invalid(p, "", "may not be specified when `value` is not empty")
	case n > 1:
		c.invalid(p, "", "may not have more than one field specified at a time")
	}
}

func (c *check) envFrom(p *field.Path, list []corev1.EnvFromSource) {
	for i, e := range list {
		ep, n := p.Index(i), 0
		if e.Prefix != "" {
			c.envName(ep.Child("prefix"), e.Prefix)
		}
		object := func(p *field.Path, name string) {
			n++
			if c.filled(p, name) {
				c.all(p, name, resource.DNSSubdomain(name, true))
			}
		}
		if e.ConfigMapRef != nil {
			object(ep.Child("configMapRef", "name"), e.ConfigMapRef.Name)
		}
		if e.SecretRef != nil {
			object(ep.Child("secretRef", "name"), e.SecretRef.Name)
		}
		switch {
		case n == 0:
			c.invalid(p, "", "must specify one of: `configMapRef` or `secretRef`")
		case n > 1:
			c.invalid(p, "", "may not have more than one field specified at a time")
		}
	}
}

// The fields of a pod that the downward API gives, as they are listed in messages.
var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// knownFields are pod fields that a field path may name at all; whether the
	// place allows it is the next question.
	knownFields = append([]string{"metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"}, envFields...)
	// resourceFields are container resources.
	resourceFields = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory",
		"requests.cpu", "requests.ephemeral-storage", "requests.memory"}
)

const (
	hugePagesRequests = "requests.hugepages-"
	hugePagesLimits   = "limits.hugepages-"
)

func (c *check) fieldRef(p *field.Path, ref *corev1.ObjectFieldSelector, allowed []string) {
	fp := p.Child("fieldPath")
	if !c.filled(p.Child("apiVersion"), ref.APIVersion) || !c.filled(fp, ref.FieldPath) {
		return
	}
	unconvertible := func(format, v string) {
		c.invalid(fp, ref.FieldPath, fmt.Sprintf("error converting fieldPath: "+format, v))
	}
	path, key, subscript := splitSubscript(ref.FieldPath)
	mapped := path == "metadata.annotations" || path == "metadata.labels"
	switch {
	case ref.APIVersion != "v1":
		unconvertible("unsupported pod version: %s", ref.APIVersion)
	case subscript && !mapped:
		unconvertible("field label does not support subscript: %s", ref.FieldPath)
	case subscript && path == "metadata.annotations":
		c.qualified(p, strings.ToLower(key))
	case subscript:
		c.qualified(p, key)
	case path == "spec.host":
		// An old name of spec.nodeName.
		oneOf(c, fp, "spec.nodeName", allowed...)
	case !slices.Contains(knownFields, path):
		unconvertible("field label not supported: %s", path)
	default:
		oneOf(c, fp, path, allowed...)
	}
}

// splitSubscript splits a path like metadata.labels['key'].
func splitSubscript(path string) (field, key string, ok bool) {
	s, ok := strings.CutSuffix(path, "']")
	if !ok {
		return path, "", false
	}
	field, key, ok = strings.Cut(s, "['")
	if !ok || field == "" {
		return path, "", false
	}
	return field, key, true
}

func (c *check) resourceRef(p *field.Path, ref *corev1.ResourceFieldSelector, volume bool) {
	hugePages := strings.HasPrefix(ref.Resource, hugePagesRequests) || strings.HasPrefix(ref.Resource, hugePagesLimits)
	switch {
	case volume && ref.ContainerName == "":
		c.required(p.Child("containerName"), "")
	case ref.Resource == "":
		c.required(p.Child("resource"), "")
	case !hugePages:
		oneOf(c, p.Child("resource"), ref.Resource, resourceFields...)
	}
	if ref.Divisor.IsZero() {
		return
	}
	const cpu, bytes = "1m and 1", "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei"
	divisors := func(list, kind string) {
		if !slices.Contains(strings.Split(strings.ReplaceAll(list, " and ", ", "), ", "), ref.Divisor.String()) {
			c.invalid(p.Child("divisor"), ref.Resource, "only divisor's values "+list+" are supported with the "+kind+" resource")
		}
	}
	switch {
	case strings.HasSuffix(ref.Resource, ".cpu") && slices.Contains(resourceFields, ref.Resource):
		divisors(cpu, "cpu")
	case strings.HasSuffix(ref.Resource, ".memory") && slices.Contains(resourceFields, ref.Resource):
		divisors(bytes, "memory")
	case slices.Contains(resourceFields, ref.Resource):
		divisors(bytes, "local ephemeral storage")
	case hugePages:
		if !slices.Contains(strings.Split(bytes, ", "), ref.Divisor.String()) {
			c.invalid(p.Child("divisor"), ref.Resource, "only divisor's values "+bytes+" are supported with the hugepages resource")
		}
	}
}

func (c *check) keyRef(p *field.Path, name, key string) {
	c.name(p.Child("name"), name)
	if c.filled(p.Child("key"), key) {
		c.all(p.Child("key"), key, validation.IsConfigMapKey(key))
	}
}

func (c *check) fileRef(p *field.Path, r *corev1.FileKeySelector) {
	if c.filled(p.Child("key"), r.Key) {
		c.all(p.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key))
	}
	if c.filled(p.Child("volumeName"), r.VolumeName) {
		c.label(p.Child("volumeName"), r.VolumeName)
	}
	if c.filled(p.Child("path"), r.Path) {
		c.noBacksteps(p.Child("path"), r.Path)
	}
}

// envFileVolumes: a variable read from a file reads it from an emptyDir of the pod.
func (c *check) envFileVolumes(p *field.Path, spec *corev1.PodSpec) {
	byName := map[string]*corev1.Volume{}
	for i := range spec.Volumes {
		byName[spec.Volumes[i].Name] = &spec.Volumes[i]
	}
	for ctr, cp := range containers(spec, p) {
		for i, e := range ctr.Env {
			if e.ValueFrom == nil || e.ValueFrom.FileKeyRef == nil {
				continue
			}
			name := e.ValueFrom.FileKeyRef.VolumeName
			np := cp.Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName")
			if v := byName[name]; v == nil {
				c.notFound(np, name)
			} else if v.EmptyDir == nil {
				c.invalid(np, name, "referenced volume must be of type emptyDir")
			}
		}
	}
}
