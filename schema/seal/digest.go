package seal

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/zeebo/xxh3"
)

// Separator stands between the fields of a row where RowHash is taken. UTF-8 never holds this byte.
const Separator = 0xFF

// RowHash is the hash of one row: XXH3-64 with seed 0 over the text of its fields in the order of the
// CSV's columns, unquoted and unescaped, with one Separator between two fields and none at the ends.
//
// The text of a field is what a CSV reader returns for it. Numbers are decimal without leading zeros;
// times have the form 2026-11-22T04:05:06.789012Z; an id is lower case with hyphens; attributes are the
// JSON object that the CSV shows. In ClickHouse it is
//
//	xxh3(concat(recorded_at_text, '\xFF', toString(stream_seq), '\xFF', …))
//
// with a single argument: xxh3 of several arguments is another function.
func RowHash(joined []byte) uint64 { return xxh3.Hash(joined) }

// Digest stands for a set of rows in any order: how many they are, and the sum of their RowHashes
// modulo 2^64. Two sets with the same digest are the same but for chance; it is no defence against
// somebody who chooses rows, which is what the hashes of a manifest are for. The zero value is the
// digest of no rows.
type Digest struct {
	Rows uint64
	Sum  uint64
}

// Add takes a row into the set.
func (d *Digest) Add(rowHash uint64) {
	d.Rows++
	d.Sum += rowHash
}

// Merge takes another set in, which shares no row with this one.
func (d *Digest) Merge(o Digest) {
	d.Rows += o.Rows
	d.Sum += o.Sum
}

// String is the digest's text: the count, a colon, and the sum in sixteen digits of lower-case hexadecimal.
func (d Digest) String() string { return fmt.Sprintf("%d:%016x", d.Rows, d.Sum) }

// ErrDigest means that a text is not that of a digest.
var ErrDigest = errors.New("not a digest")

// ParseDigest reads what String writes, and nothing else.
func ParseDigest(s string) (Digest, error) {
	rows, sum, _ := strings.Cut(s, ":")
	var d Digest
	var errRows, errSum error
	d.Rows, errRows = strconv.ParseUint(rows, 10, 64)
	d.Sum, errSum = strconv.ParseUint(sum, 16, 64)
	if errRows != nil || errSum != nil || d.String() != s {
		return Digest{}, fmt.Errorf("%w: %q: write <rows>:<16 hexadecimal digits>", ErrDigest, s)
	}
	return d, nil
}

// MarshalText is String.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDigest.
func (d *Digest) UnmarshalText(text []byte) (err error) {
	*d, err = ParseDigest(string(text))
	return err
}
