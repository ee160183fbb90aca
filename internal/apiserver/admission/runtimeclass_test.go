package admission

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestMergeTolerations(t *testing.T) {
	const (
		all      = `{"operator":"Exists"}`
		k        = `{"key":"k","operator":"Exists"}`
		kv       = `{"key":"k","operator":"Equal","value":"v","effect":"NoSchedule"}`
		plain    = `{"key":"k","value":"v","effect":"NoSchedule"}`
		five     = `{"key":"k","operator":"Exists","effect":"NoExecute","tolerationSeconds":5}`
		nine     = `{"key":"k","operator":"Exists","effect":"NoExecute","tolerationSeconds":9}`
		forever  = `{"key":"k","operator":"Exists","effect":"NoExecute"}`
		other    = `{"key":"o","operator":"Exists"}`
		unknown  = `{"key":"k","operator":"Lt","value":"5","effect":"NoSchedule"}`
		noEffect = `{"key":"k","operator":"Equal","value":"v"}`
	)
	for name, c := range map[string]struct{ first, second, want string }{
		"none":                     {"[]", "[]", "null"},
		"apart":                    {"[" + k + "]", "[" + other + "]", "[" + k + "," + other + "]"},
		"equal":                    {"[" + k + "," + other + "]", "[" + k + "]", "[" + k + "," + other + "]"},
		"the class's includes":     {"[" + kv + "," + five + "]", "[" + k + "]", "[" + k + "]"},
		"the pod's includes":       {"[" + all + "]", "[" + k + "," + five + "]", "[" + all + "]"},
		"longer":                   {"[" + five + "]", "[" + nine + "]", "[" + nine + "]"},
		"forever":                  {"[" + forever + "]", "[" + nine + "]", "[" + forever + "]"},
		"every effect":             {"[" + noEffect + "]", "[" + kv + "]", "[" + noEffect + "]"},
		"no operator is included":  {"[" + plain + "]", "[" + kv + "]", "[" + plain + "]"},
		"no operator includes":     {"[" + kv + "]", "[" + plain + "]", "[" + plain + "]"},
		"no operator, not by this": {"[" + noEffect + "]", "[" + plain + "]", "[" + noEffect + "," + plain + "]"},
		"comparisons include none": {"[" + unknown + "]", "[" + kv + "]", "[" + unknown + "," + kv + "]"},
	} {
		t.Run(name, func(t *testing.T) {
			read := func(s string) (out []corev1.Toleration) {
				if err := json.Unmarshal([]byte(s), &out); err != nil {
					t.Fatal(err)
				}
				return out
			}
			got, err := json.Marshal(mergeTolerations(read(c.first), read(c.second)))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
