// Package resource is the mechanism by which an API resource is declared: one
// value of type Resource per resource, one file each below internal/api.
//
// A declaration says what is particular to the resource: names, defaults,
// validation, what a write may change, columns. All that every resource shares
// (metadata, generateName, finalizers, managedFields, conflicts, patches,
// storage, watches) is done by the API server around it.
//
// # The order of a write
//
// decode, Default, managedFields, mutating admission (Default again after
// webhooks), Prepare (which drops disabled fields and resets what this door may
// not write), Check, Validate, Canonicalize, validating admission, Begin (with
// BeginFirst: before Prepare), store. For update and patch everything from the patch on is repeated in the
// compare-and-swap retry, against the then current object.
//
// Functions get an object of their own that they may change where their comment
// says so; old objects are shared and must not be changed.
package resource

import (
	"context"
	"errors"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/client"
)

// Object is an API object.
type Object = client.Object

// Resource is the declaration of one API resource. Names are as in discovery.
type Resource struct {
	GroupVersion schema.GroupVersion
	Kind         string
	Plural       string
	Singular     string
	ShortNames   []string
	Categories   []string
	Namespaced   bool

	// Prefix of its keys in the store, upstream's: "/registry/pods/". Empty for a
	// resource that is not stored (the reviews).
	Prefix string
	// Stored is the version that values are encoded in, where it is not
	// GroupVersion.
	Stored schema.GroupVersion
	// Twin is set on a resource that shows the objects of another one under
	// another group or version (events.k8s.io events over core events).
	Twin *Twin

	// Deprecated is a warning that every request gets; empty for none.
	Deprecated string

	New     func() Object
	NewList func() runtime.Object
	// ReturnDeleted: a deletion answers with the object, not with a Status.
	ReturnDeleted bool
	// Readable, where set, says why a body cannot be taken for an object although it
	// decodes: an annotation that stands for a number is none.
	Readable func(obj Object) error
	// UnknownField says that a field cannot be selected by, where a kind has words
	// of its own for it.
	UnknownField func(name string) string
	// Verbs allowed; nil means create, delete, deletecollection, get, list, patch,
	// update, watch.
	Verbs []string

	Strategy
	// Live makes the objects of a resource that is not stored when they are read.
	Live *Live
	// Post answers a create of a resource that is not stored.
	Post func(ctx context.Context, env Env, obj Object) (Object, error)

	Subresources []Subresource
	// Columns of Tables, and Row the cells of one object, in the columns' order.
	Columns []metav1.TableColumnDefinition
}

// GroupResource returns its group and plural name.
func (r *Resource) GroupResource() schema.GroupResource {
	return r.GroupVersion.WithResource(r.Plural).GroupResource()
}

// GVR returns group, version and plural name.
func (r *Resource) GVR() schema.GroupVersionResource { return r.GroupVersion.WithResource(r.Plural) }

// GVK returns group, version and kind.
func (r *Resource) GVK() schema.GroupVersionKind { return r.GroupVersion.WithKind(r.Kind) }

// Subresource finds a subresource by name, nil where there is none.
func (r *Resource) Subresource(name string) *Subresource {
	for i := range r.Subresources {
		if r.Subresources[i].Name == name {
			return &r.Subresources[i]
		}
	}
	return nil
}

// Twin converts between a resource and the one that stores its objects. Both
// functions return new objects.
type Twin struct {
	Of         *Resource
	ToStored   func(Object) Object
	FromStored func(Object) Object
}

// Strategy is what a resource adds to a write. Every field may be nil.
type Strategy = StrategyOf[Object]

