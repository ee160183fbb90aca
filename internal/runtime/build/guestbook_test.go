package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"skiff/internal/runtime/image"
)

// The guestbook example: its base image from Debian packages, its three
// Dockerfiles, and its three tiers answering each other.
func TestGuestbook(t *testing.T) {
	if os.Getenv("SKIFF_TEST_GUESTBOOK") == "" {
		t.Skip("downloads Debian packages with apt: set SKIFF_TEST_GUESTBOOK=1")
	}
	e := setup(t)
	dir, err := filepath.Abs("../../../examples/guestbook")
	if err != nil {
		t.Fatal(err)
	}
	rootfs := filepath.Join(t.TempDir(), "base.tar")
	if out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "base.sh"), rootfs).CombinedOutput(); err != nil {
		t.Fatalf("base.sh: %v\n%s", err, out)
	}
	f, err := os.Open(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := e.images.Import(t.Context(), f, image.ImportOptions{Names: []string{"guestbook/base:1"}}); err != nil {
		t.Fatal(err)
	}
	for _, tier := range []string{"front", "web", "redis"} {
		e.log = &recorder{}
		img, err := e.builder.Build(t.Context(), Request{Context: filepath.Join(dir, tier), Tags: []string{"guestbook/" + tier + ":1"}, Progress: e.log})
		if err != nil {
			t.Fatalf("%s: %v\n%s", tier, err, e.log.out.String())
		}
		if img.Config.Config.User == "" || len(img.Config.Config.ExposedPorts) != 1 {
			t.Errorf("%s: %+v", tier, img.Config.Config)
		}
	}
	out := e.mustBuild(t, `FROM guestbook/front:1
COPY --from=guestbook/web:1 /app /app
COPY --from=guestbook/redis:1 /etc/redis.conf /etc/redis.conf
COPY check.py /
USER root
RUN --network=none <<END
set -e
echo 127.0.0.1 web redis >> /etc/hosts
mkdir /data
redis-server /etc/redis.conf > /redis.log &
REDIS_ADDR=redis:6379 PORT=9000 python3 /app/app.py &
sed -i 's/web:8080/web:9000/' /etc/nginx/nginx.conf
nginx
python3 /check.py > /result
END
`, map[string]string{"check.py": `
import json, time, urllib.request
def get(path, data=None):
    return urllib.request.urlopen("http://127.0.0.1:8080" + path, data, timeout=5).read().decode()
for i in range(200):
    try:
        get("/api/messages")
        break
    except OSError:
        time.sleep(0.05)
get("/api/messages", b"hello")
m = json.loads(get("/api/messages"))
print(m["messages"], m["visits"], "<title>Guestbook</title>" in get("/"), get("/healthz"))
`})
	if got := strings.TrimSpace(e.read(t, out, "/result")); got != "['hello'] 2 True ok" {
		t.Errorf("got %q\n%s", got, e.log.out.String())
	}
}
