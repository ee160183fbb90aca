package devices

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	draapi "k8s.io/kubelet/pkg/apis/dra/v1"

	"skiff/internal/client"
)

// claim is a resource claim whose devices are, or are to be, prepared here. It is
// changed under Devices.mu alone.
type claim struct {
	UID       types.UID   `json:"uid"`
	Namespace string      `json:"namespace"`
	Name      string      `json:"name"`
	Pods      []types.UID `json:"pods"`
	// Drivers have the devices that each driver prepared.
	Drivers  map[string][]prepared `json:"drivers"`
	Prepared bool                  `json:"prepared,omitempty"`
}

// prepared is a device as its driver prepared it.
type prepared struct {
	Pool     string   `json:"pool"`
	Device   string   `json:"device"`
	Requests []string `json:"requests,omitempty"`
	CDI      []string `json:"cdi,omitempty"`
}

func (c *claim) key() types.NamespacedName {
	return types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
}

func (c *claim) wire() *draapi.Claim {
	return &draapi.Claim{Namespace: c.Namespace, Uid: string(c.UID), Name: c.Name}
}

// state is the content of the state file.
type state struct {
	Boot   string   `json:"boot"`
	Claims []*claim `json:"claims"`
}

// readState reads the state file; after a reboot nothing is prepared.
func readState(path, boot string) (map[types.NamespacedName]*claim, error) {
	out := map[types.NamespacedName]*claim{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("prepared devices: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("prepared devices: %s: %w (drain the node and remove the file)", path, err)
	}
	for _, c := range s.Claims {
		c.Prepared = c.Prepared && s.Boot == boot
		out[c.key()] = c
	}
	return out, nil
}

// save writes the state file. x.mu is held.
func (x *Devices) save() error {
	s := state{Boot: x.d.Boot, Claims: slices.Collect(maps.Values(x.claims))}
	slices.SortFunc(s.Claims, func(a, b *claim) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	b, err := json.Marshal(s)
	if err == nil {
		err = writeFile(x.d.State, b)
	}
	if err != nil {
		return fmt.Errorf("checkpoint ResourceClaim state: %w", err)
	}
	return nil
}

func writeFile(path string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// lock waits until nobody works on the claims, and keeps others away until unlock.
func (x *Devices) lock(ctx context.Context, keys []types.NamespacedName) (unlock func(), err error) {
	for {
		x.mu.Lock()
		var other chan struct{}
		for _, k := range keys {
			if other = x.busy[k]; other != nil {
				break
			}
		}
		if other == nil {
			done := make(chan struct{})
			for _, k := range keys {
				x.busy[k] = done
			}
			x.mu.Unlock()
			return func() {
				x.mu.Lock()
				for _, k := range keys {
					delete(x.busy, k)
				}
				x.mu.Unlock()
				close(done)
			}, nil
		}
		x.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// uses tells whether a pod has claims.
func uses(pod *corev1.Pod) bool {
	return len(pod.Spec.ResourceClaims) > 0 || pod.Status.ExtendedResourceClaimStatus != nil
}

// claimRefs are the pod's claims: those of its spec and that of its extended resources.
func claimRefs(pod *corev1.Pod) []corev1.PodResourceClaim {
	refs := pod.Spec.ResourceClaims
	if x := pod.Status.ExtendedResourceClaimStatus; x != nil {
		refs = append(slices.Clone(refs), corev1.PodResourceClaim{ResourceClaimName: &x.ResourceClaimName})
	}
	return refs
}

// Prepare has the drivers prepare the devices of a pod's claims. It may be called
// again and again: what is prepared is not prepared anew.
func (x *Devices) Prepare(ctx context.Context, pod *corev1.Pod) error {
	if !uses(pod) {
		return nil
	}
	if err := x.prepare(ctx, pod); err != nil {
		return fmt.Errorf("prepare dynamic resources: %w", err)
	}
	return nil
}

func (x *Devices) prepare(ctx context.Context, pod *corev1.Pod) error {
	var claims []*resourcev1.ResourceClaim
	drivers := map[string]*driver{}
	for _, ref := range claimRefs(pod) {
		name, own, err := resourceclaim.Name(pod, &ref)
		if err != nil {
			return err
		}
		if name == nil {
			continue
		}
		c, err := client.For[*resourcev1.ResourceClaim](x.d.Client).In(pod.Namespace).Get(ctx, *name)
		if err != nil {
			return fmt.Errorf("fetch ResourceClaim %s: %w", *name, err)
		}
		if own {
			if err := resourceclaim.IsForPod(pod, c, false); err != nil {
				return err
			}
		}
		if !resourceclaim.IsReservedForPod(pod, c, false) {
			return fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s)", pod.Name, pod.UID, *name, c.UID)
		}
		if c.Status.Allocation == nil {
			return fmt.Errorf("ResourceClaim %s: not allocated", c.Name)
		}
		for _, r := range c.Status.Allocation.Devices.Results {
			if drivers[r.Driver] == nil {
				if drivers[r.Driver], err = x.driver(r.Driver); err != nil {
					return err
				}
			}
		}
		claims = append(claims, c)
	}
	keys := make([]types.NamespacedName, len(claims))
	for i, c := range claims {
		keys[i] = types.NamespacedName{Namespace: c.Namespace, Name: c.Name}
	}
	unlock, err := x.lock(ctx, keys)
	if err != nil {
		return err
	}
	defer unlock()
	todo, err := x.note(pod.UID, claims)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(drivers)) {
		if err := x.prepareWith(ctx, drivers[name], todo); err != nil {
			return err
		}
	}
	if len(todo) == 0 {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, c := range todo {
		c.Prepared = true
	}
	return x.save()
}

// note writes down that a pod is about to use claims, and returns those that are not
// prepared yet.
func (x *Devices) note(pod types.UID, claims []*resourcev1.ResourceClaim) ([]*claim, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var todo []*claim
	changed := false
	for _, o := range claims {
		key := types.NamespacedName{Namespace: o.Namespace, Name: o.Name}
		c := x.claims[key]
		if c == nil {
			c = &claim{UID: o.UID, Namespace: o.Namespace, Name: o.Name, Drivers: map[string][]prepared{}}
			for _, r := range o.Status.Allocation.Devices.Results {
				c.Drivers[r.Driver] = nil
			}
			x.claims[key] = c
		}
		if c.UID != o.UID {
			return nil, fmt.Errorf("old ResourceClaim with same name %s and different UID %s still exists (previous pod force-deleted?!)", o.Name, c.UID)
		}
		if !slices.Contains(c.Pods, pod) {
			c.Pods = append(c.Pods, pod)
			changed = true
		}
		if !c.Prepared && !slices.Contains(todo, c) {
			todo = append(todo, c)
		}
	}
	if !changed {
		return todo, nil
	}
	return todo, x.save()
}

// prepareWith has one driver prepare its devices of claims.
func (x *Devices) prepareWith(ctx context.Context, v *driver, todo []*claim) error {
	var claims []*draapi.Claim
	byUID := map[string]*claim{}
	for _, c := range todo {
		if _, ok := c.Drivers[v.name]; ok {
			claims = append(claims, c.wire())
			byUID[string(c.UID)] = c
		}
	}
	if len(claims) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.client.NodePrepareResources(ctx, &draapi.NodePrepareResourcesRequest{Claims: claims})
	if err != nil {
		return fmt.Errorf("NodePrepareResources: %w", err)
	}
	for uid, result := range r.GetClaims() {
		c := byUID[uid]
		if c == nil {
			return fmt.Errorf("NodePrepareResources returned result for unknown claim UID %s", uid)
		}
		if result.GetError() != "" {
			return fmt.Errorf("NodePrepareResources failed for ResourceClaim %s: %s", c.Name, result.GetError())
		}
		var got []prepared
		for _, d := range result.GetDevices() {
			got = append(got, prepared{Pool: d.GetPoolName(), Device: d.GetDeviceName(), Requests: d.GetRequestNames(), CDI: d.GetCdiDeviceIds()})
		}
		x.mu.Lock()
		c.Drivers[v.name] = got
		x.mu.Unlock()
	}
	if n := len(claims) - len(r.GetClaims()); n != 0 {
		return fmt.Errorf("NodePrepareResources skipped %d ResourceClaims", n)
	}
	return nil
}

// Holds tells whether devices are, or may be, prepared for a pod.
func (x *Devices) Holds(pod types.UID) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.heldBy(pod)) > 0
}

// heldBy are the claims of a pod. x.mu is held.
func (x *Devices) heldBy(pod types.UID) []types.NamespacedName {
	var out []types.NamespacedName
	for key, c := range x.claims {
		if slices.Contains(c.Pods, pod) {
			out = append(out, key)
		}
	}
	return out
}

// Unprepare has the drivers take back the devices of a pod's claims, but those that
// other pods still use. A driver that is not there is an error: others must not get
// the devices before it has been told.
func (x *Devices) Unprepare(ctx context.Context, pod types.UID) error {
	x.mu.Lock()
	keys := x.heldBy(pod)
	x.mu.Unlock()
	if len(keys) == 0 {
		return nil
	}
	unlock, err := x.lock(ctx, keys)
	if err != nil {
		return err
	}
	defer unlock()
	if err := x.unprepare(ctx, pod, keys); err != nil {
		return fmt.Errorf("unprepare dynamic resources: %w", err)
	}
	return nil
}

func (x *Devices) unprepare(ctx context.Context, pod types.UID, keys []types.NamespacedName) error {
	x.mu.Lock()
	batches := map[string][]*draapi.Claim{}
	names := map[string]string{}
	for _, k := range keys {
		c := x.claims[k]
		if c == nil || slices.ContainsFunc(c.Pods, func(o types.UID) bool { return o != pod }) {
			continue
		}
		names[string(c.UID)] = c.Name
		// What becomes of the devices is open until all drivers have answered.
		c.Prepared = false
		for name := range c.Drivers {
			batches[name] = append(batches[name], c.wire())
		}
	}
	x.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(batches)) {
		v, err := x.driver(name)
		if err != nil {
			return err
		}
		if err := v.unprepare(ctx, batches[name], names); err != nil {
			return err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, k := range keys {
		c := x.claims[k]
		if c == nil {
			continue
		}
		if c.Pods = slices.DeleteFunc(c.Pods, func(o types.UID) bool { return o == pod }); len(c.Pods) == 0 {
			delete(x.claims, k)
		}
	}
	return x.save()
}

func (v *driver) unprepare(ctx context.Context, claims []*draapi.Claim, names map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := v.client.NodeUnprepareResources(ctx, &draapi.NodeUnprepareResourcesRequest{Claims: claims})
	if err != nil {
		return fmt.Errorf("NodeUnprepareResources: %w", err)
	}
	for uid, result := range r.GetClaims() {
		if names[uid] == "" {
			return fmt.Errorf("NodeUnprepareResources returned result for unknown claim UID %s", uid)
		}
		if result.GetError() != "" {
			return fmt.Errorf("NodeUnprepareResources failed for ResourceClaim %s: %s", names[uid], result.GetError())
		}
	}
	if n := len(claims) - len(r.GetClaims()); n != 0 {
		return fmt.Errorf("NodeUnprepareResources skipped %d ResourceClaims", n)
	}
	return nil
}

// podsOf are the pods that have a device of a driver.
func (x *Devices) podsOf(driver string, id device) []types.UID {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []types.UID
	for _, c := range x.claims {
		if slices.ContainsFunc(c.Drivers[driver], func(p prepared) bool { return p.Pool == id.pool && p.Device == id.name }) {
			out = append(out, c.Pods...)
		}
	}
	return out
}

// CDI returns the names of the CDI devices that a container is to be given: those of
// the requests that it names, or of whole claims.
func (x *Devices) CDI(pod *corev1.Pod, c *corev1.Container) ([]string, error) {
	if !uses(pod) {
		return nil, nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	add := func(name, request string) error {
		held := x.claims[types.NamespacedName{Namespace: pod.Namespace, Name: name}]
		if held == nil {
			return fmt.Errorf("internal error: unable to get claim info for ResourceClaim %s in namespace %s", name, pod.Namespace)
		}
		for _, driver := range slices.Sorted(maps.Keys(held.Drivers)) {
			for _, d := range held.Drivers[driver] {
				if d.answers(request) {
					out = append(out, d.CDI...)
				}
			}
		}
		return nil
	}
	for _, use := range c.Resources.Claims {
		name := claimNamed(pod, use.Name)
		if name == "" {
			continue
		}
		if err := add(name, use.Request); err != nil {
			return nil, err
		}
	}
	if special := pod.Status.ExtendedResourceClaimStatus; special != nil {
		for _, m := range special.RequestMappings {
			if q, ok := c.Resources.Requests[corev1.ResourceName(m.ResourceName)]; m.ContainerName != c.Name || !ok || q.IsZero() {
				continue
			}
			if err := add(special.ResourceClaimName, m.RequestName); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// answers tells whether a device was given for a request; "" stands for all.
func (d *prepared) answers(request string) bool {
	return request == "" || len(d.Requests) == 0 || slices.Contains(d.Requests, request)
}

// claimNamed is the claim behind one of a pod's references, "" for none.
func claimNamed(pod *corev1.Pod, ref string) string {
	for i := range pod.Spec.ResourceClaims {
		if pod.Spec.ResourceClaims[i].Name != ref {
			continue
		}
		if name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i]); err == nil && name != nil {
			return *name
		}
	}
	return ""
}

// Status is how healthy the devices of a container are, one entry for each use of a
// claim, in the order of the container's (KEP-4680).
func (x *Devices) Status(pod *corev1.Pod, c *corev1.Container) []corev1.ResourceStatus {
	if len(pod.Spec.ResourceClaims) == 0 {
		return nil
	}
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []corev1.ResourceStatus
	for _, use := range c.Resources.Claims {
		held := x.claims[types.NamespacedName{Namespace: pod.Namespace, Name: claimNamed(pod, use.Name)}]
		if held == nil {
			continue
		}
		st := corev1.ResourceStatus{Name: corev1.ResourceName("claim:" + use.Name)}
		if use.Request != "" {
			st.Name += corev1.ResourceName("/" + use.Request)
		}
		for _, driver := range slices.Sorted(maps.Keys(held.Drivers)) {
			for _, d := range held.Drivers[driver] {
				if use.Request != "" && !d.answers(resourceclaim.BaseRequestRef(use.Request)) {
					continue
				}
				id := corev1.ResourceID(driver + "/" + d.Pool + "/" + d.Device)
				if len(d.CDI) > 0 {
					id = corev1.ResourceID(d.CDI[0])
				}
				if slices.ContainsFunc(st.Resources, func(r corev1.ResourceHealth) bool { return r.ResourceID == id }) {
					continue
				}
				status, message := x.health.of(driver, device{d.Pool, d.Device}, now)
				r := corev1.ResourceHealth{ResourceID: id, Health: status}
				if message != "" {
					r.Message = &message
				}
				st.Resources = append(st.Resources, r)
			}
		}
		if len(st.Resources) > 0 {
			out = append(out, st)
		}
	}
	return out
}
