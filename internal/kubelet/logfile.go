package kubelet

import (
	"io"
	"os"
	"path/filepath"
	"strings"
)

// readTail reads the last n bytes of a file.
func readTail(path string, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > n {
		if _, err := f.Seek(-n, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	return io.ReadAll(io.LimitReader(f, n))
}

// lastLogLines returns the end of a CRI log without its prefixes.
func lastLogLines(path string, size int64, lines int) string {
	// Prefixes take about as much again as short lines do.
	b, err := readTail(path, size*4)
	if err != nil {
		return ""
	}
	all := strings.SplitAfter(string(b), "\n")
	if len(b) == int(size*4) && len(all) > 1 {
		all = all[1:]
	}
	if len(all) > 0 && all[len(all)-1] == "" {
		all = all[:len(all)-1]
	}
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	var out strings.Builder
	for _, l := range all {
		f := strings.SplitN(l, " ", 4)
		if len(f) < 4 {
			continue
		}
		text := f[3]
		if strings.HasPrefix(f[2], "P") {
			text = strings.TrimSuffix(text, "\n")
		}
		out.WriteString(text)
	}
	s := out.String()
	if int64(len(s)) > size {
		s = s[int64(len(s))-size:]
	}
	return s
}

// removeLogs removes a container's log with what rotation made of it.
func (k *Kubelet) removeLogs(path string) {
	if path == "" || !strings.HasPrefix(path, k.d.PodLogDir+string(filepath.Separator)) {
		return
	}
	files, _ := filepath.Glob(path + "*")
	for _, f := range files {
		if f == path || strings.HasPrefix(f, path+".") {
			_ = os.Remove(f)
		}
	}
}