// StrategyOf is Strategy over the resource's own Go type; see Define.
type StrategyOf[T Object] struct {
	// Default fills in what the client left out. It may change obj, must be
	// idempotent, and is called on what clients send and on what the store holds.
	Default func(obj T)

	// PrepareCreate and PrepareUpdate make the object what this door may write:
	// status reset, generation counted, disabled fields dropped, twins of fields
	// (podIP and podIPs) brought into line. They may change obj.
	PrepareCreate func(env Env, obj T)
	PrepareUpdate func(env Env, obj, old T)

	// ValidateCreate and ValidateUpdate return every mistake, with upstream's
	// paths and texts. ObjectMeta is theirs to validate too (ValidateMeta,
	// ValidateMetaUpdate). They change nothing.
	ValidateCreate func(env Env, obj T) field.ErrorList
	ValidateUpdate func(env Env, obj, old T) field.ErrorList

	// Check returns the mistakes that only other objects, or the authorizer, can
	// tell; old is the zero T on create. They come before those of Validate.
	Check func(ctx context.Context, env Env, obj, old T) field.ErrorList

	// Warnings returns texts for the Warning header; old is nil on create.
	Warnings func(env Env, obj, old T) []string

	// Canonicalize brings a valid object into its one form. It may change obj.
	Canonicalize func(obj T)

	// Begin does what must happen with the write (allocate an address), after
	// validation; old is the zero T on create. It may change obj (allocated
	// values). finish is called once, with whether the write happened; nil is
	// allowed. Where nobody knows whether it happened, finish is not called: what
	// Begin took stays taken.
	Begin func(ctx context.Context, env Env, obj, old T) (finish func(ctx context.Context, committed bool), err error)
	// BeginFirst: Begin runs before Prepare, so that what it fills in is
	// validated with the rest. Begin must then bear an object that is not valid.
	BeginFirst bool
	// Deleted is called after the object left the store.
	Deleted func(ctx context.Context, env Env, obj T)

	// Grace decides the grace period of a deletion and writes it to
	// o.GracePeriodSeconds. It returns false where the resource knows none: then
	// the object goes at once.
	Grace func(env Env, obj T, o *metav1.DeleteOptions) bool
	// Held tells that something besides metadata.finalizers keeps a deleted
	// object from going (a Namespace's spec.finalizers).
	Held func(obj T) bool
	// DeletePrepare changes an object that was just marked as deleted (a
	// Namespace's phase). It may change obj.
	DeletePrepare func(env Env, obj T)
	// OrphanByDefault: dependants of a deleted object stay unless asked for
	// otherwise.
	OrphanByDefault bool
	// DeleteWarnings returns texts for the Warning header of a deletion.
	DeleteWarnings func(o *metav1.DeleteOptions) []string
	// NoDependents: nothing depends on these objects; a deletion asks the garbage
	// collector for nothing, whatever its options say.
	NoDependents bool

	// StoredPreconditions: a deletion's preconditions that do not hold are told in
	// the store's words.
	StoredPreconditions bool

	// CreateOnUpdate: an update (or an apply patch excepted) of a missing object
	// creates it.
	CreateOnUpdate bool
	// UnconditionalUpdate: an update without resourceVersion is allowed.
	UnconditionalUpdate bool

	// Selectable returns the values of the fields, besides metadata.name and
	// metadata.namespace, that field selectors may use. All keys are always
	// present.
	Selectable func(obj T) fields.Set

	// ResetFields are the paths, in dotted form ("status", "metadata.deletionTimestamp"),
	// that a write through this door ignores; they are kept out of
	// managedFields.
	ResetFields []string
	// KeepFields, where set, are the only paths that a write through this door
	// sets, and what lies below them; "[*]" stands for any item of a list.
	KeepFields []string

	// TTL after which the store removes the object; nil or 0 keeps it.
	TTL func(obj T) time.Duration

	// Row returns the cells of a Table row.
	Row func(obj T, now time.Time) []any
	// ListCells changes the cells of the rows of a list, where they depend on each
	// other; cells[i] belongs to objs[i].
	ListCells func(objs []T, cells [][]any)
	// RowConditions returns a row's conditions (a finished pod is Completed).
	RowConditions func(obj T) []metav1.TableRowCondition
}

// Subresource is a door to a part of an object.
type Subresource struct {
	Name string
	// Kind of the body in discovery; the parent's when empty.
	Kind schema.GroupVersionKind
	// Verbs as in discovery.
	Verbs []string

	// Status, where set, makes this a door through which the same object is
	// read, updated and patched with other rules (status, ephemeralcontainers,
	// resize, finalize).
	Status *Strategy

	// View and SetView, where set, make this a projection (scale): View makes the
	// body from the object, SetView writes the body into a copy of the object,
	// which then goes through the parent's rules.
	NewView func() Object
	// Columns and Row make a Table of the body, where it has one.
	Columns []metav1.TableColumnDefinition
	Row     func(view Object, now time.Time) []any
	View    func(obj Object) (Object, error)
	SetView func(obj Object, view Object) error

	// Post, where set, answers a create (binding, token, eviction). ops writes
	// the parent. No object answers with a Status of success.
	NewBody func() Object
	// Echoed: the answer of Post is the body, filled in; it has managed fields.
	Echoed bool
	// Default fills in what the client left out of a body of Post; nil for nothing.
	Default func(body Object)
	// Older turns a body of an older version into one of NewBody's type, and
	// returns nil for any other; nil where only one version is taken.
	Older func(body runtime.Object) Object
	Post  func(ctx context.Context, env Env, ops Ops, namespace, name string, body Object, o metav1.CreateOptions) (Object, error)

	// Connect marks a subresource that the API server connects to a node or a pod
	// (log, exec, attach, portforward, proxy); the verbs say how it is reached.
	Connect bool
}

