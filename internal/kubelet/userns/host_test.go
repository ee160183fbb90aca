package userns_test

import (
	"os"
	"path/filepath"
	"testing"

	"skiff/internal/kubelet/userns"
)

func TestHostIDs(t *testing.T) {
	const passwd, kubelet = "root:x:0:0::/:/bin/sh\n", "root:x:0:0::/:/bin/sh\nkubelet:x:998:998::/:/bin/false\n"
	for name, tc := range map[string]struct {
		passwd, subuid, subgid string
		first, length          uint32
		err                    string
	}{
		"nobody is set aside for":   {passwd: passwd, subuid: "kubelet:65536:65536\n"},
		"a user without IDs":        {passwd: kubelet, subuid: "other:65536:65536\n"},
		"by name":                   {passwd: kubelet, subuid: "other:1:1\nkubelet:65536:7208960\n", subgid: "kubelet:65536:7208960\n", first: 65536, length: 7208960},
		"by number":                 {passwd: kubelet, subuid: "998:131072:65536\n", subgid: "998:131072:65536\n", first: 131072, length: 65536},
		"others for groups":         {passwd: kubelet, subuid: "kubelet:65536:65536\n", subgid: "kubelet:131072:65536\n", err: `mismatched subuids and subgids for user "kubelet"`},
		"none for groups":           {passwd: kubelet, subuid: "kubelet:65536:65536\n", err: `mismatched subuids and subgids for user "kubelet"`},
		"two ranges":                {passwd: kubelet, subuid: "kubelet:1:1\nkubelet:2:2\n", subgid: "kubelet:1:1\n", err: `subordinate IDs of user "kubelet": there must be one range of them, not 2`},
		"no number":                 {passwd: kubelet, subuid: "kubelet:a:1\n", err: `/subuid: error parsing line "kubelet:a:1": strconv.ParseUint: parsing "a": invalid syntax`},
		"a field is missing":        {passwd: kubelet, subuid: "kubelet:1\n", err: `/subuid: invalid line "kubelet:1"`},
		"more than there can be":    {passwd: kubelet, subuid: "kubelet:1:4294967296\n", err: `/subuid: error parsing line "kubelet:1:4294967296": strconv.ParseUint: parsing "4294967296": value out of range`},
		"no files, no user, no IDs": {},
	} {
		t.Run(name, func(t *testing.T) {
			etc := t.TempDir()
			for file, content := range map[string]string{"passwd": tc.passwd, "subuid": tc.subuid, "subgid": tc.subgid} {
				if content == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(etc, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			first, length, err := userns.HostIDs(etc)
			if tc.err != "" {
				if err == nil || err.Error() != tc.err && err.Error() != etc+tc.err {
					t.Fatalf("error %v, want %s", err, tc.err)
				}
				return
			}
			if first != tc.first || length != tc.length || err != nil {
				t.Errorf("%d IDs from %d, %v; want %d from %d", length, first, err, tc.length, tc.first)
			}
		})
	}
}
