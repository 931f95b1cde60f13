package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// ExpiresSoon is how long before its end something that expires is a finding: time enough to have another made.
const ExpiresSoon = 30 * 24 * time.Hour

// Certificates are those that a process shows, is shown or trusts. What it takes to see one is asked once in a while.
type Certificates struct {
	// Files by the key of the configuration that names them, PEM.
	Files map[string]string
	// Shown returns what somebody shows, by who it is.
	Shown map[string]func(ctx context.Context) ([]*x509.Certificate, error)

	mu   sync.Mutex
	seen time.Time
	ends map[string]time.Time
	err  error
}

// certificatesEvery is how often certificates are looked at.
const certificatesEvery = time.Minute

// Ends returns when each expires, the first of those in a file or a chain. What can't be read is in the error; the
// others are there all the same.
func (c *Certificates) Ends(ctx context.Context) (map[string]time.Time, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.seen.IsZero() && time.Since(c.seen) < certificatesEvery {
		return c.ends, c.err
	}
	ends, errs := map[string]time.Time{}, []error(nil)
	for key, path := range c.Files {
		all, err := readCertificates(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
			continue
		}
		ends[key] = firstEnd(all)
	}
	for who, show := range c.Shown {
		all, err := show(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("the certificate of %s: %w", who, err))
		} else if len(all) > 0 {
			ends[who] = firstEnd(all)
		}
	}
	if ctx.Err() != nil { // whoever asked is gone; it says nothing of certificates
		return ends, errors.Join(errs...)
	}
	c.seen, c.ends, c.err = time.Now(), ends, errors.Join(errs...)
	return c.ends, c.err
}

// Look is a Check's.
func (c *Certificates) Look(ctx context.Context) error {
	ends, err := c.Ends(ctx)
	errs := []error{err}
	for who, end := range ends {
		errs = append(errs, Expiry("the certificate "+who, end))
	}
	n := 0
	for _, err := range errs {
		if err != nil {
			n++
		}
	}
	return Do(Named(errors.Join(errs...), "%d certificates are unreadable, expired or expire soon", n), "have new ones made and installed: deploy/RUNBOOK.md, Key rotation")
}

// Expiry says that something has expired, or will soon.
func Expiry(what string, end time.Time) error {
	switch left := time.Until(end); {
	case left < 0:
		return fmt.Errorf("%s expired %s", what, end.UTC().Format(time.RFC3339))
	case left < ExpiresSoon:
		return fmt.Errorf("%s expires %s, in %.0f days", what, end.UTC().Format(time.RFC3339), left.Hours()/24)
	}
	return nil
}

func firstEnd(all []*x509.Certificate) (end time.Time) {
	for _, c := range all {
		if end.IsZero() || c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", path)
	}
	return all, nil
}

// Presented connects to a server and returns the certificates that it shows, whether or not they would be trusted.
func Presented(ctx context.Context, address string) ([]*x509.Certificate, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	// Nothing is sent and nothing believed: who trusts them is another connection.
	dialer := tls.Dialer{Config: &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("look at the certificate of %s: %w", address, err)
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState().PeerCertificates, nil
}
