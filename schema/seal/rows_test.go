package seal_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
	"github.com/kansa-audit/kansa/schema/seal"
)

var hour = schema.Partition{
	Organization: "acme", Trail: schema.Activity, Hour: time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC), Length: time.Hour,
}

// events makes n events of a partition, with all that makes CSV hard.
func events(p schema.Partition, n int, seed uint64) []codec.Stored {
	source := sample.New(seed, func() time.Time { return p.Hour })
	out := make([]codec.Stored, n)
	for i := range out {
		e := &out[i]
		e.Event = source.Next()
		e.Organization, e.Trail = p.Organization, p.Trail
		e.RecordedAt = p.Hour.Add(time.Duration(i) * p.Length / time.Duration(n)).Truncate(time.Microsecond)
		e.StreamSeq, e.BatchIndex = uint64(1000+i/3), uint32(i%3)
		if i%7 == 0 {
			e.Description = "two\r\nlines, a \"quote\", a comma and 監査\n"
		}
	}
	return out
}

func text(list []codec.Stored) []byte {
	b := codec.AppendCSVHeader(nil)
	for i := range list {
		b = codec.AppendCSV(b, &list[i])
	}
	return b
}

// read passes a text in pieces of at most so many bytes.
func read(p schema.Partition, text []byte, piece func() int) (seal.Content, error) {
	r := seal.NewRows(p, codec.CSVColumns)
	for rest := text; len(rest) > 0; {
		n := min(max(piece(), 1), len(rest))
		if _, err := r.Write(rest[:n]); err != nil {
			return seal.Content{}, err
		}
		rest = rest[n:]
	}
	return r.Close()
}

func whole() int { return 1 << 30 }

// root is RFC 6962, section 2.1, word for word.
func root(leaves [][]byte) [32]byte {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return sha256.Sum256(append([]byte{0}, leaves[0]...))
	default:
		k := 1
		for k*2 < n {
			k *= 2
		}
		left, right := root(leaves[:k]), root(leaves[k:])
		return sha256.Sum256(slices.Concat([]byte{1}, left[:], right[:]))
	}
}

// fields takes a line apart, a byte at a time. (encoding/csv changes line breaks within quotes.)
func fields(line string) (out []string) {
	var field strings.Builder
	quoted := false
	line = strings.TrimSuffix(line, "\r\n") + ","
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '"' && quoted && line[i+1] == '"':
			field.WriteByte('"')
			i++
		case line[i] == '"':
			quoted = !quoted
		case line[i] == ',' && !quoted:
			out = append(out, field.String())
			field.Reset()
		default:
			field.WriteByte(line[i])
		}
	}
	return out
}

// What Rows says is what the plainest code says.
func TestRowsAgainstPlainCode(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 100, 1000} {
		list := events(hour, n, uint64(n))
		data := text(list)
		want := seal.Content{
			Rows: uint64(n), Bytes: int64(len(data)), SHA256: sha256.Sum256(data), CRC32: crc32.ChecksumIEEE(data),
			Digest: seal.Digest{Rows: uint64(n)},
		}
		leaves := make([][]byte, n)
		for i := range list {
			leaves[i] = codec.AppendCSV(nil, &list[i])
			want.Digest.Sum += xxh3.HashString(strings.Join(fields(string(leaves[i])), "\xff"))
			if i == 0 {
				want.FirstSeq = list[i].StreamSeq
			}
			want.LastSeq = list[i].StreamSeq
		}
		want.Root = root(leaves)
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		for name, piece := range map[string]func() int{
			"whole": whole, "bytes": func() int { return 1 }, "any": func() int { return rng.IntN(2000) },
		} {
			if got, err := read(hour, data, piece); err != nil || got != want {
				t.Errorf("%d rows, %s: got %+v, %v\nwant %+v", n, name, got, err, want)
			}
		}
	}
	if got, err := read(hour, nil, whole); err != nil || got.Rows != 0 || got.Root != seal.EmptyRoot {
		t.Errorf("no text: %+v, %v", got, err)
	}
}

