package image

import (
	"context"
	"encoding/json"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Parts are what PutConfig makes an image of.
type Parts struct {
	// Names of the image, canonical or not; none makes an image that only its ID
	// finds.
	Names []string
	// Config is the image's config, JSON. Its rootfs must have the layers' diff IDs.
	Config []byte
	Layers []v1.Descriptor
	// Size is that of the layers unpacked, bytes.
	Size int64
	// Annotations are the manifest's.
	Annotations map[string]string
}

// PutConfig stores an image made of layers that are stored and that lease holds.
// Its config may say more than v1.ConfigFile knows.
func (s *Store) PutConfig(ctx context.Context, lease *Lease, p Parts) (*Image, error) {
	config, err := parseConfig(p.Config)
	if err != nil {
		return nil, err
	}
	if len(config.RootFS.DiffIDs) != len(p.Layers) {
		return nil, fmt.Errorf("image config has %d layers, got %d", len(config.RootFS.DiffIDs), len(p.Layers))
	}
	configDesc, err := s.putJSON(ctx, lease, p.Config, types.OCIConfigJSON)
	if err != nil {
		return nil, err
	}
	if p.Layers == nil {
		p.Layers = []v1.Descriptor{}
	}
	rawManifest, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: configDesc, Layers: p.Layers, Annotations: p.Annotations,
	})
	if err != nil {
		return nil, err
	}
	desc, err := s.putJSON(ctx, lease, rawManifest, types.OCIManifestSchema1)
	if err != nil {
		return nil, err
	}
	return s.publish(lease, desc, p.Names, publication{size: p.Size})
}