// Ops are the writes that a subresource's Post may do on its parent.
type Ops interface {
	// Get returns the current object, linearizable.
	Get(ctx context.Context, namespace, name string) (Object, error)
	// Mutate changes an object under compare-and-swap, without the parent's
	// rules: change gets a copy it may modify, and is called again on conflict.
	Mutate(ctx context.Context, namespace, name string, dryRun bool, change func(obj Object) error) (Object, error)
}

// Env is what rules may know besides the objects.
type Env struct {
	Now      func() time.Time
	Features Features
	User     User
	// Verb is the request's, as authorization has it.
	Verb   string
	DryRun bool
	// Warn sends a text in the Warning header, for rules that find something
	// while they change the object; nil drops it.
	Warn func(text string)
	// Client reads and writes other objects, as the API server itself.
	Client *client.Client
	// Authorize and Authenticate serve the reviews.
	Authorize    func(ctx context.Context, a Attributes) (Decision, error)
	Authenticate func(ctx context.Context, token string, audiences []string) (*User, []string, error)
	// Rules lists what a user may do in a namespace (SelfSubjectRulesReview).
	Rules func(ctx context.Context, u User, namespace string) (RuleList, error)
	// Tokens issues service account tokens.
	Tokens TokenIssuer
	// Services allocates cluster addresses and node ports.
	Services ServiceAllocator
	// Usage tells what nodes and pods use; nil where nobody knows.
	Usage UsageSource
}

// User is who asks.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
	// Warning is what a client is to hear of its credentials, with every answer.
	Warning string
}

// Attributes are a request as authorization sees it.
type Attributes struct {
	User                                                         User
	Verb, Namespace, Group, Version, Resource, Subresource, Name string
	// Path of a request that is not for a resource.
	Path string
	// FieldSelector and LabelSelector as sent, of a list or watch.
	FieldSelector, LabelSelector string
}

// Decision of an authorizer.
type Decision struct {
	Allowed bool
	Denied  bool // no later authorizer is asked
	Reason  string
}

// RuleList is an answer to "what may I do".
type RuleList struct {
	Resource    []ResourceRule
	NonResource []NonResourceRule
	Incomplete  bool
	Error       string
}

// ResourceRule and NonResourceRule are RBAC's, without names of their own.
type ResourceRule struct{ Verbs, APIGroups, Resources, ResourceNames []string }

// NonResourceRule allows verbs on paths.
type NonResourceRule struct{ Verbs, NonResourceURLs []string }

// TokenIssuer makes service account tokens.
type TokenIssuer interface {
	// Issue signs a token; bound may name a pod, node or secret.
	Issue(ctx context.Context, t TokenSpec) (token string, expires time.Time, err error)
	// Audiences are the server's own: those of a token that asks for none.
	Audiences() []string
}

// TokenSpec says what a token asserts.
type TokenSpec struct {
	Namespace, ServiceAccount, UID string
	Audiences                      []string
	// Lifetime after which the token is refused, and the time after which its use
	// is noted as late; 0 notes nothing.
	Lifetime, WarnAfter            time.Duration
	BoundKind, BoundName, BoundUID string
	NodeName, NodeUID              string
}

// ServiceAllocator hands out cluster addresses and node ports. Whoever allocates
// releases, unless the write that uses what was allocated happened. Errors are
// short texts for the messages of field errors.
type ServiceAllocator interface {
	// AllocateIP takes ip (a specific one) or, where empty, any of family
	// ("IPv4", "IPv6") for the service named; ErrRangeFull where there is none
	// left. A dry run takes nothing.
	AllocateIP(ctx context.Context, namespace, name, family, ip string, dryRun bool) (string, error)
	// ReleaseIP gives an address back; one that is free already is no error.
	ReleaseIP(ctx context.Context, ip string) error
	// AllocatePort takes port for all protocols, or any port where it is 0;
	// ErrRangeFull where there is none left.
	AllocatePort(ctx context.Context, port int32) (int32, error)
	// PortTaken tells whether AllocatePort of port would find it taken.
	PortTaken(ctx context.Context, port int32) (bool, error)
	// ReleasePort gives a port back; one that is free already, or out of the
	// range, is no error.
	ReleasePort(ctx context.Context, port int32) error
	// Families are the cluster's IP families, the primary one first.
	Families() []string
}

