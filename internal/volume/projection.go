package volume

import (
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
)

func mode(own, byDefault *int32) os.FileMode {
	m := int32(0o644)
	if byDefault != nil {
		m = *byDefault
	}
	if own != nil {
		m = *own
	}
	// The wire has the Unix bits.
	return os.FileMode(m) & os.ModePerm
}

func isOptional(o *bool) bool { return o != nil && *o }

func addKeys(files map[string]file, data map[string][]byte, items []corev1.KeyToPath, def *int32, optional bool, missing string) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{data: v, mode: mode(nil, def)}
		}
		return nil
	}
	for _, it := range items {
		v, ok := data[it.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf(missing, it.Key)
		}
		files[it.Path] = file{data: v, mode: mode(it.Mode, def)}
	}
	return nil
}
