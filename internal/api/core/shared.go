package core

import (
	"maps"
	"slices"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

// equal is upstream's semantic equality: nil and empty are the same, quantities
// compare by value.
func equal(a, b any) bool { return apiequality.Semantic.DeepEqual(a, b) }

func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
