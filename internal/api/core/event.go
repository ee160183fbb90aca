package core

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"skiff/internal/api/resource"
)

// eventTTL is how long events are kept, upstream's default.
const eventTTL = time.Hour

// Events declares the two resources that show events: core/v1 and
// events.k8s.io/v1, over the same objects.
func Events() (core, events *resource.Resource) {
	core = resource.Define(resource.Resource{
		GroupVersion: corev1.SchemeGroupVersion, Kind: "Event", Plural: "events", Singular: "event",
		ShortNames: []string{"ev"}, Namespaced: true, Prefix: "/registry/events/",
		New:     func() resource.Object { return &corev1.Event{} },
		NewList: func() runtime.Object { return &corev1.EventList{} },
		Columns: eventColumns(),
	}, resource.StrategyOf[*corev1.Event]{
		CreateOnUpdate: true, UnconditionalUpdate: true, NoDependents: true,
		TTL:            func(*corev1.Event) time.Duration { return eventTTL },
		ValidateCreate: func(_ resource.Env, e *corev1.Event) field.ErrorList { return validateEvent(e, "reportingComponent") },
		ValidateUpdate: func(_ resource.Env, e, _ *corev1.Event) field.ErrorList {
			return validateEvent(e, "reportingComponent")
		},
		Selectable: func(e *corev1.Event) fields.Set {
			source := e.Source.Component
			if source == "" {
				source = e.ReportingController
			}
			o := e.InvolvedObject
			return fields.Set{
				"involvedObject.kind": o.Kind, "involvedObject.namespace": o.Namespace, "involvedObject.name": o.Name,
				"involvedObject.uid": string(o.UID), "involvedObject.apiVersion": o.APIVersion,
				"involvedObject.resourceVersion": o.ResourceVersion, "involvedObject.fieldPath": o.FieldPath,
				"reason": e.Reason, "reportingComponent": e.ReportingController, "source": source, "type": e.Type,
			}
		},
		Row: eventRow,
	})
	events = resource.Define(resource.Resource{
		GroupVersion: eventsv1.SchemeGroupVersion, Kind: "Event", Plural: "events", Singular: "event",
		ShortNames: []string{"ev"}, Namespaced: true,
		New:     func() resource.Object { return &eventsv1.Event{} },
		NewList: func() runtime.Object { return &eventsv1.EventList{} },
		Columns: eventColumns(),
		Twin: &resource.Twin{
			Of:         core,
			ToStored:   func(o resource.Object) resource.Object { return toCoreEvent(o.(*eventsv1.Event)) },
			FromStored: func(o resource.Object) resource.Object { return fromCoreEvent(o.(*corev1.Event)) },
		},
	}, resource.StrategyOf[*eventsv1.Event]{
		CreateOnUpdate: true, UnconditionalUpdate: true, NoDependents: true,
		TTL:            func(*eventsv1.Event) time.Duration { return eventTTL },
		ValidateCreate: func(_ resource.Env, e *eventsv1.Event) field.ErrorList { return validateNewEvent(toCoreEvent(e)) },
		ValidateUpdate: func(_ resource.Env, e, old *eventsv1.Event) field.ErrorList {
			return validateNewEventUpdate(toCoreEvent(e), toCoreEvent(old))
		},
		Selectable: func(e *eventsv1.Event) fields.Set {
			o := e.Regarding
			return fields.Set{
				"regarding.kind": o.Kind, "regarding.namespace": o.Namespace, "regarding.name": o.Name,
				"regarding.uid": string(o.UID), "regarding.apiVersion": o.APIVersion,
				"regarding.resourceVersion": o.ResourceVersion, "regarding.fieldPath": o.FieldPath,
				"reason": e.Reason, "reportingController": e.ReportingController, "type": e.Type,
			}
		},
		Row: func(e *eventsv1.Event, now time.Time) []any { return eventRow(toCoreEvent(e), now) },
	})
	return core, events
}

func eventColumns() []metav1.TableColumnDefinition {
	doc := corev1.Event{}.SwaggerDoc()
	name := resource.NameColumn()
	name.Priority = 1
	return []metav1.TableColumnDefinition{
		resource.Column("Last Seen", "string", doc["lastTimestamp"], 0),
		resource.Column("Type", "string", doc["type"], 0),
		resource.Column("Reason", "string", doc["reason"], 0),
		resource.Column("Object", "string", doc["involvedObject"], 0),
		resource.Column("Subobject", "string", corev1.ObjectReference{}.SwaggerDoc()["fieldPath"], 1),
		resource.Column("Source", "string", doc["source"], 1),
		resource.Column("Message", "string", doc["message"], 0),
		resource.Column("First Seen", "string", doc["firstTimestamp"], 1),
		resource.Column("Count", "string", doc["count"], 1),
		name,
	}
}

func eventRow(e *corev1.Event, now time.Time) []any {
	first := resource.Age(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = microAge(e.EventTime, now)
	}
	last := resource.Age(e.LastTimestamp, now)
	if e.LastTimestamp.IsZero() {
		last = first
	}
	count := e.Count
	if e.Series != nil {
		last, count = microAge(e.Series.LastObservedTime, now), e.Series.Count
	} else if count == 0 {
		count = 1
	}
	target := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		target += "/" + e.InvolvedObject.Name
	}
	component, instance := e.Source.Component, e.Source.Host
	if component == "" {
		component = e.ReportingController
	}
	if instance == "" {
		instance = e.ReportingInstance
	}
	source := component
	if instance != "" {
		source += ", " + instance
	}
	return []any{last, e.Type, e.Reason, target, e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message), first, int64(count), e.Name}
}

