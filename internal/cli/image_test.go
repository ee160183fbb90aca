package cli

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"skiff/internal/admin"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

func TestSince(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 seconds ago", 59 * time.Second: "59 seconds ago", time.Minute: "1 minute ago", 59 * time.Minute: "59 minutes ago",
		time.Hour: "1 hour ago", 47 * time.Hour: "47 hours ago", 48 * time.Hour: "2 days ago", 13 * 24 * time.Hour: "13 days ago",
		14 * 24 * time.Hour: "2 weeks ago", 60 * 24 * time.Hour: "2 months ago", 800 * 24 * time.Hour: "2 years ago", -time.Hour: "0 seconds ago",
	} {
		if got := since(noon.Add(-d), noon); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	if got := since(time.Time{}, noon); got != "N/A" {
		t.Errorf("never: %q", got)
	}
}

// images are three: two with names, one without.
func images() []admin.Image {
	id := func(c string) string { return "sha256:" + strings.Repeat(c, 64) }
	return []admin.Image{
		{ID: id("a"), Names: []string{"docker.io/library/web:1", "registry.example.com:5000/team/web:1"}, Size: 3 << 20, Created: noon.Add(-time.Hour),
			Digests: []string{"registry.example.com:5000/team/web@" + id("d")}, Labels: map[string]string{"tier": "front"}, Users: []string{"container main of pod default/web"}},
		{ID: id("b"), Names: []string{"docker.io/me/db:2"}, Size: 5 << 30, Created: noon.Add(-72 * time.Hour), Labels: map[string]string{"tier": "back"}},
		{ID: id("c"), Created: noon.Add(-time.Minute)},
	}
}

func TestImageFilters(t *testing.T) {
	for _, tc := range []struct{ filters, want string }{
		{"", "web:1 registry.example.com:5000/team/web:1 me/db:2 <none>"},
		{"dangling=true", "<none>"},
		{"dangling=false", "web:1 registry.example.com:5000/team/web:1 me/db:2"},
		{"label=tier", "web:1 registry.example.com:5000/team/web:1 me/db:2"},
		{"label=tier=back", "me/db:2"},
		{"label=tier label=tier=back", "me/db:2"},
		{"reference=web", "web:1"},
		{"reference=web:*", "web:1"},
		{"reference=*/*/web", "registry.example.com:5000/team/web:1"},
		{"reference=web reference=me/db", "web:1 me/db:2"},
		{"before=web:1", "me/db:2"},
		{"since=me/db:2 dangling=false", "web:1 registry.example.com:5000/team/web:1"},
		{"since=aaaaaaaaaaaa", "<none>"},
		{"until=2026-06-30", "me/db:2"},
	} {
		all := images()
		keep, err := parseFilters(strings.Fields(tc.filters), all)
		if err != nil {
			t.Errorf("%s: %v", tc.filters, err)
			continue
		}
		var got []string
		for i := range all {
			for _, r := range rows(&all[i], noon, false) {
				if keep(&r) {
					got = append(got, r.name)
				}
			}
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %v, want %s", tc.filters, got, tc.want)
		}
	}
	for _, bad := range []string{"web", "dangling=maybe", "color=red", "reference=[", "before=nosuch", "until=later"} {
		if _, err := parseFilters([]string{bad}, images()); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestImageTable(t *testing.T) {
	all := images()
	var list []imageRow
	for i := range all {
		list = append(list, rows(&all[i], noon, false)...)
	}
	var b bytes.Buffer
	if err := imageTable(&b, list, false); err != nil {
		t.Fatal(err)
	}
	want := `IMAGE                                  ID             CREATED        SIZE     USED BY
docker.io/library/web:1                aaaaaaaaaaaa   1 hour ago     3.0MiB   1
registry.example.com:5000/team/web:1   aaaaaaaaaaaa   1 hour ago     3.0MiB   1
docker.io/me/db:2                      bbbbbbbbbbbb   3 days ago     5.0GiB   
<none>                                 cccccccccccc   1 minute ago   0.0KiB   
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if _, err := each(&outputFlags{format: "{{.Repository}} {{.Tag}} {{.Digest}}"}, &b, list); err != nil {
		t.Fatal(err)
	}
	want = "web 1 <none>\nregistry.example.com:5000/team/web 1 sha256:" + strings.Repeat("d", 64) + "\nme/db 2 <none>\n<none> <none> <none>\n"
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	if _, err := each(&outputFlags{format: "{{.Nothing}}"}, &b, list); err == nil {
		t.Error("a template of a field that is not there is taken")
	}
}

func TestHistoryRows(t *testing.T) {
	steps := []admin.Step{
		{Created: noon.Add(-time.Hour), CreatedBy: "CMD [\"sh\"]"},
		{Created: noon.Add(-2 * time.Hour), CreatedBy: "RUN  apt-get update &&\n  apt-get install a-rather-long-list of-packages", Size: 5 << 20, Comment: "c"},
	}
	got := fmt.Sprint(historyRows("sha256:"+strings.Repeat("a", 64), steps, noon, false, false))
	want := `[{aaaaaaaaaaaa 2026-07-01T11:00:00Z 1 hour ago CMD ["sh"] 0B } ` +
		`{<missing> 2026-07-01T10:00:00Z 2 hours ago RUN apt-get update && apt-get install a-rath… 5.0MiB c}]`
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// Progress without a terminal is a line for every stage of every layer.
func TestLayerLines(t *testing.T) {
	var b bytes.Buffer
	l := newLayers(&b, false)
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, e := range []admin.LayerEvent{
		{Stage: "Waiting"}, {Stage: "Downloading", Done: 1, Total: 10}, {Stage: "Downloading", Done: 5, Total: 10},
		{Stage: "Mounted from", From: "team/app", Ends: true},
	} {
		e.Digest = digest
		l.note(e)
	}
	l.close()
	if want := "abababababab: Waiting\nabababababab: Downloading\nabababababab: Mounted from team/app\n"; b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	q := newLayers(&b, true)
	q.note(admin.LayerEvent{Digest: digest, Stage: "Waiting"})
	q.close()
	if b.Len() != 0 {
		t.Errorf("quiet says %q", b.String())
	}
}

func TestLayerLine(t *testing.T) {
	for _, tc := range []struct {
		e     admin.LayerEvent
		width int
		want  string
	}{
		{admin.LayerEvent{Stage: "Waiting"}, 80, "Waiting"},
		{admin.LayerEvent{Stage: "Downloading", Done: 512, Total: 1024}, 50, "Downloading [===========>          ] 0.5KiB/1.0KiB"},
		{admin.LayerEvent{Stage: "Downloading", Done: 1024, Total: 1024}, 50, "Downloading [======================] 1.0KiB/1.0KiB"},
		{admin.LayerEvent{Stage: "Downloading", Done: 4096, Total: 1024}, 30, "Downloading 4.0KiB/1.0KiB"},
		{admin.LayerEvent{Stage: "Downloading", Done: 1, Total: 1024}, 5, "Downl"},
		{admin.LayerEvent{Stage: "Pull complete", Total: 1024, Ends: true}, 80, "Pull complete"},
		{admin.LayerEvent{Stage: "Waiting"}, -1, ""},
	} {
		if got := layerLine(tc.e, tc.width); len(got) > max(tc.width, 0) || got != tc.want {
			t.Errorf("%+v in %d: %q, want %q", tc.e, tc.width, got, tc.want)
		}
	}
}
