package app

import (
	"os"
	"path/filepath"

	configv1 "k8s.io/kube-scheduler/config/v1"

	"skiff/internal/scheduler/config"
)

// scheduler reads the scheduler's configuration, and makes its path absolute: a later
// start may be in another directory. Without a file it is the default.
func (c *Config) scheduler() (*configv1.KubeSchedulerConfiguration, error) {
	if c.SchedulerConfig == "" {
		return config.Default(), nil
	}
	abs, err := filepath.Abs(c.SchedulerConfig)
	if err != nil {
		return nil, &ConfigError{"schedulerConfig", err.Error()}
	}
	c.SchedulerConfig = abs
	b, err := os.ReadFile(abs)
	if err != nil {
		return nil, &ConfigError{"schedulerConfig", err.Error()}
	}
	out, err := config.Load(b)
	if err != nil {
		return nil, &ConfigError{"schedulerConfig", abs + ": " + err.Error()}
	}
	return out, nil
}
