package verify

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"

	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

func gunzip(data []byte) (io.Reader, error) { return gzip.NewReader(bytes.NewReader(data)) }

// corrupt changes some bytes of data, in one of the ways in which bytes change.
func corrupt(rng *rand.Rand, data []byte) (out []byte, what string) {
	n := len(data)
	at := rng.IntN(n)
	switch rng.IntN(6) {
	case 0, 1:
		out = bytes.Clone(data)
		bit := rng.IntN(8)
		out[at] ^= 1 << bit
		return out, fmt.Sprintf("bit %d of byte %d flipped", bit, at)
	case 2:
		return bytes.Clone(data[:at]), fmt.Sprintf("cut at %d of %d", at, n)
	case 3:
		return slices.Insert(bytes.Clone(data), at, byte(rng.Uint32())), fmt.Sprintf("a byte put in at %d", at)
	case 4:
		end := at + 1 + rng.IntN(min(20, n-at))
		return slices.Delete(bytes.Clone(data), at, end), fmt.Sprintf("%d to %d taken out", at, end)
	default:
		end := at + 1 + rng.IntN(min(20, n-at))
		out = bytes.Clone(data)
		for i := at; i < end; i++ {
			out[i] = byte(rng.Uint32())
		}
		return out, fmt.Sprintf("%d to %d overwritten", at, end)
	}
}

func pick(rng *rand.Rand, names []string, suffix string) string {
	names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.HasSuffix(n, suffix) })
	return names[rng.IntN(len(names))]
}

// edit changes the events of a random partition that has some, in a way in which a forger would.
func edit(rng *rand.Rand, s *sealtest.Store, last int) (schema.Partition, []codec.Stored, string) {
	for {
		p := sealtest.Partition("acme", schema.Trails[rng.IntN(2)], rng.IntN(last+1))
		m := s.Manifest(p)
		if m.Rows < 2 {
			continue
		}
		list := s.Events(p, int(m.Rows)) // others than were sealed, which is a change already
		i := rng.IntN(len(list) - 1)
		what := "other rows"
		switch rng.IntN(4) {
		case 0:
			list = slices.Delete(list, i, i+1)
			what = "a row taken out"
		case 1:
			list[i].Outcome = "denied"
			what = "a value changed"
		case 2:
			list = list[:len(list)-1]
			what = "the last row taken out"
		}
		return p, list, what + " of " + p.String()
	}
}

// spoil damages a store as a broken disk or a forger would, and says how.
func spoil(rng *rand.Rand, s *sealtest.Store, first sealtest.Key) string {
	names := s.Names()
	switch rng.IntN(12) {
	case 0: // a file of any kind
		name := names[rng.IntN(len(names))]
		data, what := corrupt(rng, s.Files[name])
		s.Files[name] = data
		return name + ": " + what
	case 1:
		name := pick(rng, names, ".csv.gz")
		data, what := corrupt(rng, s.Files[name])
		s.Files[name] = data
		return name + ": " + what
	case 2:
		name := pick(rng, names, ".manifest")
		data, what := corrupt(rng, s.Files[name])
		s.Files[name] = data
		return name + ": " + what
	case 3:
		name := names[rng.IntN(len(names))]
		delete(s.Files, name)
		return name + " removed"
	case 4:
		suffix := []string{".csv.gz", ".manifest"}[rng.IntN(2)]
		a, b := pick(rng, names, suffix), pick(rng, names, suffix)
		s.Files[a], s.Files[b] = s.Files[b], s.Files[a]
		return a + " and " + b + " swapped"
	case 5:
		suffix := []string{".csv.gz", ".manifest"}[rng.IntN(2)]
		a, b := pick(rng, names, suffix), pick(rng, names, suffix)
		s.Files[a] = s.Files[b]
		return b + " copied to " + a
	case 6: // rows, compressed again: all that somebody without a key can do well
		p, list, what := edit(rng, s, 3)
		s.Files[p.CSVKey()] = sealtest.Gzip(sealtest.CSV(list))
		return what
	case 7: // rows, sealed again with a key of one's own
		p, list, what := edit(rng, s, 3)
		reseal(s, p, list, sealtest.NewKey())
		return what + ", sealed by a stranger"
	case 8: // the same by somebody who holds the key, but not the later manifests
		p, list, what := edit(rng, s, 2)
		reseal(s, p, list, s.Key)
		return what + ", sealed anew"
	case 9: // with the key that was rotated away
		p := sealtest.Partition("acme", schema.Trails[rng.IntN(2)], 2+rng.IntN(2))
		reseal(s, p, s.Events(p, 2), first)
		return p.String() + " sealed with the old key"
	case 10: // a file that is not sealed
		p := sealtest.Partition("acme", schema.Trails[rng.IntN(2)], 4+rng.IntN(9))
		s.Files[p.CSVKey()] = sealtest.Gzip(sealtest.CSV(s.Events(p, 2)))
		return p.String() + " put in"
	default: // an hour with its manifest
		p := sealtest.Partition("acme", schema.Trails[rng.IntN(2)], rng.IntN(4))
		delete(s.Files, p.CSVKey())
		delete(s.Files, p.ManifestKey())
		return p.String() + " removed"
	}
}