// Each fault is told with its row and place, and whichever way the text is cut.
func TestRowsFaults(t *testing.T) {
	t.Parallel()
	good := func() []codec.Stored { return events(hour, 4, 9) }
	lines := func(list []codec.Stored) []string {
		out := []string{string(codec.AppendCSVHeader(nil))}
		for i := range list {
			out = append(out, string(codec.AppendCSV(nil, &list[i])))
		}
		return out
	}
	change := func(f func(list []codec.Stored)) string {
		list := good()
		f(list)
		return strings.Join(lines(list), "")
	}
	edit := func(row int, f func(line string) string) string {
		all := lines(good())
		all[row] = f(all[row])
		return strings.Join(all, "")
	}
	for name, c := range map[string]struct {
		text string
		row  uint64
		says string
	}{
		"header":        {edit(0, func(s string) string { return strings.Replace(s, "source", "sauce", 1) }), 0, "sauce"},
		"no header":     {edit(0, func(string) string { return "" }), 0, "recorded_at"},
		"organization":  {change(func(l []codec.Stored) { l[2].Organization = "globex" }), 3, `"globex"`},
		"trail":         {change(func(l []codec.Stored) { l[1].Trail = schema.Access }), 2, `"access"`},
		"too early":     {change(func(l []codec.Stored) { l[0].RecordedAt = hour.Hour.Add(-time.Microsecond) }), 1, "not within the hour"},
		"too late":      {change(func(l []codec.Stored) { l[3].RecordedAt = hour.End() }), 4, "not within the hour"},
		"twice":         {change(func(l []codec.Stored) { l[2] = l[1] }), 3, "does not come after"},
		"swapped":       {change(func(l []codec.Stored) { l[2], l[1] = l[1], l[2] }), 3, "does not come after"},
		"time":          {edit(2, func(s string) string { return strings.Replace(s, "Z", " ", 1) }), 2, "recorded_at"},
		"number":        {edit(1, func(s string) string { return strings.Replace(s, ",1000,", ",01000,", 1) }), 1, "numbers"},
		"large number":  {edit(1, func(s string) string { return strings.Replace(s, ",1000,", ",99999999999999999999,", 1) }), 1, "numbers"},
		"fewer columns": {edit(3, func(s string) string { return s[:strings.Index(s, `,"acme"`)] + "\r\n" }), 3, "columns"},
		"more columns":  {edit(3, func(s string) string { return strings.TrimSuffix(s, "\r\n") + ",\"\"\r\n" }), 3, "columns"},
		"after quotes":  {edit(3, func(s string) string { return strings.Replace(s, `"acme"`, `"acme" `, 1) }), 3, "after its end"},
		"quote within":  {edit(3, func(s string) string { return strings.Replace(s, `"acme"`, `acme"x"`, 1) }), 3, "not in quotes"},
		"unbalanced":    {edit(4, func(s string) string { return strings.Replace(s, `"acme"`, `"acme`, 1) }), 4, "balanced"},
		"lf":            {edit(2, func(s string) string { return strings.TrimSuffix(s, "\r\n") + "\n" }), 2, "CRLF"},
		"cr":            {edit(4, func(s string) string { return strings.TrimSuffix(s, "\n") }), 4, "CRLF"},
		"cut":           {edit(4, func(s string) string { return s[:len(`"2026-11-22T04:45:00.000000Z",1001`)] }), 4, "CRLF"},
		"blank line":    {edit(2, func(s string) string { return s + "\r\n" }), 3, "columns"},
		"not UTF-8":     {edit(2, func(s string) string { return strings.Replace(s, `"acme"`, "\"acme\",\"\xff\"", 1) }), 2, ""},
		"separator":     {edit(2, func(s string) string { return strings.Replace(s, `"reports"`, "\"rep\xfforts\"", 1) }), 2, "UTF-8"},
	} {
		if name == "separator" && !strings.Contains(c.text, "\xff") {
			list := good()
			list[1].Source = "a\xffb"
			c.text = strings.Join(lines(list), "")
		}
		want, err := read(hour, []byte(c.text), whole)
		var fault *seal.TextError
		if !errors.As(err, &fault) || !errors.Is(err, seal.ErrText) || fault.Row != c.row || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %+v, %v; want row %d and %q", name, want, err, c.row, c.says)
			continue
		}
		if all := lines(good()); c.row > 0 && name != "unbalanced" && !strings.HasPrefix(c.text, strings.Join(all[:c.row], "")) && fault.Offset == 0 {
			t.Errorf("%s: offset %d", name, fault.Offset)
		}
		if _, again := read(hour, []byte(c.text), func() int { return 1 }); again == nil || again.Error() != err.Error() {
			t.Errorf("%s: byte by byte it is %v, as a whole %v", name, again, err)
		}
	}
}

