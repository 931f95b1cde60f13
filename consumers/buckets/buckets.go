// Package buckets opens object stores by their URLs, for destinations and for the partition store.
//
// It owns the defaults of such URLs, and what is learned from a store's refusals. It never knows what is in an object.
package buckets

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"gocloud.dev/blob"
	_ "gocloud.dev/blob/fileblob" // file://
	_ "gocloud.dev/blob/s3blob"   // s3://bucket, with the credentials of the AWS SDK's usual places
)

const (
	checksumParameter = "request_checksum_calculation"
	// whenRequired leaves out checksums that the request does not require.
	whenRequired = "when_required"
)

// Address is the URL of a bucket with what it leaves open. The SDK adds checksums, as headers or as a trailer, that S3
// itself knows and many other stores refuse: where an endpoint is given, they are left out unless the URL says
// otherwise. What was written is compared with what was to be written by its size, and partitions by their digests.
func Address(target string) string {
	u, err := url.Parse(target)
	if err != nil || u.Scheme != "s3" {
		return target
	}
	query := u.Query()
	if query.Get("endpoint") == "" || query.Has(checksumParameter) {
		return target
	}
	query.Set(checksumParameter, whenRequired)
	u.RawQuery = query.Encode()
	return u.String()
}

// Open opens the bucket at a URL.
func Open(ctx context.Context, target string) (*blob.Bucket, error) {
	return blob.OpenBucket(ctx, Address(target))
}

// NotImplemented reports whether a store says that it does not know a header, as some do of If-None-Match.
func NotImplemented(err error) bool {
	var answer interface{ HTTPStatusCode() int }
	return errors.As(err, &answer) && answer.HTTPStatusCode() == http.StatusNotImplemented
}

// Explain adds a remedy to the error of a store that refuses checksums.
func Explain(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if strings.Contains(text, "XAmzContentSHA256Mismatch") || NotImplemented(err) && strings.Contains(strings.ToLower(text), "checksum") {
		return fmt.Errorf("%w: the store does not know the SDK's checksums: add %s=%s to its address", err, checksumParameter, whenRequired)
	}
	return err
}
