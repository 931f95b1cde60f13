package verify

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

// holds fails the test if a report is not of 30 rows in 8 hours without a fault.
func holds(t *testing.T, what string, r *Report, err error) {
	t.Helper()
	if err != nil || !r.OK || r.Rows != 30 || r.Hours != 8 || len(r.Series) != 2 || r.Series[0].First != 1 || r.Series[1].Last != 4 {
		t.Errorf("%s: %+v, %v", what, r, err)
		for _, f := range r.Faults {
			t.Log(f)
		}
	}
}

// Every form in which partitions come, on a disk.
func TestGoodFiles(t *testing.T) {
	t.Parallel()
	s, key := newStore()
	dir := t.TempDir()
	store := filepath.Join(dir, "store")
	onDiskAt(t, store, s)
	r, err := Path(t.Context(), store, strict(key))
	holds(t, "store", r, err)
	data := zipOf(t, s, 0, 4)
	name := filepath.Join(dir, "archive.zip")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	var read int64
	o := strict(key)
	o.Progress = func(done, total int64) {
		if read = done; done > total {
			t.Errorf("%d of %d bytes", done, total)
		}
	}
	r, err = Path(t.Context(), name, o)
	holds(t, "archive", r, err)
	if read != r.FileBytes {
		t.Errorf("progress ends at %d of %d", read, r.FileBytes)
	}
	unpacked := filepath.Join(dir, "unpacked")
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(unpacked, z); err != nil {
		t.Fatal(err)
	}
	r, err = Path(t.Context(), unpacked, strict(key))
	holds(t, "unpacked", r, err)
	p := sealtest.Partition("acme", activity, 3)
	for _, of := range []string{store, unpacked} {
		for _, suffix := range []string{".manifest", ".csv.gz", ".csv"} {
			name := filepath.Join(of, p.Path()+suffix)
			if _, err := os.Stat(name); err != nil {
				continue
			}
			if r, err := Path(t.Context(), name, Options{Key: key.Public}); err != nil || !r.OK || r.Rows != 2 || r.Series[0].Continues == "" {
				t.Errorf("%s: %+v, %v", name, r, err)
			}
		}
	}
}

// Any key that sealed will do, and an archive may begin anywhere.
func TestRangesAndKeys(t *testing.T) {
	t.Parallel()
	s, first := newStore()
	for what, key := range map[string]sealtest.Key{"the first": first, "the last": s.Key} {
		if r := verifyZip(t, zipOf(t, s, 0, 4), strict(key)); !r.OK {
			t.Errorf("%s key: %v", what, r.Faults)
		}
	}
	part := zipOf(t, s, 1, 3)
	r := verifyZip(t, part, Options{Key: first.Public, From: at(1), To: at(3)})
	if want := s.Manifest(sealtest.Partition("acme", access, 1)).Previous; !r.OK || r.Series[0].First != 2 || r.Series[0].Continues != want {
		t.Errorf("%+v %v", r.Series, r.Faults)
	}
	for what, o := range map[string]Options{
		"from start": {Key: first.Public, FromStart: true}, "from": {Key: first.Public, From: at(0)}, "to": {Key: first.Public, To: at(4)},
	} {
		if r := verifyZip(t, part, o); r.OK {
			t.Errorf("%s: it is taken for whole", what)
		}
	}
	empty := zipOf(t, s, 100, 101)
	if r := verifyZip(t, empty, Options{Key: first.Public}); !r.OK || r.Rows != 0 {
		t.Errorf("an empty archive: %+v", r)
	}
	if r := verifyZip(t, empty, Options{Key: first.Public, To: at(101)}); !errors.Is(r.Faults[0], ErrRange) {
		t.Errorf("an empty archive that should not be: %+v", r)
	}
	if r := verifyZip(t, part, Options{Key: sealtest.NewKey().Public}); r.OK || !hasFault(r, ErrKeys, "keys/", 0) {
		t.Errorf("a stranger's key: %v", r.Faults)
	}
}

func hasFault(r *Report, kind error, file string, row uint64) bool {
	for _, f := range r.Faults {
		if errors.Is(f, kind) && f.File == file && f.Row == row {
			return true
		}
	}
	return false
}

