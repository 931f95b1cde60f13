package reconcile

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Table is audit_events.
type Table interface {
	// Counts returns what was recorded from one instant up to, and without, another, for each organization and trail that has
	// any; final collapses rows that are stored twice.
	Counts(ctx context.Context, from, to time.Time, final bool) ([]rollup.Count, error)
	// CSV streams a partition as it would be sealed.
	CSV(ctx context.Context, p schema.Partition, final bool) (io.ReadCloser, error)
	// Insert stores all of in, or nothing.
	Insert(ctx context.Context, token string, in *codec.Insert) error
	// RemoveEvents removes rows of a partition.
	RemoveEvents(ctx context.Context, p schema.Partition, rows []codec.Place) error
	// Counted returns the hourly counts of an hour, as Counts without hashes.
	Counted(ctx context.Context, hour time.Time) ([]rollup.Count, error)
	// Recount corrects the hourly counts of a partition by the events that the table has.
	Recount(ctx context.Context, p schema.Partition) error
}

// Kind is how the table differs from a sealed partition in one event.
type Kind string

// The kinds.
const (
	Missing Kind = "missing" // the partition has the event, and the table does not
	Changed Kind = "changed" // the table has other values for it
	Added   Kind = "added"   // the table has an event that was not sealed
)

// stored is an event on one side.
type stored struct {
	*codec.CSVReader
	codec.Stored
	ended bool
}

func newStored(in io.Reader) *stored { return &stored{CSVReader: codec.NewCSVReader(in)} }

func (s *stored) next() error {
	err := s.Next(&s.Stored)
	if errors.Is(err, io.EOF) {
		s.ended = true
		return nil
	}
	return err
}

// order is that of the rows of a partition.
func order(a, b *stored) int {
	switch {
	case a.ended && b.ended:
		return 0
	case a.ended:
		return 1
	case b.ended:
		return -1
	}
	if c := a.RecordedAt.Compare(b.RecordedAt); c != 0 {
		return c
	}
	switch {
	case a.StreamSeq != b.StreamSeq:
		return sign(a.StreamSeq < b.StreamSeq)
	case a.BatchIndex != b.BatchIndex:
		return sign(a.BatchIndex < b.BatchIndex)
	}
	return 0
}

func sign(less bool) int {
	if less {
		return -1
	}
	return 1
}

// visitor is given an event in which a sealed partition and the table differ: the sealed one, or the table's if it was added. It is
// good until visitor returns.
type visitor func(kind Kind, event *codec.Stored) error

// differences visits the events in which a sealed partition and the table differ, in the order of the partition. It takes the
// memory of two events.
func differences(sealed, table io.Reader, visit visitor) error {
	s, t := newStored(sealed), newStored(table)
	if err := errors.Join(s.next(), t.next()); err != nil {
		return err
	}
	var of, in []byte
	for !s.ended || !t.ended {
		kind, event := Kind(""), &s.Stored
		c := order(s, t)
		switch {
		case c < 0:
			kind = Missing
		case c > 0:
			kind, event = Added, &t.Stored
		default:
			of, in = codec.AppendCSV(of[:0], &s.Stored), codec.AppendCSV(in[:0], &t.Stored)
			if !bytes.Equal(of, in) {
				kind = Changed
			}
		}
		if kind != "" {
			if err := visit(kind, event); err != nil {
				return err
			}
		}
		var err error
		if c <= 0 {
			err = s.next()
		}
		if c >= 0 {
			err = errors.Join(err, t.next())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// errNotSealed means that a partition's file is not the one that was sealed.
var errNotSealed = errors.New("the partition's file is not what was sealed")

// sealedCSV is the text of a partition's file while it is read. Close says whether the file was what its manifest states.
type sealedCSV struct {
	io.Reader
	file *blob.Reader
	rows *seal.Rows
	of   *seal.Sealed
}

func openSealed(ctx context.Context, bucket *blob.Bucket, m *seal.Sealed) (*sealedCSV, error) {
	p := m.Partition()
	if m.Rows == 0 {
		return &sealedCSV{Reader: bytes.NewReader(codec.AppendCSVHeader(nil)), of: m}, nil
	}
	file, err := bucket.NewReader(ctx, p.CSVKey(), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", p.CSVKey(), err)
	}
	text, err := gzip.NewReader(file)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", p.CSVKey(), err), file.Close())
	}
	rows := seal.NewRows(p, codec.CSVColumns)
	return &sealedCSV{Reader: io.TeeReader(text, rows), file: file, rows: rows, of: m}, nil
}

// Close reads what is left.
func (s *sealedCSV) Close() error {
	if s.file == nil {
		return nil
	}
	_, err := io.Copy(io.Discard, s.Reader)
	err = errors.Join(err, s.file.Close())
	if err != nil {
		return fmt.Errorf("read %s: %w", s.of.Partition().CSVKey(), err)
	}
	content, err := s.rows.Close()
	if err == nil && (content.Digest != s.of.Digest || hex.EncodeToString(content.SHA256[:]) != s.of.CSVSHA256) {
		err = fmt.Errorf("%s, not %s", content.Digest, s.of.Digest)
	}
	if err != nil {
		return fmt.Errorf("%w: %s: %w: run kansa verify", errNotSealed, s.of.Partition().CSVKey(), err)
	}
	return nil
}
