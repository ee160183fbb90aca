package plugins

import (
	"skiff/internal/scheduler/framework"
)

// ImageLocality prefers nodes that hold the pod's images, by size, and the less
// so the fewer nodes hold them: one node must not attract all pods of an image.
type ImageLocality struct{}

// Sizes at which an image counts for nothing and, for each container, for most.
const (
	imageLeast = 23 << 20
	imageMost  = 1000 << 20
)

// Name implements framework.Plugin.
func (ImageLocality) Name() string { return "ImageLocality" }

// Score implements framework.Scorer.
func (ImageLocality) Score(_ any, c *framework.Class, n *framework.Node, s *framework.Snapshot) int64 {
	if len(n.Images) == 0 || len(c.Images) == 0 {
		return 0
	}
	var sum int64
	for _, name := range c.Images {
		if size, ok := n.Images[name]; ok {
			sum += int64(float64(size) * (float64(s.NodesWithImage(name)) / float64(s.NumNodes())))
		}
	}
	most := int64(imageMost) * int64(len(c.Images))
	// A node may claim any size.
	sum = min(max(sum, imageLeast), most)
	return framework.MaxScore * (sum - imageLeast) / (most - imageLeast)
}

// Fingerprint implements framework.Global: the spread of the images counts.
func (ImageLocality) Fingerprint(c *framework.Class, s *framework.Snapshot) uint64 {
	var sum uint64
	for _, name := range c.Images {
		sum = sum*1_000_003 + uint64(s.NodesWithImage(name))
	}
	if sum == 0 {
		return 0
	}
	return sum*1_000_003 + uint64(s.NumNodes())
}
