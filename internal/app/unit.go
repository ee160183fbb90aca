package app

import (
	"fmt"
	"strconv"
	"strings"

	"skiff/internal/host"
)

// unitEnv tells a skiff which unit it runs as.
const unitEnv = "SKIFF_UNIT"

// copiedKey stands in a unit whose program was put there by install: uninstall
// takes that one away again. systemd passes over keys that begin with X-.
const copiedKey = "X-Skiff-Copied"

// mostFiles is how many files skiff, and every container after it, may have open:
// enough for any server, and few enough for programs that go through all numbers
// up to the limit at their start.
const mostFiles = 1 << 20

// unit is a systemd unit (systemd.service(5)) that runs an instance.
type unit struct {
	instance host.Instance
	// program is started as "program args...".
	program string
	args    []string
	// copied: install put the program there.
	copied bool
	// files is the limit of open files.
	files uint64
}

// text is the unit file.
func (u unit) text() string {
	var copied string
	if u.copied {
		copied = copiedKey + "=" + u.program + "\n"
	}
	words := []string{quoteUnit(u.program)}
	for _, a := range u.args {
		words = append(words, quoteUnit(a))
	}
	return `# Written by skiff install, and anew by the next one: change it with
# systemctl edit ` + u.instance.Unit() + `
[Unit]
Description=skiff: Kubernetes in one program, cluster ` + u.instance.Name + `
Documentation=https://kubernetes.io/docs/
Wants=network-online.target
After=network-online.target
` + copied + `
[Service]
Type=notify
NotifyAccess=main
Environment=` + unitEnv + `=` + u.instance.Unit() + `
# What is set there reaches registries through a proxy, say.
EnvironmentFile=-/etc/default/` + strings.TrimSuffix(u.instance.Unit(), ".service") + `
ExecStart=` + strings.Join(words, " ") + `
# Pods, and the process that keeps the listening sockets, outlive skiff: a
# restart and an upgrade touch neither.
KillMode=process
# The cgroups below are skiff's own business.
Delegate=yes
Restart=on-failure
RestartSec=1s
TimeoutStartSec=180s
TimeoutStopSec=60s
LimitNOFILE=` + strconv.FormatUint(u.files, 10) + `
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`
}

// quoteUnit writes a word of a command line (systemd.service(5), "Command lines"):
// specifiers and variables are not meant.
func quoteUnit(s string) string {
	s = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "%", "%%", "$", "$$").Replace(s)
	if s == "" || strings.ContainsAny(s, " \t;'\"\\") {
		return `"` + s + `"`
	}
	return s
}

// copiedProgram is the program that install put beside the unit of this text;
// empty where it put none.
func copiedProgram(text string) string {
	for l := range strings.Lines(text) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(l), copiedKey+"="); ok {
			return p
		}
	}
	return ""
}

// fileLimit is mostFiles, or what the kernel allows where that is less.
func fileLimit(nrOpen []byte) uint64 {
	n, err := strconv.ParseUint(strings.TrimSpace(string(nrOpen)), 10, 64)
	if err != nil || n > mostFiles {
		return mostFiles
	}
	return n
}

// unitArgs are the words after the program's name.
func unitArgs(i host.Instance, role string, config, kubeconfig string) ([]string, error) {
	args := []string{"--name", i.Name}
	switch role {
	case "":
		args = append(args, "up", "--foreground")
	case "server":
		args = append(args, "server")
	case "node":
		args = append(args, "node", "--kubeconfig", kubeconfig)
	default:
		return nil, fmt.Errorf("%q: a service is of a whole cluster, of its server, or of a node", role)
	}
	return append(args, "--config", config), nil
}
