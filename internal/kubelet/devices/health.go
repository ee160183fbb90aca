package devices

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	healthapi "k8s.io/kubelet/pkg/apis/dra-health/v1"
)

const (
	// healthAge is how long a report holds that names no time of its own.
	healthAge = 30 * time.Second
	// maxHealth bounds the devices of one driver that are remembered.
	maxHealth = 16384
)

// device names a device of a driver.
type device struct{ pool, name string }

type deviceHealth struct {
	status  corev1.ResourceHealthStatus
	message string
	at      time.Time
	age     time.Duration
}

// health is what drivers told of their devices last.
type health struct {
	mu       sync.Mutex
	byDriver map[string]map[device]deviceHealth
}

func newHealth() *health { return &health{byDriver: map[string]map[device]deviceHealth{}} }

var healthStatus = map[healthapi.HealthStatus]corev1.ResourceHealthStatus{
	healthapi.HealthStatus_HEALTHY: corev1.ResourceHealthStatusHealthy, healthapi.HealthStatus_UNHEALTHY: corev1.ResourceHealthStatusUnhealthy,
}

// update takes a report and returns the devices whose health changed.
func (h *health) update(driver string, report []*healthapi.DeviceHealth, now time.Time) []device {
	h.mu.Lock()
	defer h.mu.Unlock()
	known := h.byDriver[driver]
	if known == nil {
		known = map[device]deviceHealth{}
		h.byDriver[driver] = known
	}
	var changed []device
	reported := map[device]bool{}
	for _, r := range report {
		id := device{r.GetDevice().GetPoolName(), r.GetDevice().GetDeviceName()}
		next := deviceHealth{status: healthStatus[r.GetHealth()], message: r.GetMessage(), at: now, age: healthAge}
		if next.status == "" {
			next.status = corev1.ResourceHealthStatusUnknown
		}
		if len(next.message) > corev1.ResourceHealthMessageMaxLength {
			next.message = next.message[:corev1.ResourceHealthMessageMaxLength-3] + "..."
		}
		if s := r.GetHealthCheckTimeoutSeconds(); s > 0 {
			next.age = time.Duration(s) * time.Second
		}
		old, ok := known[id]
		if !ok && len(known) >= maxHealth {
			continue
		}
		reported[id] = true
		if !ok || old.status != next.status || old.message != next.message || old.age != next.age {
			changed = append(changed, id)
		}
		known[id] = next
	}
	for id, old := range known {
		if !reported[id] && now.Sub(old.at) > old.age {
			delete(known, id)
			changed = append(changed, id)
		}
	}
	return changed
}

// forget drops what a driver told that tells no more.
func (h *health) forget(driver string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byDriver, driver)
}

// of is the health of a device; what is too old is unknown.
func (h *health) of(driver string, id device, now time.Time) (corev1.ResourceHealthStatus, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	d, ok := h.byDriver[driver][id]
	if !ok || now.Sub(d.at) > d.age {
		return corev1.ResourceHealthStatusUnknown, ""
	}
	return d.status, d.message
}