// An archive that is older than the key one has needs the rotations of since from elsewhere.
func TestArchiveOlderThanTheKey(t *testing.T) {
	t.Parallel()
	s, _ := newStore()
	old := zipOf(t, s, 0, 4)
	s.Rotate(sealtest.NewKey(), at(5))
	dir := t.TempDir()
	onDiskAt(t, dir, s)
	o := strict(s.Key)
	if r := verifyZip(t, old, o); r.OK {
		t.Error("it is verified by a key that it does not lead to")
	}
	o.Rotations = dir
	if r := verifyZip(t, old, o); !r.OK || len(r.Keys) != 3 {
		t.Errorf("%v, %v", r.Keys, r.Faults)
	}
	other, _ := newStore()
	other.Rotate(s.Key, at(5))
	dir = t.TempDir()
	onDiskAt(t, dir, other)
	o.Rotations = dir
	if r := verifyZip(t, old, o); r.OK || !hasFault(r, ErrKeys, "keys/", 0) {
		t.Errorf("another store's rotations: %v", r.Faults)
	}
}

// What is wrong is named: the kind, the file, the row.
func TestFaultsAreNamed(t *testing.T) {
	t.Parallel()
	p := sealtest.Partition("acme", activity, 2)
	csv, manifest := p.CSVKey(), p.ManifestKey()
	next := sealtest.Partition("acme", activity, 3).ManifestKey()
	text := func(s *sealtest.Store) []byte {
		rows, err := io.ReadAll(must(gunzip(s.Files[csv])))
		if err != nil {
			t.Fatal(err)
		}
		return rows
	}
	events := func(s *sealtest.Store, change func([]codec.Stored) []codec.Stored) []byte {
		list := change(s.Events(p, 7))
		return sealtest.Gzip(sealtest.CSV(list))
	}
	first := sealtest.Key{}
	for name, c := range map[string]struct {
		spoil func(s *sealtest.Store)
		kind  error
		file  string
		row   uint64
	}{
		"a value": {func(s *sealtest.Store) {
			s.Files[csv] = sealtest.Gzip(bytes.Replace(text(s), []byte(`"success"`), []byte(`"failure"`), 1))
		}, ErrFile, csv, 0},
		"rows swapped": {func(s *sealtest.Store) {
			s.Files[csv] = events(s, func(l []codec.Stored) []codec.Stored { l[2], l[3] = l[3], l[2]; return l })
		}, seal.ErrText, csv, 4},
		"a row twice": {func(s *sealtest.Store) {
			s.Files[csv] = events(s, func(l []codec.Stored) []codec.Stored { return append(l, l[6]) })
		}, seal.ErrText, csv, 8},
		"another's row": {func(s *sealtest.Store) {
			s.Files[csv] = events(s, func(l []codec.Stored) []codec.Stored { l[4].Organization = "globex"; return l })
		}, seal.ErrText, csv, 5},
		"another hour's row": {func(s *sealtest.Store) {
			s.Files[csv] = events(s, func(l []codec.Stored) []codec.Stored { l[6].RecordedAt = p.End(); return l })
		}, seal.ErrText, csv, 7},
		"compressed again": {func(s *sealtest.Store) {
			s.Files[csv] = append(sealtest.Gzip(text(s))[:len(s.Files[csv])-8], s.Files[csv][:8]...)
		}, ErrFile, csv, 0},
		"gzip with a name": {func(s *sealtest.Store) { s.Files[csv][3] = 8 }, ErrFile, csv, 0},
		"something behind": {func(s *sealtest.Store) { s.Files[csv] = append(s.Files[csv], 'x') }, ErrFile, csv, 0},
		"cut off":          {func(s *sealtest.Store) { s.Files[csv] = s.Files[csv][:100] }, ErrFile, csv, 0},
		"file gone":        {func(s *sealtest.Store) { delete(s.Files, csv) }, ErrMissing, csv, 0},
		"manifest gone":    {func(s *sealtest.Store) { delete(s.Files, manifest) }, ErrUnsealed, csv, 0},
		"hour gone": {func(s *sealtest.Store) {
			delete(s.Files, csv)
			delete(s.Files, manifest)
		}, ErrChain, next, 0},
		"manifest changed": {func(s *sealtest.Store) {
			s.Files[manifest] = bytes.Replace(s.Files[manifest], []byte(`"rows": 7`), []byte(`"rows": 8`), 1)
		}, seal.ErrSignature, manifest, 0},
		"sealed by a stranger": {func(s *sealtest.Store) {
			m := s.Manifest(p)
			s.Key = sealtest.NewKey()
			s.Seal(m)
		}, seal.ErrSignature, manifest, 0},
		"sealed with the old key": {func(s *sealtest.Store) {
			m := s.Manifest(p)
			s.Key = first
			s.Seal(m)
		}, seal.ErrRetired, manifest, 0},
		"sealed anew": {func(s *sealtest.Store) {
			m := s.Manifest(p)
			m.Gaps = append(m.Gaps, seal.Gap{From: m.HourStart, To: m.HourEnd, By: "root", Reason: "nothing to see here"})
			s.Seal(m)
		}, ErrChain, next, 0},
		"another number": {func(s *sealtest.Store) {
			m := s.Manifest(p)
			m.Number++
			s.Seal(m)
		}, ErrChain, manifest, 0},
		"sealed with a lie": {func(s *sealtest.Store) {
			m := s.Manifest(p)
			m.Digest.Sum++
			s.Seal(m)
		}, ErrFile, csv, 0},
		"of another hour": {func(s *sealtest.Store) { s.Files[manifest] = s.Files[next] }, ErrChain, manifest, 0},
		"a fork": {func(s *sealtest.Store) {
			other := p
			other.Length = 30 * time.Minute
			m := seal.New(other)
			m.Number, m.Previous = 3, s.Manifest(p).Previous
			s.Seal(m)
		}, ErrChain, manifest, 0},
		"rows in an empty hour": {func(s *sealtest.Store) { s.Files[sealtest.Partition("acme", activity, 1).CSVKey()] = s.Files[csv] }, ErrUnsealed, sealtest.Partition("acme", activity, 1).CSVKey(), 0},
		"a file too many":       {func(s *sealtest.Store) { s.Files["acme/activity/notes.txt"] = []byte("x") }, ErrUnsealed, "acme/activity/notes.txt", 0},
		"another first key":     {func(s *sealtest.Store) { s.Files[seal.FirstKey] = []byte(sealtest.NewKey().Public + "\n") }, ErrKeys, seal.FirstKey, 0},
		"no first key":          {func(s *sealtest.Store) { delete(s.Files, seal.FirstKey) }, ErrMissing, seal.FirstKey, 0},
		"rotation changed":      {func(s *sealtest.Store) { s.Files[seal.RotationKey(1)][40] ^= 1 }, ErrKeys, "keys/", 0},
		"rotation gone":         {func(s *sealtest.Store) { delete(s.Files, seal.RotationKey(1)) }, seal.ErrSignature, manifest, 0},
		"rotation too many":     {func(s *sealtest.Store) { s.Files[seal.RotationKey(3)] = s.Files[seal.RotationKey(1)] }, ErrUnsealed, seal.RotationKey(3), 0},
	} {
		s, key := newStore()
		first = key
		for n, data := range s.Files {
			s.Files[n] = bytes.Clone(data)
		}
		c.spoil(s)
		r := verifyStore(t, s, strict(key))
		if !hasFault(r, c.kind, c.file, c.row) {
			t.Errorf("%s: want %v in %s, row %d; got", name, c.kind, c.file, c.row)
			for _, f := range r.Faults {
				t.Errorf("\t%v (row %d)", f, f.Row)
			}
		}
	}
}

