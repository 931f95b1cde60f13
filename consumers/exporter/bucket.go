package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	_ "gocloud.dev/blob/s3blob"   // s3://
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers"
)

// deliverBucket copies the archive into an object store (requirement B10). An object appears under its name when it
// is whole. One that is there with the right size is that of an attempt whose end nobody learned of.
func (x *Exporter) deliverBucket(ctx context.Context, e *Export, address string, plan *Plan) (err error) {
	b, err := blob.OpenBucket(ctx, address)
	if err != nil {
		return consumers.Permanent(fmt.Errorf("open bucket %s: %w", address, err))
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	switch a, err := b.Attributes(ctx, plan.Name); {
	case err == nil && a.Size == plan.Size():
		e.Sent = plan.Size()
		return nil
	case err == nil:
		return consumers.Permanent(fmt.Errorf("bucket %s has %s with %d bytes, the archive has %d: move it away", address, plan.Name, a.Size, plan.Size()))
	case gcerrors.Code(err) != gcerrors.NotFound:
		return fmt.Errorf("look for %s in bucket %s: %w", plan.Name, address, err)
	}
	body := plan.NewReader(ctx)
	defer body.Close()
	writing, abandon := context.WithCancel(ctx)
	defer abandon()
	w, err := b.NewWriter(writing, plan.Name, &blob.WriterOptions{ContentType: plan.ContentType(), IfNotExist: true})
	if err != nil {
		return fmt.Errorf("write %s to bucket %s: %w", plan.Name, address, err)
	}
	counted := &counter{r: body}
	stop := x.showProgress(ctx, *e, &counted.n)
	_, err = io.Copy(w, counted)
	stop()
	if err != nil {
		abandon() // a writer whose context has ended leaves nothing
		return errors.Join(fmt.Errorf("write %s to bucket %s: %w", plan.Name, address, err), w.Close())
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("write %s to bucket %s: %w", plan.Name, address, err)
	}
	e.Sent = plan.Size()
	return nil
}
