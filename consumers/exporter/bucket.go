package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	"gocloud.dev/blob/s3blob"
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/buckets"
)

// deliverBucket copies the archive into an object store (requirement B10). An object appears under its name when it
// is whole. One that is there with the right size is that of an attempt whose end nobody learned of.
func (x *Exporter) deliverBucket(ctx context.Context, e *Export, d *Destination, plan *Plan) (err error) {
	address := d.Bucket
	b, err := x.openBucket(ctx, d)
	if err != nil {
		return consumers.Permanent(err)
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
	_, unconditional := x.unconditional.Load(address)
	err = x.writeObject(ctx, e, b, plan, !unconditional)
	if !unconditional && buckets.NotImplemented(err) {
		// The name was just looked up, and is never used for anything else.
		x.log.Info("bucket does not know If-None-Match; writing without it from now on", slog.String("bucket", address))
		x.unconditional.Store(address, true)
		err = x.writeObject(ctx, e, b, plan, false)
	}
	if err != nil {
		return fmt.Errorf("write %s to bucket %s: %w", plan.Name, address, buckets.Explain(err))
	}
	e.Sent = plan.Size()
	return nil
}

// writeObject writes the archive whole, or nothing; only where there is nothing of its name, if so asked.
func (x *Exporter) writeObject(ctx context.Context, e *Export, b *blob.Bucket, plan *Plan, ifNotExist bool) error {
	body := plan.NewReader(ctx)
	defer body.Close()
	writing, abandon := context.WithCancel(ctx)
	defer abandon()
	w, err := b.NewWriter(writing, plan.Name, &blob.WriterOptions{ContentType: plan.ContentType(), IfNotExist: ifNotExist})
	if err != nil {
		return err
	}
	counted := &counter{r: body}
	stop := x.showProgress(ctx, *e, &counted.n)
	_, err = io.Copy(w, counted)
	stop()
	if err != nil {
		abandon() // a writer whose context has ended leaves nothing
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

// openBucket opens the bucket of a destination: with its own access key, if it has one, and over connections that the policy allows, unless
// the operator's configuration file names it.
func (x *Exporter) openBucket(ctx context.Context, d *Destination) (*blob.Bucket, error) {
	failed := func(err error) error { return fmt.Errorf("open bucket %s: %w", d.Bucket, err) }
	if d.BucketKeyID == "" {
		b, err := buckets.Open(ctx, d.Bucket)
		if err != nil {
			return nil, failed(err)
		}
		return b, nil
	}
	u, err := url.Parse(buckets.Address(d.Bucket))
	if err != nil {
		return nil, failed(err)
	}
	client := awshttp.NewBuildableClient()
	if dial := x.dialer(d); dial != nil {
		client = client.WithTransportOptions(func(t *http.Transport) {
			t.DialContext, t.Proxy = dial, nil // a proxy would connect in our place
		})
	}
	query := u.Query()
	o := s3.Options{
		Region: query.Get("region"), Credentials: credentials.NewStaticCredentialsProvider(d.BucketKeyID, d.BucketSecret, ""), HTTPClient: client,
		UsePathStyle: query.Get("use_path_style") == "true",
	}
	if endpoint := query.Get("endpoint"); endpoint != "" {
		o.BaseEndpoint = &endpoint
	}
	if query.Get("request_checksum_calculation") == "when_required" {
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	}
	b, err := s3blob.OpenBucketV2(ctx, s3.New(o), u.Host, &s3blob.Options{RequestChecksumCalculation: o.RequestChecksumCalculation})
	if err != nil {
		return nil, failed(err)
	}
	return b, nil
}