// An archive that somebody laid out anew, well, but with other contents.
func TestArchivesLaidOutAnew(t *testing.T) {
	t.Parallel()
	s, key := newStore()
	data := zipOf(t, s, 0, 4)
	for name, c := range map[string]struct {
		spoil func(list []archive.Entry) []archive.Entry
		kind  error
	}{
		"an entry gone": {func(l []archive.Entry) []archive.Entry { return append(l[:5:5], l[6:]...) }, nil},
		"an entry more": {func(l []archive.Entry) []archive.Entry { return append(l, archive.FromBytes("more.txt", at(1), nil)) }, ErrUnsealed},
		"another time":  {func(l []archive.Entry) []archive.Entry { l[len(l)-1].Modified = at(9); return l }, ErrArchive},
		"another name":  {func(l []archive.Entry) []archive.Entry { l[len(l)-1].Name += "x"; return l }, ErrUnsealed},
		"no README":     {func(l []archive.Entry) []archive.Entry { return l[1:] }, ErrMissing},
		"no seal.pub":   {func(l []archive.Entry) []archive.Entry { return append(l[:1:1], l[2:]...) }, ErrMissing},
		"stored rows": {func(l []archive.Entry) []archive.Entry {
			return append(l, archive.FromBytes("acme/access/2026/11/22/20.csv", at(1), []byte("x")))
		}, ErrArchive},
		"another CRC-32": {func(l []archive.Entry) []archive.Entry { l[0].CRC32++; return l }, ErrArchive},
	} {
		entries, err := archive.Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		a, err := archive.New(c.spoil(entries))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := a.WriteTo(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		r := verifyZip(t, b.Bytes(), strict(key))
		found := false
		for _, f := range r.Faults {
			found = found || c.kind == nil || errors.Is(f, c.kind)
		}
		if !found {
			t.Errorf("%s: %v", name, r.Faults)
		}
	}
}

// What can't be read is no verdict.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, key := newStore()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	for name, p := range map[string]string{
		"not there": filepath.Join(dir, "none.zip"), "no partition": filepath.Join(dir, "04.csv.gz"), "something else": write("a.txt", "hello"),
	} {
		if r, err := Path(t.Context(), p, Options{Key: key.Public}); !errors.Is(err, ErrUnreadable) {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	if r, err := Path(t.Context(), dir, Options{Key: "x"}); !errors.Is(err, ErrUnreadable) {
		t.Errorf("no key: %+v, %v", r, err)
	}
	for name, text := range map[string]string{"private": key.Private + "\n", "nonsense": "x\n", "empty": ""} {
		if k, err := ReadKey(write(name, text)); !errors.Is(err, ErrUnreadable) || strings.Contains(err.Error(), key.Private) {
			t.Errorf("%s: %q, %v", name, k, err)
		}
	}
	if k, err := ReadKey(write("seal.pub", key.Public+"\n")); err != nil || k != key.Public {
		t.Errorf("%q, %v", k, err)
	}
	// A disk that fails is no forgery.
	sick := errors.New("input/output error")
	for _, name := range []string{sealtest.Partition("acme", activity, 2).CSVKey(), sealtest.Partition("acme", activity, 2).ManifestKey(), seal.FirstKey} {
		l := inMemory(s)
		for _, m := range []map[string]file{l.csv, l.manifests, l.others} {
			for k, f := range m {
				if f.name == name {
					f.open = func() (io.ReadCloser, error) { return honest{io.NopCloser(failing{sick})}, nil }
					m[k] = f
				}
			}
		}
		if err := verifyFiles(t.Context(), l, strict(key), newReport("x", Store)); !errors.Is(err, sick) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestProofs(t *testing.T) {
	t.Parallel()
	s, first := newStore()
	p := sealtest.Partition("acme", access, 2)
	var want codec.Stored
	{ // an event of the third hour, by its row
		rows := seal.NewRows(p, codec.CSVColumns)
		rows.Each = func(row seal.Row) bool {
			if row.Index == 4 {
				e := must(ParsePlace(string(row.Field(1)) + "." + string(row.Field(2))))
				want.StreamSeq, want.BatchIndex = e.StreamSeq, uint32(e.BatchIndex)
				if err := want.ID.UnmarshalText(row.Field(6)); err != nil {
					t.Error(err)
				}
			}
			return false
		}
		if _, err := io.Copy(rows, must(gunzip(s.Files[p.CSVKey()]))); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	onDiskAt(t, filepath.Join(dir, "store"), s)
	zipped := filepath.Join(dir, "a.zip")
	if err := os.WriteFile(zipped, zipOf(t, s, 0, 4), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{zipped, filepath.Join(dir, "store"), filepath.Join(dir, "store", p.CSVKey())} {
		for _, e := range []Event{{ID: want.ID.String()}, {StreamSeq: want.StreamSeq, BatchIndex: uint64(want.BatchIndex)}} {
			proof, err := Prove(t.Context(), from, e, Options{})
			if err != nil {
				t.Errorf("%s: %v", from, err)
				continue
			}
			data := must(proof.Encode())
			name := filepath.Join(dir, "proof")
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, key := range []sealtest.Key{first, s.Key} {
				if r, err := Path(t.Context(), name, Options{Key: key.Public}); err != nil || !r.OK || r.Kind != Proof || r.Event["id"] != want.ID.String() {
					t.Errorf("%s: %+v, %v", from, r, err)
				}
			}
			if r, err := Path(t.Context(), name, Options{Key: sealtest.NewKey().Public}); err != nil || r.OK {
				t.Errorf("with a stranger's key: %+v, %v", r, err)
			}
			data[bytes.Index(data, []byte("success"))]++
			if err := os.WriteFile(name, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if r, err := Path(t.Context(), name, Options{Key: first.Public}); err != nil || r.OK {
				t.Errorf("changed: %+v, %v", r, err)
			}
			if _, err := Prove(t.Context(), name, e, Options{}); !errors.Is(err, ErrUnreadable) {
				t.Errorf("the proof of a proof: %v", err)
			}
		}
	}
	if _, err := Prove(t.Context(), zipped, Event{ID: "nobody"}, Options{}); !errors.Is(err, ErrNoEvent) {
		t.Errorf("an event that is not there: %v", err)
	}
	s.Files[p.CSVKey()] = s.Files[p.CSVKey()][:50]
	onDiskAt(t, filepath.Join(dir, "store"), s)
	if _, err := Prove(t.Context(), filepath.Join(dir, "store"), Event{ID: want.ID.String()}, Options{}); !errors.Is(err, ErrFile) {
		t.Errorf("from a file that is cut off: %v", err)
	}
	for _, place := range []string{"", "1", "0.1", "a.b", "1.2.3", "-1.0"} {
		if e, err := ParsePlace(place); err == nil {
			t.Errorf("%q is taken for %v", place, e)
		}
	}
}
