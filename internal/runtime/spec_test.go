package runtime

import (
	"reflect"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"skiff/internal/runtime/image"
)

func TestParseSignal(t *testing.T) {
	for name, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGTERM": 15, "quit": 3, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMIN": 34,
		criSignalName(runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3): 37, criSignalName(runtimeapi.Signal_SIGNAL_SIGINT): 2,
	} {
		if got, err := parseSignal(name); got != want || err != nil {
			t.Errorf("parseSignal(%q) = %d, %v; want %d", name, got, err, want)
		}
	}
	for _, name := range []string{"NOPE", "0", "65", "-1", "RTMIN+31", "RTMAX-31", "9x"} {
		if got, err := parseSignal(name); err == nil {
			t.Errorf("parseSignal(%q) = %d, want an error", name, got)
		}
	}
}

func TestCommand(t *testing.T) {
	for _, tc := range []struct{ entrypoint, cmd, command, args, want string }{
		{"e", "c", "", "", "e c"},
		{"e", "c", "", "a", "e a"},
		{"e", "c", "x", "", "x"},
		{"e", "c", "x", "a", "x a"},
		{"", "c d", "", "", "c d"},
		{"", "", "", "", ""},
	} {
		img := &image.Image{Config: &v1.ConfigFile{Config: v1.Config{Entrypoint: strings.Fields(tc.entrypoint), Cmd: strings.Fields(tc.cmd)}}}
		got, err := command(&runtimeapi.ContainerConfig{Command: strings.Fields(tc.command), Args: strings.Fields(tc.args)}, img)
		if strings.Join(got, " ") != tc.want || (err != nil) != (tc.want == "") {
			t.Errorf("%+v: got %v, %v", tc, got, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	granted := map[string]bool{}
	for _, n := range hostCapabilities() {
		granted[n] = true
	}
	for _, tc := range []struct {
		add, drop, has, lacks string
	}{
		{"", "", "CHOWN KILL", "SYS_ADMIN"},
		{"SYS_ADMIN", "", "SYS_ADMIN CHOWN", ""},
		{"cap_sys_admin", "CHOWN", "SYS_ADMIN", "CHOWN"},
		{"", "ALL", "", "CHOWN KILL NET_RAW"},
		{"KILL", "ALL", "KILL", "CHOWN"},
		{"ALL", "KILL", "CHOWN SYS_ADMIN", "KILL"},
	} {
		got, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{
			AddCapabilities: strings.Fields(tc.add), DropCapabilities: strings.Fields(tc.drop),
		}})
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		set := " " + strings.Join(got.Effective, " ") + " "
		for _, n := range strings.Fields(tc.has) {
			if granted[n] && !strings.Contains(set, " CAP_"+n+" ") {
				t.Errorf("%+v: %s is missing in%s", tc, n, set)
			}
		}
		for _, n := range strings.Fields(tc.lacks) {
			if strings.Contains(set, " CAP_"+n+" ") {
				t.Errorf("%+v: %s is in%s", tc, n, set)
			}
		}
		if !reflect.DeepEqual(got.Effective, got.Bounding) || len(got.Ambient) != 0 {
			t.Errorf("%+v: %+v", tc, got)
		}
	}
}
