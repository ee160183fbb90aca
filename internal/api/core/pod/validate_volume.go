package pod

import (
	"fmt"
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

const (
	fileMode     = "must be a number between 0 and 0777 (octal), both inclusive"
	emptyDirMode = "must be a number between 0 and 01777 (octal), both inclusive"
)

// volumes checks a pod's volumes and returns the valid ones by name.
func (c *check) volumes(p *field.Path, list []corev1.Volume, meta *metav1.ObjectMeta) map[string]*corev1.VolumeSource {
	claimed := map[string]bool{} // claims that ephemeral volumes make
	if meta != nil && meta.Name != "" {
		for _, v := range list {
			if v.Ephemeral != nil {
				claimed[meta.Name+"-"+v.Name] = true
			}
		}
	}
	valid := map[string]*corev1.VolumeSource{}
	for i := range list {
		v, vp := &list[i], p.Index(i)
		before := len(c.errs)
		c.volumeSource(vp, v, meta)
		if c.filled(vp.Child("name"), v.Name) {
			c.label(vp.Child("name"), v.Name)
		}
		if valid[v.Name] != nil {
			c.duplicate(vp.Child("name"), v.Name)
		}
		if len(c.errs) == before {
			valid[v.Name] = &v.VolumeSource
		}
		if claim := v.PersistentVolumeClaim; claim != nil && claimed[claim.ClaimName] {
			c.invalid(vp.Child("persistentVolumeClaim", "claimName"), claim.ClaimName, "must not reference a PVC that gets created for an ephemeral volume")
		}
	}
	return valid
}

// volumeTypes counts the types that a volume has.
type volumeTypes struct {
	c *check
	p *field.Path
	n int
}

// one checks the first type that is set, and refuses every other. at is the
// member that a second type is refused at; own the member that its mistakes are
// reported at, where that differs. It tells whether it was the first.
func (t *volumeTypes) one(set bool, at, own string, rules func(p *field.Path)) bool {
	if !set {
		return false
	}
	if t.n++; t.n > 1 {
		t.c.forbidden(t.p.Child(at), "may not specify more than 1 volume type")
		return false
	}
	if own == "" {
		own = at
	}
	rules(t.p.Child(own))
	return true
}

// volumeSource checks that a volume has exactly one type, and that one. The order
// of the types is that in which they are looked at.
func (c *check) volumeSource(p *field.Path, v *corev1.Volume, meta *metav1.ObjectMeta) {
	t := volumeTypes{c: c, p: p}
	t.one(v.EmptyDir != nil, "emptyDir", "", func(p *field.Path) { c.emptyDir(p, v.EmptyDir) })
	t.one(v.HostPath != nil, "hostPath", "", func(p *field.Path) { c.hostPath(p, v.HostPath) })
	t.one(v.GitRepo != nil, "gitRepo", "", func(p *field.Path) {
		c.filled(p.Child("repository"), v.GitRepo.Repository)
		c.descendingPath(p.Child("directory"), v.GitRepo.Directory)
	})
	t.one(v.GCEPersistentDisk != nil, "gcePersistentDisk", "persistentDisk", func(p *field.Path) {
		c.filled(p.Child("pdName"), v.GCEPersistentDisk.PDName)
		c.partition(p, v.GCEPersistentDisk.Partition)
	})
	t.one(v.AWSElasticBlockStore != nil, "awsElasticBlockStore", "", func(p *field.Path) {
		c.filled(p.Child("volumeID"), v.AWSElasticBlockStore.VolumeID)
		c.partition(p, v.AWSElasticBlockStore.Partition)
	})
	t.one(v.Secret != nil, "secret", "", func(p *field.Path) {
		c.filled(p.Child("secretName"), v.Secret.SecretName)
		c.keysAsFiles(p, v.Secret.DefaultMode, v.Secret.DefaultUser, v.Secret.Items)
	})
	t.one(v.NFS != nil, "nfs", "", func(p *field.Path) { c.nfs(p, v.NFS) })
	t.one(v.ISCSI != nil, "iscsi", "", func(p *field.Path) { c.iscsi(p, v.ISCSI) })
	if s := v.ISCSI; s != nil && s.InitiatorName != nil && len(v.Name+":"+s.TargetPortal) > 64 {
		c.invalid(p.Child("name"), v.Name, "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.")
	}
	t.one(v.Glusterfs != nil, "glusterfs", "", func(p *field.Path) {
		c.filled(p.Child("endpoints"), v.Glusterfs.EndpointsName)
		c.filled(p.Child("path"), v.Glusterfs.Path)
	})
	t.one(v.Flocker != nil, "flocker", "", func(p *field.Path) { c.flocker(p, v.Flocker) })
	t.one(v.PersistentVolumeClaim != nil, "persistentVolumeClaim", "", func(p *field.Path) {
		c.filled(p.Child("claimName"), v.PersistentVolumeClaim.ClaimName)
	})
	t.one(v.RBD != nil, "rbd", "", func(p *field.Path) {
		if len(v.RBD.CephMonitors) == 0 {
			c.required(p.Child("monitors"), "")
		}
		c.filled(p.Child("image"), v.RBD.RBDImage)
	})
	t.one(v.Cinder != nil, "cinder", "", func(p *field.Path) {
		c.filled(p.Child("volumeID"), v.Cinder.VolumeID)
		c.secretRef(p.Child("secretRef", "name"), v.Cinder.SecretRef)
	})
	t.one(v.CephFS != nil, "cephFS", "cephfs", func(p *field.Path) {
		if len(v.CephFS.Monitors) == 0 {
			c.required(p.Child("monitors"), "")
		}
	})
	t.one(v.Quobyte != nil, "quobyte", "", func(p *field.Path) { c.quobyte(p, v.Quobyte) })
	// The misspelling is upstream's.
	t.one(v.DownwardAPI != nil, "downwarAPI", "downwardAPI", func(p *field.Path) {
		c.mode(p.Child("defaultMode"), v.DownwardAPI.DefaultMode)
		c.user(p.Child("defaultUser"), v.DownwardAPI.DefaultUser)
		for i := range v.DownwardAPI.Items {
			c.downwardFile(p, &v.DownwardAPI.Items[i])
		}
	})
	t.one(v.FC != nil, "fc", "", func(p *field.Path) { c.fibreChannel(p, v.FC) })
	t.one(v.FlexVolume != nil, "flexVolume", "", func(p *field.Path) { c.flexVolume(p, v.FlexVolume.Driver, v.FlexVolume.Options) })
	t.one(v.ConfigMap != nil, "configMap", "", func(p *field.Path) {
		c.filled(p.Child("name"), v.ConfigMap.Name)
		c.keysAsFiles(p, v.ConfigMap.DefaultMode, v.ConfigMap.DefaultUser, v.ConfigMap.Items)
	})
	t.one(v.AzureFile != nil, "azureFile", "", func(p *field.Path) {
		c.filled(p.Child("secretName"), v.AzureFile.SecretName)
		c.filled(p.Child("shareName"), v.AzureFile.ShareName)
	})
	t.one(v.VsphereVolume != nil, "vsphereVolume", "", func(p *field.Path) { c.filled(p.Child("volumePath"), v.VsphereVolume.VolumePath) })
	t.one(v.PhotonPersistentDisk != nil, "photonPersistentDisk", "", func(p *field.Path) { c.filled(p.Child("pdID"), v.PhotonPersistentDisk.PdID) })
	t.one(v.PortworxVolume != nil, "portworxVolume", "", func(p *field.Path) { c.filled(p.Child("volumeID"), v.PortworxVolume.VolumeID) })
	t.one(v.AzureDisk != nil, "azureDisk", "", func(p *field.Path) { c.azureDisk(p, v.AzureDisk) })
	t.one(v.StorageOS != nil, "storageos", "", func(p *field.Path) { c.storageOS(p, v.StorageOS) })
	t.one(v.Projected != nil, "projected", "", func(p *field.Path) { c.projected(p, v.Projected) })
	t.one(v.ScaleIO != nil, "scaleIO", "", func(p *field.Path) {
		c.filled(p.Child("gateway"), v.ScaleIO.Gateway)
		c.filled(p.Child("system"), v.ScaleIO.System)
		c.filled(p.Child("volumeName"), v.ScaleIO.VolumeName)
	})
	t.one(v.CSI != nil, "csi", "", func(p *field.Path) { c.csi(p, v.CSI) })
	if t.one(v.Ephemeral != nil, "ephemeral", "", func(p *field.Path) { c.ephemeral(p.Child("volumeClaimTemplate"), v.Ephemeral.VolumeClaimTemplate) }) &&
		meta != nil && meta.Name != "" && v.Name != "" {
		claim := meta.Name + "-" + v.Name
		for _, msg := range resource.DNSSubdomain(claim, false) {
			c.invalid(p.Child("name"), v.Name, fmt.Sprintf("PVC name %q: %v", claim, msg))
		}
	}
	t.one(v.Image != nil, "image", "", func(p *field.Path) {
		if v.Image.Reference == "" && !c.emptyImageReference {
			c.required(p.Child("reference"), "")
		}
		c.pullPolicy(p.Child("pullPolicy"), v.Image.PullPolicy)
	})
	if t.n == 0 {
		c.required(p, "must specify a volume type")
	}
}

func (c *check) emptyDir(p *field.Path, e *corev1.EmptyDirVolumeSource) {
	if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		c.forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity")
	}
	if m := e.Mode; m != nil && (*m < 0 || *m > 0o1777) {
		c.invalid(p.Child("mode"), *m, emptyDirMode)
	}
}

