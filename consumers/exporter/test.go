package exporter

import (
	"context"
	"fmt"
	"time"

	"gocloud.dev/blob"

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
type Step struct {
	Name  string        `json:"name"`
	OK    bool          `json:"ok"`
	Took  time.Duration `json:"took_ns"`
	Found string        `json:"found,omitempty"`
}

// Test tries everything that a delivery to d needs, and leaves nothing there. That d does not work is in the report;
// an error means that it could not be tried.
func (x *Exporter) Test(ctx context.Context, d Destination) (*TestReport, error) {
	r := &TestReport{OK: true}
	step := func(name string, try func() (string, error)) bool {
		began := time.Now()
		found, err := try()
		s := Step{Name: name, OK: err == nil, Took: time.Since(began), Found: found}
		if err != nil {
			r.OK, r.Error, s.Found = false, err.Error(), err.Error()
		}
		r.Steps = append(r.Steps, s)
		return err == nil
	}
	switch {
	case d.SFTP != nil:
		var client *sftp.Client
		if !step("connect and sign in", func() (_ string, err error) {
			client, err = sftp.Dial(ctx, *d.SFTP, x.log)
			return "", err
		}) {
			break
		}
		defer client.Close()
		step("path, write, rename, space", func() (string, error) {
			report, err := client.Check(ctx)
			if err != nil {
				return "", err
			}
			r.SFTP = &report
			return report.Path, nil
		})
	case d.Bucket != "":
		step("write to the bucket", func() (string, error) { return "", tryBucket(ctx, d.Bucket) })
	default:
		step("mail server is set up", func() (string, error) {
			if x.mailer == nil || x.cfg.PublicURL == "" {
				return "", errNoMail
			}
			return x.cfg.PublicURL, nil
		})
	}
	return r, nil
}

// tryBucket writes an object and removes it.
func tryBucket(ctx context.Context, address string) error {
	b, err := blob.OpenBucket(ctx, address)
	if err != nil {
		return fmt.Errorf("open bucket %s: %w", address, err)
	}
	defer b.Close()
	const name = ".kansa-check"
	if err := b.WriteAll(ctx, name, []byte("kansa\n"), nil); err != nil {
		return fmt.Errorf("write to bucket %s: %w", address, err)
	}
	if err := b.Delete(ctx, name); err != nil {
		return fmt.Errorf("remove %s from bucket %s: %w", name, address, err)
	}
	return nil
}
