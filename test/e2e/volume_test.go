package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLocalVolume: a claim of the default class keeps what its pod wrote over the
// pod's deletion and over kill -9 of skiff; its directory goes with it.
func TestLocalVolume(t *testing.T) {
	c := start(t, "volume")
	c.importBusybox()
	c.apply(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data-db-0}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 1Gi}}
`)
	db := func() {
		t.Helper()
		c.apply(`
apiVersion: v1
kind: Pod
metadata: {name: db-0}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  containers:
  - name: main
    image: busybox:1
    command: [sh, -c, 'date +%N >> /data/starts; sleep 100000']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: data-db-0}}
`)
		c.waitPod("db-0", `.status.conditions[?(@.type=="Ready")].status`, "True")
	}
	starts := func() int {
		t.Helper()
		return strings.Count(c.kubectl("exec", "db-0", "--", "cat", "/data/starts"), "\n")
	}
	db()
	volume, ok := field(c.get("pvc", "data-db-0"), "spec", "volumeName").(string)
	if !ok || volume == "" {
		t.Fatal("the claim has no volume")
	}
	path, ok := field(c.get("pv", volume), "spec", "local", "path").(string)
	if !ok || !strings.HasPrefix(path, c.data+"/") {
		t.Fatalf("the volume is at %q, want it below %s", path, c.data)
	}
	if n := starts(); n != 1 {
		t.Fatalf("%d starts are noted, want 1", n)
	}
	c.kubectl("delete", "pod", "db-0")
	db()
	if n := starts(); n != 2 {
		t.Fatalf("after the pod was made anew %d starts are noted, want 2", n)
	}
	c.kill9()
	c.up()
	if n := starts(); n != 2 {
		t.Fatalf("after kill -9 %d starts are noted, want 2", n)
	}
	c.kubectl("delete", "pod", "db-0")
	db()
	if n := starts(); n != 3 {
		t.Fatalf("after kill -9 and a new pod %d starts are noted, want 3", n)
	}

	// The claim waits for its pod; then volume and directory go.
	c.kubectl("delete", "pvc", "data-db-0", "--wait=false")
	if st, err := os.Stat(path); err != nil || !st.IsDir() {
		t.Fatalf("the directory went under a running pod: %v", err)
	}
	c.kubectl("delete", "pod", "db-0")
	c.eventually("the volume is gone", func() (bool, string) {
		out, err := c.kubectlErr("get", "pv", volume)
		return err != nil && strings.Contains(err.Error(), "not found"), out
	})
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", filepath.Base(path), err)
	}
}