func (c *check) nfs(p *field.Path, v *corev1.NFSVolumeSource) {
	c.filled(p.Child("server"), v.Server)
	c.filled(p.Child("path"), v.Path)
	if !path.IsAbs(v.Path) {
		c.invalid(p.Child("path"), v.Path, "must be an absolute path")
	}
}

func (c *check) hostPath(p *field.Path, h *corev1.HostPathVolumeSource) {
	if !c.filled(p.Child("path"), h.Path) {
		return
	}
	c.noBacksteps(p.Child("path"), h.Path)
	if h.Type != nil {
		oneOf(c, p.Child("type"), *h.Type, corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
}

// keysAsFiles checks the files that a config map or a secret becomes.
func (c *check) keysAsFiles(p *field.Path, mode *int32, user *int64, items []corev1.KeyToPath) {
	c.mode(p.Child("defaultMode"), mode)
	c.user(p.Child("defaultUser"), user)
	for i := range items {
		c.keyToPath(p.Child("items").Index(i), &items[i])
	}
}

func (c *check) keyToPath(p *field.Path, k *corev1.KeyToPath) {
	c.filled(p.Child("key"), k.Key)
	c.filled(p.Child("path"), k.Path)
	c.ownPath(p.Child("path"), k.Path)
	c.mode(p.Child("mode"), k.Mode)
	c.user(p.Child("user"), k.User)
}

func (c *check) downwardFile(p *field.Path, f *corev1.DownwardAPIVolumeFile) {
	c.filled(p.Child("path"), f.Path)
	c.ownPath(p.Child("path"), f.Path)
	switch {
	case f.FieldRef != nil:
		c.fieldRef(p.Child("fieldRef"), f.FieldRef, volumeFields)
		if f.ResourceFieldRef != nil {
			c.invalid(p, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously")
		}
	case f.ResourceFieldRef != nil:
		c.resourceRef(p.Child("resourceFieldRef"), f.ResourceFieldRef, true)
	default:
		c.required(p, "one of fieldRef and resourceFieldRef is required")
	}
	c.mode(p.Child("mode"), f.Mode)
	c.user(p.Child("user"), f.User)
}

func (c *check) mode(p *field.Path, m *int32) {
	if m != nil && (*m < 0 || *m > 0o777) {
		c.invalid(p, *m, fileMode)
	}
}

func (c *check) user(p *field.Path, u *int64) {
	if u != nil {
		c.all(p, *u, validation.IsValidUserID(*u))
	}
}

// noBacksteps refuses a path with a ".." element.
func (c *check) noBacksteps(p *field.Path, v string) {
	if hasBackstep(v) {
		c.invalid(p, v, "must not contain '..'")
	}
}

func hasBackstep(v string) bool {
	for e := range strings.SplitSeq(v, "/") {
		if e == ".." {
			return true
		}
	}
	return false
}

// descendingPath asks for a relative path that stays below where it starts.
func (c *check) descendingPath(p *field.Path, v string) {
	if path.IsAbs(v) {
		c.invalid(p, v, "must be a relative path")
	}
	c.noBacksteps(p, v)
}

// ownPath is descendingPath, where names that begin with ".." are the kubelet's.
func (c *check) ownPath(p *field.Path, v string) {
	c.descendingPath(p, v)
	if strings.HasPrefix(v, "..") && !strings.HasPrefix(v, "../") {
		c.invalid(p, v, "must not start with '..'")
	}
}

// mounts checks a container's volume mounts.
func (c *check) mounts(p *field.Path, ctr *corev1.Container, s scope) {
	seen, devices, devicePaths := map[string]bool{}, map[string]bool{}, map[string]bool{}
	lastPath := map[string]string{}
	for _, d := range ctr.VolumeDevices {
		devices[d.Name] = true
		lastPath[d.Name] = d.DevicePath
	}
	for _, v := range lastPath {
		devicePaths[v] = true
	}
	for i, m := range ctr.VolumeMounts {
		mp := p.Index(i)
		c.filled(mp.Child("name"), m.Name)
		source := s.volumes[m.Name]
		if source == nil {
			c.notFound(mp.Child("name"), m.Name)
		}
		c.filled(mp.Child("mountPath"), m.MountPath)
		if seen[m.MountPath] {
			c.invalid(mp.Child("mountPath"), m.MountPath, "must be unique")
		}
		seen[m.MountPath] = true
		if devices[m.Name] {
			c.invalid(mp.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if devicePaths[m.MountPath] {
			c.invalid(mp.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		// The index is missing from the next paths upstream too.
		if m.SubPath != "" {
			c.descendingPath(p.Child("subPath"), m.SubPath)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				c.invalid(mp.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			c.descendingPath(p.Child("subPathExpr"), m.SubPathExpr)
		}
		if v := m.MountPropagation; v != nil {
			oneOf(c, p.Child("mountPropagation"), *v, corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
			if *v == corev1.MountPropagationBidirectional && (ctr.SecurityContext == nil || !isTrue(ctr.SecurityContext.Privileged)) {
				c.forbidden(p.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
			}
		}
		c.recursiveReadOnly(p.Child("recursiveReadOnly"), m)
		c.bindOptions(mp.Child("bindMountOptions"), m.BindMountOptions, source)
	}
}

func (c *check) recursiveReadOnly(p *field.Path, m corev1.VolumeMount) {
	if m.RecursiveReadOnly == nil {
		return
	}
	switch *m.RecursiveReadOnly {
	case corev1.RecursiveReadOnlyDisabled:
	case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			c.forbidden(p, "may only be specified when readOnly is true")
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			c.forbidden(p, "may only be specified when mountPropagation is None or not specified")
		}
	default:
		oneOf(c, p, *m.RecursiveReadOnly, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
	}
}

func (c *check) bindOptions(p *field.Path, options []string, source *corev1.VolumeSource) {
	seen := map[string]bool{}
	for i, o := range options {
		oneOf(c, p.Index(i), o, string(corev1.BindMountOptionNoDev), string(corev1.BindMountOptionNoExec), string(corev1.BindMountOptionNoSUID))
		if seen[o] {
			c.duplicate(p.Index(i), o)
		}
		seen[o] = true
	}
	if len(options) > 0 && source != nil && source.Image != nil {
		c.invalid(p, options, "bindMountOptions may not be used with image volumes")
	}
}

// devices checks a container's block devices.
func (c *check) devices(p *field.Path, ctr *corev1.Container, s scope) {
	mounted, mountPaths := map[string]string{}, map[string]bool{}
	for _, m := range ctr.VolumeMounts {
		mounted[m.Name] = m.MountPath
	}
	for _, v := range mounted {
		mountPaths[v] = true
	}
	names, paths := map[string]bool{}, map[string]bool{}
	for i, d := range ctr.VolumeDevices {
		np, dp := p.Index(i).Child("name"), p.Index(i).Child("devicePath")
		source := s.volumes[d.Name]
		c.filled(np, d.Name)
		if names[d.Name] {
			c.invalid(np, d.Name, "must be unique")
		}
		if source == nil {
			c.notFound(np, d.Name)
		} else if source.PersistentVolumeClaim == nil && source.Ephemeral == nil {
			c.invalid(np, d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		c.filled(dp, d.DevicePath)
		if paths[d.DevicePath] {
			c.invalid(dp, d.DevicePath, "must be unique")
		}
		if hasBackstep(d.DevicePath) {
			c.invalid(dp, d.DevicePath, "can not contain backsteps ('..')")
		} else {
			paths[d.DevicePath] = true
		}
		if _, ok := mounted[d.Name]; ok {
			c.invalid(np, d.Name, "must not already exist in volumeMounts")
		}
		if mountPaths[d.DevicePath] {
			c.invalid(dp, d.DevicePath, "must not already exist as a path in volumeMounts")
		}
		if d.Name != "" {
			names[d.Name] = true
		}
	}
}
