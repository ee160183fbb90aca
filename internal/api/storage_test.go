package api_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

const subdomain = `a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`

// TestStorageRules compares what the rules of volumes, claims, certificates and
// devices say, word for word. With old the object is an update.
func TestStorageRules(t *testing.T) {
	const (
		pv    = `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"csi":{"driver":"d.example.com","volumeHandle":"h"}}}`
		claim = `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"2Gi"}}},"status":{"phase":"Bound","capacity":{"storage":"1Gi"}}}`
	)
	for name, c := range map[string]struct {
		gvk, obj, old, sub string
		want               []string
	}{
		"volume of nothing": {gvk: "v1/PersistentVolume", obj: `{"metadata":{"name":"a"},"spec":{"capacity":{"cpu":"-1"}}}`, want: []string{
			`spec.accessModes: Required value`,
			`spec.capacity: Unsupported value: {"cpu":"-1"}: supported values: "storage"`,
			`spec.capacity[cpu]: Invalid value: -1: must be a valid resource quantity`,
			`spec.capacity[cpu]: Invalid value: "-1": must be greater than zero`,
			`spec: Required value: must specify a volume type`,
		}},
		"volume of two types": {gvk: "v1/PersistentVolume", obj: `{"metadata":{"name":"a"},"spec":{"capacity":{"storage":"1"},"accessModes":["ReadWriteOncePod","ReadOnlyMany","Other"],
				"hostPath":{"path":"/"},"persistentVolumeReclaimPolicy":"Recycle","local":{"path":"a"},"volumeAttributesClassName":""}}`, want: []string{
			`spec.accessModes: Unsupported value: "Other": supported values: "ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"`,
			`spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes`,
			`spec.local: Forbidden: may not specify more than 1 volume type`,
			`spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'`,
			`spec.volumeAttributesClassName: Required value: an empty string is disallowed`,
			`spec.csi: Required value: has to be specified when using volumeAttributesClassName`,
		}},
		"local volume": {gvk: "v1/PersistentVolume", obj: `{"metadata":{"name":"a","annotations":{"volume.beta.kubernetes.io/mount-options":"x"}},"spec":{"capacity":{"storage":"1"},"accessModes":["ReadWriteOnce"],"local":{"path":"a/.."}}}`, want: []string{
			`spec.local.path: Invalid value: "a/..": must not contain '..'`,
			`spec.nodeAffinity: Required value: Local volume requires node affinity`,
			`metadata.annotations.volume.beta.kubernetes.io/mount-options: Forbidden: may not specify mount options for this volume type`,
		}},
		"volume gets its secret": {gvk: "v1/PersistentVolume", old: pv, obj: strings.Replace(pv, `"h"`, `"h","controllerExpandSecretRef":{"name":"s","namespace":"n"}`, 1)},
		"volume becomes another": {gvk: "v1/PersistentVolume", old: pv, obj: strings.Replace(pv, `"csi"`, `"volumeMode":"Block","csi"`, 1), want: []string{
			`volumeMode: Invalid value: "Block": field is immutable`,
		}},
		"volume affinity gets present labels": {gvk: "v1/PersistentVolume",
			old: strings.Replace(pv, `"csi"`, `"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"beta.kubernetes.io/os","operator":"Exists"}]}]}},"csi"`, 1),
			obj: strings.Replace(pv, `"csi"`, `"nodeAffinity":{"required":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/os","operator":"Exists"}]}]}},"csi"`, 1)},
		"claim across namespaces": {gvk: "v1/PersistentVolumeClaim", obj: `{"metadata":{"name":"a","namespace":"d"},"spec":{"accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"0"}},
				"dataSource":{"kind":"Other","name":""},"dataSourceRef":{"kind":"PersistentVolumeClaim","name":"b","namespace":"N"}}}`, want: []string{
			`spec.resources[storage]: Invalid value: "0": must be greater than zero`,
			`spec.dataSource.name: Required value`,
			`spec.dataSource: Invalid value: "Other": must be 'PersistentVolumeClaim' when referencing the default apiGroup`,
			`spec.dataSourceRef.namespace: Invalid value: "N": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`,
			`spec: Invalid value: {}: may not be specified when dataSourceRef.namespace is specified`,
		}},
		"claim shrinks to what it has": {gvk: "v1/PersistentVolumeClaim", old: claim, obj: strings.Replace(claim, `"2Gi"`, `"1Gi"`, 1), want: []string{
			`spec.resources.requests.storage: Forbidden: field can not be less than status.capacity`,
		}},
		"claim shrinks a little": {gvk: "v1/PersistentVolumeClaim", old: claim, obj: strings.Replace(claim, `"2Gi"`, `"1.5Gi"`, 1)},
		"claim gets its class":   {gvk: "v1/PersistentVolumeClaim", old: claim, obj: strings.Replace(claim, `"accessModes"`, `"storageClassName":"c","accessModes"`, 1)},
		"claim gets its class, and another annotation": {gvk: "v1/PersistentVolumeClaim",
			old: strings.Replace(claim, `"name":"a"`, `"name":"a","annotations":{"volume.beta.kubernetes.io/storage-class":"c"}`, 1),
			obj: strings.Replace(strings.Replace(claim, `"name":"a"`, `"name":"a","annotations":{"volume.beta.kubernetes.io/storage-class":"d"}`, 1),
				`"accessModes"`, `"storageClassName":"c","accessModes"`, 1), want: []string{
				`metadata.annotations.volume.beta.kubernetes.io/storage-class: Invalid value: "d": field is immutable`}},
		"claim status": {gvk: "v1/PersistentVolumeClaim", sub: "status", old: claim,
			obj: strings.Replace(claim, `"phase"`, `"allocatedResources":{"cpu":"1","storage":"-1"},"allocatedResourceStatuses":{"storage":"X"},"phase"`, 1), want: []string{
				`status.allocatedResourceStatuses: Unsupported value: "storage": supported values: "ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInProgress", "NodeResizeInfeasible", "NodeResizePending"`,
				`status.allocatedResources: Unsupported value: "cpu": supported values: "storage"`,
				`status.allocatedResources[storage]: Invalid value: -1: must be a valid resource quantity`,
			}},
		"storage class": {gvk: "storage.k8s.io/v1/StorageClass", obj: `{"metadata":{"name":"a"},"reclaimPolicy":"Recycle","volumeBindingMode":"Late","allowedTopologies":[{}]}`, want: []string{
			`reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain"`,
			`volumeBindingMode: Unsupported value: "Late": supported values: "Immediate", "WaitForFirstConsumer"`,
			`allowedTopologies[0].matchLabelExpressions: Duplicate value: ""`,
			`provisioner: Required value`,
		}},
		"storage class of another": {gvk: "storage.k8s.io/v1/StorageClass", old: `{"metadata":{"name":"a","resourceVersion":"1"},"provisioner":"a"}`,
			obj: `{"metadata":{"name":"a","resourceVersion":"1"},"provisioner":"b","parameters":{"c":"d"}}`, want: []string{
				`provisioner: Invalid value: null: field is immutable`, `parameters: Invalid value: null: field is immutable`}},
		"CSI driver": {gvk: "storage.k8s.io/v1/CSIDriver", obj: `{"metadata":{"name":"a"},"spec":{"fsGroupPolicy":"X","nodeAllocatableUpdatePeriodSeconds":9,"serviceAccountTokenInSecrets":true}}`, want: []string{
			`spec.fsGroupPolicy: Unsupported value: "X": supported values: "File", "None", "ReadWriteOnceWithFSType"`,
			`spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds`,
			`spec.serviceAccountTokenInSecrets: Invalid value: true: serviceAccountTokenInSecrets is set but no tokenRequests are specified`,
		}},
		"CSI node changes a driver": {gvk: "storage.k8s.io/v1/CSINode", old: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"drivers":[{"name":"d","nodeID":"1","topologyKeys":null,"allocatable":{"count":1}}]}}`,
			obj: `{"metadata":{"name":"a","resourceVersion":"1"},"spec":{"drivers":[{"name":"d","nodeID":"2","topologyKeys":null,"allocatable":{"count":2}}]}}`, want: []string{
				`spec.drivers: Invalid value: {"Name":"d","NodeID":"2","TopologyKeys":null,"Allocatable":null}: field is immutable`}},
		"attachment of nothing": {gvk: "storage.k8s.io/v1/VolumeAttachment", obj: `{"metadata":{"name":"a"},"spec":{"attacher":"","nodeName":"n","source":{}}}`, want: []string{
			`spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName`, `spec.attacher: Required value`}},
		"certificate request": {gvk: "certificates.k8s.io/v1/CertificateSigningRequest", obj: `{"metadata":{"name":"a"},"spec":{"request":"eA==","signerName":"kubernetes.io/legacy-unknown","usages":["any","any","x"],"expirationSeconds":1}}`, want: []string{
			`spec.request: Invalid value: "eA==": PEM block type must be CERTIFICATE REQUEST`,
			`spec.usages[2]: Unsupported value: "x": supported values: "any", "cert sign", "client auth", "code signing", "content commitment", "crl sign", "data encipherment", "decipher only", "digital signature", "email protection", "encipher only", "ipsec end system", "ipsec tunnel", "ipsec user", "key agreement", "key encipherment", "microsoft sgc", "netscape sgc", "ocsp signing", "s/mime", "server auth", "signing", "timestamping"`,
			`spec.usages[1]: Duplicate value: "any"`,
			`spec.signerName: Invalid value: "kubernetes.io/legacy-unknown": the legacy signerName is not allowed via this API version`,
			`spec.expirationSeconds: Invalid value: 1: may not specify a duration less than 600 seconds (10 minutes)`,
		}},
		"trust bundle": {gvk: "certificates.k8s.io/v1/ClusterTrustBundle", obj: `{"metadata":{"name":"a:b"},"spec":{"trustBundle":"x"}}`, want: []string{
			`metadata.name: Invalid value: "a:b": ClusterTrustBundle without signer name must not have ":" in its name`,
			`spec.trustBundle: Invalid value: "<value omitted>": at least one trust anchor must be provided`,
		}},
		"device class": {gvk: "resource.k8s.io/v1/DeviceClass", obj: `{"metadata":{"name":"A"},"spec":{"selectors":[{},{"cel":{"expression":"1"}}],"config":[{"opaque":{"driver":"","parameters":[]}}]}}`, want: []string{
			`spec.selectors[0].cel: Required value`,
			`spec.selectors[1].cel.expression: Invalid value: "1": must evaluate to bool or the unknown type, not int`,
			`spec.config[0].opaque.parameters: Invalid value: "<value omitted>": must be a valid JSON object`,
			`metadata.name: Invalid value: "A": ` + subdomain,
			`spec.config[0].opaque.driver: Required value`,
		}},
		"device claim": {gvk: "resource.k8s.io/v1/ResourceClaim", obj: `{"metadata":{"name":"a","namespace":"d"},"spec":{"devices":{"requests":[{"name":"a"},{"name":"a","exactly":{"deviceClassName":"c","allocationMode":"All","count":1}}],"constraints":[{"requests":["b"]}]}}}`, want: []string{
			"spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required",
			`spec.devices.requests[1].exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'`,
			`spec.devices.constraints[0].requests[0]: Invalid value: "b": must be the name of a request in the claim or the name of a request and a subrequest separated by '/'`,
			`spec.devices.constraints[0]: Required value: exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`,
			`spec.devices.requests[1]: Duplicate value: {"name":"a","exactly":{"deviceClassName":"c","allocationMode":"All","count":1}}`,
		}},
		"device claim changes": {gvk: "resource.k8s.io/v1/ResourceClaim", old: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"}}`,
			obj: `{"metadata":{"name":"a","namespace":"d","resourceVersion":"1"},"spec":{"devices":{"requests":[{"name":"a"}]}}}`, want: []string{`spec: Invalid value: null: field is immutable`}},
		"slice for no node": {gvk: "resource.k8s.io/v1/ResourceSlice", obj: `{"metadata":{"name":"a"},"spec":{"driver":"d","pool":{"name":"p","resourceSliceCount":0},"nodeName":"","devices":[{"name":"a","attributes":{"1a":{}}},{"name":"a"}]}}`, want: []string{
			`spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero`,
			`spec.nodeName: Invalid value: "": must be either unset or set to a non-empty string`,
			"spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
			`spec.devices[0].attributes: Invalid value: "1a": a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is '[A-Za-z_][A-Za-z0-9_]*')`,
			`spec.devices[1]: Duplicate value: "a"`,
			"spec.devices[0].attributes[1a]: Invalid value: \"\": must specify one of: `int`, `bool`, `string`, `version`, `ints`, `bools`, `strings`, `versions`",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			checkRules(t, c.gvk, c.sub, c.obj, c.old, c.want)
		})
	}
}

