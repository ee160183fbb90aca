package pullrecord

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Records are those of a node, in memory and in a directory: a file for each pull that
// goes on, and one for each image that was pulled.
type Records struct {
	dir    string
	policy Policy
	now    func() time.Time
	log    *slog.Logger

	mu      sync.Mutex
	pulling map[string]int // image as pods write it -> pulls that go on
	pulled  map[string]record
	// damaged are the names of files that cannot be read: what they are about counts
	// as pulled with credentials that nobody knows.
	damaged map[string]bool
	checks  map[Verdict]uint64
}

// Verdict is how a check went.
type Verdict string

// Verdicts, as upstream's metric names them.
const (
	PolicyAllowed    Verdict = "credentialPolicyAllowed"
	RecordFound      Verdict = "credentialRecordFound"
	MustAuthenticate Verdict = "mustAuthenticate"
)

// Open reads the records in dir, which is made where it is not there. What cannot be
// read is told to log, and counts as pulled with credentials that nobody knows.
func Open(dir string, policy Policy, now func() time.Time, log *slog.Logger) (*Records, error) {
	r := &Records{
		dir: dir, policy: policy, now: now, log: log,
		pulling: map[string]int{}, pulled: map[string]record{}, damaged: map[string]bool{}, checks: map[Verdict]uint64{},
	}
	for _, d := range []string{r.intents(), r.images()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("records of pulled images: %w", err)
		}
	}
	err := r.each(r.intents(), func(b []byte) error {
		var i intent
		if err := decode(b, kindIntent, &i); err != nil {
			return err
		}
		r.pulling[i.Image]++
		return nil
	})
	err = errors.Join(err, r.each(r.images(), func(b []byte) error {
		var x record
		if err := decode(b, kindRecord, &x); err != nil {
			return err
		}
		r.pulled[x.ImageRef] = x
		return nil
	}))
	if err != nil {
		log.Warn("some records of pulled images are not readable", "err", err)
	}
	return r, nil
}

func (r *Records) intents() string { return filepath.Join(r.dir, "pulling") }
func (r *Records) images() string  { return filepath.Join(r.dir, "pulled") }

