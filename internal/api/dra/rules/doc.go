// Package rules has the rules that stand on the types of resource.k8s.io/v1 as
// markers ("+k8s:maxItems=32"), as functions: upstream's generator makes them of
// k8s.io/api (package generate beside it).
//
// Each rule is marked with its stage: those that are alpha are not in force.
package rules
