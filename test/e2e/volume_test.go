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

// TestAttachment: a pod with a volume of a CSI driver waits until the driver, the test
// here, says that it is attached, is told then that no driver can mount it, and gives
// it back.
func TestAttachment(t *testing.T) {
	c := start(t, "attach")
	c.apply(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {storage: 1Gi}
  storageClassName: ""
  claimRef: {namespace: default, name: data}
  csi: {driver: disks.example.com, volumeHandle: disk-1}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: disk
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: db}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:1", command: [sleep, "100000"], volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`)
	const name = "kubernetes.io/csi/disks.example.com^disk-1"
	var attachment string
	c.eventually("there is a VolumeAttachment", func() (bool, string) {
		attachment = c.kubectl("get", "volumeattachments", "-o", "name")
		return strings.HasPrefix(attachment, "volumeattachment.storage.k8s.io/csi-"), attachment
	})
	attachment = strings.TrimSpace(attachment)
	node := c.jsonpath("pod/db", ".spec.nodeName")
	c.eventually("the node has the volume in use", func() (bool, string) {
		out := c.jsonpath("node/"+node, ".status.volumesInUse")
		return out == `["`+name+`"]`, out
	})
	c.is("node/"+node, ".status.volumesAttached", "")
	c.kubectl("patch", attachment, "--subresource=status", "--type=merge", "-p", `{"status":{"attached":true}}`)
	c.eventually("the pod has got so far", func() (bool, string) {
		out := c.kubectl("get", "events", "-o", `jsonpath={range .items[?(@.involvedObject.name=="db")]}{.reason}: {.message}{"\n"}{end}`)
		return strings.Contains(out, `SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "disk"`) &&
			strings.Contains(out, `FailedMount: MountVolume.MountDevice failed for volume "disk" : kubernetes.io/csi: `+
				`attacher.MountDevice failed to create newCsiDriverClient: driver name disks.example.com not found in the list of registered CSI drivers`), out
	})
	c.is("node/"+node, ".status.volumesAttached[0].name", name)
	c.tells("pod/db", "volume disk needs CSI driver disks.example.com")
	// Controllers and kubelet find it all as it was.
	c.kill9()
	c.up()
	c.is("node/"+node, ".status.volumesAttached[0].name", name)
	c.is("node/"+node, ".status.volumesInUse[0]", name)
	c.kubectl("delete", "pod", "db")
	c.gone(attachment)
	c.eventually("the node has nothing attached", func() (bool, string) {
		out := c.jsonpath("node/"+node, ".status.volumesAttached") + c.jsonpath("node/"+node, ".status.volumesInUse")
		return out == "", out
	})
}
