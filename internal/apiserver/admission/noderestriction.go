package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"skiff/internal/api/podrefs"
	"skiff/internal/api/resource"
	"skiff/internal/apiserver"
	"skiff/internal/apiserver/authz"
	"skiff/internal/client"
)

// NodeRestriction narrows what nodes may write to what is their own; that it
// touches them at all, the node authorizer has allowed.
type NodeRestriction struct{ noValidation }

// Name implements apiserver.Admission.
func (NodeRestriction) Name() string { return "NodeRestriction" }

type restriction func(ctx context.Context, node string, a *apiserver.Attributes) error

var restrictions = map[string]restriction{
	"/pods":                                          restrictPod,
	"/nodes":                                         restrictNode,
	"/persistentvolumeclaims":                        restrictClaim,
	"/serviceaccounts":                               restrictToken,
	"coordination.k8s.io/leases":                     restrictLease,
	"storage.k8s.io/csinodes":                        restrictCSINode,
	"resource.k8s.io/resourceslices":                 restrictSlice,
	"certificates.k8s.io/podcertificaterequests":     restrictPodCertificate,
	"certificates.k8s.io/certificatesigningrequests": restrictCSR,
}

// Admit implements apiserver.Admission.
func (NodeRestriction) Admit(ctx context.Context, a *apiserver.Attributes) error {
	if a.Operation == apiserver.OpConnect {
		return nil
	}
	node, isNode := authz.NodeName(&a.User)
	if !isNode {
		return nil
	}
	if node == "" {
		return forbidden(a, fmt.Errorf("could not determine node from user %q", a.User.Name))
	}
	gr := resourceOf(a)
	f := restrictions[gr.Group+"/"+gr.Resource]
	if f == nil {
		return nil
	}
	err := f(ctx, node, a)
	var status apierrors.APIStatus
	if err == nil || errors.As(err, &status) && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsInternalError(err) || isUndecided(err)) {
		return err
	}
	return forbidden(a, err)
}

func unexpectedOperation(a *apiserver.Attributes) error {
	return fmt.Errorf("unexpected operation %q", a.Operation)
}

