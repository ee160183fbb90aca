package plugins

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"

	"skiff/internal/client"
	"skiff/internal/scheduler/framework"
)

// Storage is what the volume plugins know of volumes; they share it.
type Storage struct {
	volumes     *client.Informer[*corev1.PersistentVolume]
	claims      *client.Informer[*corev1.PersistentVolumeClaim]
	classes     *client.Informer[*storagev1.StorageClass]
	nodes       *client.Informer[*storagev1.CSINode]
	drivers     *client.Informer[*storagev1.CSIDriver]
	capacities  *client.Informer[*storagev1.CSIStorageCapacity]
	attachments *client.Informer[*storagev1.VolumeAttachment]

	once sync.Once

	mu sync.Mutex
	// chosen is what is to be written for a pod that has its node.
	chosen map[types.UID]volumeChoice
	// changed is closed, and made anew, when a volume or a claim changes.
	changed chan struct{}
}

const byNode = "node"

// NewStorage returns what reads the informers.
func NewStorage(inf *client.Informers) *Storage {
	s := &Storage{
		volumes: client.InformerFor[*corev1.PersistentVolume](inf), claims: client.InformerFor[*corev1.PersistentVolumeClaim](inf),
		classes: client.InformerFor[*storagev1.StorageClass](inf), nodes: client.InformerFor[*storagev1.CSINode](inf),
		drivers: client.InformerFor[*storagev1.CSIDriver](inf), capacities: client.InformerFor[*storagev1.CSIStorageCapacity](inf),
		attachments: client.InformerFor[*storagev1.VolumeAttachment](inf), chosen: map[types.UID]volumeChoice{}, changed: make(chan struct{}),
	}
	s.attachments.AddIndex(byNode, func(a *storagev1.VolumeAttachment) []string { return []string{a.Spec.NodeName} })
	return s
}

// watch tells of every change once, whoever asks first.
func (s *Storage) watch(tell func(framework.Event)) []<-chan struct{} {
	s.once.Do(func() {
		follow(s.volumes, framework.VolumeChanged, s.noting(tell))
		follow(s.claims, framework.ClaimChanged, s.noting(tell))
		follow(s.classes, framework.StorageClassChanged, tell)
		follow(s.nodes, framework.CSINodeChanged, tell)
		follow(s.drivers, framework.CSIDriverChanged, tell)
		follow(s.capacities, framework.CapacityChanged, tell)
		s.attachments.OnChange(func(c client.Change[*storagev1.VolumeAttachment]) {
			if c.Deleted() {
				tell(framework.Event{Kind: framework.AttachmentGone, OldObject: c.Old})
			}
		})
	})
	return []<-chan struct{}{
		s.volumes.Synced(), s.claims.Synced(), s.classes.Synced(), s.nodes.Synced(), s.drivers.Synced(), s.capacities.Synced(), s.attachments.Synced(),
	}
}

// follow tells of objects that come and change.
func follow[T client.Object](i *client.Informer[T], kind framework.EventKind, tell func(framework.Event)) {
	var none T
	i.OnChange(func(c client.Change[T]) {
		e := framework.Event{Kind: kind}
		if any(c.New) != any(none) {
			e.Object = c.New
		}
		if any(c.Old) != any(none) {
			e.OldObject = c.Old
		}
		tell(e)
	})
}

func (s *Storage) noting(tell func(framework.Event)) func(framework.Event) {
	return func(e framework.Event) {
		s.mu.Lock()
		close(s.changed)
		s.changed = make(chan struct{})
		s.mu.Unlock()
		tell(e)
	}
}

// next is closed when the next volume or claim changes.
func (s *Storage) next() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// claimChanged returns the claim of an event where it came or changed and a pod of
// the class uses it.
func claimChanged(p *framework.Pod, e framework.Event) (*corev1.PersistentVolumeClaim, bool) {
	c, ok := e.Object.(*corev1.PersistentVolumeClaim)
	if !ok {
		return nil, false
	}
	for _, name := range p.Class.Claims {
		if name == c.Namespace+"/"+c.Name {
			return c, true
		}
	}
	return nil, false
}
