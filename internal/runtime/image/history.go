package image

import (
	"context"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Step is one step of how an image came to be.
type Step struct {
	Created   time.Time
	CreatedBy string
	Comment   string
	// Layer is what the step made; zero for one that changed the config alone.
	Layer v1.Hash
	// Size of the layer unpacked, bytes.
	Size int64
}

// History tells how an image came to be, the last step first. Layers that no step
// speaks of have one without words.
func (s *Store) History(ctx context.Context, img *Image) ([]Step, error) {
	sizes := make([]int64, len(img.Layers))
	for i := range img.Layers {
		n, err := s.layerSize(ctx, img, i)
		if err != nil {
			return nil, err
		}
		sizes[i] = n
	}
	return steps(img.Config.History, img.DiffIDs, sizes), nil
}

func steps(history []v1.History, layers []v1.Hash, sizes []int64) []Step {
	var out []Step
	next := 0
	for _, h := range history {
		st := Step{Created: h.Created.Time, CreatedBy: h.CreatedBy, Comment: h.Comment}
		if !h.EmptyLayer && next < len(layers) {
			st.Layer, st.Size = layers[next], sizes[next]
			next++
		}
		out = append(out, st)
	}
	for ; next < len(layers); next++ {
		out = append(out, Step{Layer: layers[next], Size: sizes[next]})
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// layerSize is what layer i takes unpacked: read from its end to end, where it is
// compressed.
func (s *Store) layerSize(ctx context.Context, img *Image, i int) (int64, error) {
	if img.Layers[i].Digest == img.DiffIDs[i] {
		return img.Layers[i].Size, nil
	}
	r, err := s.OpenLayer(img, i)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, contextReader{ctx, r})
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", img.Layers[i].Digest, err)
	}
	return n, nil
}