// Errors of a ServiceAllocator, with the texts that clients see.
var (
	ErrRangeFull     = errors.New("range is full")
	ErrPortAllocated = errors.New("provided port is already allocated")
)

// Define turns the strategy over T into the one over Object and puts it into r.
func Define[T Object](r Resource, s StrategyOf[T]) *Resource {
	r.Strategy = Untyped(s)
	return &r
}

// Untyped turns a strategy over T into one over Object.
func Untyped[T Object](s StrategyOf[T]) Strategy {
	cast := func(o Object) T {
		var zero T
		if o == nil {
			return zero
		}
		return o.(T)
	}
	out := Strategy{
		OrphanByDefault: s.OrphanByDefault, StoredPreconditions: s.StoredPreconditions, NoDependents: s.NoDependents, CreateOnUpdate: s.CreateOnUpdate,
		UnconditionalUpdate: s.UnconditionalUpdate, ResetFields: s.ResetFields,
		KeepFields: s.KeepFields, BeginFirst: s.BeginFirst, DeleteWarnings: s.DeleteWarnings,
	}
	if f := s.Default; f != nil {
		out.Default = func(o Object) { f(cast(o)) }
	}
	if f := s.PrepareCreate; f != nil {
		out.PrepareCreate = func(e Env, o Object) { f(e, cast(o)) }
	}
	if f := s.PrepareUpdate; f != nil {
		out.PrepareUpdate = func(e Env, o, old Object) { f(e, cast(o), cast(old)) }
	}
	if f := s.ValidateCreate; f != nil {
		out.ValidateCreate = func(e Env, o Object) field.ErrorList { return f(e, cast(o)) }
	}
	if f := s.ValidateUpdate; f != nil {
		out.ValidateUpdate = func(e Env, o, old Object) field.ErrorList { return f(e, cast(o), cast(old)) }
	}
	if f := s.Check; f != nil {
		out.Check = func(ctx context.Context, e Env, o, old Object) field.ErrorList { return f(ctx, e, cast(o), cast(old)) }
	}
	if f := s.Warnings; f != nil {
		out.Warnings = func(e Env, o, old Object) []string { return f(e, cast(o), cast(old)) }
	}
	if f := s.Canonicalize; f != nil {
		out.Canonicalize = func(o Object) { f(cast(o)) }
	}
	if f := s.Begin; f != nil {
		out.Begin = func(ctx context.Context, e Env, o, old Object) (func(context.Context, bool), error) {
			return f(ctx, e, cast(o), cast(old))
		}
	}
	if f := s.Deleted; f != nil {
		out.Deleted = func(ctx context.Context, e Env, o Object) { f(ctx, e, cast(o)) }
	}
	if f := s.Grace; f != nil {
		out.Grace = func(e Env, o Object, d *metav1.DeleteOptions) bool { return f(e, cast(o), d) }
	}
	if f := s.Held; f != nil {
		out.Held = func(o Object) bool { return f(cast(o)) }
	}
	if f := s.DeletePrepare; f != nil {
		out.DeletePrepare = func(e Env, o Object) { f(e, cast(o)) }
	}
	if f := s.Selectable; f != nil {
		out.Selectable = func(o Object) fields.Set { return f(cast(o)) }
	}
	if f := s.TTL; f != nil {
		out.TTL = func(o Object) time.Duration { return f(cast(o)) }
	}
	if f := s.Row; f != nil {
		out.Row = func(o Object, now time.Time) []any { return f(cast(o), now) }
	}
	if f := s.ListCells; f != nil {
		out.ListCells = func(objs []Object, cells [][]any) {
			list := make([]T, len(objs))
			for i, o := range objs {
				list[i] = cast(o)
			}
			f(list, cells)
		}
	}
	if f := s.RowConditions; f != nil {
		out.RowConditions = func(o Object) []metav1.TableRowCondition { return f(cast(o)) }
	}
	return out
}

// StatusOf declares the usual status subresource with the rules given.
func StatusOf[T Object](s StrategyOf[T]) Subresource {
	st := Untyped(s)
	return Subresource{Name: "status", Verbs: []string{"get", "patch", "update"}, Status: &st}
}

// ServedVerbs returns the verbs of discovery.
func (r *Resource) ServedVerbs() []string {
	if r.Verbs != nil {
		return r.Verbs
	}
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}
