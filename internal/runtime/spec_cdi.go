package runtime

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// injectCDI applies what the CDI specs of the host say of the devices that a config
// names (Container Device Interface 1.1). The directories are read anew each time:
// a spec is often written for this very container.
func (r *Runtime) injectCDI(config *runtimeapi.ContainerConfig, oci *specs.Spec) error {
	var names []string
	seen := map[string]bool{}
	for _, d := range config.GetCDIDevices() {
		if !seen[d.GetName()] {
			seen[d.GetName()] = true
			names = append(names, d.GetName())
		}
	}
	if len(names) == 0 {
		return nil
	}
	options := []cdi.Option{cdi.WithAutoRefresh(false)}
	if len(r.CDIDirs) > 0 {
		options = append(options, cdi.WithSpecDirs(r.CDIDirs...))
	}
	cache, err := cdi.NewCache(options...)
	if err != nil {
		return fmt.Errorf("CDI registry: %w", err)
	}
	if _, err := cache.InjectDevices(oci, names...); err != nil {
		for _, list := range cache.GetErrors() {
			err = errors.Join(err, errors.Join(list...)) // a spec that cannot be read may be why
		}
		return fmt.Errorf("CDI device injection failed: %w", err)
	}
	return nil
}
