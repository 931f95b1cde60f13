package exporter

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/buckets"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
)

// TestReport is what a test of a destination found, step by step (requirement I13).
type TestReport struct {
	OK    bool   `json:"ok"`
	Steps []Step `json:"steps"`
	// Error is why it failed, with the remedy.
	Error string `json:"error,omitempty"`
	// SFTP is what the server offered and what was chosen.
	SFTP *sftp.Report `json:"sftp,omitempty"`
}

// Step is one thing that was tried.
type Step = sftp.Step

// recipients is a Mailer that can find out, without a mail, whether a server would take one.
type recipients interface {
	Check(ctx context.Context, to []string) error
}

// Test tries everything that a delivery to d needs, and leaves nothing there. That d does not work is in the report;
// an error means that it could not be tried.
func (x *Exporter) Test(ctx context.Context, d Destination) (*TestReport, error) {
	if err := d.CheckTenant(x.cfg.Reach); err != nil {
		return nil, err
	}
	r := &TestReport{OK: true}
	step := func(name string, try func() (string, error)) {
		if !r.OK {
			r.Steps = append(r.Steps, Step{Name: name, State: sftp.StepNotTried})
			return
		}
		began := time.Now()
		found, err := try()
		s := Step{Name: name, OK: err == nil, State: sftp.StepOK, Took: time.Since(began), Found: found}
		if err != nil {
			r.OK, r.Error, s.State, s.Found = false, err.Error(), sftp.StepFailed, err.Error()
		}
		r.Steps = append(r.Steps, s)
	}
	switch {
	case d.SFTP != nil:
		r.SFTP = sftp.Probe(ctx, x.guarded(&d), x.log)
		r.OK, r.Steps = r.SFTP.OK(), r.SFTP.Steps
		r.SFTP.Steps = nil // once is enough
		if !r.OK {
			r.Error = r.SFTP.Error.Error()
		}
		if d.SFTP.Receipt {
			step("receipt", func() (string, error) { return "there is a key to sign it with", x.canReceipt(ctx) })
		}
	case d.Bucket != "":
		step("write to the bucket", func() (string, error) { return x.tryBucket(ctx, &d) })
	default:
		step("mail server is set up", func() (string, error) {
			if x.mailer == nil || x.cfg.PublicURL == "" {
				return "", errNoMail
			}
			return x.cfg.PublicURL, nil
		})
		step("mail server takes mails", func() (string, error) {
			server, ok := x.mailer.(recipients)
			if !ok {
				return "it can't be asked", nil
			}
			return "for " + strings.Join(d.Mail, ", "), server.Check(ctx, d.Mail)
		})
	}
	return r, nil
}

// tryBucket writes an object as a delivery does, and removes it.
func (x *Exporter) tryBucket(ctx context.Context, d *Destination) (found string, err error) {
	address := d.Bucket
	b, err := x.openBucket(ctx, d)
	if err != nil {
		return "", err
	}
	defer b.Close()
	name, text := ".kansa-check-"+rand.Text()[:8], []byte("kansa\n")
	err = b.WriteAll(ctx, name, text, &blob.WriterOptions{IfNotExist: true})
	if buckets.NotImplemented(err) {
		found = "the store does not know If-None-Match; a name is only looked up before it is written"
		err = b.WriteAll(ctx, name, text, nil)
	}
	if err != nil {
		return "", fmt.Errorf("write to bucket %s: %w", address, buckets.Explain(err))
	}
	if err := b.Delete(ctx, name); err != nil {
		return "", fmt.Errorf("remove %s from bucket %s: %w", name, address, err)
	}
	return found, nil
}
