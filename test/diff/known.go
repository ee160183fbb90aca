package diff

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// known is a difference that stays.
type known struct {
	// Case and Difference are anchored regular expressions over the name of the
	// request and over the difference in one line: "PATH: UPSTREAM | SKIFF".
	Case       string `json:"case"`
	Difference string `json:"difference"`
	// Each, where given, makes one entry of each name: the word EACH in the
	// patterns stands for it. So a name that is none any more is found.
	Each []string `json:"each,omitempty"`
	// Sometimes: upstream answers by chance (its maps' order, say), at times as skiff does.
	Sometimes bool `json:"sometimes,omitempty"`
	// Reason why it stays.
	Reason string `json:"reason"`

	name, line *regexp.Regexp
	met        int
}

// readKnown reads the list of known differences.
func readKnown(path string) ([]*known, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var in, out []*known
	if err := yaml.UnmarshalStrict(b, &in); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, k := range in {
		if len(k.Each) == 0 {
			out = append(out, k)
		}
		for _, name := range k.Each {
			word := strings.NewReplacer("EACH", regexp.QuoteMeta(name))
			out = append(out, &known{Case: word.Replace(k.Case), Difference: word.Replace(k.Difference), Sometimes: k.Sometimes, Reason: k.Reason})
		}
	}
	var errs []error
	for i, k := range out {
		if k.Reason == "" || k.Difference == "" || k.Case == "" {
			errs = append(errs, fmt.Errorf("%s: entry %d needs case, difference and reason", path, i+1))
			continue
		}
		var err error
		if k.name, err = regexp.Compile("^(?s:" + k.Case + ")$"); err != nil {
			errs = append(errs, fmt.Errorf("%s: entry %d: %w", path, i+1, err))
		}
		if k.line, err = regexp.Compile("^(?s:" + k.Difference + ")$"); err != nil {
			errs = append(errs, fmt.Errorf("%s: entry %d: %w", path, i+1, err))
		}
	}
	return out, errors.Join(errs...)
}

// explain returns the differences of the case that no entry covers.
func explain(list []*known, name string, ds []difference) []difference {
	var left []difference
	for _, d := range ds {
		covered := false
		for _, k := range list {
			if k.name.MatchString(name) && k.line.MatchString(d.line()) {
				k.met++
				covered = true
				break
			}
		}
		if !covered {
			left = append(left, d)
		}
	}
	return left
}
