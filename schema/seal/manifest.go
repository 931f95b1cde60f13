package seal

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kansa-audit/kansa/schema"
)

// Versions that this package writes and reads.
const (
	// ManifestVersion numbers the form of a manifest.
	ManifestVersion = 1
	// SchemaVersion numbers the columns of an exported partition.
	SchemaVersion = 2
)

// ErrManifest means that something is no manifest in its one form, or one that contradicts itself.
var ErrManifest = errors.New("not a manifest")

// Manifest is the statement about one partition. An hour without events has one too, so that absence
// is a statement.
type Manifest struct {
	Version       int          `json:"version"`
	SchemaVersion int          `json:"schema_version"`
	Organization  string       `json:"organization"`
	Trail         schema.Trail `json:"trail"`
	// HourStart and HourEnd bound recorded_at: from the first, up to but without the second.
	HourStart time.Time `json:"hour_start"`
	HourEnd   time.Time `json:"hour_end"`
	Rows      uint64    `json:"rows"`
	// FirstSeq and LastSeq are the least and the greatest place of an event in the stream; 0 without events.
	FirstSeq uint64 `json:"first_stream_seq"`
	LastSeq  uint64 `json:"last_stream_seq"`
	// Digest is that of the rows, in any order.
	Digest Digest `json:"digest"`
	// CSV is the text as a reader has it, after decompression.
	CSVBytes  int64  `json:"csv_bytes"`
	CSVSHA256 string `json:"csv_sha256"`
	CSVCRC32  uint32 `json:"csv_crc32"`
	// File is what is stored: the .csv.gz. An hour without events has none.
	FileBytes  int64  `json:"file_bytes"`
	FileSHA256 string `json:"file_sha256"`
	// MerkleRoot is that of RFC 6962 over the rows of the CSV, each with its CRLF, without the header line.
	MerkleRoot string `json:"merkle_root"`
	// Gaps are the intervals of this hour in which not everything was recorded.
	Gaps []Gap `json:"gaps"`
	// Number counts the manifests of an organization and trail, from 1.
	Number uint64 `json:"number"`
	// Previous is the SHA-256 of the text of the manifest before this one; nothing in the first. The
	// text, not the file: who signs it, and how often, does not change it.
	Previous string `json:"previous"`
}

// ReasonOff is what the reason of a gap begins with that somebody made by switching the trail off. The others are those
// of messages that were lost; theirs begin with "messages".
const ReasonOff = "switched off: "

