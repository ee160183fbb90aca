package kubelet

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rotatePeriod is how often logs are looked at.
const rotatePeriod = 10 * time.Second

func isRunning(s runtimeapi.ContainerState) bool {
	return s == runtimeapi.ContainerState_CONTAINER_RUNNING
}

// housekeep rotates the logs of running containers.
func (k *Kubelet) housekeep(ctx context.Context) error {
	for sleep(ctx, rotatePeriod) {
		k.rotateLogs(ctx)
	}
	return nil
}

// rotateLogs rotates each log that has outgrown its size. Finding them costs one
// look at each file and none at the runtime.
func (k *Kubelet) rotateLogs(ctx context.Context) {
	if k.d.LogMaxSize < 0 {
		return
	}
	files, err := filepath.Glob(filepath.Join(k.d.PodLogDir, "*", "*", "*.log"))
	if err != nil {
		return
	}
	var big []string
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.Size() > k.d.LogMaxSize {
			big = append(big, f)
		}
	}
	if len(big) == 0 {
		return
	}
	byPath, err := k.runningLogs(ctx)
	if err != nil {
		k.d.Log.Warn("find containers of logs", "err", err)
		return
	}
	for _, f := range big {
		id, ok := byPath[f]
		if !ok {
			continue // its container has ended: the log is as long as it will be
		}
		if err := k.rotate(ctx, id, f); err != nil {
			k.d.Log.Warn("rotate log", "path", f, "err", err)
		}
	}
}

func (k *Kubelet) runningLogs(ctx context.Context) (map[string]string, error) {
	list, err := k.d.Runtime.ListContainers(ctx, &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, c := range list {
		resp, err := k.d.Runtime.ContainerStatus(ctx, c.Id, false)
		if err == nil && isRunning(resp.Status.State) {
			out[resp.Status.LogPath] = c.Id
		}
	}
	return out, nil
}

// rotate moves a log aside, lets the runtime open a new one, and keeps the former
// ones within their number: the last as it is, for those who still read it, the
// others compressed.
func (k *Kubelet) rotate(ctx context.Context, id, path string) error {
	old, err := rotatedLogs(path)
	if err != nil {
		return err
	}
	// One more is about to come, and the current one counts.
	for len(old) > 0 && len(old) > k.d.LogMaxFiles-2 {
		if err := os.Remove(old[0]); err != nil {
			return fmt.Errorf("remove old log: %w", err)
		}
		old = old[1:]
	}
	for _, f := range old {
		if !strings.HasSuffix(f, ".gz") {
			if err := compressLog(f); err != nil {
				return err
			}
		}
	}
	aside := path + "." + k.d.Now().UTC().Format("20060102-150405")
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("move log aside: %w", err)
	}
	if err := k.d.Runtime.ReopenContainerLog(ctx, id); err != nil {
		if err := os.Rename(aside, path); err != nil {
			k.d.Log.Error("put log back", "path", path, "err", err)
		}
		return fmt.Errorf("reopen log: %w", err)
	}
	return nil
}

// rotatedLogs lists what earlier rotations left, the oldest first, and removes
// what an interrupted one did.
func rotatedLogs(path string) ([]string, error) {
	all, err := filepath.Glob(path + ".*")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range all {
		if strings.HasSuffix(f, ".tmp") {
			if err := os.Remove(f); err != nil {
				return nil, fmt.Errorf("remove leftover of rotation: %w", err)
			}
			continue
		}
		if strings.HasSuffix(f, ".gz") {
			// Where both are there the uncompressed one was to be removed.
			_ = os.Remove(strings.TrimSuffix(f, ".gz"))
		}
		out = append(out, f)
	}
	kept := out[:0]
	for _, f := range out {
		if _, err := os.Lstat(f); err == nil {
			kept = append(kept, f)
		}
	}
	sort.Strings(kept)
	return kept, nil
}

func compressLog(path string) error {
	in, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("compress log: %w", err)
	}
	defer in.Close()
	temp := path + ".tmp"
	out, err := os.OpenFile(temp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o640)
	if err != nil {
		return fmt.Errorf("compress log: %w", err)
	}
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(temp, path+".gz")
	}
	if err != nil {
		_ = os.Remove(temp)
		return fmt.Errorf("compress log: %w", err)
	}
	return os.Remove(path)
}
