// Package rules has the rules that stand on the types of scheduling.k8s.io/v1beta1
// as markers, as functions, as package rules of resource.k8s.io has those of its
// types; one program makes both.
package rules
