package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

// ErrNotSealed means that the hour of an event is not sealed yet.
var ErrNotSealed = errors.New("the hour is not sealed yet")

// Stretch is a part of a partition store: an organization's trail, from one hour up to another, which is not in it.
type Stretch struct {
	Organization string
	Trail        schema.Trail
	From, To     time.Time
}

// Stored verifies stretches of a store, of different trails, where they lie. Each has to be there from one end to the other. The key that is trusted is o.Key, or, if that is empty, the first
// of the store itself: that shows what was changed by who does not have the key, and nothing of who has it.
func Stored(ctx context.Context, bucket *blob.Bucket, stretches []Stretch, o Options) (*Report, error) {
	began := time.Now()
	l := newFiles()
	for _, s := range stretches {
		prefix := s.Organization + "/" + string(s.Trail) + "/"
		for day := s.From.UTC().Truncate(24 * time.Hour); day.Before(s.To); day = day.AddDate(0, 0, 1) {
			if err := l.list(ctx, bucket, prefix+day.Format("2006/01/02/"), len(prefix), s); err != nil {
				return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
			}
		}
	}
	if err := l.list(ctx, bucket, "keys/", -1, Stretch{}); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	r := newReport("", Store)
	if o.Key == "" {
		found, err := l.keys()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		ring, err := found.Ring()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
		}
		o.Key = ring.Keys()[0]
	}
	if _, err := note.NewVerifier(o.Key); err != nil {
		return nil, fmt.Errorf("%w: verifier key %.100q: %w", ErrUnreadable, o.Key, err)
	}
	o.From, o.To, r.Key = time.Time{}, time.Time{}, o.Key
	if err := verifyFiles(ctx, l, o, r); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	for _, s := range stretches {
		name := s.Organization + "/" + string(s.Trail)
		i := slices.IndexFunc(r.Series, func(of Series) bool { return of.Organization == s.Organization && of.Trail == s.Trail })
		switch {
		case i < 0:
			r.fault(name, nil, ErrRange, "there is no manifest that holds of the time from %s to %s", stamp(s.From.UTC()), stamp(s.To.UTC()))
		case r.Series[i].From.After(s.From):
			r.fault(name, nil, ErrRange, "it begins at %s, after %s", stamp(r.Series[i].From), stamp(s.From.UTC()))
		case r.Series[i].To.Before(s.To):
			r.fault(name, nil, ErrRange, "it ends at %s, before %s", stamp(r.Series[i].To), stamp(s.To.UTC()))
		}
	}
	r.finish(began)
	return r, nil
}

// list adds what is under a prefix; of partitions, whose hour stands behind so many bytes of the key, those of s.
func (l *files) list(ctx context.Context, bucket *blob.Bucket, prefix string, at int, s Stretch) error {
	objects := bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := objects.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if at >= 0 {
			hour, ok := hourOfKey(o.Key[at:])
			if ok && (hour.Before(s.From) || !hour.Before(s.To)) {
				continue
			}
		}
		key := o.Key
		l.add(file{name: key, size: o.Size, open: func() (io.ReadCloser, error) {
			r, err := bucket.NewReader(ctx, key, nil)
			if err != nil {
				return nil, &readError{err}
			}
			return honest{r}, nil
		}})
	}
}

// hourOfKey reads the hour from the name of a partition's file behind its trail.
func hourOfKey(name string) (time.Time, bool) {
	name, _, _ = strings.Cut(name, ".")
	for _, layout := range []string{"2006/01/02/15", "2006/01/02/15-04-05"} {
		if t, err := time.Parse(layout, name); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

// ProveStored makes the proof of an event of which the partition is known, from the store itself.
func ProveStored(ctx context.Context, bucket *blob.Bucket, p schema.Partition, e Event) (*seal.Proof, error) {
	l := newFiles()
	for _, key := range []string{p.ManifestKey(), p.CSVKey()} {
		a, err := bucket.Attributes(ctx, key)
		if gcerrors.Code(err) == gcerrors.NotFound && key == p.ManifestKey() {
			return nil, fmt.Errorf("%w: %s: ask again after the hour has ended", ErrNotSealed, p)
		}
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", key, err)
		}
		l.add(file{name: key, size: a.Size, open: func() (io.ReadCloser, error) { return bucket.NewReader(ctx, key, nil) }})
	}
	names, err := seal.ReadKeys(func(name string) ([]byte, error) {
		data, err := bucket.ReadAll(ctx, name)
		if gcerrors.Code(err) == gcerrors.NotFound {
			return nil, nil
		}
		return data, err
	})
	if err != nil {
		return nil, err
	}
	proof, err := prove(ctx, l, e, Options{Parallel: 1})
	if err != nil {
		return nil, err
	}
	for _, rotation := range names.Rotations {
		proof.Rotations = append(proof.Rotations, string(rotation))
	}
	return proof, nil
}
