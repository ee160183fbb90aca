package devices

import (
	"cmp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
)

// Classes finds the device class that stands for an extended resource: the one
// that says so, the newest where several do, or the one that the resource names by
// the prefix of device classes.
type Classes struct {
	list   func() []*resourcev1.DeviceClass
	byName map[string]*resourcev1.DeviceClass
	backs  map[corev1.ResourceName]*resourcev1.DeviceClass
}

// NewClasses returns the classes that list lists.
func NewClasses(list func() []*resourcev1.DeviceClass) *Classes { return &Classes{list: list} }

// Changed tells that the list is another one.
func (c *Classes) Changed() { c.byName, c.backs = nil, nil }

func (c *Classes) read() {
	if c.byName != nil {
		return
	}
	c.byName, c.backs = map[string]*resourcev1.DeviceClass{}, map[corev1.ResourceName]*resourcev1.DeviceClass{}
	for _, class := range c.list() {
		c.byName[class.Name] = class
		if class.Spec.ExtendedResourceName == nil {
			continue
		}
		name := corev1.ResourceName(*class.Spec.ExtendedResourceName)
		if o := c.backs[name]; o == nil || preferred(class, o) {
			c.backs[name] = class
		}
	}
}

func preferred(a, b *resourcev1.DeviceClass) bool {
	return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name)) < 0
}

// Get returns a class, nil where there is none.
func (c *Classes) Get(name string) *resourcev1.DeviceClass {
	c.read()
	return c.byName[name]
}

// All lists the classes.
func (c *Classes) All() []*resourcev1.DeviceClass {
	c.read()
	out := make([]*resourcev1.DeviceClass, 0, len(c.byName))
	for _, class := range c.byName {
		out = append(out, class)
	}
	return out
}

// For returns the class that stands for an extended resource, nil for none.
func (c *Classes) For(name corev1.ResourceName) *resourcev1.DeviceClass {
	if !strings.Contains(string(name), "/") {
		return nil
	}
	c.read()
	if class := c.backs[name]; class != nil {
		return class
	}
	if class, ok := strings.CutPrefix(string(name), resourcev1.ResourceDeviceClassPrefix); ok {
		return c.byName[class]
	}
	return nil
}
