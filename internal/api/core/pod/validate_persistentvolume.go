package pod

import (
	"path"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// VolumeOptions say by which rules the spec of a PersistentVolume is checked.
type VolumeOptions struct {
	// Inline is a spec that stands in a VolumeAttachment.
	Inline bool
	// AnyLabelValues lets the node affinity have values that no label can have: the
	// stored object has some.
	AnyLabelValues bool
}

// VolumeOptionsOf are the options for a change of a volume that is stored already.
func VolumeOptionsOf(old *corev1.PersistentVolumeSpec) VolumeOptions {
	a := old.NodeAffinity
	return VolumeOptions{AnyLabelValues: a != nil && a.Required != nil && badTermValues(a.Required.NodeSelectorTerms)}
}

// ValidateVolumeSpec checks the spec of the PersistentVolume of a name.
func ValidateVolumeSpec(p *field.Path, s *corev1.PersistentVolumeSpec, name string, o VolumeOptions) field.ErrorList {
	c := &check{}
	if o.Inline {
		c.inlineVolume(p, s)
	}
	modes := p.Child("accessModes")
	if len(s.AccessModes) == 0 {
		c.required(modes, "")
	}
	c.accessModes(modes, s.AccessModes)
	if !o.Inline {
		c.capacity(p.Child("capacity"), s.Capacity)
	}
	if policy, pp := s.PersistentVolumeReclaimPolicy, p.Child("persistentVolumeReclaimPolicy"); policy != "" {
		if !o.Inline {
			oneOf(c, pp, policy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
		} else if policy != corev1.PersistentVolumeReclaimRetain {
			c.forbidden(pp, "may only be "+string(corev1.PersistentVolumeReclaimRetain)+" in the context of inline volumes")
		}
	}
	if a, ap := s.NodeAffinity, p.Child("nodeAffinity"); a != nil {
		switch {
		case o.Inline:
			c.forbidden(ap, "may not be specified in the context of inline volumes")
		case a.Required == nil:
			c.required(ap.Child("required"), "must specify required node constraints")
		default:
			c.nodeSelector(ap.Child("required"), a.Required, o.AnyLabelValues)
		}
	}
	c.persistentSource(p, s, name, o)
	if n, np := s.StorageClassName, p.Child("storageClassName"); n != "" {
		if o.Inline {
			c.forbidden(np, "may not be specified in the context of inline volumes")
		} else {
			c.name(np, n)
		}
	}
	if m, mp := s.VolumeMode, p.Child("volumeMode"); m != nil {
		if !o.Inline {
			c.volumeMode(mp, m)
		} else if *m != corev1.PersistentVolumeFilesystem {
			c.forbidden(mp, "may not specify volumeMode other than "+string(corev1.PersistentVolumeFilesystem)+" in the context of inline volumes")
		}
	}
	if n, np := s.VolumeAttributesClassName, p.Child("volumeAttributesClassName"); n != nil && !o.Inline {
		if *n == "" {
			c.required(np, "an empty string is disallowed")
		} else {
			c.name(np, *n)
		}
		if s.CSI == nil {
			c.required(p.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
	return c.errs
}

// inlineVolume refuses what only a volume of its own can have.
func (c *check) inlineVolume(p *field.Path, s *corev1.PersistentVolumeSpec) {
	const text = "may not be specified in the context of inline volumes"
	if s.ClaimRef != nil {
		c.forbidden(p.Child("claimRef"), text)
	}
	if len(s.Capacity) > 0 {
		c.forbidden(p.Child("capacity"), text)
	}
	if s.CSI == nil {
		c.required(p.Child("csi"), "has to be specified in the context of inline volumes")
	}
}

func (c *check) capacity(p *field.Path, l corev1.ResourceList) {
	if len(l) == 0 {
		c.required(p, "")
	}
	if _, ok := l[corev1.ResourceStorage]; !ok || len(l) > 1 {
		c.add(field.NotSupported(p, l, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for _, n := range sortedKeys(l) {
		q := l[n]
		c.amount(p.Key(string(n)), q)
		if q.Sign() <= 0 {
			c.invalid(p.Key(string(n)), q.String(), "must be greater than zero")
		}
	}
}

// persistentSource checks that a volume has exactly one type, and that one. The
// order of the types is that in which they are looked at.
func (c *check) persistentSource(p *field.Path, s *corev1.PersistentVolumeSpec, name string, o VolumeOptions) {
	t := volumeTypes{c: c, p: p}
	t.one(s.HostPath != nil, "hostPath", "", func(p *field.Path) { c.hostPath(p, s.HostPath) })
	t.one(s.GCEPersistentDisk != nil, "gcePersistentDisk", "persistentDisk", func(p *field.Path) {
		c.filled(p.Child("pdName"), s.GCEPersistentDisk.PDName)
		c.partition(p, s.GCEPersistentDisk.Partition)
	})
	t.one(s.AWSElasticBlockStore != nil, "awsElasticBlockStore", "", func(p *field.Path) {
		c.filled(p.Child("volumeID"), s.AWSElasticBlockStore.VolumeID)
		c.partition(p, s.AWSElasticBlockStore.Partition)
	})
	t.one(s.Glusterfs != nil, "glusterfs", "", func(p *field.Path) { c.persistentGlusterfs(p, s.Glusterfs) })
	t.one(s.Flocker != nil, "flocker", "", func(p *field.Path) { c.flocker(p, s.Flocker) })
	t.one(s.NFS != nil, "nfs", "", func(p *field.Path) { c.nfs(p, s.NFS) })
	t.one(s.RBD != nil, "rbd", "", func(p *field.Path) {
		if len(s.RBD.CephMonitors) == 0 {
			c.required(p.Child("monitors"), "")
		}
		c.filled(p.Child("image"), s.RBD.RBDImage)
	})
	t.one(s.Quobyte != nil, "quobyte", "", func(p *field.Path) { c.quobyte(p, s.Quobyte) })
	t.one(s.CephFS != nil, "cephFS", "cephfs", func(p *field.Path) {
		if len(s.CephFS.Monitors) == 0 {
			c.required(p.Child("monitors"), "")
		}
	})
	t.one(s.ISCSI != nil, "iscsi", "", func(p *field.Path) { c.persistentISCSI(p, s.ISCSI, name) })
	t.one(s.Cinder != nil, "cinder", "", func(p *field.Path) {
		c.filled(p.Child("volumeID"), s.Cinder.VolumeID)
		if r := s.Cinder.SecretRef; r != nil {
			c.filled(p.Child("secretRef", "name"), r.Name)
			c.filled(p.Child("secretRef", "namespace"), r.Namespace)
		}
	})
	t.one(s.FC != nil, "fc", "", func(p *field.Path) { c.fibreChannel(p, s.FC) })
	if s.FlexVolume != nil {
		// Another type before it is not refused, upstream either.
		t.n++
		c.flexVolume(p.Child("flexVolume"), s.FlexVolume.Driver, s.FlexVolume.Options)
	}
	t.one(s.AzureFile != nil, "azureFile", "", func(p *field.Path) {
		c.filled(p.Child("secretName"), s.AzureFile.SecretName)
		c.filled(p.Child("shareName"), s.AzureFile.ShareName)
		if n := s.AzureFile.SecretNamespace; n != nil {
			c.filled(p.Child("secretNamespace"), *n)
		}
	})
	t.one(s.VsphereVolume != nil, "vsphereVolume", "", func(p *field.Path) { c.filled(p.Child("volumePath"), s.VsphereVolume.VolumePath) })
	t.one(s.PhotonPersistentDisk != nil, "photonPersistentDisk", "", func(p *field.Path) { c.filled(p.Child("pdID"), s.PhotonPersistentDisk.PdID) })
	t.one(s.PortworxVolume != nil, "portworxVolume", "", func(p *field.Path) { c.filled(p.Child("volumeID"), s.PortworxVolume.VolumeID) })
	t.one(s.AzureDisk != nil, "azureDisk", "", func(p *field.Path) { c.azureDisk(p, s.AzureDisk) })
	t.one(s.ScaleIO != nil, "scaleIO", "", func(p *field.Path) {
		c.filled(p.Child("gateway"), s.ScaleIO.Gateway)
		c.filled(p.Child("system"), s.ScaleIO.System)
		c.filled(p.Child("volumeName"), s.ScaleIO.VolumeName)
	})
	t.one(s.Local != nil, "local", "", func(lp *field.Path) {
		if c.filled(lp.Child("path"), s.Local.Path) {
			c.noBacksteps(lp.Child("path"), s.Local.Path)
		}
		if s.NodeAffinity == nil || o.Inline {
			c.required(p.Child("nodeAffinity"), "Local volume requires node affinity")
		}
	})
	t.one(s.StorageOS != nil, "storageos", "", func(p *field.Path) { c.persistentStorageOS(p, s.StorageOS) })
	t.one(s.CSI != nil, "csi", "", func(p *field.Path) { c.persistentCSI(p, s.CSI) })
	if t.n == 0 {
		c.required(p, "must specify a volume type")
	}
	if s.HostPath != nil && path.Clean(s.HostPath.Path) == "/" && s.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		c.forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
}

func (c *check) persistentGlusterfs(p *field.Path, v *corev1.GlusterfsPersistentVolumeSource) {
	c.filled(p.Child("endpoints"), v.EndpointsName)
	c.filled(p.Child("path"), v.Path)
	if n := v.EndpointsNamespace; n != nil {
		np := p.Child("endpointsNamespace")
		if *n == "" {
			c.invalid(np, *n, "if the endpointnamespace is set, it must be a valid namespace name")
		} else {
			c.all(np, *n, resource.DNSLabel(*n, false))
		}
	}
}

func (c *check) persistentISCSI(p *field.Path, v *corev1.ISCSIPersistentVolumeSource, name string) {
	c.filled(p.Child("targetPortal"), v.TargetPortal)
	if v.InitiatorName != nil && len(name+":"+v.TargetPortal) > 64 {
		c.invalid(p.Child("targetportal"), v.TargetPortal, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.")
	}
	if c.filled(p.Child("iqn"), v.IQN) {
		c.iscsiName(p.Child("iqn"), v.IQN, iscsiFormat)
	}
	c.lun(p.Child("lun"), v.Lun)
	if (v.DiscoveryCHAPAuth || v.SessionCHAPAuth) && v.SecretRef == nil {
		c.required(p.Child("secretRef"), "")
	}
	if v.SecretRef != nil {
		c.filled(p.Child("secretRef", "name"), v.SecretRef.Name)
	}
	if v.InitiatorName != nil {
		c.iscsiName(p.Child("initiatorname"), *v.InitiatorName, iscsiFormat)
	}
}

func (c *check) persistentStorageOS(p *field.Path, v *corev1.StorageOSPersistentVolumeSource) {
	if c.filled(p.Child("volumeName"), v.VolumeName) {
		c.label(p.Child("volumeName"), v.VolumeName)
	}
	if v.VolumeNamespace != "" {
		c.label(p.Child("volumeNamespace"), v.VolumeNamespace)
	}
	if r := v.SecretRef; r != nil {
		c.filled(p.Child("secretRef", "name"), r.Name)
		c.filled(p.Child("secretRef", "namespace"), r.Namespace)
	}
}

func (c *check) persistentCSI(p *field.Path, v *corev1.CSIPersistentVolumeSource) {
	c.add(resource.ValidateDriverName(p.Child("driver"), v.Driver)...)
	c.filled(p.Child("volumeHandle"), v.VolumeHandle)
	for _, r := range []struct {
		name string
		ref  *corev1.SecretReference
	}{
		{"controllerPublishSecretRef", v.ControllerPublishSecretRef}, {"controllerExpandSecretRef", v.ControllerExpandSecretRef},
		{"nodePublishSecretRef", v.NodePublishSecretRef}, {"nodeExpandSecretRef", v.NodeExpandSecretRef},
	} {
		if r.ref == nil {
			continue
		}
		rp := p.Child(r.name)
		if c.filled(rp.Child("name"), r.ref.Name) {
			c.subdomain(rp.Child("name"), r.ref.Name)
		}
		if c.filled(rp.Child("namespace"), r.ref.Namespace) {
			c.label(rp.Child("namespace"), r.ref.Namespace)
		}
	}
}
