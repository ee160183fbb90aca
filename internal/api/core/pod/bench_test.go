package pod

import "testing"

// BenchmarkCreate is what the rules cost a create of a small pod.
func BenchmarkCreate(b *testing.B) {
	env := testEnv()
	b.ReportAllocs()
	for b.Loop() {
		p := testPod()
		setDefaults(p)
		prepareCreate(env, p)
		if errs := validateCreate(env, p); len(errs) > 0 {
			b.Fatal(errs)
		}
		warnings(env, p, nil)
	}
}

// BenchmarkStatus is what they cost a status update.
func BenchmarkStatus(b *testing.B) {
	env, s := testEnv(), door("status")
	old := stored()
	p := old.DeepCopy()
	b.ReportAllocs()
	for b.Loop() {
		s.Default(p)
		s.PrepareUpdate(env, p, old)
		if errs := s.ValidateUpdate(env, p, old); len(errs) > 0 {
			b.Fatal(errs)
		}
	}
}
