package diff

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"

	"skiff/internal/app"
	"skiff/internal/pki"
)

// ranges are those of both servers. mask.go knows those of services.
type ranges struct{ services, pods, node string }

var (
	singleStack = ranges{"10.97.0.0/16", "10.245.0.0/16", "192.0.2.10"}
	dualStack   = ranges{"10.97.0.0/16,fd00:10:97::/112", "10.245.0.0/16,fd00:10:245::/56", "192.0.2.10,2001:db8::10"}
)

// patience bounds the start of a server: the machine may be busy.
const patience = 4 * time.Minute

// server is one side of the comparison.
type server struct {
	name string
	url  string
	// clients by the name of a certificate; "" asks anonymously.
	clients map[string]*http.Client
}

// pair is both servers, running.
type pair struct {
	upstream, skiff *server
	stop            func() error
}

// users are the identities that a request may take on with the header As.
var users = []string{"super-admin", "admin", "controller-manager", "scheduler", "node"}

// startPair starts both sides with everything they keep below dir.
func startPair(ctx context.Context, programs, dir string, r ranges, log *slog.Logger) (*pair, error) {
	skiffPort, err := freePort()
	if err != nil {
		return nil, err
	}
	set, err := app.Config{
		Name: fmt.Sprintf("diff-%d", os.Getpid()), DataDir: filepath.Join(dir, "skiff"), NodeName: "diff-node", NodeIP: r.node,
		APIPort: skiffPort, KubeletPort: 10250, PodCIDR: r.pods, ServiceCIDR: r.services,
	}.Complete()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(set.DataDir, 0o700); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- app.RunAPI(ctx, set, log, func() { close(ready) }) }()
	var up *upstream
	stop := func() error {
		cancel()
		return errors.Join(<-ended, up.end())
	}
	select {
	case <-ready:
	case err := <-ended:
		cancel()
		return nil, fmt.Errorf("skiff: %w", err)
	case <-time.After(patience):
		cancel()
		return nil, errors.Join(errors.New("skiff did not start in time"), <-ended)
	}
	keys := filepath.Join(set.DataDir, "pki")
	if up, err = startUpstream(ctx, programs, filepath.Join(dir, "upstream"), keys, r, skiffPort); err != nil {
		return nil, errors.Join(err, stop())
	}
	clients, err := identities(keys)
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	p := &pair{
		upstream: &server{"upstream", up.url, clients},
		skiff:    &server{"skiff", set.ServerURL(), clients},
		stop:     stop,
	}
	return p, nil
}

