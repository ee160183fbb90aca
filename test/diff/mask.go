package diff

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"sort"
	"strings"
	"time"
)

var (
	uidText    = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	timeText   = regexp.MustCompile(`\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?Z`)
	random     = regexp.MustCompile(`(\b(?:gen|kube-api-access)-|\bBad_)[bcdfghjklmnpqrstvwxz2456789]{5}\b`)
	jwt        = regexp.MustCompile(`eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+`)
	serviceIP  = regexp.MustCompile(`\b10\.97\.\d{1,3}\.\d{1,3}\b|\bfd00:10:97::[0-9a-f]{1,4}\b`)
	number     = regexp.MustCompile(`^[1-9]\d*$`)
	age        = regexp.MustCompile(`^(\d+[smhd])+$`)
	versionIn  = regexp.MustCompile(`(?i)(resource ?version\\*"?:?|revision) ?(\\*")?\d+\\*"?`)
	newest     = regexp.MustCompile(`(current: |in record \()\d+`)
	portIn     = regexp.MustCompile(`(?i)(nodeport\\*"?: ?)3[0-2]\d{3}\b`)
	cellPort   = regexp.MustCompile(`:3[0-2]\d{3}/`)
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
		if v["kind"] == "SelfSubjectRulesReview" {
			sortRules(v)
		}
		// Entries are kept in the order of their seconds, which two servers cross at
		// different requests.
		if fields, ok := v["managedFields"].([]any); ok {
			sort.SliceStable(fields, func(i, j int) bool { return owner(fields[i]) < owner(fields[j]) })
		}
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
			if s, ok := e.(string); ok && key == "cells" {
				e = cellPort.ReplaceAllString(s, ":NODEPORT/")
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

// owner identifies an entry of managedFields.
func owner(entry any) string {
	m, _ := entry.(map[string]any)
	return show([]any{m["manager"], m["operation"], m["subresource"], m["apiVersion"]})
}

// sortRules orders the rules of a review: upstream lists them as its maps go.
func sortRules(review map[string]any) {
	status, _ := review["status"].(map[string]any)
	for _, k := range []string{"resourceRules", "nonResourceRules"} {
		if rules, ok := status[k].([]any); ok {
			sort.Slice(rules, func(i, j int) bool { return show(rules[i]) < show(rules[j]) })
		}
	}
}

// claims shows what a token says, without what differs from run to run.
func claims(token string) string {
	parts := strings.Split(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	var c map[string]any
	if err != nil || json.Unmarshal(raw, &c) != nil {
		return "TOKEN"
	}
	issued, _ := c["iat"].(float64)
	for _, k := range []string{"exp", "nbf", "iat"} {
		if t, ok := c[k].(float64); ok {
			c[k] = t - issued
		}
	}
	if k, ok := c["kubernetes.io"].(map[string]any); ok {
		if t, ok := k["warnafter"].(float64); ok {
			k["warnafter"] = t - issued
		}
	}
	if _, ok := c["jti"]; ok {
		c["jti"] = "ID"
	}
	return "TOKEN" + maskText(show(c))
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
	s = random.ReplaceAllString(s, "${1}RANDOM")
	s = jwt.ReplaceAllStringFunc(s, claims)
	s = serviceIP.ReplaceAllString(s, "ADDRESS")
	s = versionIn.ReplaceAllString(s, "$1 VERSION")
	s = portIn.ReplaceAllString(s, "${1}NODEPORT")
	s = newest.ReplaceAllString(s, "${1}VERSION")
	return goLocation.ReplaceAllString(s, "goroutine N")
}