// A row that never ends is refused, not kept.
func TestRowsBoundsARow(t *testing.T) {
	t.Parallel()
	r := seal.NewRows(hour, codec.CSVColumns)
	if _, err := r.Write(codec.AppendCSVHeader(nil)); err != nil {
		t.Fatal(err)
	}
	piece := append([]byte{'"'}, bytes.Repeat([]byte("\n"), 64<<10)...)
	for range 100 {
		if _, err := r.Write(piece); err != nil {
			if !errors.Is(err, seal.ErrText) {
				t.Error(err)
			}
			return
		}
		piece[0] = 'x'
	}
	t.Error("6 MiB of one row were taken")
}

func TestRowsAllocateNothing(t *testing.T) {
	list := events(hour, 1000, 3)
	rows := make([][]byte, len(list))
	for i := range list {
		rows[i] = codec.AppendCSV(nil, &list[i])
	}
	r := seal.NewRows(hour, codec.CSVColumns)
	if _, err := r.Write(codec.AppendCSVHeader(nil)); err != nil {
		t.Fatal(err)
	}
	i := 0
	if n := testing.AllocsPerRun(len(rows)-1, func() {
		if _, err := r.Write(rows[i]); err != nil {
			t.Fatal(err)
		}
		i++
	}); n >= 1 {
		t.Errorf("%g allocations a row", n)
	}
}

func TestDigest(t *testing.T) {
	t.Parallel()
	var a, b, all seal.Digest
	for i := range uint64(100) {
		h := seal.RowHash(fmt.Appendf(nil, "row %d", i))
		all.Add(h)
		if i%3 == 0 {
			a.Add(h)
		} else {
			b.Add(h)
		}
	}
	b.Merge(a)
	if b != all || all.Rows != 100 {
		t.Errorf("got %v, want %v", b, all)
	}
	if got, err := seal.ParseDigest(all.String()); err != nil || got != all {
		t.Errorf("%s: %v, %v", all, got, err)
	}
	for _, s := range []string{"", ":", "1", "1:0", "01:0000000000000000", "1:000000000000000G", "1:00000000000000AA", "+1:0000000000000000", "1:0000000000000000 "} {
		if d, err := seal.ParseDigest(s); !errors.Is(err, seal.ErrDigest) {
			t.Errorf("%q: %v, %v", s, d, err)
		}
	}
}

func FuzzRows(f *testing.F) {
	f.Add(text(events(hour, 3, 1)), uint64(1))
	f.Add([]byte("\"a\r\n"), uint64(2))
	f.Add(append(text(nil), "\"2026-11-22T04:00:00.000000Z\",1,2,\"acme\",\"activity\"\r\n"...), uint64(3))
	f.Add(bytes.TrimSuffix(text(events(hour, 2, 5)), []byte("\n")), uint64(4))
	f.Fuzz(func(t *testing.T, data []byte, seed uint64) {
		want, wantErr := read(hour, data, whole)
		rng := rand.New(rand.NewPCG(seed, 0))
		got, err := read(hour, data, func() int { return rng.IntN(1 + len(data)/3) })
		if got != want || (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Errorf("as a whole: %+v, %v; in pieces: %+v, %v", want, wantErr, got, err)
		}
		if err != nil {
			return
		}
		rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
		if len(data) > 0 && (err != nil || uint64(len(rows)) != want.Rows+1) {
			t.Errorf("encoding/csv reads %d rows, %v; Rows %d", len(rows)-1, err, want.Rows)
		}
	})
}

// BenchmarkRows is what sealing costs: MB/s of CSV on one core.
func BenchmarkRows(b *testing.B) {
	data := text(events(hour, 50_000, 1))
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		r := seal.NewRows(hour, codec.CSVColumns)
		if _, err := io.CopyBuffer(struct{ io.Writer }{r}, struct{ io.Reader }{bytes.NewReader(data)}, make([]byte, 256<<10)); err != nil {
			b.Fatal(err)
		}
		if _, err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
