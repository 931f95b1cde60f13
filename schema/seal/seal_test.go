package seal_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// pair is a key of a test.
type pair struct {
	note.Signer
	public string
}

func newPair(t testing.TB) pair {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, "kansa")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		t.Fatal(err)
	}
	return pair{signer, public}
}

func manifest(t testing.TB, p schema.Partition, n int) *seal.Manifest {
	t.Helper()
	m := seal.New(p)
	if n == 0 {
		return m
	}
	c, err := read(p, text(events(p, n, 1)), whole)
	if err != nil {
		t.Fatal(err)
	}
	m.Describe(c)
	m.FileBytes, m.FileSHA256 = 100, m.CSVSHA256
	return m
}

func ring(t testing.TB, key string, rotations ...[]byte) *seal.Ring {
	t.Helper()
	g, err := seal.NewRing(key, rotations...)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// sign signs any text.
func sign(t testing.TB, text string, keys ...note.Signer) []byte {
	t.Helper()
	file, err := note.Sign(&note.Note{Text: text}, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestManifestHasOneForm(t *testing.T) {
	t.Parallel()
	m := manifest(t, hour, 5)
	m.Gaps = append(m.Gaps, seal.Gap{From: hour.Hour, To: hour.Hour.Add(90 * time.Second), By: "u-7", Reason: `to "test" <a&b> \ 監査`})
	one, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := seal.Decode(one)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := back.Encode(); err != nil || !bytes.Equal(again, one) {
		t.Errorf("again it is %s, %v", again, err)
	}
	s := string(one)
	for name, text := range map[string]string{
		"empty":          "",
		"array":          "[]\n",
		"no line break":  strings.TrimSuffix(s, "\n"),
		"one line":       strings.ReplaceAll(s, "\n", ""),
		"blank":          strings.Replace(s, ": 5", ":  5", 1),
		"unknown field":  strings.Replace(s, "{\n", "{\n  \"more\": 1,\n", 1),
		"twice":          strings.Replace(s, "  \"rows\": 5,\n", "  \"rows\": 5,\n  \"rows\": 5,\n", 1),
		"other case":     strings.Replace(s, `"rows"`, `"Rows"`, 1),
		"missing":        strings.Replace(s, "  \"rows\": 5,\n", "", 1),
		"float":          strings.Replace(s, ": 5,", ": 5.0,", 1),
		"escape":         strings.Replace(s, `"acme"`, `"\u0061cme"`, 1),
		"html escape":    strings.Replace(s, `<a&b>`, `\u003ca\u0026b\u003e`, 1),
		"time zone":      strings.Replace(s, "04:00:00Z", "04:00:00+00:00", 1),
		"upper case":     strings.Replace(s, m.CSVSHA256, strings.ToUpper(m.CSVSHA256), 1),
		"version":        strings.Replace(s, `"version": 1`, `"version": 2`, 1),
		"schema":         strings.Replace(s, `"schema_version": 2`, `"schema_version": 3`, 1),
		"two objects":    s + s,
		"null gaps":      strings.Replace(string(mustEncode(t, manifest(t, hour, 5))), "[]", "null", 1),
		"organization":   strings.Replace(s, `"acme"`, `"ac me"`, 1),
		"trail":          strings.Replace(s, `"activity"`, `"music"`, 1),
		"rows":           strings.Replace(s, `"rows": 5`, `"rows": 6`, 1),
		"chain":          strings.Replace(s, `"number": 1`, `"number": 2`, 1),
		"number 0":       strings.Replace(s, `"number": 1`, `"number": 0`, 1),
		"hour":           strings.Replace(s, `"2026-11-22T05:00:00Z",`, `"2026-11-22T05:00:01Z",`, 1),
		"gap outside":    strings.Replace(s, `"from": "2026-11-22T04:00:00Z"`, `"from": "2026-11-22T03:00:00Z"`, 1),
		"gap separators": strings.Replace(s, "監査", "\u2028", 1),
	} {
		if text == s {
			t.Errorf("%s: the case changes nothing", name)
		}
		if got, err := seal.Decode([]byte(text)); !errors.Is(err, seal.ErrManifest) {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
	for name, spoil := range map[string]func(m *seal.Manifest){
		"rows without text": func(m *seal.Manifest) { m.CSVSHA256 = "" },
		"no rows":           func(m *seal.Manifest) { m.Rows, m.Digest = 0, seal.Digest{} },
		"sequence":          func(m *seal.Manifest) { m.FirstSeq = m.LastSeq + 1 },
		"local time":        func(m *seal.Manifest) { m.HourStart = m.HourStart.In(time.FixedZone("", 0)) },
		"no gaps":           func(m *seal.Manifest) { m.Gaps = nil },
		"control character": func(m *seal.Manifest) {
			m.Gaps = []seal.Gap{{From: m.HourStart, To: m.HourEnd, By: "a\x00", Reason: "b"}}
		},
		"previous": func(m *seal.Manifest) { m.Previous = m.CSVSHA256 },
	} {
		m := manifest(t, hour, 5)
		spoil(m)
		if text, err := m.Encode(); !errors.Is(err, seal.ErrManifest) {
			t.Errorf("%s: got %s, %v", name, text, err)
		}
	}
}

func mustEncode(t testing.TB, m *seal.Manifest) []byte {
	t.Helper()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// One flipped bit anywhere in a manifest's file is found.
func TestEveryFlippedBitOfAManifestIsFound(t *testing.T) {
	t.Parallel()
	k := newPair(t)
	file, err := seal.Sign(manifest(t, hour, 2), k)
	if err != nil {
		t.Fatal(err)
	}
	g := ring(t, k.public)
	if s, err := g.Open(file); err != nil || s.Rows != 2 || s.Generation != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	signature := bytes.LastIndex(file, []byte("\n\n"))
	for i := range len(file) * 8 {
		if i/8 < signature && i%8 != i/8%8 { // one bit of each byte that is signed, all of the others
			continue
		}
		bad := bytes.Clone(file)
		bad[i/8] ^= 1 << (i % 8)
		if s, err := g.Open(bad); err == nil {
			t.Errorf("bit %d of byte %d: %q is taken for %+v", i%8, i/8, bad[i/8], s)
		}
	}
	for _, cut := range []int{0, 1, len(file) / 2, len(file) - 1} {
		if _, err := g.Open(file[:cut]); err == nil {
			t.Errorf("%d bytes of it are taken for a manifest", cut)
		}
	}
}

func TestSignatures(t *testing.T) {
	t.Parallel()
	k, other := newPair(t), newPair(t)
	m := manifest(t, hour, 1)
	file, err := seal.Sign(m, k)
	if err != nil {
		t.Fatal(err)
	}
	text := string(mustEncode(t, m))
	lines := string(file[len(text)+1:])
	code := strings.TrimSuffix(strings.TrimPrefix(lines, "— kansa "), "\n")
	stray := []byte(code)
	at := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", stray[len(stray)-2])
	stray[len(stray)-2] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"[at|1]
	if raw, err := base64.StdEncoding.DecodeString(string(stray)); err != nil || base64.StdEncoding.EncodeToString(raw) != code {
		t.Fatal("the stray bit is none")
	}
	g := ring(t, k.public)
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"other key":      {sign(t, text, other), seal.ErrSignature},
		"changed":        {bytes.Replace(file, []byte(`"rows": 1`), []byte(`"rows": 2`), 1), seal.ErrSignature},
		"stray bits":     {[]byte(text + "\n— kansa " + string(stray) + "\n"), seal.ErrManifest},
		"twice":          {append(bytes.Clone(file), lines...), seal.ErrManifest},
		"not a manifest": {sign(t, "{}\n", k), seal.ErrManifest},
		"other form":     {sign(t, strings.Replace(text, "{\n", "{ \n", 1), k), seal.ErrManifest},
		"text alone":     {[]byte(text), seal.ErrManifest},
		"nothing":        {nil, seal.ErrManifest},
	} {
		if s, err := g.Open(c.file); !errors.Is(err, c.want) {
			t.Errorf("%s: got %+v, %v; want %v", name, s, err, c.want)
		}
	}
	// Somebody else may sign as well; it changes neither what is said nor the chain.
	both := sign(t, text, k, other)
	s, err := g.Open(both)
	if err != nil {
		t.Fatal(err)
	}
	alone, err := seal.Parse(file)
	if err != nil || alone.TextHash() != s.TextHash() {
		t.Errorf("cosigned it has hash %s, alone %s, %v", s.TextHash(), alone.TextHash(), err)
	}
}

func TestRotations(t *testing.T) {
	t.Parallel()
	a, b, c, stranger := newPair(t), newPair(t), newPair(t), newPair(t)
	at := func(h int) time.Time { return hour.Hour.Add(time.Duration(h) * time.Hour) }
	rotation := func(n uint64, old, successor pair, at time.Time) *seal.Rotation {
		return &seal.Rotation{Version: 1, Number: n, OldKey: old.public, NewKey: successor.public, Time: at}
	}
	rotate := func(n uint64, old, successor pair, at time.Time) []byte {
		file, err := seal.SignRotation(rotation(n, old, successor, at), old, successor)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	ab, bc := rotate(1, a, b, at(1)), rotate(2, b, c, at(2))
	sealedBy := func(k pair, h int) []byte {
		p := hour
		p.Hour = at(h)
		file, err := seal.Sign(manifest(t, p, 0), k)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	for _, trusted := range []pair{a, b, c} {
		g := ring(t, trusted.public, ab, bc)
		if want := []string{a.public, b.public, c.public}; !slices.Equal(g.Keys(), want) || g.Current() != c.public {
			t.Errorf("keys %v, want %v", g.Keys(), want)
		}
		for generation, k := range []pair{a, b, c} {
			if s, err := g.Open(sealedBy(k, generation)); err != nil || s.Generation != generation {
				t.Errorf("sealed by key %d: %+v, %v", generation, s, err)
			}
		}
		// The hour in which a key was rotated may be sealed by either; a later one not by the old.
		if _, err := g.Open(sealedBy(b, 0)); err != nil {
			t.Error(err)
		}
		if _, err := g.Open(sealedBy(a, 1)); !errors.Is(err, seal.ErrRetired) {
			t.Errorf("the first key after its time: %v", err)
		}
		if _, err := g.Open(sealedBy(stranger, 2)); !errors.Is(err, seal.ErrSignature) {
			t.Errorf("a stranger's key: %v", err)
		}
	}
	text, _, _ := strings.Cut(string(ab), "\n\n")
	for name, c := range map[string]struct {
		key  pair
		list [][]byte
		want error
	}{
		"stranger":     {stranger, [][]byte{ab, bc}, seal.ErrSignature},
		"first gone":   {c, [][]byte{bc}, seal.ErrRotation},
		"swapped":      {a, [][]byte{bc, ab}, seal.ErrRotation},
		"not joined":   {a, [][]byte{ab, rotate(2, stranger, c, at(2))}, seal.ErrRotation},
		"back":         {a, [][]byte{ab, rotate(2, b, a, at(2))}, seal.ErrRotation},
		"back in time": {a, [][]byte{ab, rotate(2, b, c, at(0))}, seal.ErrRotation},
		"old alone":    {a, [][]byte{sign(t, text+"\n", a)}, seal.ErrSignature},
		"new alone":    {a, [][]byte{sign(t, text+"\n", b)}, seal.ErrSignature},
		"changed":      {a, [][]byte{bytes.Replace(ab, []byte("05:00"), []byte("06:00"), 1)}, seal.ErrSignature},
		"a manifest":   {a, [][]byte{sealedBy(a, 0)}, seal.ErrRotation},
		"no note":      {a, [][]byte{[]byte("x")}, seal.ErrRotation},
	} {
		if g, err := seal.NewRing(c.key.public, c.list...); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, %v; want %v", name, g, err, c.want)
		}
	}
	if _, err := seal.NewRing("kansa+1+x"); err == nil {
		t.Error("nonsense is taken for a key")
	}
	if _, err := seal.SignRotation(rotation(0, a, b, at(1)), a, b); !errors.Is(err, seal.ErrRotation) {
		t.Errorf("number 0: %v", err)
	}
}

// proofOf proves one row of a partition of n.
func proofOf(t testing.TB, k pair, n int, index uint64) *seal.Proof {
	t.Helper()
	m := manifest(t, hour, n)
	r := seal.NewRows(hour, codec.CSVColumns)
	r.Expect = uint64(n)
	r.Each = func(row seal.Row) bool { return row.Index == index }
	if _, err := r.Write(text(events(hour, n, 1))); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Close(); err != nil {
		t.Fatal(err)
	}
	p, err := r.Proof()
	if err != nil {
		t.Fatal(err)
	}
	file, err := seal.Sign(m, k)
	if err != nil {
		t.Fatal(err)
	}
	p.Manifest = string(file)
	return p
}

func TestEveryRowCanBeProved(t *testing.T) {
	t.Parallel()
	k := newPair(t)
	g := ring(t, k.public)
	for n := 1; n <= 17; n++ {
		for i := range uint64(n) {
			p := proofOf(t, k, n, i)
			data, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if p, err = seal.DecodeProof(data); err != nil {
				t.Fatal(err)
			}
			if s, err := p.Verify(g, codec.CSVColumns); err != nil || s.Rows != uint64(n) {
				t.Fatalf("row %d of %d: %+v, %v", i, n, s, err)
			}
			p.Index = (i + 1) % uint64(n)
			if _, err := p.Verify(g, codec.CSVColumns); n > 1 && !errors.Is(err, seal.ErrProof) {
				t.Errorf("row %d of %d as another: %v", i, n, err)
			}
		}
	}
}

func TestFalseProofs(t *testing.T) {
	t.Parallel()
	k := newPair(t)
	g := ring(t, k.public)
	for name, spoil := range map[string]func(p *seal.Proof){
		"row":        func(p *seal.Proof) { p.Row = strings.Replace(p.Row, "success", "failure", 1) },
		"two rows":   func(p *seal.Proof) { p.Row += p.Row },
		"no row":     func(p *seal.Proof) { p.Row = "" },
		"half a row": func(p *seal.Proof) { p.Row = p.Row[:20] },
		"path":       func(p *seal.Proof) { p.Path[0] = p.Path[1] },
		"short path": func(p *seal.Proof) { p.Path = p.Path[1:] },
		"long path":  func(p *seal.Proof) { p.Path = append(p.Path, p.Path[0]) },
		"odd path":   func(p *seal.Proof) { p.Path[0] = "xyz" },
		"beyond":     func(p *seal.Proof) { p.Index = 10 },
		"manifest":   func(p *seal.Proof) { p.Manifest = strings.Replace(p.Manifest, `"rows": 10`, `"rows": 11`, 1) },
	} {
		p := proofOf(t, k, 10, 4)
		before := fmt.Sprint(*p)
		if spoil(p); fmt.Sprint(*p) == before {
			t.Errorf("%s: the case changes nothing", name)
		}
		if s, err := p.Verify(g, codec.CSVColumns); !errors.Is(err, seal.ErrProof) && !errors.Is(err, seal.ErrSignature) {
			t.Errorf("%s: got %+v, %v", name, s, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	k := newPair(f)
	good, err := seal.Sign(manifest(f, hour, 2), k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}\n\n— kansa AAAAAAAA\n"))
	g := ring(f, k.public)
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := seal.Parse(file)
		if opened, err := g.Open(file); err == nil && !bytes.HasPrefix(good, append(opened.Text, '\n')) {
			t.Errorf("forged: %q", file)
		}
		if err != nil {
			return
		}
		again, err := s.Encode()
		if err != nil || !bytes.Equal(again, s.Text) {
			t.Errorf("%q is taken for a manifest, whose form is %q, %v", s.Text, again, err)
		}
	})
}

func FuzzProof(f *testing.F) {
	k := newPair(f)
	good, err := proofOf(f, k, 5, 3).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := seal.DecodeProof(data)
		if err != nil {
			return
		}
		if again, err := p.Encode(); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q is taken for a proof, whose form is %q, %v", data, again, err)
		}
		if _, err := p.Verify(ring(t, k.public), codec.CSVColumns); err == nil && !strings.Contains(string(good), p.Row[:20]) {
			t.Errorf("forged: %q", data)
		}
	})
}
