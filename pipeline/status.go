package pipeline

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/status"
)

// status answers those who ask all processes at once.
func (s *System) status(ctx context.Context, q status.Question) *status.Status {
	st := &status.Status{}
	var asking sync.WaitGroup
	asking.Go(func() { st.Figures = s.registry.Figures() })
	if q.Checks {
		asking.Go(func() { st.Facts = s.facts(ctx) })
	}
	st.Health = s.lately.run(ctx, s.currentChecks())
	asking.Wait()
	return st
}

// factsWithin bounds the search for facts: what does not answer is a finding of the checks.
const factsWithin = 3 * time.Second

// lately is what the checks found, for all who need not know it to the second: a scrape and a question may come together.
type lately struct {
	mu     sync.Mutex
	at     time.Time
	report health.Report
}

const latelyFor = time.Second

// reportLately is what the checks found within the last second: clients without a key cannot have it run more often.
func (s *System) reportLately(ctx context.Context) health.Report {
	return s.lately.run(ctx, s.currentChecks())
}

func (l *lately) run(ctx context.Context, checks []health.Check) health.Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.at) >= latelyFor {
		// Another request may get this report: it does not depend on whether this client waits.
		l.report = health.Run(context.WithoutCancel(ctx), checks)
		l.at = time.Now()
	}
	return l.report
}

// facts are what is neither good nor bad.
func (s *System) facts(ctx context.Context) []status.Fact {
	ctx, cancel := context.WithTimeout(ctx, factsWithin)
	defer cancel()
	c := s.Config
	all := []status.Fact{{Name: "broker", Value: s.Client.NC.ConnectedServerVersion() + " at " + s.NATSURL()}}
	switch {
	case s.server != nil:
		all = append(all, status.Fact{Name: "acknowledges", Value: "after each sync to disk: it is embedded"})
	case c.NATS.AssumeSyncAlways:
		all = append(all, status.Fact{Name: "acknowledges", Value: "after each sync to disk, as nats.assume_sync_always says; nobody looked"})
	default:
		all = append(all, status.Fact{Name: "acknowledges", Value: "after each sync to disk, as its monitoring address says"})
	}
	if s.Store != nil {
		if on, err := s.Store.Condition(ctx); err == nil {
			all = append(all, status.Fact{Name: "clickhouse", Value: fmt.Sprintf("%s, migration %d of %d", on.Version, on.Migration, on.Wanted)})
		}
	}
	if m := s.measured.Load(); m != nil && m.Progress != nil {
		if next, err := m.Progress.Next(ctx); err == nil && !next.IsZero() {
			all = append(all, status.Fact{Name: "sealed until", Value: next.Format(time.RFC3339)})
		}
	}
	e := c.Encryption
	onOff := func(name string, elsewhere bool, set bool) {
		value := "off"
		switch {
		case set:
			value = "on"
		case elsewhere:
			value = "the server's own business"
		}
		all = append(all, status.Fact{Name: "encryption of " + name, Value: value})
	}
	onOff("streams", c.NATS.URL != "", e.Streams.Set())
	onOff("clickhouse", c.ClickHouse.URL != "", e.ClickHouse.Set())
	onOff("partitions", false, e.Partitions.Set())
	return all
}

// SecretFiles are the files of a configuration that nobody else may read, of those roles.
func SecretFiles(c *config.Config, roles []Role) health.Secrets {
	all := health.Secrets{}
	for key, path := range map[string]string{
		"nats.credentials_file": c.NATS.CredentialsFile, "nats.nkey_file": c.NATS.NKeyFile, "nats.password_file": c.NATS.PasswordFile,
		"nats.token_file": c.NATS.TokenFile, "nats.key_file": c.NATS.KeyFile, "nats.tls_key_file": c.NATS.TLSKeyFile, "api.tls_key_file": c.API.TLSKeyFile, "clickhouse.password_file": c.ClickHouse.PasswordFile,
		"encryption.streams.file": c.Encryption.Streams.File, "encryption.streams_before.file": c.Encryption.StreamsBefore.File,
		"encryption.clickhouse.file": c.Encryption.ClickHouse.File, "encryption.partitions.file": c.Encryption.Partitions.File,
	} {
		if path != "" {
			all[key] = path
		}
	}
	for _, r := range roles {
		switch r {
		case RoleRollup:
			all["the sealing key"] = filepath.Join(c.DataDir, keys.PrivateFile)
		case RoleExporter:
			all["settings.key_file"] = settingsKey(c)
		}
	}
	if c.Mail != nil && c.Mail.PasswordFile != "" {
		all["mail.password_file"] = c.Mail.PasswordFile
	}
	if c.Mail != nil && c.Mail.TokenFile != "" {
		all["mail.token_file"] = c.Mail.TokenFile
	}
	return all
}

// CertificateFiles are the certificates that a configuration names.
func CertificateFiles(c *config.Config) map[string]string {
	all := map[string]string{}
	for key, path := range map[string]string{
		"nats.ca_file": c.NATS.CAFile, "nats.cert_file": c.NATS.CertFile, "nats.tls_cert_file": c.NATS.TLSCertFile, "api.tls_cert_file": c.API.TLSCertFile, "clickhouse.ca_file": c.ClickHouse.CAFile,
	} {
		if path != "" {
			all[key] = path
		}
	}
	if c.Mail != nil && c.Mail.CAFile != "" {
		all["mail.ca_file"] = c.Mail.CAFile
	}
	return all
}

// certificatesOf are those of the configuration, and those that the servers show.
func (s *System) certificatesOf() *health.Certificates {
	c := &health.Certificates{Files: CertificateFiles(s.Config), Shown: map[string]func(context.Context) ([]*x509.Certificate, error){}}
	c.Shown["nats"] = func(context.Context) ([]*x509.Certificate, error) {
		state, err := s.Client.NC.TLSConnectionState()
		if err != nil { // without TLS, or without a connection, which is another check's
			return nil, nil //nolint:nilerr // see above
		}
		return state.PeerCertificates, nil
	}
	for n, text := range strings.Split(s.Config.ClickHouse.URL, ",") { // a metric's label has its place, and not its address
		address := tlsAddress(strings.TrimSpace(text))
		if address == "" || s.Store == nil {
			continue
		}
		name := "clickhouse"
		if n > 0 {
			name = fmt.Sprintf("clickhouse %d", n+1)
		}
		c.Shown[name] = func(ctx context.Context) ([]*x509.Certificate, error) { return health.Presented(ctx, address) }
	}
	return c
}

// tlsAddress is where a ClickHouse server speaks TLS; nothing if its URL is without.
func tlsAddress(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	port := map[string]string{"https": "8443", "clickhouses": "9440"}[u.Scheme]
	if port == "" && u.Query().Get("secure") == "true" {
		port = "9440"
	}
	if port == "" {
		return ""
	}
	if p := u.Port(); p != "" {
		port = p
	}
	return net.JoinHostPort(u.Hostname(), port)
}
