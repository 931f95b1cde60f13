// Package sealtest makes sealed partition stores for tests, in memory: what the rollup makes, without the
// rest of the pipeline, and what a forger makes who has a key.
package sealtest

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Start is the first hour of every store.
var Start = time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)

// Key is a sealing key.
type Key struct {
	note.Signer
	Private, Public string
}

// NewKey makes one.
func NewKey() Key {
	private, _, err := note.GenerateKey(rand.Reader, "kansa")
	if err != nil {
		panic(err)
	}
	return ParseKey(private)
}

// ParseKey reads a private key.
func ParseKey(private string) Key {
	signer, err := note.NewSigner(private)
	if err != nil {
		panic(err)
	}
	return Key{signer, private, publicOf(private)}
}

// Store is a partition store: its files by name.
type Store struct {
	Files     map[string][]byte
	Key       Key
	rotations uint64
	chain     map[string]*seal.Sealed // the last of each organization and trail
	events    *sample.Source
	seq       uint64
}

// New returns an empty store.
func New(key Key) *Store {
	return &Store{
		Files: map[string][]byte{seal.FirstKey: []byte(key.Public + "\n")}, Key: key, chain: map[string]*seal.Sealed{},
		events: sample.New(1, func() time.Time { return Start }), seq: 1000,
	}
}

// Clone is a store that shares no file and no future with s.
func (s *Store) Clone() *Store {
	c := *s
	c.Files, c.chain = maps.Clone(s.Files), maps.Clone(s.chain)
	c.events = sample.New(2, func() time.Time { return Start })
	return &c
}

// Partition names an hour, counted from Start.
func Partition(org string, trail schema.Trail, hour int) schema.Partition {
	return schema.Partition{Organization: org, Trail: trail, Hour: Start.Add(time.Duration(hour) * time.Hour), Length: time.Hour}
}

// Events makes up n events of a partition, some with text that tries a reader of CSV.
func (s *Store) Events(p schema.Partition, n int) []codec.Stored {
	list := make([]codec.Stored, n)
	for i := range list {
		e := &list[i]
		e.Event = s.events.Next()
		e.Organization, e.Trail = p.Organization, p.Trail
		e.RecordedAt = p.Hour.Add(time.Duration(i) * p.Length / time.Duration(n)).Truncate(time.Microsecond)
		e.StreamSeq, e.BatchIndex, e.RecordedBy = s.seq+uint64(i/3), uint32(i%3), "key:billing"
		if i%5 == 1 {
			e.Description = "two\r\nlines, a \"quote\" and 監査\n"
		}
	}
	s.seq += uint64(n)
	return list
}

// CSV is the text of events.
func CSV(list []codec.Stored) []byte {
	text := codec.AppendCSVHeader(nil)
	for i := range list {
		text = codec.AppendCSV(text, &list[i])
	}
	return text
}

// Gzip is a partition's file.
func Gzip(text []byte) []byte {
	var b bytes.Buffer
	gz, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		panic(err)
	}
	gz.ModTime = time.Unix(0, 0)
	if _, err := gz.Write(text); err != nil {
		panic(err)
	}
	if err := gz.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Add seals an hour of events on top of the one before it.
func (s *Store) Add(p schema.Partition, list []codec.Stored) *seal.Manifest {
	m := seal.New(p)
	if len(list) > 0 {
		text := CSV(list)
		rows := seal.NewRows(p, codec.CSVColumns)
		if _, err := rows.Write(text); err != nil {
			panic(err)
		}
		content, err := rows.Close()
		if err != nil {
			panic(err)
		}
		m.Describe(content)
		file := Gzip(text)
		sum := sha256.Sum256(file)
		m.FileBytes, m.FileSHA256 = int64(len(file)), hex.EncodeToString(sum[:])
		s.Files[p.CSVKey()] = file
	}
	series := p.Organization + "/" + string(p.Trail)
	if before := s.chain[series]; before != nil {
		m.Follow(before)
	}
	s.Seal(m)
	sealed, err := seal.Parse(s.Files[p.ManifestKey()])
	if err != nil {
		panic(err)
	}
	s.chain[series] = sealed
	return m
}

// Seal signs a manifest as it is and puts it in its place.
func (s *Store) Seal(m *seal.Manifest) {
	file, err := seal.Sign(m, s.Key)
	if err != nil {
		panic(err)
	}
	s.Files[m.Partition().ManifestKey()] = file
}

// Hours adds hours of a trail, from the first on, with so many events each.
func (s *Store) Hours(org string, trail schema.Trail, rows ...int) {
	for h, n := range rows {
		p := Partition(org, trail, h)
		s.Add(p, s.Events(p, n))
	}
}

// Rotate puts another key in the place of the one that seals.
func (s *Store) Rotate(to Key, at time.Time) {
	s.rotations++
	r := &seal.Rotation{Version: 1, Number: s.rotations, OldKey: s.Key.Public, NewKey: to.Public, Time: at}
	file, err := seal.SignRotation(r, s.Key, to)
	if err != nil {
		panic(err)
	}
	s.Files[seal.RotationKey(s.rotations)] = file
	s.Key = to
}

// Manifest returns what the manifest of a partition says.
func (s *Store) Manifest(p schema.Partition) *seal.Manifest {
	m, err := seal.Parse(s.Files[p.ManifestKey()])
	if err != nil {
		panic(fmt.Sprintf("%s: %v", p, err))
	}
	return m.Manifest
}

// Names lists the files in order.
func (s *Store) Names() []string { return slices.Sorted(maps.Keys(s.Files)) }
