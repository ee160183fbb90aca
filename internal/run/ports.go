package run

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"skiff/internal/api/runpod"
)

func (p *plan) network() error {
	switch n := p.o.Network; {
	case oneOf(n, "", "pod", "bridge", "default"):
	case n == "host":
		p.pod.Spec.HostNetwork = true
		if p.o.Hostname != "" {
			return errors.New("--hostname: with --network host the host's name is the container's")
		}
		if len(p.o.Publish) > 0 || p.o.PublishAll {
			return errors.New("--publish: with --network host a container's ports are the host's already")
		}
		// Names of the cluster are found from there too.
		if p.pod.Spec.DNSPolicy == "" {
			p.pod.Spec.DNSPolicy = corev1.DNSClusterFirstWithHostNet
		}
	case n == "none":
		p.annotate(runpod.AnnotationNetwork, runpod.NetworkNone)
		if len(p.o.Publish) > 0 || p.o.PublishAll {
			return errors.New("--publish: with --network none nothing reaches a container's ports")
		}
		// The cluster's DNS cannot be reached: as with docker, the host's file is there.
		if p.pod.Spec.DNSPolicy == "" {
			p.pod.Spec.DNSPolicy = corev1.DNSDefault
		}
	case strings.HasPrefix(n, "container:"):
		return fmt.Errorf("--network %s: containers that share a network are containers of one pod; apply a manifest for it", n)
	default:
		return fmt.Errorf("--network %q: must be pod, host or none: all pods are in one network and reach each other", n)
	}
	return nil
}

// portRange is FROM or FROM-TO.
type portRange struct{ from, to int }

func parseRange(s string) (portRange, error) {
	a, b, ranged := strings.Cut(s, "-")
	from, err := strconv.ParseUint(a, 10, 16)
	to := from
	if err == nil && ranged {
		to, err = strconv.ParseUint(b, 10, 16)
	}
	if err != nil || from == 0 || to < from {
		return portRange{}, fmt.Errorf("%q is no port", s)
	}
	return portRange{int(from), int(to)}, nil
}

func (r portRange) size() int { return r.to - r.from + 1 }

// published is one value of --publish.
type published struct {
	ip              string
	host, container portRange // host.from 0: any
	proto           corev1.Protocol
}

// parsePublish reads [[IP:][HOST]:]CONTAINER[/PROTO], HOST and CONTAINER a port or a
// range.
func parsePublish(s string) (published, error) {
	bad := func(why string) (published, error) {
		return published{}, fmt.Errorf("--publish %q: %s; it is [[IP:]HOST:]CONTAINER[/PROTOCOL], such as 8080:80 or 127.0.0.1:53:53/udp", s, why)
	}
	var out published
	ports, proto, given := strings.Cut(s, "/")
	switch {
	case !given || strings.EqualFold(proto, "tcp"):
		out.proto = corev1.ProtocolTCP
	case strings.EqualFold(proto, "udp"):
		out.proto = corev1.ProtocolUDP
	case strings.EqualFold(proto, "sctp"):
		out.proto = corev1.ProtocolSCTP
	default:
		return bad(fmt.Sprintf("%q is no protocol", proto))
	}
	i := strings.LastIndexByte(ports, ':')
	var err error
	if out.container, err = parseRange(ports[i+1:]); err != nil {
		return bad(err.Error())
	}
	if i < 0 {
		return out, nil
	}
	host := ports[:i]
	if j := strings.LastIndexByte(host, ':'); j >= 0 {
		addr, err := netip.ParseAddr(strings.Trim(host[:j], "[]"))
		if err != nil {
			return bad(fmt.Sprintf("%q is no address", host[:j]))
		}
		out.ip, host = addr.String(), host[j+1:]
	}
	if host == "" {
		return out, nil
	}
	if out.host, err = parseRange(host); err != nil {
		return bad(err.Error())
	}
	if out.host.size() != out.container.size() && out.container.size() != 1 {
		return bad("the ranges differ in length")
	}
	return out, nil
}

func (p *plan) ports() error {
	for _, s := range p.o.Publish {
		pub, err := parsePublish(s)
		if err != nil {
			return err
		}
		for i := range pub.container.size() {
			host := pub.host.from + i
			if pub.host.from == 0 || pub.host.size() != pub.container.size() {
				// One of many will do.
				if host, err = p.m.FreePort(pub.ip, strings.ToLower(string(pub.proto)), pub.host.from, pub.host.to); err != nil {
					return fmt.Errorf("--publish %q: %w", s, err)
				}
			}
			p.c.Ports = append(p.c.Ports, corev1.ContainerPort{
				ContainerPort: int32(pub.container.from + i), HostPort: int32(host), HostIP: pub.ip, Protocol: pub.proto,
			})
		}
	}
	for _, s := range p.o.Expose {
		pub, err := parsePublish(s)
		if err != nil || strings.Contains(s, ":") {
			return fmt.Errorf("--expose %q: must be PORT[/PROTOCOL]", s)
		}
		for i := range pub.container.size() {
			p.c.Ports = append(p.c.Ports, corev1.ContainerPort{ContainerPort: int32(pub.container.from + i), Protocol: pub.proto})
		}
	}
	return nil
}

// PublishAll has a free port of the host lead to each port that the image or --expose
// names and --publish does not. The image must be there.
func (m Made) PublishAll(here Machine) error {
	c := &m.Pod.Spec.Containers[0]
	exposed, err := here.Exposed(c.Image)
	if err != nil {
		return fmt.Errorf("--publish-all: the ports of image %s are not known: %w; name them with --publish", c.Image, err)
	}
	same := func(a, b corev1.ContainerPort) bool {
		return a.ContainerPort == b.ContainerPort && cmp.Or(a.Protocol, corev1.ProtocolTCP) == cmp.Or(b.Protocol, corev1.ProtocolTCP)
	}
	var more []corev1.ContainerPort
	for _, s := range exposed {
		pub, err := parsePublish(s)
		if err != nil || strings.Contains(s, ":") {
			return fmt.Errorf("--publish-all: the image exposes %q, which is no port", s)
		}
		for i := range pub.container.size() {
			more = append(more, corev1.ContainerPort{ContainerPort: int32(pub.container.from + i), Protocol: pub.proto})
		}
	}
	slices.SortFunc(more, func(a, b corev1.ContainerPort) int {
		return cmp.Or(cmp.Compare(a.ContainerPort, b.ContainerPort), cmp.Compare(a.Protocol, b.Protocol))
	})
	for _, p := range more {
		if !slices.ContainsFunc(c.Ports, func(have corev1.ContainerPort) bool { return same(have, p) }) {
			c.Ports = append(c.Ports, p)
		}
	}
	for i := range c.Ports {
		p := &c.Ports[i]
		published := slices.ContainsFunc(c.Ports, func(have corev1.ContainerPort) bool { return have.HostPort > 0 && same(have, *p) })
		if published {
			continue
		}
		host, err := here.FreePort("", strings.ToLower(string(p.Protocol)), 0, 0)
		if err != nil {
			return fmt.Errorf("--publish-all: port %d: %w", p.ContainerPort, err)
		}
		p.HostPort = int32(host)
	}
	return nil
}
