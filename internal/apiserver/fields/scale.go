package fields

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"skiff/internal/api/resource"
)

// Through a projection (scale) a client writes fields of the projection; they are
// recorded as the field of the object that they stand for.

func mapping(r *resource.Resource, entries []metav1.ManagedFieldsEntry) *managedfields.ScaleHandler {
	gv := r.GroupVersion
	return managedfields.NewScaleHandler(entries, gv, managedfields.ResourcePathMappings{
		gv.String(): fieldpath.MakePathOrDie("spec", "replicas"),
	})
}

// view projects an object together with its managed fields.
func view(r *resource.Resource, s *resource.Subresource, obj Object, entries []metav1.ManagedFieldsEntry) (Object, error) {
	v, err := s.View(obj)
	if err != nil {
		return nil, err
	}
	mapped, err := mapping(r, entries).ToSubresource()
	if err != nil {
		return nil, err
	}
	v.SetManagedFields(mapped)
	return v, nil
}

func (m *Managers) updateView(r *resource.Resource, s *resource.Subresource, live, obj Object, manager string) error {
	f, err := m.at(r, s)
	if err != nil {
		return err
	}
	was, err := view(r, s, live, live.GetManagedFields())
	if err != nil {
		return err
	}
	now, err := view(r, s, obj, live.GetManagedFields())
	if err != nil {
		return err
	}
	entries := live.GetManagedFields()
	if _, err := f.Update(was, now, manager); err == nil {
		if entries, err = mapping(r, entries).ToParent(now.GetManagedFields()); err != nil {
			return err
		}
	}
	obj.SetManagedFields(entries)
	return nil
}

func (m *Managers) applyView(r *resource.Resource, s *resource.Subresource, live Object, config map[string]any, manager string, force bool) (Object, error) {
	f, err := m.at(r, s)
	if err != nil {
		return nil, err
	}
	v, err := view(r, s, live, live.GetManagedFields())
	if err != nil {
		return nil, err
	}
	now, err := apply(f.FieldManager, v, config, manager, force)
	if err != nil {
		return nil, err
	}
	entries, err := mapping(r, live.GetManagedFields()).ToParent(now.GetManagedFields())
	if err != nil {
		return nil, err
	}
	obj := live.DeepCopyObject().(Object)
	if err := s.SetView(obj, now); err != nil {
		return nil, err
	}
	// Preconditions of the configuration are checked with the object.
	obj.SetResourceVersion(now.GetResourceVersion())
	obj.SetUID(now.GetUID())
	obj.SetName(now.GetName())
	obj.SetNamespace(now.GetNamespace())
	obj.SetManagedFields(entries)
	return obj, nil
}