// each reads the files of a directory, all of them whatever one says.
func (r *Records) each(dir string, read func([]byte) error) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !strings.HasPrefix(e.Name(), "sha256-") || strings.HasSuffix(e.Name(), ".tmp") {
			continue
		}
		b, err := os.ReadFile(path)
		if err == nil {
			err = read(b)
		}
		if err != nil {
			r.damaged[e.Name()] = true
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

func decode(b []byte, kind string, into any) error {
	var t metav1.TypeMeta
	if err := json.Unmarshal(b, &t); err != nil {
		return err
	}
	if t.Kind != kind || t.APIVersion != apiVersion {
		return fmt.Errorf("is a %s of %s, not a %s of %s", t.Kind, t.APIVersion, kind, apiVersion)
	}
	return json.Unmarshal(b, into)
}

func fileName(of string) string { return fmt.Sprintf("sha256-%x", sha256.Sum256([]byte(of))) }

// write stores an object whole or not at all.
func write(dir, of string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fileName(of))
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

func remove(dir, of string) error {
	if err := os.Remove(filepath.Join(dir, fileName(of))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Adopt settles the pulls that a former process began: where the runtime has the image
// (ref tells its name for it, "" for none), it was pulled, with credentials that nobody
// knows. Until it is called such images count as pulled.
func (r *Records) Adopt(ref func(image string) (string, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for image := range r.pulling {
		id, err := ref(image)
		if err == nil && id != "" {
			err = r.note(image, id, Credentials{})
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, r.end(image))
	}
	return errors.Join(errs...)
}

// Begin records that a pull of an image begins, as pods write it. Pulled or Failed must
// follow.
func (r *Records) Begin(image string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pulling[image] == 0 {
		if err := write(r.intents(), image, intent{metav1.TypeMeta{APIVersion: apiVersion, Kind: kindIntent}, image}); err != nil {
			return fmt.Errorf("failed to record image pull intent: %w", err)
		}
	}
	r.pulling[image]++
	return nil
}

// Pulled ends a pull that brought the image that the runtime calls ref.
func (r *Records) Pulled(image, ref string, c Credentials) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.note(image, ref, c); err != nil {
		// The intent stays: the image counts as pulled all the same.
		r.log.Warn("record a pulled image", "image", image, "err", err)
		return
	}
	r.endLogged(image)
}

// Failed ends a pull that brought nothing.
func (r *Records) Failed(image string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.endLogged(image)
}

func (r *Records) endLogged(image string) {
	if err := r.end(image); err != nil {
		r.log.Warn("record the end of a pull", "image", image, "err", err)
	}
}

// end counts a pull out; mu is held.
func (r *Records) end(image string) error {
	if r.pulling[image] > 1 {
		r.pulling[image]--
		return nil
	}
	if err := remove(r.intents(), image); err != nil {
		return err
	}
	delete(r.pulling, image)
	delete(r.damaged, fileName(image))
	return nil
}

// note adds credentials to an image's record; mu is held.
func (r *Records) note(image, ref string, c Credentials) error {
	x, known := r.pulled[ref]
	if !known {
		x = record{TypeMeta: metav1.TypeMeta{APIVersion: apiVersion, Kind: kindRecord}, ImageRef: ref}
	}
	x, changed := x.merge(Repository(image), c)
	if known && !changed {
		return nil
	}
	x.LastUpdatedTime = metav1.NewTime(r.now())
	if err := write(r.images(), ref, x); err != nil {
		return err
	}
	r.pulled[ref] = x
	delete(r.damaged, fileName(ref))
	return nil
}

// Present is an image that is there.
type Present struct {
	// Image is how the pod names it, Ref how the runtime does.
	Image, Ref string
	// Preloaded: the runtime knows that it did not get this name from a pull.
	Preloaded bool
}

// MayUse tells whether a pod may use an image that is present without pulling it with
// credentials of its own. secrets are those that the pod has for it; they are asked for
// where that matters alone.
func (r *Records) MayUse(p Present, secrets func() []Secret) bool {
	v := r.check(p, secrets)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks[v]++
	return v != MustAuthenticate
}

func (r *Records) check(p Present, secrets func() []Secret) Verdict {
	image, ref := p.Image, p.Ref
	r.mu.Lock()
	x, known := r.pulled[ref]
	pulled := known || r.pulling[image] > 0 || r.damaged[fileName(ref)] || r.damaged[fileName(image)]
	r.mu.Unlock()
	if !r.policy.verifies(image, pulled && !p.Preloaded) {
		return PolicyAllowed
	}
	c := x.CredentialMapping[Repository(image)]
	if c.NodePodsAccessible {
		return RecordFound
	}
	if len(c.KubernetesSecrets) == 0 {
		return MustAuthenticate
	}
	ok, learn := c.admits(secrets())
	if !ok {
		return MustAuthenticate
	}
	if learn != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if err := r.note(image, ref, Credentials{KubernetesSecrets: []Secret{*learn}}); err != nil {
			r.log.Warn("record a secret of a pulled image", "image", image, "err", err)
		}
	}
	return RecordFound
}

// Prune forgets images that the runtime does not have any more, of those that were
// known before it was asked.
func (r *Records) Prune(refs map[string]bool, asked time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for ref, x := range r.pulled {
		if refs[ref] || !x.LastUpdatedTime.Time.Before(asked) {
			continue
		}
		if err := remove(r.images(), ref); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(r.pulled, ref)
	}
	return errors.Join(errs...)
}

// Figures are how many pulls and images are recorded, and how checks went.
func (r *Records) Figures() (pulling, pulled int, checks map[Verdict]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	checks = map[Verdict]uint64{}
	for v, n := range r.checks {
		checks[v] = n
	}
	return len(r.pulling), len(r.pulled), checks
}
