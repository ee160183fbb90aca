package pullrecord

import "testing"

func TestPolicy(t *testing.T) {
	for _, tc := range []struct {
		policy string
		list   []string
		image  string
		pulled bool
		want   bool
	}{
		{"", nil, "app:1", true, true},
		{"", nil, "app:1", false, false},
		{NeverVerifyPreloadedImages, nil, "app:1", true, true},
		{NeverVerify, nil, "app:1", true, false},
		{AlwaysVerify, nil, "app:1", false, true},
		{NeverVerifyAllowlistedImages, nil, "app:1", false, true},
		{NeverVerifyAllowlistedImages, []string{"app"}, "app:1", true, false},
		{NeverVerifyAllowlistedImages, []string{"app"}, "app@sha256:0123456789012345678901234567890123456789012345678901234567890123", true, false},
		{NeverVerifyAllowlistedImages, []string{"app"}, "apps:1", true, true},
		{NeverVerifyAllowlistedImages, []string{"r.example:5000/team/*"}, "r.example:5000/team/app/one:1", true, false},
		{NeverVerifyAllowlistedImages, []string{"r.example:5000/team/*"}, "r.example:5000/teams/app:1", true, true},
		{NeverVerifyAllowlistedImages, []string{"r.example:5000/*"}, "r.example:5000/app", true, false},
	} {
		p, _, err := ParsePolicy(tc.policy, tc.list)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.verifies(tc.image, tc.pulled); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
	for _, tc := range []struct {
		policy string
		list   []string
		want   string
	}{
		{"Sometimes", nil, `imagePullCredentialsVerificationPolicy: "Sometimes": must be NeverVerify, NeverVerifyPreloadedImages, NeverVerifyAllowlistedImages or AlwaysVerify`},
		{"", []string{"app"}, `preloadedImagesVerificationAllowlist: cannot be set unless imagePullCredentialsVerificationPolicy is NeverVerifyAllowlistedImages`},
		{NeverVerifyAllowlistedImages, []string{" app"}, `preloadedImagesVerificationAllowlist: " app": spaces around it are not allowed`},
		{NeverVerifyAllowlistedImages, []string{"app:1"}, `preloadedImagesVerificationAllowlist: "app:1": it may have neither a tag nor a digest`},
		{NeverVerifyAllowlistedImages, []string{"a/*/b"}, `preloadedImagesVerificationAllowlist: "a/*/b": a * is allowed as the last element of a path alone, such as registry.example/team/*`},
		{NeverVerifyAllowlistedImages, []string{"a*"}, `preloadedImagesVerificationAllowlist: "a*": a * is allowed as the last element of a path alone, such as registry.example/team/*`},
		{NeverVerifyAllowlistedImages, []string{"/*"}, `preloadedImagesVerificationAllowlist: "/*": it needs the name of a registry`},
		{NeverVerifyAllowlistedImages, []string{""}, `preloadedImagesVerificationAllowlist: "": must be the name of an image, such as registry.example/team/app`},
		{NeverVerifyAllowlistedImages, []string{"UP"}, `preloadedImagesVerificationAllowlist: "UP": must be the name of an image, such as registry.example/team/app`},
	} {
		_, field, err := ParsePolicy(tc.policy, tc.list)
		if err == nil || field+": "+err.Error() != tc.want {
			t.Errorf("%q %q: %s: %v, want %s", tc.policy, tc.list, field, err, tc.want)
		}
	}
}
