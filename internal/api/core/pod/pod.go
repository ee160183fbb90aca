// Package pod declares core/v1 pods: their defaults, what every door to them may
// write, every rule that a pod must keep, and how one shows in a table.
//
// Rules and texts are upstream's, with the paths and in the order in which it
// reports them; where upstream walks a map, which has no order, the keys are
// sorted here. The rules for a pod's spec serve the templates of workloads too:
// DefaultSpec, DropDisabled, TemplateOptions, ValidateTemplate, TemplateWarnings.
//
// An object may keep what it has: a rule that became stricter after it was
// stored, and a field whose feature is off, do not stand in the way of an
// unrelated update (Options).
package pod

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"

	"skiff/internal/api/resource"
)

const prefix = "/registry/pods/"

// Pod declares core/v1 pods.
func Pod() *resource.Resource {
	return resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Pod", Plural: "pods", Singular: "pod",
		ShortNames: []string{"po"}, Categories: []string{"all"}, Namespaced: true, Prefix: prefix, ReturnDeleted: true,
		New:     func() resource.Object { return &corev1.Pod{} },
		NewList: func() runtime.Object { return &corev1.PodList{} },
		Columns: columns(),
		Subresources: []resource.Subresource{
			connect("attach", "PodAttachOptions", "create", "get"),
			bindingDoor(),
			ephemeralContainersDoor(),
			evictionDoor(),
			connect("exec", "PodExecOptions", "create", "get"),
			connect("log", "", "get"),
			connect("portforward", "PodPortForwardOptions", "create", "get"),
			connect("proxy", "PodProxyOptions", "create", "delete", "get", "patch", "update"),
			resizeDoor(),
			statusDoor(),
		},
	}, resource.StrategyOf[*corev1.Pod]{
		UnconditionalUpdate: true,
		Default:             setDefaults,
		PrepareCreate:       prepareCreate,
		PrepareUpdate:       prepareUpdate,
		ValidateCreate:      validateCreate,
		ValidateUpdate:      validateUpdate,
		Warnings:            warnings,
		Grace:               grace,
		Selectable:          selectable,
		ResetFields:         []string{"status"},
		Row:                 row,
		RowConditions:       rowConditions,
	})
}

func connect(name, kind string, verbs ...string) resource.Subresource {
	s := resource.Subresource{Name: name, Verbs: verbs, Connect: true}
	if kind != "" {
		s.Kind = corev1.SchemeGroupVersion.WithKind(kind)
	}
	return s
}

func selectable(pod *corev1.Pod) fields.Set {
	ip := ""
	if len(pod.Status.PodIPs) > 0 {
		ip = pod.Status.PodIPs[0].IP
	}
	return fields.Set{
		"spec.nodeName":            pod.Spec.NodeName,
		"spec.restartPolicy":       string(pod.Spec.RestartPolicy),
		"spec.schedulerName":       pod.Spec.SchedulerName,
		"spec.serviceAccountName":  pod.Spec.ServiceAccountName,
		"spec.hostNetwork":         strconv.FormatBool(pod.Spec.HostNetwork),
		"status.phase":             string(pod.Status.Phase),
		"status.podIP":             ip,
		"status.nominatedNodeName": pod.Status.NominatedNodeName,
	}
}