// reseal replaces a partition in place, its place in the chain kept, signed with a key.
func reseal(s *sealtest.Store, p schema.Partition, list []codec.Stored, key sealtest.Key) {
	old := s.Manifest(p)
	forger := sealtest.New(key)
	m := forger.Add(p, list)
	m.Number, m.Previous = old.Number, old.Previous
	forger.Seal(m)
	for _, name := range []string{p.CSVKey(), p.ManifestKey()} {
		s.Files[name] = forger.Files[name]
	}
}

// spoilZip damages an archive.
func spoilZip(rng *rand.Rand, t testing.TB, data []byte) ([]byte, string) {
	if rng.IntN(3) > 0 {
		return corrupt(rng, data)
	}
	entries, err := archive.Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	i, j := rng.IntN(len(entries)), rng.IntN(len(entries))
	var what string
	switch rng.IntN(4) {
	case 0:
		what = entries[i].Name + " removed"
		entries = slices.Delete(entries, i, i+1)
	case 1:
		what = entries[i].Name + " and " + entries[j].Name + " swapped"
		entries[i].Name, entries[j].Name = entries[j].Name, entries[i].Name
	case 2:
		body, err := entries[i].Open(t.Context(), 0, entries[i].CompressedSize)
		if err != nil {
			t.Fatal(err)
		}
		old, err := io.ReadAll(body)
		if err != nil || entries[i].Method != archive.Stored || strings.HasSuffix(entries[i].Name, ".txt") {
			return corrupt(rng, data)
		}
		changed, how := corrupt(rng, old)
		what = entries[i].Name + ": " + how + ", with the right CRC-32"
		entries[i] = archive.FromBytes(entries[i].Name, entries[i].Modified, changed)
	default:
		what = "an entry put in"
		entries = slices.Insert(entries, i, archive.FromBytes(fmt.Sprintf("acme/activity/2026/11/22/%02d.manifest", 10+i), entries[i].Modified, []byte("x")))
	}
	a, err := archive.New(entries)
	if err != nil {
		return corrupt(rng, data)
	}
	var b bytes.Buffer
	if _, err := a.WriteTo(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), what
}

// Whatever is done to what was sealed, it is found. Seeds are fixed, so that a failure can be repeated.
func TestEveryCorruptionIsFound(t *testing.T) {
	t.Parallel()
	const seeds, each = 13, 40 // of a store and an archive each, so 1,040
	store, first := newStore()
	zipped := zipOf(t, store, 0, 4)
	if r := verifyStore(t, store, strict(first)); !r.OK {
		t.Fatal(r.Faults)
	}
	if r := verifyZip(t, zipped, strict(first)); !r.OK {
		t.Fatal(r.Faults)
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 0x5ea1))
			for i := range each {
				s := store.Clone()
				what := spoil(rng, s, first)
				if same(s, store) {
					continue
				}
				if r := verifyStore(t, s, strict(first)); r.OK || len(r.Faults) == 0 {
					t.Errorf("seed %d, %d: not found: %s", seed, i, what)
				}
				bad, what := spoilZip(rng, t, zipped)
				if bytes.Equal(bad, zipped) {
					continue
				}
				if r := verifyZip(t, bad, strict(first)); r.OK || len(r.Faults) == 0 {
					t.Errorf("seed %d, %d: archive: not found: %s", seed, i, what)
				}
			}
		})
	}
}

func same(a, b *sealtest.Store) bool {
	if !slices.Equal(a.Names(), b.Names()) {
		return false
	}
	for name, data := range a.Files {
		if !bytes.Equal(data, b.Files[name]) {
			return false
		}
	}
	return true
}

// FuzzArchive: whatever the file, it is verified or found wanting, and nothing panics.
func FuzzArchive(f *testing.F) {
	store, first := newStore()
	good := zipOf(f, store, 0, 4)
	f.Add([]byte("PK\x05\x06" + string(make([]byte, 18))))
	f.Add(good)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 30 {
		bad, _ := spoilZip(rng, f, good)
		f.Add(bad)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if r := verifyZip(t, data, strict(first)); r.OK && !bytes.Equal(data, good) {
			t.Errorf("forged: %d bytes", len(data))
		}
	})
}