func restrictPod(ctx context.Context, node string, a *apiserver.Attributes) error {
	switch a.Subresource {
	case "":
		switch a.Operation {
		case apiserver.OpCreate:
			return restrictMirror(ctx, node, a)
		case apiserver.OpDelete:
			if p, ok := a.Old.(*corev1.Pod); ok && p.Spec.NodeName != node {
				return fmt.Errorf("node %q can only delete pods with spec.nodeName set to itself", node)
			}
			return nil
		}
		return fmt.Errorf("unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node)
	case "status":
		return restrictPodStatus(node, a)
	case "eviction":
		return restrictEviction(ctx, node, a)
	}
	return fmt.Errorf("unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Subresource)
}

func restrictMirror(ctx context.Context, node string, a *apiserver.Attributes) error {
	p, ok := a.Object.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	switch {
	case !mirror(p):
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	case p.Spec.NodeName != node:
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	case len(p.OwnerReferences) > 1:
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	case len(p.OwnerReferences) == 0:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	}
	owner := p.OwnerReferences[0]
	switch {
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	case owner.Controller == nil || !*owner.Controller:
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	case owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion:
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	n, err := client.For[*corev1.Node](a.Env.Client).Get(ctx, node)
	if apierrors.IsNotFound(err) {
		return err
	}
	if err != nil {
		return fmt.Errorf("error looking up node %s to verify uid: %v", node, err) //nolint:errorlint // its kind must not show
	}
	if owner.UID != n.UID {
		return fmt.Errorf("node %s UID mismatch: expected %s got %s", node, owner.UID, n.UID)
	}
	if what := podrefs.NeedsAPI(p); what != "" {
		return fmt.Errorf("node %q can not create pods that reference %s", node, what)
	}
	return nil
}

func restrictPodStatus(node string, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpUpdate {
		return unexpectedOperation(a)
	}
	old, ok := a.Old.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Old)
	}
	p, ok := a.Object.(*corev1.Pod)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	same := apiequality.Semantic.DeepEqual
	switch {
	case old.Spec.NodeName != node:
		return fmt.Errorf("node %q can only update pod status for pods with spec.nodeName set to itself", node)
	case !labels.Equals(old.Labels, p.Labels):
		return fmt.Errorf("node %q cannot update labels through pod status", node)
	case !same(old.Status.ResourceClaimStatuses, p.Status.ResourceClaimStatuses):
		return fmt.Errorf("node %q cannot update resource claim statues", node)
	case !same(old.Status.ExtendedResourceClaimStatus, p.Status.ExtendedResourceClaimStatus):
		return fmt.Errorf("node %q cannot update extended resource claim status", node)
	case !same(old.Status.NodeAllocatableResourceClaimStatuses, p.Status.NodeAllocatableResourceClaimStatuses):
		return fmt.Errorf("node %q cannot update node allocatable resource claim statuses", node)
	}
	return nil
}

func restrictEviction(ctx context.Context, node string, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate {
		return fmt.Errorf("unexpected operation %s", a.Operation)
	}
	name := a.Name
	if e, ok := a.Object.(*policyv1.Eviction); ok && name == "" {
		name = e.Name
	}
	if name == "" {
		return errors.New("could not determine pod from request data")
	}
	p, err := client.For[*corev1.Pod](a.Env.Client).In(a.Namespace).Get(ctx, name)
	if err != nil {
		return err
	}
	if p.Spec.NodeName != node {
		return fmt.Errorf("node %s can only evict pods with spec.nodeName set to itself", node)
	}
	return nil
}

func restrictNode(_ context.Context, node string, a *apiserver.Attributes) error {
	name := a.Name
	if name == "" && a.Object != nil {
		name = a.Object.GetName()
	}
	if name != node {
		return fmt.Errorf("node %q is not allowed to modify node %q", node, name)
	}
	if a.Operation != apiserver.OpCreate && a.Operation != apiserver.OpUpdate {
		return nil
	}
	n, ok := a.Object.(*corev1.Node)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	old, _ := a.Old.(*corev1.Node)
	if a.Operation == apiserver.OpCreate {
		if n.Spec.ConfigSource != nil { //nolint:staticcheck // refused, as upstream
			return fmt.Errorf("node %q is not allowed to create pods with a non-nil configSource", node)
		}
		if bad := forbiddenLabels(n.Labels, nil); len(bad) > 0 {
			return fmt.Errorf("node %q is not allowed to set the following labels: %s", node, strings.Join(bad, ", "))
		}
		return nil
	}
	if old == nil {
		return fmt.Errorf("unexpected type %T", a.Old)
	}
	same := apiequality.Semantic.DeepEqual
	switch {
	case n.Spec.ConfigSource != nil && !same(n.Spec.ConfigSource, old.Spec.ConfigSource): //nolint:staticcheck // refused, as upstream
		return fmt.Errorf("node %q is not allowed to update configSource to a new non-nil configSource", node)
	case !same(n.Spec.Taints, old.Spec.Taints):
		return fmt.Errorf("node %q is not allowed to modify taints", node)
	case !same(n.OwnerReferences, old.OwnerReferences):
		return fmt.Errorf("node %q is not allowed to modify ownerReferences", node)
	}
	if bad := forbiddenLabels(n.Labels, old.Labels); len(bad) > 0 {
		return fmt.Errorf("is not allowed to modify labels: %s", strings.Join(bad, ", "))
	}
	return nil
}

// nodeLabels are those of Kubernetes' own labels that a node sets on itself.
var nodeLabels = []string{
	corev1.LabelHostname, corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone,
	corev1.LabelFailureDomainBetaRegion, corev1.LabelInstanceType, corev1.LabelInstanceTypeStable, corev1.LabelOSStable,
	corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

// forbiddenLabels returns the labels that differ and are not a node's to set.
func forbiddenLabels(now, old map[string]string) []string {
	var out []string
	check := func(key string) {
		domain, _, ok := strings.Cut(key, "/")
		if !ok {
			return
		}
		under := func(suffix string) bool { return domain == suffix || strings.HasSuffix(domain, "."+suffix) }
		ours := under("kubernetes.io") || under("k8s.io")
		its := slices.Contains(nodeLabels, key) || under(corev1.LabelNamespaceSuffixKubelet) || under(corev1.LabelNamespaceSuffixNode)
		if (under(corev1.LabelNamespaceNodeRestriction) || ours && !its) && !slices.Contains(out, key) {
			out = append(out, key)
		}
	}
	for k, v := range now {
		if o, ok := old[k]; !ok || o != v {
			check(k)
		}
	}
	for k := range old {
		if _, ok := now[k]; !ok {
			check(k)
		}
	}
	slices.Sort(out)
	return out
}

func restrictClaim(_ context.Context, node string, a *apiserver.Attributes) error {
	if a.Subresource != "status" {
		return errors.New("may only update PVC status")
	}
	if a.Operation != apiserver.OpUpdate {
		return unexpectedOperation(a)
	}
	old, ok := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Old)
	}
	now, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	rest := func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		c = c.DeepCopy()
		c.ResourceVersion, c.ManagedFields = "", nil
		s := &c.Status
		s.Capacity, s.Conditions, s.AllocatedResourceStatuses, s.AllocatedResources = nil, nil, nil, nil
		return c
	}
	if o, n := rest(old), rest(now); !apiequality.Semantic.DeepEqual(o, n) {
		return fmt.Errorf("node %q is not allowed to update fields other than status.quantity and status.conditions: %v", node, resource.Diff(o, n))
	}
	return nil
}

