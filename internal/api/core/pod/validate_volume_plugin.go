package pod

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

func (c *check) partition(p *field.Path, n int32) {
	if n < 0 || n > 255 {
		c.invalid(p.Child("partition"), n, validation.InclusiveRangeError(1, 255))
	}
}

func (c *check) lun(p *field.Path, n int32) {
	if n < 0 || n > 255 {
		c.invalid(p, n, validation.InclusiveRangeError(0, 255))
	}
}

func (c *check) secretRef(p *field.Path, r *corev1.LocalObjectReference) {
	if r != nil {
		c.filled(p, r.Name)
	}
}

// iscsiName are the three forms of iSCSI names, by their first letters.
var iscsiName = []struct {
	prefix string
	form   *regexp.Regexp
}{
	{"iqn", regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`)},
	{"eui", regexp.MustCompile(`^eui.[[:alnum:]]{16}$`)},
	{"naa", regexp.MustCompile(`^naa.[[:alnum:]]{32}$`)},
}

func (c *check) iscsiName(p *field.Path, v, unknown string) {
	for _, n := range iscsiName {
		if strings.HasPrefix(v, n.prefix) {
			if !n.form.MatchString(v) {
				c.invalid(p, v, iscsiFormat)
			}
			return
		}
	}
	c.invalid(p, v, unknown)
}

const iscsiFormat = "must be valid format"

func (c *check) iscsi(p *field.Path, v *corev1.ISCSIVolumeSource) {
	const form = iscsiFormat + " starting with iqn, eui, or naa"
	c.filled(p.Child("targetPortal"), v.TargetPortal)
	if c.filled(p.Child("iqn"), v.IQN) {
		c.iscsiName(p.Child("iqn"), v.IQN, form)
	}
	c.lun(p.Child("lun"), v.Lun)
	if (v.DiscoveryCHAPAuth || v.SessionCHAPAuth) && v.SecretRef == nil {
		c.required(p.Child("secretRef"), "")
	}
	if v.InitiatorName != nil {
		c.iscsiName(p.Child("initiatorname"), *v.InitiatorName, form)
	}
}

func (c *check) flocker(p *field.Path, v *corev1.FlockerVolumeSource) {
	if v.DatasetName == "" && v.DatasetUUID == "" {
		c.required(p, "one of datasetName and datasetUUID is required")
	}
	if v.DatasetName != "" && v.DatasetUUID != "" {
		c.invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously")
	}
	if strings.Contains(v.DatasetName, "/") {
		c.invalid(p.Child("datasetName"), v.DatasetName, "must not contain '/'")
	}
}

func (c *check) quobyte(p *field.Path, v *corev1.QuobyteVolumeSource) {
	const registries = "must be a host:port pair or multiple pairs separated by commas"
	switch {
	case v.Registry == "":
		c.required(p.Child("registry"), registries)
	case len(v.Tenant) > 64:
		c.required(p.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters")
	default:
		for host := range strings.SplitSeq(v.Registry, ",") {
			if _, _, err := net.SplitHostPort(host); err != nil {
				c.invalid(p.Child("registry"), v.Registry, registries)
			}
		}
	}
	c.filled(p.Child("volume"), v.Volume)
}

func (c *check) fibreChannel(p *field.Path, v *corev1.FCVolumeSource) {
	targets, ids := len(v.TargetWWNs) > 0, len(v.WWIDs) > 0
	if !targets && !ids {
		c.required(p.Child("targetWWNs"), "must specify either targetWWNs or wwids, but not both")
	}
	if targets && ids {
		c.invalid(p.Child("targetWWNs"), v.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously")
	}
	if targets {
		if v.Lun == nil {
			c.required(p.Child("lun"), "lun is required if targetWWNs is specified")
		} else {
			c.lun(p.Child("lun"), *v.Lun)
		}
	}
}

func (c *check) flexVolume(p *field.Path, driver string, options map[string]string) {
	c.filled(p.Child("driver"), driver)
	for _, k := range sortedKeys(options) {
		domain, _, _ := strings.Cut(k, "/")
		domain = "." + strings.ToLower(domain)
		if strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			c.invalid(p.Child("options").Key(k), k, "kubernetes.io and k8s.io namespaces are reserved")
		}
	}
}

func (c *check) azureDisk(p *field.Path, v *corev1.AzureDiskVolumeSource) {
	const (
		managed = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
		blob    = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	)
	c.filled(p.Child("diskName"), v.DiskName)
	c.filled(p.Child("diskURI"), v.DataDiskURI)
	if m := v.CachingMode; m != nil {
		oneOf(c, p.Child("cachingMode"), *m, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)
	}
	if v.Kind == nil {
		return
	}
	oneOf(c, p.Child("kind"), *v.Kind, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)
	if *v.Kind == corev1.AzureManagedDisk {
		if !strings.HasPrefix(v.DataDiskURI, "/subscriptions/") {
			c.add(field.NotSupported(p.Child("diskURI"), v.DataDiskURI, []string{managed}))
		}
	} else if !strings.HasPrefix(v.DataDiskURI, "https://") {
		c.add(field.NotSupported(p.Child("diskURI"), v.DataDiskURI, []string{blob}))
	}
}

func (c *check) storageOS(p *field.Path, v *corev1.StorageOSVolumeSource) {
	if c.filled(p.Child("volumeName"), v.VolumeName) {
		c.label(p.Child("volumeName"), v.VolumeName)
	}
	if v.VolumeNamespace != "" {
		c.label(p.Child("volumeNamespace"), v.VolumeNamespace)
	}
	c.secretRef(p.Child("secretRef", "name"), v.SecretRef)
}

func (c *check) csi(p *field.Path, v *corev1.CSIVolumeSource) {
	c.add(resource.ValidateDriverName(p.Child("driver"), v.Driver)...)
	if r := v.NodePublishSecretRef; r != nil && c.filled(p.Child("nodePublishSecretRef", "name"), r.Name) {
		c.name(p.Child("name"), r.Name)
	}
}

// projected checks a volume made of several sources, which share one tree of
// paths.
func (c *check) projected(p *field.Path, v *corev1.ProjectedVolumeSource) {
	c.mode(p.Child("defaultMode"), v.DefaultMode)
	c.user(p.Child("defaultUser"), v.DefaultUser)
	seen := map[string]bool{}
	once := func(path, owner string) {
		if seen[path] {
			c.invalid(p, owner, "conflicting duplicate paths")
		}
		seen[path] = true
	}
	keys := func(p *field.Path, name string, items []corev1.KeyToPath) {
		c.filled(p.Child("name"), name)
		for i := range items {
			c.keyToPath(p.Child("items").Index(i), &items[i])
			if items[i].Path != "" {
				once(items[i].Path, name)
			}
		}
	}
	for i := range v.Sources {
		s, sp, n := &v.Sources[i], p.Child("sources").Index(i), 0
		if s.Secret != nil {
			n++
			keys(sp.Child("secret"), s.Secret.Name, s.Secret.Items)
		}
		if s.ConfigMap != nil {
			n++
			keys(sp.Child("configMap"), s.ConfigMap.Name, s.ConfigMap.Items)
		}
		if s.DownwardAPI != nil {
			n++
			for j := range s.DownwardAPI.Items {
				f := &s.DownwardAPI.Items[j]
				c.downwardFile(sp.Child("downwardAPI"), f)
				if f.Path != "" {
					once(f.Path, f.Path)
				}
			}
		}
		if s.ServiceAccountToken != nil {
			n++
			c.tokenProjection(sp.Child("serviceAccountToken"), p, s.ServiceAccountToken)
		}
		if s.ClusterTrustBundle != nil {
			n++
			c.trustBundle(sp.Child("clusterTrustBundle"), s.ClusterTrustBundle)
			once(s.ClusterTrustBundle.Path, s.ClusterTrustBundle.Path)
		}
		if s.PodCertificate != nil {
			n++
			c.podCertificate(sp.Child("podCertificate"), s.PodCertificate, once)
		}
		if n > 1 {
			c.forbidden(sp, "may not specify more than 1 volume type per source")
		}
	}
}

// tokenProjection reports its path at the volume, not at the source.
func (c *check) tokenProjection(p, volume *field.Path, t *corev1.ServiceAccountTokenProjection) {
	ep := p.Child("expirationSeconds")
	if e := t.ExpirationSeconds; e == nil {
		c.required(ep, "")
	} else if *e < 10*60 {
		c.invalid(ep, *e, "may not specify a duration less than 10 minutes")
	} else if *e > 1<<32 {
		c.invalid(ep, *e, "may not specify a duration larger than 2^32 seconds")
	}
	if c.filled(volume.Child("path"), t.Path) && !c.nonLocalTokenPath {
		c.ownPath(volume.Child("path"), t.Path)
	}
	c.user(p.Child("user"), t.User)
}

func (c *check) trustBundle(p *field.Path, b *corev1.ClusterTrustBundleProjection) {
	switch {
	case b.Name != nil && b.SignerName != nil:
		c.invalid(p, resource.Shown(b), "only one of name and signerName may be used")
	case b.Name != nil:
		if *b.Name == "" {
			c.required(p.Child("name"), "must be a valid object name")
		}
		for _, msg := range trustBundleName(*b.Name) {
			c.invalid(p.Child("name"), *b.Name, fmt.Sprintf("not a valid clustertrustbundlename: %v", msg))
		}
		if b.LabelSelector != nil {
			c.invalid(p.Child("labelSelector"), b.LabelSelector, "labelSelector must be unset if name is specified")
		}
	case b.SignerName != nil:
		if *b.SignerName == "" {
			c.required(p.Child("signerName"), "must be a valid signer name")
		}
		c.signerName(p.Child("signerName"), *b.SignerName)
		c.selector(p.Child("labelSelector"), b.LabelSelector, false)
	default:
		c.required(p, "either name or signerName must be specified")
	}
	c.filled(p.Child("path"), b.Path)
	c.user(p.Child("user"), b.User)
	c.ownPath(p.Child("path"), b.Path)
}

// trustBundleName checks the name of a ClusterTrustBundle: what stands before
// the last colon is its signer, with colons for slashes.
func trustBundleName(name string) []string {
	signer := ""
	if i := strings.LastIndex(name, ":"); i > 0 {
		signer = strings.ReplaceAll(name[:i], ":", "/")
	}
	return TrustBundleName(signer)(name, false)
}

// TrustBundleName is the rule for the names of a signer's ClusterTrustBundles, or
// of those without a signer.
func TrustBundleName(signer string) apivalidation.ValidateNameFunc {
	return func(name string, prefix bool) []string {
		if signer == "" {
			if strings.Contains(name, ":") {
				return []string{`ClusterTrustBundle without signer name must not have ":" in its name`}
			}
			return resource.DNSSubdomain(name, prefix)
		}
		head := strings.ReplaceAll(signer, "/", ":") + ":"
		rest, ok := strings.CutPrefix(name, head)
		if !ok {
			return []string{fmt.Sprintf("ClusterTrustBundle for signerName %s must be named with prefix %s", signer, head)}
		}
		return resource.DNSSubdomain(rest, prefix)
	}
}

// MaxCertificateSeconds is how long a certificate of a pod may last that a signer
// issues: a day for Kubernetes' own, 91 for all others.
func MaxCertificateSeconds(signer string) int32 {
	const day = 24 * 60 * 60
	if host, _, _ := strings.Cut(signer, "/"); host == "kubernetes.io" || strings.HasSuffix(host, ".kubernetes.io") {
		return day
	}
	return 91 * day
}

// ValidateUserAnnotations checks what a pod's owner tells a signer.
func ValidateUserAnnotations(p *field.Path, m map[string]string) field.ErrorList {
	if m == nil {
		return nil
	}
	var errs field.ErrorList
	for _, k := range sortedKeys(m) {
		errs = append(errs, validation.IsDomainPrefixedKey(p, strings.ToLower(k))...)
	}
	if apivalidation.ValidateAnnotationsSize(m) != nil {
		errs = append(errs, field.TooLong(p, "", apivalidation.TotalAnnotationSizeLimitB))
	}
	return errs
}

func (c *check) podCertificate(p *field.Path, v *corev1.PodCertificateProjection, once func(path, owner string)) {
	c.signerName(p.Child("signerName"), v.SignerName)
	c.add(ValidateUserAnnotations(p.Child("userAnnotations"), v.UserAnnotations)...)
	c.user(p.Child("user"), v.User)
	oneOf(c, p.Child("keyType"), v.KeyType, "RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519")
	if m := v.MaxExpirationSeconds; m != nil {
		mp := p.Child("maxExpirationSeconds")
		if *m < 3600 {
			c.invalid(mp, *m, "if provided, maxExpirationSeconds must be >= 3600")
		}
		if most := MaxCertificateSeconds(v.SignerName); *m > most {
			c.invalid(mp, *m, fmt.Sprintf("if provided, maxExpirationSeconds must be <= %d", most))
		}
	}
	n := 0
	for _, f := range []struct{ name, path string }{
		{"credentialBundlePath", v.CredentialBundlePath}, {"keyPath", v.KeyPath}, {"certificateChainPath", v.CertificateChainPath},
	} {
		if f.path == "" {
			continue
		}
		n++
		c.ownPath(p.Child(f.name), f.path)
		once(f.path, f.path)
	}
	if n == 0 {
		c.required(p, "specify at least one of credentialBundlePath, keyPath, and certificateChainPath")
	}
}

// ValidateSignerName checks the name of a signer of certificates, of the form
// domain/path.
func ValidateSignerName(p *field.Path, v string) field.ErrorList {
	c := &check{}
	c.signerName(p, v)
	return c.errs
}

// signerName checks a name of the form domain/path.
func (c *check) signerName(p *field.Path, v string) {
	const (
		maxDomain = validation.DNS1123SubdomainMaxLength
		maxName   = maxDomain + 1 + validation.DNS1123SubdomainMaxLength + validation.DNS1123LabelMaxLength + 1
	)
	if !c.filled(p, v) {
		return
	}
	domain, rest, ok := strings.Cut(v, "/")
	if !ok || strings.Contains(rest, "/") {
		c.invalid(p, v, "must be a fully qualified domain and path of the form 'example.com/signer-name'")
		return
	}
	if len(domain) > maxDomain {
		c.tooLong(p, "", maxDomain)
	}
	// Of several bad parts only the first is reported.
	parts := func(whole string, rule func(string) []string) {
		for part := range strings.SplitSeq(whole, ".") {
			if msgs := rule(part); len(msgs) > 0 {
				for _, msg := range msgs {
					c.invalid(p, whole, fmt.Sprintf("validating label %q: %s", part, msg))
				}
				return
			}
		}
	}
	parts(domain, validation.IsDNS1123Label)
	if !strings.Contains(domain, ".") {
		c.invalid(p, domain, "should be a domain with at least two segments separated by dots")
	}
	parts(rest, validation.IsDNS1123Subdomain)
	if len(v) > maxName {
		c.tooLong(p, "", maxName)
	}
}

// ephemeral checks the template of the claim that a pod makes for itself.
func (c *check) ephemeral(p *field.Path, t *corev1.PersistentVolumeClaimTemplate) {
	if t == nil {
		c.required(p, "")
		return
	}
	c.claimMeta(p.Child("metadata"), t.ObjectMeta)
	c.claimSpec(p.Child("spec"), &t.Spec, ClaimOptions{})
}

// ValidateClaimMeta checks the metadata of the template of a claim, for storage or
// for devices: labels and annotations, and nothing else.
func ValidateClaimMeta(p *field.Path, m metav1.ObjectMeta) field.ErrorList {
	c := &check{}
	c.claimMeta(p, m)
	return c.errs
}

func (c *check) claimMeta(p *field.Path, m metav1.ObjectMeta) {
	c.add(apivalidation.ValidateAnnotations(m.Annotations, p.Child("annotations"))...)
	c.add(metavalidation.ValidateLabels(m.Labels, p.Child("labels"))...)
	c.onlyFields(p, m, "cannot be set", "Annotations", "Labels")
}

// selector checks a label selector, which may be nil; lax lets bad values pass.
func (c *check) selector(p *field.Path, s *metav1.LabelSelector, lax bool) {
	c.add(metavalidation.ValidateLabelSelector(s, metavalidation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: lax}, p)...)
}