// Gap is an interval of which somebody says why not everything that happened in it is here.
type Gap struct {
	From   time.Time `json:"from"`
	To     time.Time `json:"to"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// Off tells whether the trail was switched off.
func (g *Gap) Off() bool { return strings.HasPrefix(g.Reason, ReasonOff) }

// JoinGaps appends gaps to those before, in the order of their times. One that goes on over the end of an hour, and so
// is stated by the manifests of both, is one.
func JoinGaps(before []Gap, gaps ...Gap) []Gap {
	for _, g := range gaps {
		if n := len(before); n > 0 && before[n-1].To.Equal(g.From) && before[n-1].By == g.By && before[n-1].Reason == g.Reason {
			before[n-1].To = g.To
			continue
		}
		before = append(before, g)
	}
	return before
}

// New returns the manifest of a partition that holds nothing. What Describe and Follow do not set is the
// caller's: the file and the gaps.
func New(p schema.Partition) *Manifest {
	return &Manifest{
		Version: ManifestVersion, SchemaVersion: SchemaVersion, Organization: p.Organization, Trail: p.Trail,
		HourStart: p.Hour.UTC(), HourEnd: p.End().UTC(), MerkleRoot: hex.EncodeToString(EmptyRoot[:]), Gaps: []Gap{}, Number: 1,
	}
}

// Describe states what the text of the partition holds.
func (m *Manifest) Describe(c Content) {
	m.Rows, m.FirstSeq, m.LastSeq, m.Digest = c.Rows, c.FirstSeq, c.LastSeq, c.Digest
	m.CSVBytes, m.CSVSHA256, m.CSVCRC32 = c.Bytes, hex.EncodeToString(c.SHA256[:]), c.CRC32
	m.MerkleRoot = hex.EncodeToString(c.Root[:])
}

// Follow puts m into the chain, behind previous.
func (m *Manifest) Follow(previous *Sealed) {
	m.Number, m.Previous = previous.Number+1, previous.TextHash()
}

// Partition is what m speaks of.
func (m *Manifest) Partition() schema.Partition {
	return schema.Partition{Organization: m.Organization, Trail: m.Trail, Hour: m.HourStart, Length: m.HourEnd.Sub(m.HourStart)}
}

// Encode is the manifest's one form in bytes: JSON with two blanks of indentation and a line break at
// its end, fields in the order of the type. A manifest that contradicts itself has none.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return canonical(m)
}

// Decode reads what Encode writes, and nothing else: a text with unknown or repeated fields, another
// order or other blanks is refused.
func Decode(text []byte) (*Manifest, error) {
	m := new(Manifest)
	if err := decode(text, m, ErrManifest); err != nil {
		return nil, err
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m, nil
}

// canonical is the one form of v in bytes.
func canonical(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return b.Bytes(), nil
}

// decode reads what canonical writes. Other forms of the same value, unknown fields and repeated ones
// all show in that the value's one form is not the text.
func decode(text []byte, into any, kind error) error {
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	again, err := canonical(into)
	if err != nil {
		return fmt.Errorf("%w: %w", kind, err)
	}
	if !bytes.Equal(again, text) {
		return fmt.Errorf("%w: it is not in its one form: from byte %d on it would be %.40q, not %.40q",
			kind, differ(again, text), again[differ(again, text):], text[differ(again, text):])
	}
	return nil
}

// differ is where two texts begin to differ.
func differ(a, b []byte) int {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	return i
}

// check names the first thing by which m contradicts itself.
func (m *Manifest) check() error {
	p := m.Partition()
	empty := m.Rows == 0
	switch {
	case m.Version != ManifestVersion:
		return fmt.Errorf("version %d is not known", m.Version)
	case m.SchemaVersion != SchemaVersion:
		return fmt.Errorf("schema_version %d is not known", m.SchemaVersion)
	case !wholeSecond(m.HourStart) || !wholeSecond(m.HourEnd):
		return fmt.Errorf("the hour %s to %s is not in whole seconds of UTC", m.HourStart, m.HourEnd)
	case p.Length < time.Second || (24*time.Hour)%p.Length != 0 || !m.HourStart.Truncate(p.Length).Equal(m.HourStart):
		return fmt.Errorf("%s to %s is no hour: its length has to divide a day, and its start to be a multiple of it",
			m.HourStart.Format(time.RFC3339), m.HourEnd.Format(time.RFC3339))
	case m.Digest.Rows != m.Rows:
		return fmt.Errorf("the digest is of %d rows, not of %d", m.Digest.Rows, m.Rows)
	case m.FirstSeq > m.LastSeq || !empty && m.FirstSeq == 0:
		return fmt.Errorf("first_stream_seq %d and last_stream_seq %d do not go together", m.FirstSeq, m.LastSeq)
	case empty && (m.LastSeq != 0 || m.Digest.Sum != 0 || m.CSVBytes != 0 || m.CSVSHA256 != "" || m.CSVCRC32 != 0 ||
		m.FileBytes != 0 || m.FileSHA256 != "" || m.MerkleRoot != hex.EncodeToString(EmptyRoot[:])):
		return errors.New("it has no rows, but says something of them")
	case !empty && (m.CSVBytes <= 0 || m.FileBytes <= 0 || !isHash(m.CSVSHA256) || !isHash(m.FileSHA256) || !isHash(m.MerkleRoot)):
		return errors.New("it has rows, but lacks a size or a SHA-256")
	case m.Number == 0:
		return errors.New("number is 0: chains begin at 1")
	case m.Number == 1 && m.Previous != "" || m.Number > 1 && !isHash(m.Previous):
		return fmt.Errorf("previous is %q in manifest number %d", m.Previous, m.Number)
	case m.Gaps == nil:
		return errors.New("gaps is null: it has to be a list")
	}
	if f := schema.CheckOrganization(m.Organization); f != nil {
		return f
	}
	if f := schema.CheckTrail(m.Trail); f != nil {
		return f
	}
	return m.checkGaps()
}

func (m *Manifest) checkGaps() error {
	at := m.HourStart
	for i, g := range m.Gaps {
		switch {
		case g.From.Location() != time.UTC || g.To.Location() != time.UTC:
			return fmt.Errorf("gap %d is not in UTC", i)
		case g.From.Before(at) || !g.From.Before(g.To) || g.To.After(m.HourEnd):
			return fmt.Errorf("gap %d is not within the hour and after the one before it", i)
		case !Plain(g.By) || !Plain(g.Reason):
			return fmt.Errorf("gap %d: by and reason have to be UTF-8 without control characters and line separators", i)
		}
		at = g.To
	}
	return nil
}

func wholeSecond(t time.Time) bool {
	return t.Location() == time.UTC && t.Nanosecond() == 0 && t.Year() >= 1970 && t.Year() < 10000
}

// Plain tells whether a manifest can state s: whether it is written in JSON with no escapes but those of quotes and backslashes, so that
// every library writes it the same way.
func Plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < 0x20 || r == 0x7f || r == '\u2028' || r == '\u2029'
	})
}

// isHash tells whether s is a SHA-256 in lower-case hexadecimal.
func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == len(Hash{}) && s == strings.ToLower(s)
}

// GzipHeader begins every partition file: no name, no time, fastest compression, no operating system. As it
// is fixed, a file's SHA-256 can be told from a ZIP entry, which has all of the file but its header.
const GzipHeader = "\x1f\x8b\x08\x00\x00\x00\x00\x00\x04\xff"