func microAge(t metav1.MicroTime, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

const eventTextLimit = 128

// validateEvent are the rules of both versions; controllerField is the reporting
// controller's name in the version asked.
func validateEvent(e *corev1.Event, controllerField string) field.ErrorList {
	var errs field.ErrorList
	mismatch := func() {
		errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), e.InvolvedObject.Namespace, "does not match event.namespace"))
	}
	if e.EventTime.IsZero() {
		if e.InvolvedObject.Namespace == "" {
			if e.Namespace != "" && e.Namespace != metav1.NamespaceDefault {
				mismatch()
			}
		} else if e.Namespace != e.InvolvedObject.Namespace {
			mismatch()
		}
		return errs
	}
	if e.InvolvedObject.Namespace == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem {
		mismatch()
	}
	path := field.NewPath(controllerField)
	if e.ReportingController == "" {
		errs = append(errs, field.Required(path, ""))
	}
	for _, msg := range validation.IsQualifiedName(e.ReportingController) {
		errs = append(errs, field.Invalid(path, e.ReportingController, msg))
	}
	text := func(name, v string, limit int, required bool) {
		p := field.NewPath(name)
		if v == "" && required {
			errs = append(errs, field.Required(p, ""))
		}
		if len(v) > limit {
			errs = append(errs, field.Invalid(p, "", fmt.Sprintf("can have at most %v characters", limit)))
		}
	}
	text("reportingInstance", e.ReportingInstance, eventTextLimit, true)
	text("action", e.Action, eventTextLimit, true)
	text("reason", e.Reason, eventTextLimit, true)
	text("message", e.Message, 1024, false)
	return errs
}

// validateNewEvent adds the rules of events.k8s.io/v1.
func validateNewEvent(e *corev1.Event) field.ErrorList {
	errs := validateEvent(e, "reportingController")
	errs = append(errs, resource.ValidateMeta(e, true, resource.DNSSubdomain)...)
	errs = append(errs, validateEventSeries(e)...)
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		errs = append(errs, field.Invalid(field.NewPath("type"), "", fmt.Sprintf("has invalid value: %v", e.Type)))
	}
	unset := func(name string, set bool) {
		if set {
			errs = append(errs, field.Invalid(field.NewPath(name), "", "needs to be unset"))
		}
	}
	unset("firstTimestamp", !e.FirstTimestamp.IsZero())
	unset("lastTimestamp", !e.LastTimestamp.IsZero())
	unset("count", e.Count != 0)
	unset("source", e.Source.Component != "" || e.Source.Host != "")
	return errs
}

func validateEventSeries(e *corev1.Event) field.ErrorList {
	var errs field.ErrorList
	if e.Series == nil {
		return nil
	}
	if e.Series.Count < 2 {
		errs = append(errs, field.Invalid(field.NewPath("series.count"), "", "should be at least 2"))
	}
	if e.Series.LastObservedTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("series.lastObservedTime"), ""))
	}
	return errs
}

func validateNewEventUpdate(e, old *corev1.Event) field.ErrorList {
	errs := validateEvent(e, "reportingController")
	errs = append(errs, resource.ValidateMetaUpdate(e, old)...)
	if !reflect.DeepEqual(e.Series, old.Series) {
		errs = append(errs, validateEventSeries(e)...)
	}
	same := func(name string, a, b any) {
		for _, err := range apivalidation.ValidateImmutableField(a, b, field.NewPath(name)) {
			switch a.(type) {
			case corev1.ObjectReference, *corev1.ObjectReference, corev1.EventSource:
				err.BadValue = resource.Shown(a)
			}
			errs = append(errs, err)
		}
	}
	same("involvedObject", e.InvolvedObject, old.InvolvedObject)
	same("reason", e.Reason, old.Reason)
	same("message", e.Message, old.Message)
	same("source", e.Source, old.Source)
	same("firstTimestamp", e.FirstTimestamp, old.FirstTimestamp)
	same("lastTimestamp", e.LastTimestamp, old.LastTimestamp)
	same("count", e.Count, old.Count)
	same("reason", e.Reason, old.Reason)
	same("type", e.Type, old.Type)
	if !e.EventTime.Truncate(time.Microsecond).Equal(old.EventTime.Truncate(time.Microsecond)) {
		same("eventTime", e.EventTime, old.EventTime)
	}
	same("action", e.Action, old.Action)
	same("related", e.Related, old.Related)
	same("reportingController", e.ReportingController, old.ReportingController)
	same("reportingInstance", e.ReportingInstance, old.ReportingInstance)
	return errs
}

func toCoreEvent(e *eventsv1.Event) *corev1.Event {
	e = e.DeepCopy()
	out := &corev1.Event{
		ObjectMeta: e.ObjectMeta, InvolvedObject: e.Regarding, Reason: e.Reason, Message: e.Note, Source: e.DeprecatedSource,
		FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp, Count: e.DeprecatedCount,
		Type: e.Type, EventTime: e.EventTime, Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
	}
	if e.Series != nil {
		out.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out
}

func fromCoreEvent(e *corev1.Event) *eventsv1.Event {
	e = e.DeepCopy()
	out := &eventsv1.Event{
		ObjectMeta: e.ObjectMeta, Regarding: e.InvolvedObject, Reason: e.Reason, Note: e.Message, DeprecatedSource: e.Source,
		DeprecatedFirstTimestamp: e.FirstTimestamp, DeprecatedLastTimestamp: e.LastTimestamp, DeprecatedCount: e.Count,
		Type: e.Type, EventTime: e.EventTime, Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
	}
	if e.Series != nil {
		out.Series = &eventsv1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return out
}