// TestStoragePrepared compares what is left of an object when it was prepared.
func TestStoragePrepared(t *testing.T) {
	for name, c := range map[string]struct{ gvk, obj, old, want string }{
		"claim of any source": {gvk: "v1/PersistentVolumeClaim", obj: `{"spec":{"dataSource":{"apiGroup":"g","kind":"K","name":"n"}}}`,
			want: `{"metadata":{},"spec":{"resources":{},"volumeMode":"Filesystem"},"status":{"phase":"Pending"}}`},
		"claim of any source, named newly": {gvk: "v1/PersistentVolumeClaim", obj: `{"spec":{"dataSourceRef":{"apiGroup":"g","kind":"K","name":"n"}}}`,
			want: `{"metadata":{},"spec":{"resources":{},"volumeMode":"Filesystem","dataSource":{"apiGroup":"g","kind":"K","name":"n"},"dataSourceRef":{"apiGroup":"g","kind":"K","name":"n"}},"status":{"phase":"Pending"}}`},
		"claim of another namespace": {gvk: "v1/PersistentVolumeClaim", obj: `{"spec":{"dataSourceRef":{"kind":"K","name":"n","namespace":"o"}}}`,
			want: `{"metadata":{},"spec":{"resources":{},"volumeMode":"Filesystem"},"status":{"phase":"Pending"}}`},
		"request of somebody": {gvk: "certificates.k8s.io/v1/CertificateSigningRequest", obj: `{"spec":{"request":null,"username":"root","groups":["system:masters"],"extra":{"a":["b"]}},"status":{"certificate":"eA=="}}`,
			want: `{"metadata":{},"spec":{"request":null,"signerName":""},"status":{}}`},
		"slice of what is off": {gvk: "resource.k8s.io/v1/ResourceSlice", obj: `{"spec":{"driver":"","pool":{"name":"","generation":0,"resourceSliceCount":0},"partitionTypeAttribute":"a/b","skipNodeOperations":["*"],
				"devices":[{"name":"a","attributes":{"x":{"ints":[1]}},"nodeAllocatableResources":{"cpu":{}},"consumesCounters":[{"counterSet":"c","counters":{},"compatibilityGroups":["g"]}]}]}}`,
			want: `{"metadata":{"generation":1},"spec":{"driver":"","pool":{"name":"","generation":0,"resourceSliceCount":0},"devices":[{"name":"a","attributes":{"x":{}},"consumesCounters":[{"counterSet":"c"}]}]}}`},
		"claim status of a deallocated device": {gvk: "resource.k8s.io/v1/ResourceClaim", obj: `{"metadata":{"labels":{"a":"b"}},"status":{"devices":[{"driver":"d","pool":"p","device":"x"}]}}`,
			old:  `{"status":{"allocation":{"devices":{"results":[{"request":"r","driver":"d","pool":"p","device":"x"}]}}}}`,
			want: `{"metadata":{},"spec":{"devices":{"requests":null}},"status":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			sub := ""
			if c.old != "" {
				sub = "status"
			}
			checkPrepared(t, c.gvk, sub, c.obj, c.old, c.want)
		})
	}
}

// TestVolumePhase: a volume says since when it is in its phase.
func TestVolumePhase(t *testing.T) {
	r := find(t, "v1/PersistentVolume")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	e := env()
	e.Now = func() time.Time { return now }
	for name, c := range map[string]struct{ obj, old, want string }{
		"changes":                 {obj: `{"phase":"Bound"}`, old: `{"phase":"Available","lastPhaseTransitionTime":"2001-01-01T00:00:00Z"}`, want: "2026-01-02T03:04:05Z"},
		"changes at a given time": {obj: `{"phase":"Bound","lastPhaseTransitionTime":"2002-01-01T00:00:00Z"}`, old: `{"phase":"Available"}`, want: "2002-01-01T00:00:00Z"},
		"stays":                   {obj: `{"phase":"Bound"}`, old: `{"phase":"Bound","lastPhaseTransitionTime":"2001-01-01T00:00:00Z"}`, want: "2001-01-01T00:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			obj := decode(t, r, `{"status":`+c.obj+`}`)
			r.Subresource("status").Status.PrepareUpdate(e, obj, decode(t, r, `{"status":`+c.old+`}`))
			var got struct {
				Status struct {
					LastPhaseTransitionTime string `json:"lastPhaseTransitionTime"`
				} `json:"status"`
			}
			b, err := json.Marshal(obj)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if got.Status.LastPhaseTransitionTime != c.want {
				t.Errorf("got %s, want %s", got.Status.LastPhaseTransitionTime, c.want)
			}
		})
	}
}
