package pod

import (
	"iter"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// check collects the mistakes found in one object, in the order in which the
// rules run; rules say what is wrong through its methods.
type check struct {
	Options
	errs field.ErrorList
}

func (c *check) add(errs ...*field.Error) { c.errs = append(c.errs, errs...) }

func (c *check) required(p *field.Path, detail string)     { c.add(field.Required(p, detail)) }
func (c *check) forbidden(p *field.Path, detail string)    { c.add(field.Forbidden(p, detail)) }
func (c *check) invalid(p *field.Path, v any, d string)    { c.add(field.Invalid(p, v, d)) }
func (c *check) duplicate(p *field.Path, v any)            { c.add(field.Duplicate(p, v)) }
func (c *check) notFound(p *field.Path, v any)             { c.add(field.NotFound(p, v)) }
func (c *check) tooLong(p *field.Path, v string, most int) { c.add(field.TooLong(p, v, most)) }

// filled asks for a value, without further words.
func (c *check) filled(p *field.Path, v string) bool {
	if v == "" {
		c.required(p, "")
	}
	return v != ""
}

// all turns every message of a rule about v into a mistake.
func (c *check) all(p *field.Path, v any, msgs []string) {
	for _, m := range msgs {
		c.invalid(p, v, m)
	}
}

func (c *check) label(p *field.Path, v string)     { c.all(p, v, validation.IsDNS1123Label(v)) }
func (c *check) subdomain(p *field.Path, v string) { c.all(p, v, validation.IsDNS1123Subdomain(v)) }
func (c *check) qualified(p *field.Path, v string) { c.all(p, v, validation.IsQualifiedName(v)) }
func (c *check) name(p *field.Path, v string)      { c.all(p, v, resource.DNSSubdomain(v, false)) }

func (c *check) nonNegative(p *field.Path, v int64) {
	if v < 0 {
		c.invalid(p, v, "must be greater than or equal to 0")
	}
}

func (c *check) positive(p *field.Path, v int64) {
	if v <= 0 {
		c.invalid(p, v, "must be greater than zero")
	}
}

// oneOf asks for one of the values; the message lists them in the order given.
func oneOf[T ~string](c *check, p *field.Path, v T, allowed ...T) bool {
	ok := slices.Contains(allowed, v)
	if !ok {
		c.add(field.NotSupported(p, v, allowed))
	}
	return ok
}

// oneOfRequired is oneOf for a field that may not be empty either.
func oneOfRequired[T ~string](c *check, p *field.Path, v T, allowed ...T) {
	if v == "" {
		c.required(p, "")
		return
	}
	oneOf(c, p, v, allowed...)
}

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// containers yields every container of a spec with its path: init containers,
// then containers, then ephemeral ones.
func containers(spec *corev1.PodSpec, p *field.Path) iter.Seq2[*corev1.Container, *field.Path] {
	return func(yield func(*corev1.Container, *field.Path) bool) {
		for i := range spec.InitContainers {
			if !yield(&spec.InitContainers[i], p.Child("initContainers").Index(i)) {
				return
			}
		}
		for i := range spec.Containers {
			if !yield(&spec.Containers[i], p.Child("containers").Index(i)) {
				return
			}
		}
		for i := range spec.EphemeralContainers {
			if !yield(asContainer(&spec.EphemeralContainers[i]), p.Child("ephemeralContainers").Index(i)) {
				return
			}
		}
	}
}

// asContainer shows an ephemeral container as one of the others: the fields are
// the same, and changes through it are changes of e.
func asContainer(e *corev1.EphemeralContainer) *corev1.Container {
	return (*corev1.Container)(&e.EphemeralContainerCommon)
}

// anyContainer tells whether a container of the spec, which may be nil, has a property.
func anyContainer(spec *corev1.PodSpec, has func(*corev1.Container) bool) bool {
	if spec == nil {
		return false
	}
	for ctr := range containers(spec, nil) {
		if has(ctr) {
			return true
		}
	}
	return false
}

func isSidecar(ctr *corev1.Container) bool {
	return ctr != nil && ctr.RestartPolicy != nil && *ctr.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func isTrue(b *bool) bool { return b != nil && *b }

// isFalse tells that b is set, to false.
func isFalse(b *bool) bool { return b != nil && !*b }
