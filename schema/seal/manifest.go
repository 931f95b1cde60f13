// Package seal holds what is said about a partition so that it can be checked later: the manifest.
//
// It is pure: it never touches a disk, a database or a broker.
package seal

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// SchemaVersion numbers the columns of an exported partition.
const SchemaVersion = 1

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
	// FirstSeq and LastSeq are those of the first and the last event in the stream; 0 without events.
	FirstSeq uint64 `json:"first_stream_seq"`
	LastSeq  uint64 `json:"last_stream_seq"`
	// CSV is the text as a reader has it, after decompression.
	CSVBytes  int64  `json:"csv_bytes"`
	CSVSHA256 string `json:"csv_sha256"`
	CSVCRC32  uint32 `json:"csv_crc32"`
	// File is what is stored: the .csv.gz.
	FileBytes  int64  `json:"file_bytes"`
	FileSHA256 string `json:"file_sha256"`
}

// Encode is the manifest's one form in bytes: JSON with two blanks of indentation and a line break at
// its end, fields in the order of the type.
func (m *Manifest) Encode() ([]byte, error) {
	out, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(out, '\n'), nil
}

// Decode reads what Encode wrote.
func Decode(data []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if m.Version != 1 {
		return nil, fmt.Errorf("decode manifest: version %d is not known", m.Version)
	}
	return &m, nil
}

// Partition is what m speaks of.
func (m *Manifest) Partition() schema.Partition {
	return schema.Partition{Organization: m.Organization, Trail: m.Trail, Hour: m.HourStart, Length: m.HourEnd.Sub(m.HourStart)}
}
