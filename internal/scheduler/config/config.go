// Package config reads the scheduler's configuration: KubeSchedulerConfiguration,
// kubescheduler.config.k8s.io/v1, as upstream's scheduler takes it. What is wrong with
// one is said in upstream's words, by field.
package config

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	configv1 "k8s.io/kube-scheduler/config/v1"
)

// Load decodes, defaults and validates a configuration in YAML or JSON. Fields that
// there are not are refused.
//
// Settings that have no meaning here are accepted and validated: how much is done in
// parallel, how many nodes are scored (all are), the client's limits, the election of
// a leader and profiling.
func Load(data []byte) (*configv1.KubeSchedulerConfiguration, error) {
	scheme := runtime.NewScheme()
	if err := configv1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	obj, gvk, err := decoder.Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	c, ok := obj.(*configv1.KubeSchedulerConfiguration)
	if !ok {
		return nil, fmt.Errorf("couldn't decode as KubeSchedulerConfiguration, got %s: ", gvk)
	}
	if err := c.DecodeNestedObjects(decoder); err != nil {
		return nil, err
	}
	setDefaults(c)
	if err := validate(c); err != nil {
		return nil, err
	}
	return c, nil
}

// Default is the configuration where none is given.
func Default() *configv1.KubeSchedulerConfiguration {
	c := &configv1.KubeSchedulerConfiguration{}
	c.APIVersion, c.Kind = configv1.SchemeGroupVersion.String(), "KubeSchedulerConfiguration"
	setDefaults(c)
	return c
}
