package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/host"
)

// ImageUser is a container that needs an image: it runs from it or mounts it.
type ImageUser struct {
	Container string // ID
	Name      string
	// Pod is NAMESPACE/NAME.
	Pod string
}

// ImageUsers reads the records of an instance's containers: who uses an image, by
// the image's ID. It needs no runtime, since containers outlive it.
func ImageUsers(i host.Instance) (map[string][]ImageUser, error) {
	out := map[string][]ImageUser{}
	found, err := filepath.Glob(filepath.Join(podsDir(i), "*", "containers", "*", containerFile))
	if err != nil {
		return nil, err
	}
	for _, path := range found {
		dir := filepath.Dir(path)
		if strings.HasPrefix(filepath.Base(filepath.Dir(filepath.Dir(dir))), ".gone-") || strings.HasPrefix(filepath.Base(dir), ".gone-") {
			continue
		}
		var rec containerRecord
		err := readRecord(dir, containerFile, &rec)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed just now
		}
		if err != nil {
			return nil, fmt.Errorf("who uses images: %w", err)
		}
		var config runtimeapi.ContainerConfig
		if err := proto.Unmarshal(rec.Config, &config); err != nil {
			return nil, fmt.Errorf("who uses images: %s: %w", path, err)
		}
		user := ImageUser{Container: rec.ID, Name: config.GetMetadata().GetName()}
		if l := config.GetLabels(); l["io.kubernetes.pod.name"] != "" {
			user.Pod = l["io.kubernetes.pod.namespace"] + "/" + l["io.kubernetes.pod.name"]
		}
		out[rec.ImageID] = append(out[rec.ImageID], user)
		for _, m := range config.GetMounts() {
			if id := m.GetImage().GetImage(); id != "" && id != rec.ImageID {
				out[id] = append(out[id], user)
			}
		}
	}
	return out, nil
}
