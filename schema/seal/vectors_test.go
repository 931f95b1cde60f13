package seal_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

var update = flag.Bool("update-vectors", false, "make testdata/vectors anew; what was published must never change")

const vectors = "testdata/vectors"

// vector is a store that is good/ but for some files.
type vector struct {
	Name   string   `json:"name"`
	OK     bool     `json:"ok"`
	Why    string   `json:"why"`
	Remove []string `json:"remove,omitempty"` // files of good/ that are not there; others lie in bad/<name>/
}

// The vectors are those that were published.
func TestVectorsNeverChange(t *testing.T) {
	if *update {
		makeVectors(t)
	}
	sums, err := os.ReadFile(vectors + "/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	if got := hashes(t); got != string(sums) {
		t.Errorf("the files under %s are not those of SHA256SUMS:\n%s", vectors, got)
	}
	all := sha256.Sum256(sums)
	const published = "cf3a6a8c22d6e46700ea7bea173765246d355ac667f64ae075c883dc37c1d1a0"
	if got := hex.EncodeToString(all[:]); got != published {
		t.Errorf("SHA256SUMS has SHA-256 %s; published was %s", got, published)
	}
}

func hashes(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(vectors, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "SHA256SUMS" {
			return err
		}
		data, err := os.ReadFile(p)
		fmt.Fprintf(&b, "%x  %s\n", sha256.Sum256(data), strings.TrimPrefix(filepath.ToSlash(p), vectors+"/"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func makeVectors(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(vectors); err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		p := filepath.Join(vectors, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first, second := sealtest.NewKey(), sealtest.NewKey()
	good := sealtest.New(first)
	good.Hours("acme", schema.Activity, 5, 0)
	good.Rotate(second, sealtest.Start.Add(90*time.Minute))
	at := func(h int) schema.Partition { return sealtest.Partition("acme", schema.Activity, h) }
	good.Add(at(2), good.Events(at(2), 9))
	good.Add(at(3), good.Events(at(3), 1))
	write("first.pub", []byte(first.Public+"\n"))
	write("second.pub", []byte(second.Public+"\n"))
	for name, data := range good.Files {
		write("good/"+name, data)
	}
	list := []vector{{Name: "good", OK: true, Why: "nothing is wrong"}}
	bad := func(name, why string, spoil func(s *sealtest.Store)) {
		s := good.Clone()
		spoil(s)
		v := vector{Name: name, Why: why}
		for _, n := range good.Names() {
			if _, ok := s.Files[n]; !ok {
				v.Remove = append(v.Remove, n)
			}
		}
		for n, data := range s.Files {
			if !bytes.Equal(data, good.Files[n]) {
				write("bad/"+name+"/"+n, data)
			}
		}
		list = append(list, v)
	}
	p, csv, manifest := at(2), at(2).CSVKey(), at(2).ManifestKey()
	events := func(s *sealtest.Store) []codec.Stored { return s.Events(p, 9) }
	lie := func(change func(m *seal.Manifest)) func(s *sealtest.Store) {
		return func(s *sealtest.Store) {
			m := s.Manifest(p)
			change(m)
			s.Seal(m)
		}
	}
	// A forger with the key, who makes a file that agrees with its manifest in everything but one.
	forge := func(change func([]codec.Stored) []codec.Stored) func(s *sealtest.Store) {
		return func(s *sealtest.Store) {
			list := events(s)
			honest := sealtest.New(second)
			m := honest.Add(p, list)
			text := sealtest.CSV(change(list))
			file := sealtest.Gzip(text)
			sum, fileSum := sha256.Sum256(text), sha256.Sum256(file)
			m.CSVBytes, m.CSVSHA256, m.FileBytes, m.FileSHA256 = int64(len(text)), hex.EncodeToString(sum[:]), int64(len(file)), hex.EncodeToString(fileSum[:])
			m.CSVCRC32 = crc(text)
			old := s.Manifest(p)
			m.Number, m.Previous = old.Number, old.Previous
			s.Seal(m)
			s.Files[csv] = file
		}
	}
	bad("file-flipped-bit", "a bit of the compressed file is flipped", func(s *sealtest.Store) {
		s.Files[csv] = bytes.Clone(s.Files[csv])
		s.Files[csv][200] ^= 4
	})
	bad("file-other-rows", "the file holds other rows than were sealed", func(s *sealtest.Store) { s.Files[csv] = sealtest.Gzip(sealtest.CSV(events(s))) })
	bad("file-cut-off", "the file ends early", func(s *sealtest.Store) { s.Files[csv] = s.Files[csv][:len(s.Files[csv])-9] })
	bad("file-longer", "something stands behind the file", func(s *sealtest.Store) { s.Files[csv] = append(bytes.Clone(s.Files[csv]), 0) })
	bad("file-missing", "a manifest with rows has no file", func(s *sealtest.Store) { delete(s.Files, csv) })
	bad("file-unsealed", "a file has no manifest", func(s *sealtest.Store) { s.Files[at(4).CSVKey()] = sealtest.Gzip(sealtest.CSV(s.Events(at(4), 1))) })
	bad("manifest-changed", "a number was changed after it was signed", func(s *sealtest.Store) {
		s.Files[manifest] = bytes.Replace(s.Files[manifest], []byte(`"rows": 9`), []byte(`"rows": 8`), 1)
	})
	bad("manifest-by-stranger", "another key signed it", func(s *sealtest.Store) {
		m := s.Manifest(p)
		s.Key = sealtest.NewKey()
		s.Seal(m)
	})
	bad("manifest-by-retired-key", "the key was rotated away before the hour began", func(s *sealtest.Store) {
		m := s.Manifest(p)
		s.Key = first
		s.Seal(m)
	})
	bad("manifest-other-form", "it is signed, but not in its one form", func(s *sealtest.Store) {
		text, err := s.Manifest(p).Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.Files[manifest] = sign(t, strings.Replace(string(text), `"rows": 9`, `"rows":  9`, 1), second)
	})
	bad("manifest-unknown-field", "it is signed, but has a field more", func(s *sealtest.Store) {
		text, err := s.Manifest(p).Encode()
		if err != nil {
			t.Fatal(err)
		}
		s.Files[manifest] = sign(t, strings.Replace(string(text), "{\n", "{\n  \"comment\": \"\",\n", 1), second)
	})
	bad("manifest-of-another-hour", "it stands in the place of another", func(s *sealtest.Store) { s.Files[at(3).ManifestKey()] = s.Files[manifest] })
	bad("manifest-signed-twice", "the signature is there twice", func(s *sealtest.Store) {
		file := s.Files[manifest]
		s.Files[manifest] = append(bytes.Clone(file), file[bytes.LastIndex(file, []byte("\n\n"))+2:]...)
	})
	bad("manifest-stray-bits", "the signature's base64 has bits that mean nothing", func(s *sealtest.Store) {
		const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
		file := bytes.Clone(s.Files[manifest])
		i := len(file) - 3 // before "=" and the line break
		file[i] = digits[strings.IndexByte(digits, file[i])|1]
		s.Files[manifest] = file
	})
	bad("merkle-root", "it is signed, but states another Merkle root", lie(func(m *seal.Manifest) { m.MerkleRoot = m.CSVSHA256 }))
	bad("first-seq", "it is signed, but states another first sequence", lie(func(m *seal.Manifest) { m.FirstSeq-- }))
	bad("rows-order", "two rows are in the wrong order", forge(func(l []codec.Stored) []codec.Stored { l[3], l[4] = l[4], l[3]; return l }))
	bad("rows-twice", "a row is there twice", forge(func(l []codec.Stored) []codec.Stored { l[4] = l[3]; return l }))
	bad("rows-of-another", "a row is of another organization", forge(func(l []codec.Stored) []codec.Stored { l[3].Organization = "globex"; return l }))
	bad("rows-of-another-hour", "a row was recorded later", forge(func(l []codec.Stored) []codec.Stored { l[8].RecordedAt = p.End(); return l }))
	bad("chain-hole", "an hour is missing", func(s *sealtest.Store) {
		delete(s.Files, csv)
		delete(s.Files, manifest)
	})
	bad("chain-sealed-anew", "an hour was sealed anew, and the next one does not follow it", lie(func(m *seal.Manifest) {
		m.Gaps = append(m.Gaps, seal.Gap{From: m.HourStart, To: m.HourStart.Add(time.Minute), By: "u-7", Reason: "maintenance"})
	}))
	bad("chain-number", "a number is left out", lie(func(m *seal.Manifest) { m.Number++ }))
	bad("rotation-missing", "nothing leads to the second key", func(s *sealtest.Store) { delete(s.Files, seal.RotationKey(1)) })
	bad("rotation-forged", "only the new key signed the rotation", func(s *sealtest.Store) {
		text, _, _ := strings.Cut(string(s.Files[seal.RotationKey(1)]), "\n\n")
		s.Files[seal.RotationKey(1)] = sign(t, text+"\n", second)
	})
	r := seal.NewRows(p, codec.CSVColumns)
	r.Expect, r.Each = 9, func(row seal.Row) bool { return row.Index == 4 }
	z, err := gzip.NewReader(bytes.NewReader(good.Files[csv]))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(r, z); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Close(); err != nil {
		t.Fatal(err)
	}
	proof, err := r.Proof()
	if err != nil {
		t.Fatal(err)
	}
	proof.Manifest, proof.Rotations = string(good.Files[manifest]), []string{string(good.Files[seal.RotationKey(1)])}
	data, err := proof.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write("proofs/good.proof", data)
	write("proofs/bad-row.proof", bytes.Replace(data, []byte("success"), []byte("failure"), 1))
	write("proofs/bad-index.proof", bytes.Replace(data, []byte(`"index": 4`), []byte(`"index": 5`), 1))
	index, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	write("vectors.json", append(index, '\n'))
	write("digest.json", digestVectors(t))
	if err := os.WriteFile(vectors+"/SHA256SUMS", []byte(hashes(t)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestProofVectors(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]error{"good": nil, "bad-row": seal.ErrProof, "bad-index": seal.ErrProof} {
		data, err := os.ReadFile(vectors + "/proofs/" + name + ".proof")
		if err != nil {
			t.Fatal(err)
		}
		p, err := seal.DecodeProof(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"first.pub", "second.pub"} {
			key, err := os.ReadFile(vectors + "/" + file)
			if err != nil {
				t.Fatal(err)
			}
			g := ring(t, strings.TrimSpace(string(key)), []byte(p.Rotations[0]))
			if s, err := p.Verify(g, codec.CSVColumns); !errors.Is(err, want) || want == nil && s.Rows != 9 {
				t.Errorf("%s with %s: %+v, %v", name, file, s, err)
			}
		}
	}
}

// digestVector is a row and its hash.
type digestVector struct {
	Fields []string `json:"fields"`
	Joined string   `json:"joined_hex"`
	Hash   string   `json:"xxh3_hex"`
}

type digestFile struct {
	Rows   []digestVector `json:"rows"`
	Digest string         `json:"digest"`
}

func digestVectors(t *testing.T) []byte {
	t.Helper()
	var out digestFile
	var sum seal.Digest
	for _, fields := range [][]string{
		{""},
		{"", ""},
		{"a"},
		{"a", "b"},
		{"ab", ""},
		{"監査", "two\r\nlines", `a "quote"`},
		{"2026-11-22T04:05:06.789012Z", "18446744073709551615", "0"},
		{strings.Repeat("x", 100), strings.Repeat("y", 100)},
		{strings.Repeat("0123456789", 30)},
		{strings.Repeat("long ", 1000), `{"a":1}`},
	} {
		joined := strings.Join(fields, "\xff")
		h := seal.RowHash([]byte(joined))
		sum.Add(h)
		out.Rows = append(out.Rows, digestVector{fields, hex.EncodeToString([]byte(joined)), fmt.Sprintf("%016x", h)})
	}
	out.Digest = sum.String()
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

func TestDigestVectors(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile(vectors + "/digest.json")
	if err != nil {
		t.Fatal(err)
	}
	if got := digestVectors(t); !bytes.Equal(got, data) {
		t.Errorf("got %s", got)
	}
}

// The stores of the vectors, each laid out in a folder of its own.
func layOut(t *testing.T) (list []vector, dir string) {
	t.Helper()
	index, err := os.ReadFile(vectors + "/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(index, &list); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	for _, v := range list {
		to := filepath.Join(dir, v.Name)
		files := map[string][]byte{}
		for _, from := range []string{"good", "bad/" + v.Name} {
			root := filepath.Join(vectors, filepath.FromSlash(from))
			err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				name, err := filepath.Rel(root, p)
				if err != nil {
					return err
				}
				files[filepath.ToSlash(name)], err = os.ReadFile(p)
				return err
			})
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		for _, name := range v.Remove {
			delete(files, name)
		}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			p := filepath.Join(to, filepath.FromSlash(name))
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p, files[name], 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return list, dir
}

// A verifier that was written by SPEC.md alone, in another language, comes to the same verdicts.
func TestSecondImplementation(t *testing.T) {
	t.Parallel()
	python, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip("no python3 here")
	}
	list, dir := layOut(t)
	for _, key := range []string{"first.pub", "second.pub"} {
		args := []string{"testdata/verify.py", vectors + "/" + key}
		for _, v := range list {
			args = append(args, filepath.Join(dir, v.Name))
		}
		out, err := exec.CommandContext(t.Context(), python, args...).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		if err == nil || len(lines) != len(list) { // it ends with 1, as some are bad
			t.Fatalf("%v\n%s", err, out)
		}
		for i, v := range list {
			if ok := strings.HasSuffix(lines[i], " ok"); ok != v.OK {
				t.Errorf("%s, %s (%s): %s", key, v.Name, v.Why, lines[i])
			}
		}
		if testing.Verbose() {
			t.Logf("%s", out)
		}
	}
}

func crc(text []byte) uint32 { return crc32.ChecksumIEEE(text) }
