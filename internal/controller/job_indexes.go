package controller

import (
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
)

// indexRange is a run of completion indexes, both ends included.
type indexRange struct{ first, last int }

// indexSet is a set of completion indexes: runs in order, with gaps between them.
type indexSet []indexRange

// parseIndexes reads the text of a status ("1,3-5"); what cannot be read, and what is
// not below completions, is left out.
func parseIndexes(s string, completions int) indexSet {
	var out indexSet
	if s == "" {
		return nil
	}
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil {
			continue
		}
		last := first
		if isRange {
			if last, err = strconv.Atoi(to); err != nil {
				continue
			}
		}
		if first >= completions {
			break
		}
		out = out.union(indexSet{{first, min(last, completions-1)}})
	}
	return out
}

// String is the form that a status holds: single indexes and pairs apart, longer runs
// with a dash.
func (s indexSet) String() string {
	var b strings.Builder
	for i, r := range s {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(r.first))
		if r.last > r.first {
			if r.last == r.first+1 {
				b.WriteByte(',')
			} else {
				b.WriteByte('-')
			}
			b.WriteString(strconv.Itoa(r.last))
		}
	}
	return b.String()
}

func (s indexSet) total() int {
	n := 0
	for _, r := range s {
		n += r.last - r.first + 1
	}
	return n
}

func (s indexSet) has(i int) bool {
	at, found := slices.BinarySearchFunc(s, i, func(r indexRange, i int) int {
		switch {
		case r.last < i:
			return -1
		case r.first > i:
			return 1
		}
		return 0
	})
	return found && at < len(s)
}

// with adds single indexes, in any order.
func (s indexSet) with(indexes ...int) indexSet {
	if len(indexes) == 0 {
		return s
	}
	more := make(indexSet, len(indexes))
	for i, n := range slices.Sorted(slices.Values(indexes)) {
		more[i] = indexRange{n, n}
	}
	return s.union(more)
}

func (s indexSet) union(o indexSet) indexSet {
	all := append(slices.Clone(s), o...)
	slices.SortFunc(all, func(a, b indexRange) int { return a.first - b.first })
	var out indexSet
	for _, r := range all {
		if n := len(out); n > 0 && r.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, r.last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// without leaves out what is in o.
func (s indexSet) without(o indexSet) indexSet {
	var out indexSet
	for _, r := range s {
		for _, x := range o {
			if x.last < r.first {
				continue
			}
			if x.first > r.last {
				break
			}
			if x.first > r.first {
				out = append(out, indexRange{r.first, x.first - 1})
			}
			r.first = x.last + 1
		}
		if r.first <= r.last {
			out = append(out, r)
		}
	}
	return out
}

// common is the number of indexes in both.
func (s indexSet) common(o indexSet) int {
	n := 0
	for i, j := 0, 0; i < len(s) && j < len(o); {
		n += max(0, min(s[i].last, o[j].last)-max(s[i].first, o[j].first)+1)
		if s[i].last < o[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// firstFree are the lowest n indexes below completions that are not in s.
func (s indexSet) firstFree(n, completions int) []int {
	var out []int
	next := 0
	for _, r := range append(slices.Clone(s), indexRange{completions, completions}) {
		for ; next < min(r.first, completions) && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, r.last+1)
	}
	return out
}

// completionIndex is a pod's index, -1 where it has none.
func completionIndex(p *corev1.Pod) int {
	i, err := strconv.Atoi(p.Annotations[batchv1.JobCompletionIndexAnnotation])
	if err != nil || i < 0 {
		return -1
	}
	return i
}

func indexesOf(pods []*corev1.Pod) []int {
	var out []int
	for _, p := range pods {
		if i := completionIndex(p); i >= 0 {
			out = append(out, i)
		}
	}
	return out
}

// failureCount is what an annotation of a pod says about the failures of its index
// before it.
func failureCount(p *corev1.Pod, annotation string) int32 {
	n, err := strconv.ParseInt(p.Annotations[annotation], 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return int32(n)
}

func countedFailures(p *corev1.Pod) int32 {
	return failureCount(p, batchv1.JobIndexFailureCountAnnotation)
}

func ignoredFailures(p *corev1.Pod) int32 {
	return failureCount(p, batchv1.JobIndexIgnoredFailureCountAnnotation)
}

// indexedPod gives a pod of an indexed job its index: annotation, label, host name,
// name, and a variable in its containers.
func indexedPod(job *batchv1.Job, p *corev1.Pod, index int) {
	text := strconv.Itoa(index)
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Annotations[batchv1.JobCompletionIndexAnnotation] = text
	p.Labels[batchv1.JobCompletionIndexAnnotation] = text
	p.Spec.Hostname = job.Name + "-" + text
	suffix := "-" + text + "-"
	p.GenerateName = job.Name[:min(len(job.Name), maxGeneratedPrefix-len(suffix))] + suffix
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			c := &list[i]
			if slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == completionIndexEnv }) {
				continue
			}
			c.Env = append(c.Env, corev1.EnvVar{Name: completionIndexEnv, ValueFrom: &corev1.EnvVarSource{
				FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
			}})
		}
	}
}

const (
	completionIndexEnv = "JOB_COMPLETION_INDEX"
	// maxGeneratedPrefix is what the random part of a generated name leaves.
	maxGeneratedPrefix = 58
)
