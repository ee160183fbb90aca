package app

import (
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"skiff/internal/admin"
	"skiff/internal/runtime/image"
)

func TestTakesLast(t *testing.T) {
	const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	web, other := "docker.io/library/web", "registry.example.com/web"
	for _, tc := range []struct {
		ref   string
		names []string
		want  bool
	}{
		{"web:1", []string{web + ":1"}, true},
		{"web:1", []string{web + ":1", web + ":2"}, false},
		{"web:1", []string{web + ":1", other + ":1"}, false},
		{"web:1", []string{web + ":1", web + digest}, true},
		{"web:1", []string{web + ":1", other + digest}, false},
		{"web" + digest, []string{web + ":1", web + digest}, true},
		{"web" + digest, []string{web + ":1", other + ":1"}, false},
		{"0123abcd", []string{web + ":1", other + ":1"}, true},
		{"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", []string{web + ":1", other + ":1"}, true},
	} {
		if got := takesLast(tc.ref, tc.names); got != tc.want {
			t.Errorf("%s of %v: %v", tc.ref, tc.names, got)
		}
	}
}

func TestPrunable(t *testing.T) {
	at := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	img := func(named bool, labels map[string]string) *image.Image {
		i := &image.Image{Config: &v1.ConfigFile{Created: v1.Time{Time: at}, Config: v1.Config{Labels: labels}}}
		if named {
			i.RepoTags = []string{"docker.io/library/web:1"}
		}
		return i
	}
	labels := map[string]string{"a": "1"}
	for i, tc := range []struct {
		img  *image.Image
		req  admin.PruneRequest
		want bool
	}{
		{img(false, nil), admin.PruneRequest{}, true},
		{img(true, nil), admin.PruneRequest{}, false},
		{img(true, nil), admin.PruneRequest{All: true}, true},
		{img(false, nil), admin.PruneRequest{Until: at}, false},
		{img(false, nil), admin.PruneRequest{Until: at.Add(time.Second)}, true},
		{img(false, labels), admin.PruneRequest{Labels: []string{"a"}}, true},
		{img(false, labels), admin.PruneRequest{Labels: []string{"a=1"}}, true},
		{img(false, labels), admin.PruneRequest{Labels: []string{"a=2"}}, false},
		{img(false, labels), admin.PruneRequest{Labels: []string{"a", "b"}}, false},
		{img(false, labels), admin.PruneRequest{NoLabels: []string{"a=1"}}, false},
		{img(false, labels), admin.PruneRequest{NoLabels: []string{"b"}}, true},
	} {
		if got := prunable(tc.img, tc.req); got != tc.want {
			t.Errorf("%d: %v", i, got)
		}
	}
}
