package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	"gocloud.dev/blob/s3blob"     // and s3://
	"gocloud.dev/gcerrors"

	"github.com/kansa-audit/kansa/consumers"
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

// openBucket opens the bucket of a destination: with its own access key, if it has one, and over connections that the policy allows, unless
// the operator's configuration file names it.
func (x *Exporter) openBucket(ctx context.Context, d *Destination) (*blob.Bucket, error) {
	failed := func(err error) error { return fmt.Errorf("open bucket %s: %w", d.Bucket, err) }
	if d.BucketKeyID == "" {
		b, err := blob.OpenBucket(ctx, d.Bucket)
		if err != nil {
			return nil, failed(err)
		}
		return b, nil
	}
	u, err := url.Parse(d.Bucket)
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
	b, err := s3blob.OpenBucketV2(ctx, s3.New(o), u.Host, nil)
	if err != nil {
		return nil, failed(err)
	}
	return b, nil
}
