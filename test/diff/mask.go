package diff

import (
	"regexp"
	"strings"
	"time"
)

var (
	uidText    = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	timeText   = regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z`)
	random     = regexp.MustCompile(`\b(gen|kube-api-access)-[bcdfghjklmnpqrstvwxz2456789]{5}\b`)
	jwt        = regexp.MustCompile(`eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+`)
	serviceIP  = regexp.MustCompile(`\b10\.97\.\d{1,3}\.\d{1,3}\b`)
	number     = regexp.MustCompile(`^[1-9]\d*$`)
	age        = regexp.MustCompile(`^(\d+[smhd])+$`)
	versionIn  = regexp.MustCompile(`(?i)(resource ?version\\*"?:?|revision) ?(\\*")?\d+\\*"?`)
	goLocation = regexp.MustCompile(`goroutine \d+`)
)

// near tells whether t is a time of this run. Times that a request carries lie far
// away, and are compared.
func near(t time.Time) bool { return time.Since(t).Abs() < 2*time.Hour }

// mask replaces in a decoded JSON value what differs between two servers that
// behave alike. What is absent or empty stays so: only values are masked.
func mask(v any) any { return maskAt("", v) }

func maskAt(key string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, e := range v {
			out[k] = maskAt(k, e)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, e := range v {
			// A Table's cells carry no key: only they can be a bare age.
			if s, ok := e.(string); ok && key == "cells" && age.MatchString(s) {
				out[i] = "AGE"
				continue
			}
			out[i] = maskAt(key, e)
		}
		return out
	case string:
		return maskString(key, v)
	case float64:
		if (key == "nodePort" || key == "healthCheckNodePort") && v >= 30000 && v <= 32767 {
			return "NODEPORT"
		}
	}
	return v
}

func maskString(key, s string) string {
	switch key {
	case "resourceVersion":
		if number.MatchString(s) {
			return "VERSION"
		}
	case "continue":
		if s != "" {
			return "CONTINUE"
		}
	}
	return maskText(s)
}

// maskText masks within a text.
func maskText(s string) string {
	s = uidText.ReplaceAllString(s, "UID")
	s = timeText.ReplaceAllStringFunc(s, func(m string) string {
		if t, err := time.Parse(time.RFC3339Nano, m); err == nil && near(t) {
			if strings.Contains(m, ".") {
				return "MICROTIME"
			}
			return "TIME"
		}
		return m
	})
	s = random.ReplaceAllString(s, "$1-RANDOM")
	s = jwt.ReplaceAllString(s, "TOKEN")
	s = serviceIP.ReplaceAllString(s, "ADDRESS")
	s = versionIn.ReplaceAllString(s, "$1 VERSION")
	return goLocation.ReplaceAllString(s, "goroutine N")
}
