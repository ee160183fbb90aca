package controller

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"skiff/internal/api/storage"

	"skiff/internal/client"
	"skiff/internal/control"
)

// byClaim is the index of pods by the claims that they use, ephemeral ones
// included, and of volumes by the claim that they are for; its values are
// namespace/name.
const byClaim = "claim"

func indexPodClaims(pods *client.Informer[*corev1.Pod]) {
	pods.AddIndex(byClaim, func(p *corev1.Pod) []string {
		var out []string
		for i := range p.Spec.Volumes {
			if name := storage.ClaimOf(p, &p.Spec.Volumes[i]); name != "" {
				out = append(out, p.Namespace+"/"+name)
			}
		}
		return out
	})
}

func indexVolumeClaims(volumes *client.Informer[*corev1.PersistentVolume]) {
	volumes.AddIndex(byClaim, func(v *corev1.PersistentVolume) []string {
		if r := v.Spec.ClaimRef; r != nil {
			return []string{r.Namespace + "/" + r.Name}
		}
		return nil
	})
}

// claimKey names a claim as events and indices do.
func claimKey(c *corev1.PersistentVolumeClaim) string { return c.Namespace + "/" + c.Name }

func refKey(r *corev1.ObjectReference) control.Key {
	return control.Key{Namespace: r.Namespace, Name: r.Name}
}

// drivers are the CSI drivers that took over for the provisioners that upstream
// once had built in.
var drivers = map[string]string{
	"kubernetes.io/aws-ebs":         "ebs.csi.aws.com",
	"kubernetes.io/azure-disk":      "disk.csi.azure.com",
	"kubernetes.io/azure-file":      "file.csi.azure.com",
	"kubernetes.io/cinder":          "cinder.csi.openstack.org",
	"kubernetes.io/gce-pd":          "pd.csi.storage.gke.io",
	"kubernetes.io/portworx-volume": "pxd.portworx.com",
	"kubernetes.io/vsphere-volume":  "csi.vsphere.vmware.com",
}

const builtInPrefix = "kubernetes.io/"

// provisionerOf is who is asked for volumes of a class; an error tells that nobody
// can make them.
func provisionerOf(class *storagev1.StorageClass) (string, error) {
	if d, ok := drivers[class.Provisioner]; ok {
		return d, nil
	}
	if strings.HasPrefix(class.Provisioner, builtInPrefix) {
		return "", fmt.Errorf("no volume plugin matched name: %s", class.Provisioner)
	}
	return class.Provisioner, nil
}