func restrictLease(_ context.Context, node string, a *apiserver.Attributes) error {
	if a.Namespace != corev1.NamespaceNodeLease {
		return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if nameOf(a) != node {
		return errors.New("can only access node lease with the same name as the requesting node")
	}
	return nil
}

func restrictCSINode(_ context.Context, node string, a *apiserver.Attributes) error {
	if nameOf(a) != node {
		return errors.New("can only access CSINode with the same name as the requesting node")
	}
	if a.Subresource == "status" {
		return errors.New("CSIVolumeHealth feature gate is disabled")
	}
	return nil
}

// nameOf is the name that a request is for: on creation that of the object.
func nameOf(a *apiserver.Attributes) string {
	if a.Operation == apiserver.OpCreate && a.Object != nil {
		return a.Object.GetName()
	}
	return a.Name
}

func restrictSlice(_ context.Context, node string, a *apiserver.Attributes) error {
	own := func(o apiserver.Object) bool {
		s, ok := o.(*resourcev1.ResourceSlice)
		return ok && s.Spec.NodeName != nil && *s.Spec.NodeName == node
	}
	switch {
	case a.Operation == apiserver.OpCreate && !own(a.Object):
		return errors.New("can only create ResourceSlice with the same NodeName as the requesting node")
	case a.Operation == apiserver.OpDelete && !own(a.Old):
		return errors.New("can only delete ResourceSlice with the same NodeName as the requesting node")
	}
	return nil
}

func restrictCSR(_ context.Context, node string, a *apiserver.Attributes) error {
	if a.Operation != apiserver.OpCreate {
		return nil
	}
	r, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.Object)
	}
	if s := r.Spec.SignerName; s != certificatesv1.KubeletServingSignerName && s != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	block, _ := pem.Decode(r.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return errors.New("unable to parse csr: PEM block type must be CERTIFICATE REQUEST")
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("unable to parse csr: %w", err)
	}
	if want := "system:node:" + node; req.Subject.CommonName != want {
		return fmt.Errorf("can only create a node CSR with CN=%s", want)
	}
	return nil
}
