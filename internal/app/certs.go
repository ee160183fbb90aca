package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"

	"skiff/internal/cli"
	"skiff/internal/host"
	"skiff/internal/pki"
)

// tendCertificates renews certificates in time. Servers and clients of this process
// take the new ones up by themselves, at their next connection; what is made of
// them is made anew.
func (p *Process) tendCertificates(ctx context.Context) error {
	return p.server.pki.Run(ctx, func([]string) error { return p.writeKubeconfigs() })
}

// RenewCertificates implements admin.Host.
func (p *Process) RenewCertificates(ctx context.Context, names []string) ([]string, error) {
	if p.join != nil {
		return nil, errors.New("this node's certificate is in its kubeconfig: `skiff kubeconfig --node " + p.set.NodeName + "` makes a new one on the server")
	}
	if !p.ready.Load() {
		return nil, errors.New("skiff is starting; try again")
	}
	return p.renewCertificates(ctx, names)
}

func (p *Process) renewCertificates(ctx context.Context, names []string) ([]string, error) {
	issued, err := p.server.pki.Reissue(ctx, names...)
	if err == nil && len(issued) > 0 {
		p.log.Info("certificates renewed", "names", issued)
		err = p.writeKubeconfigs()
	}
	return issued, err
}

// Certificates implements cli.Certificates.
func (Local) Certificates(i host.Instance) ([]pki.Certificate, error) {
	all, err := pki.List(i.Data("pki"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %q has no certificates here: it was not started yet, or is a node, whose certificate is in its kubeconfig", i.Name)
	}
	return all, err
}

// RenewCertificates implements cli.Certificates: it needs no running skiff, and the
// caller has seen that there is none.
func (Local) RenewCertificates(ctx context.Context, s cli.Settings, names []string) ([]string, error) {
	set, err := settings("", s)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(set.Instance.Data("pki")); err != nil {
		return nil, fmt.Errorf("cluster %q has no certificates here: %w", set.Name, err)
	}
	unlock, err := lockInstance(set.Instance)
	if err != nil {
		return nil, err
	}
	defer unlock()
	log := slog.New(slog.DiscardHandler)
	p := NewProcess(set, log, nil)
	p.server = &server{set: set, log: log}
	if err := p.server.openPKI(ctx); err != nil {
		return nil, err
	}
	issued, err := p.renewCertificates(ctx, names)
	slices.Sort(issued)
	return issued, err
}