// identities opens the clients of the users, whom both servers know by the same
// authority.
func identities(dir string) (map[string]*http.Client, error) {
	spec, err := pki.ServerSpec(pki.Server{NodeName: "diff-node", ServiceIPs: []netip.Addr{netip.MustParseAddr("10.97.0.1")}, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}})
	if err != nil {
		return nil, err
	}
	node := pki.NodeClient("diff-node")
	node.Name = "node"
	spec.Leaves = append(spec.Leaves, node)
	keys, err := pki.Ensure(context.Background(), dir, spec, pki.Deps{Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	out := map[string]*http.Client{"": client(&tls.Config{})}
	for _, u := range users {
		out[u] = client(keys.Pair(u).ClientTLS(keys.Pool(pki.ClusterCA), ""))
	}
	return out, nil
}

func client(c *tls.Config) *http.Client {
	// Upstream serves a certificate that it signed itself.
	c.InsecureSkipVerify = true
	return &http.Client{Transport: &http.Transport{TLSClientConfig: c, MaxIdleConnsPerHost: 8}, Timeout: time.Minute}
}

// upstream is a running kube-apiserver over its etcd.
type upstream struct {
	url   string
	procs []*exec.Cmd
}

func (u *upstream) end() error {
	if u == nil {
		return nil
	}
	for i := len(u.procs) - 1; i >= 0; i-- {
		p := u.procs[i]
		_ = p.Process.Signal(syscall.SIGKILL)
		_ = p.Wait() // killed: its error says nothing
	}
	return nil
}

func startUpstream(ctx context.Context, programs, dir, keys string, r ranges, port int) (*upstream, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// Another address and the same port: objects name the port.
	const addr = "127.0.0.2"
	var ports [2]int
	for i := range ports {
		var err error
		if ports[i], err = freePort(); err != nil {
			return nil, err
		}
	}
	u := &upstream{url: fmt.Sprintf("https://%s:%d", addr, port)}
	run := func(name string, args ...string) error {
		f, err := os.Create(filepath.Join(dir, name+".log"))
		if err != nil {
			return err
		}
		defer f.Close()
		c := exec.Command(filepath.Join(programs, name), args...)
		c.Stdout, c.Stderr = f, f
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			return err
		}
		u.procs = append(u.procs, c)
		return nil
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peer := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	err := run("etcd", "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", etcd,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer, "--unsafe-no-fsync")
	if err != nil {
		return nil, err
	}
	err = run("kube-apiserver", "--etcd-servers", etcd, "--bind-address", addr, "--advertise-address", "192.0.2.10",
		"--secure-port", fmt.Sprint(port), "--cert-dir", filepath.Join(dir, "certs"),
		"--client-ca-file", filepath.Join(keys, "ca.crt"), "--requestheader-client-ca-file", filepath.Join(keys, "front-proxy-ca.crt"),
		"--requestheader-allowed-names", "front-proxy-client", "--requestheader-username-headers", "X-Remote-User",
		"--requestheader-uid-headers", "X-Remote-Uid",
		"--requestheader-group-headers", "X-Remote-Group", "--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--service-account-key-file", filepath.Join(keys, "sa.pub"), "--service-account-signing-key-file", filepath.Join(keys, "sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged",
		// What skiff serves though it is off.
		"--feature-gates", "GenericWorkload=true", "--runtime-config", "scheduling.k8s.io/v1beta1=true",
		"--service-cluster-ip-range", r.services, "--endpoint-reconciler-type", "lease")
	if err != nil {
		return nil, errors.Join(err, u.end())
	}
	c := client(&tls.Config{})
	deadline := time.Now().Add(patience)
	for {
		resp, err := c.Get(u.url + "/readyz")
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return u, nil
			}
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			b, _ := os.ReadFile(filepath.Join(dir, "kube-apiserver.log"))
			return nil, errors.Join(fmt.Errorf("upstream is not ready (%v); the end of its log:\n%s", err, b[max(0, len(b)-4000):]), u.end())
		}
		time.Sleep(200 * time.Millisecond) // between two looks, bounded by the deadline
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// fromYAML reads a body in YAML; its text is kept where it is not what the library
// makes of its content.
func (a *answer) fromYAML(b []byte) {
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		a.text = string(b)
		return
	}
	if again, err := yaml.Marshal(v); err != nil || !bytes.Equal(again, b) {
		a.text = string(b)
	}
	a.docs = []any{v}
}

// comparedHeaders are compared besides the content type.
var comparedHeaders = []string{"Cache-Control", "X-Content-Type-Options", "Retry-After", "Allow", "Vary", "Location", "Www-Authenticate"}

// ask sends a request and reads the whole answer.
func (s *server) ask(ctx context.Context, r request) (answer, error) {
	contentType, body, err := r.wire()
	if err != nil {
		return answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, r.method, s.url+r.path, bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	who := "super-admin"
	for k, v := range r.headers {
		switch k {
		case "As":
			if who = v; v == "anonymous" {
				who = ""
			}
		case "Raw", "Pad", "Until":
		default:
			req.Header.Set(k, v)
		}
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "compare/1.0")
	}
	c, ok := s.clients[who]
	if !ok {
		return answer{}, fmt.Errorf("%s: nobody is called %q", r.name, who)
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", s.name, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", s.name, err)
	}
	a := answer{code: resp.StatusCode, contentType: resp.Header.Get("Content-Type"), warnings: resp.Header.Values("Warning"), headers: map[string]string{}}
	for _, h := range comparedHeaders {
		if v := resp.Header.Get(h); v != "" {
			a.headers[h] = v
		}
	}
	switch {
	case !strings.HasPrefix(a.contentType, protoType):
	case strings.Contains(a.contentType, "stream=watch"):
		if a.docs, err = fromProtoStream(b); err != nil {
			a.text = fmt.Sprintf("%v: %x", err, b)
		}
		return a, nil
	default:
		v, err := fromProto(b)
		if err != nil {
			a.text = fmt.Sprintf("%v: %x", err, b)
			return a, nil
		}
		a.docs = []any{v}
		return a, nil
	}
	if strings.HasPrefix(a.contentType, "application/yaml") {
		a.fromYAML(b)
		return a, nil
	}
	if !strings.Contains(a.contentType, "json") {
		a.text = string(b)
		return a, nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	for {
		var v any
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return a, nil
		} else if err != nil {
			a.docs, a.text = nil, string(b)
			return a, nil
		}
		a.docs = append(a.docs, v)
	}
}
