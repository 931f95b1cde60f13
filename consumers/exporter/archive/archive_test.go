package archive_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

var modified = time.Date(2026, 11, 22, 4, 59, 59, 0, time.UTC)

// csv makes n rows that compress about as audit rows do.
func csv(n int, seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "%016x,2026-11-22T04:%02d:%02dZ,report.published,user-%d,10.0.%d.%d\r\n",
			rnd.Uint64(), i/60%60, i%60, rnd.IntN(500), rnd.IntN(256), rnd.IntN(256))
	}
	return b.Bytes()
}

func gz(t testing.TB, data []byte, level int) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func opener(data []byte) archive.Opener {
	return func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
		return io.NopCloser(io.NewSectionReader(bytes.NewReader(data), offset, length)), nil
	}
}

func fromGzip(t testing.TB, name string, data []byte, level int) archive.Entry {
	t.Helper()
	file := gz(t, data, level)
	e, err := archive.FromGzip(t.Context(), name, modified, int64(len(file)), opener(file), nil)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustNew(t testing.TB, entries ...archive.Entry) *archive.Archive {
	t.Helper()
	a, err := archive.New(entries)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func whole(t testing.TB, a *archive.Archive) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := a.WriteTo(t.Context(), &b)
	if err != nil {
		t.Fatal(err)
	}
	if n != a.Size() || int64(b.Len()) != n {
		t.Fatalf("wrote %d bytes, returned %d, Size is %d", b.Len(), n, a.Size())
	}
	return b.Bytes()
}

func sample(t testing.TB) (*archive.Archive, map[string][]byte) {
	want := map[string][]byte{"README.txt": []byte("what this is"), "empty.json": {}}
	entries := []archive.Entry{archive.FromBytes("README.txt", modified, want["README.txt"])}
	for level := 1; level <= 9; level++ {
		name := fmt.Sprintf("acme/activity/2026/11/22/%02d.csv", level)
		want[name] = csv(300*level, uint64(level))
		entries = append(entries, fromGzip(t, name, want[name], level))
	}
	want["日本/監査 log.csv"] = nil
	entries = append(entries, fromGzip(t, "日本/監査 log.csv", nil, 6), archive.FromBytes("empty.json", time.Time{}, nil))
	return mustNew(t, entries...), want
}

func TestStandardLibraryReadsWhatWasCopied(t *testing.T) {
	a, want := sample(t)
	data := whole(t, a)
	zr, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if len(zr.File) != len(want) {
		t.Fatalf("got %d files, want %d", len(zr.File), len(want))
	}
	for _, f := range zr.File {
		rc, err := f.Open()
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		got, err := io.ReadAll(rc)
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		if !bytes.Equal(got, want[f.Name]) {
			t.Errorf("%s: contents differ", f.Name)
		}
		if f.Flags&0x8 != 0 {
			t.Errorf("%s: has a data descriptor", f.Name)
		}
		if f.Name != "empty.json" && !f.Modified.Equal(modified) {
			t.Errorf("%s: modified %v, want %v", f.Name, f.Modified, modified)
		}
	}
}

func TestUnzipAndPythonAgree(t *testing.T) {
	a, want := sample(t)
	path := filepath.Join(t.TempDir(), "a.zip")
	if err := os.WriteFile(path, whole(t, a), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `
import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
assert z.testzip() is None
print(len(z.namelist()))
`
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"unzip", "-t", path}, "No errors detected"},
		{[]string{"python3", "-c", script, path}, fmt.Sprint(len(want))},
	} {
		if _, err := exec.LookPath(c.args[0]); err != nil {
			if os.Getenv("REQUIRE_ALL") != "" {
				t.Fatal(err)
			}
			t.Logf("left out: %v", err)
			continue
		}
		out, err := exec.CommandContext(t.Context(), c.args[0], c.args[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v\n%s", c.args[0], err, out)
		}
	}
}

func TestEveryRangeIsASliceOfTheWhole(t *testing.T) {
	a := mustNew(t,
		archive.FromBytes("a.txt", modified, []byte("abc")),
		fromGzip(t, "b/c.csv", []byte("one,two\r\n"), 6),
		archive.FromBytes("empty", modified, nil),
	)
	data := whole(t, a)
	seeker := a.NewReader(t.Context())
	defer seeker.Close()
	for offset := range len(data) + 1 {
		for end := offset; end <= len(data); end++ {
			r, err := a.ReadRange(t.Context(), int64(offset), int64(end-offset))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, data[offset:end]) {
				t.Fatalf("range [%d,%d): %v, got %d bytes", offset, end, err, len(got))
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := seeker.Seek(int64(offset), io.SeekStart); err != nil {
				t.Fatal(err)
			}
			got = make([]byte, end-offset)
			if _, err := io.ReadFull(seeker, got); err != nil || !bytes.Equal(got, data[offset:end]) {
				t.Fatalf("seek [%d,%d): %v", offset, end, err)
			}
		}
	}
	if _, err := a.ReadRange(t.Context(), 1, a.Size()); err == nil {
		t.Error("a range beyond the end was accepted")
	}
}

func TestReaderIsAGoodReader(t *testing.T) {
	a, _ := sample(t)
	r := a.NewReader(t.Context())
	defer r.Close()
	if err := iotest.TestReader(r, whole(t, a)); err != nil {
		t.Fatal(err)
	}
}

func TestServeContentOpensOnlyWhatIsAsked(t *testing.T) {
	var opened atomic.Int64
	entries := make([]archive.Entry, 20)
	for i := range entries {
		e := fromGzip(t, fmt.Sprintf("%02d.csv", i), csv(200, uint64(i)), 3)
		inner := e.Open
		e.Open = func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			opened.Add(1)
			return inner(ctx, offset, length)
		}
		entries[i] = e
	}
	a := mustNew(t, entries...)
	data := whole(t, a)
	opened.Store(0)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("ETag", a.ETag())
		r := a.NewReader(req.Context())
		defer r.Close()
		http.ServeContent(w, req, "a.zip", modified, r)
	}))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	from, to := len(data)/2, len(data)/2+99
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to))
	req.Header.Set("If-Range", a.ETag())
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(got, data[from:to+1]) {
		t.Fatalf("status %d, %d bytes, %v", resp.StatusCode, len(got), err)
	}
	if n := opened.Load(); n > 2 {
		t.Errorf("%d sources were opened for 100 bytes", n)
	}
}

func TestSameEntriesSameBytes(t *testing.T) {
	a, _ := sample(t)
	b, _ := sample(t)
	if a.ETag() != b.ETag() || !bytes.Equal(whole(t, a), whole(t, b)) {
		t.Fatal("the same entries gave another archive")
	}
	c := mustNew(t, archive.FromBytes("README.txt", modified, []byte("other")))
	if c.ETag() == a.ETag() {
		t.Fatal("other entries gave the same ETag")
	}
}

func TestSourceThatLies(t *testing.T) {
	file := gz(t, csv(2000, 1), 6)
	for _, c := range []struct {
		name string
		open archive.Opener
		want error
	}{
		{"shorter", func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			return opener(file)(ctx, off+10, n-min(n, 7))
		}, archive.ErrSource},
		{"longer", func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
			return opener(file)(ctx, off+10, n+1)
		}, archive.ErrSource},
		{"gone", func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, os.ErrNotExist }, os.ErrNotExist},
		{"broken", func(context.Context, int64, int64) (io.ReadCloser, error) {
			return io.NopCloser(iotest.ErrReader(os.ErrDeadlineExceeded)), nil
		}, os.ErrDeadlineExceeded},
		{"silent", func(context.Context, int64, int64) (io.ReadCloser, error) {
			return io.NopCloser(mute{}), nil
		}, io.ErrNoProgress},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := fromGzip(t, "dir/hour.csv", csv(2000, 1), 6)
			e.Open = c.open
			_, err := mustNew(t, e).WriteTo(t.Context(), io.Discard)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), `"dir/hour.csv"`) {
				t.Fatalf("got %v, want %v naming the entry", err, c.want)
			}
		})
	}
}

type mute struct{}

func (mute) Read([]byte) (int, error) { return 0, nil }

func TestCancelledCopyEnds(t *testing.T) {
	a, _ := sample(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("the download was revoked")
	w := writerFunc(func(p []byte) (int, error) { cancel(cause); return len(p), nil })
	n, err := a.WriteTo(ctx, w)
	if !errors.Is(err, cause) || n >= a.Size() {
		t.Fatalf("wrote %d of %d, %v", n, a.Size(), err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestNames(t *testing.T) {
	for _, name := range []string{
		"", "/a", "../a", "a/../b", "a//b", "a/", "./a", `a\b`, "a:b", "a<b", "a?", "a*", `a"`, "a|b", "a.", "a ",
		"a./b", "CON", "con.txt", "a/nul.csv", "COM1", "lpt9.x", "com¹", "a\x00b", "a\nb", "\xff", strings.Repeat("x", 256), "CONIN$",
	} {
		if err := archive.CheckName(name); !errors.Is(err, archive.ErrName) {
			t.Errorf("%q was accepted: %v", name, err)
		}
	}
	for _, name := range []string{"a", "a/b.csv", "acme/activity/2026/11/22/04.csv", "console", "COM10", "日本.csv", "a..b", ".hidden", "com"} {
		if err := archive.CheckName(name); err != nil {
			t.Errorf("%q was refused: %v", name, err)
		}
	}
	for _, pair := range [][]string{{"a", "a"}, {"A", "a"}, {"a", "a/b"}, {"a/b/c", "A"}} {
		var entries []archive.Entry
		for _, name := range pair {
			entries = append(entries, archive.FromBytes(name, modified, nil))
		}
		if _, err := archive.New(entries); !errors.Is(err, archive.ErrName) {
			t.Errorf("%q were accepted together: %v", pair, err)
		}
	}
}

func TestEntriesThatCanNotBe(t *testing.T) {
	for _, e := range []archive.Entry{
		{Name: "a", Method: 12},
		{Name: "a", CompressedSize: -1},
		{Name: "a", CompressedSize: 3, UncompressedSize: 4},
		{Name: "a", Method: archive.Deflated, CompressedSize: 3, UncompressedSize: 4},
	} {
		if _, err := archive.New([]archive.Entry{e}); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
}

func BenchmarkWriteTo(b *testing.B) {
	data := csv(200_000, 1)
	file := gz(b, data, 3)
	content := archive.Content{Size: int64(len(data)), CRC32: crc32.ChecksumIEEE(data)}
	e, err := archive.FromGzip(b.Context(), "0.csv", modified, int64(len(file)), opener(file), &content)
	if err != nil {
		b.Fatal(err)
	}
	entries := make([]archive.Entry, 24)
	for i := range entries {
		entries[i] = e
		entries[i].Name = fmt.Sprintf("%02d.csv", i)
	}
	a := mustNew(b, entries...)
	b.SetBytes(a.Size())
	for b.Loop() {
		// A writer that touches the bytes, as a socket would; io.Discard would measure nothing.
		sink := make([]byte, 256<<10)
		if _, err := a.WriteTo(b.Context(), writerFunc(func(p []byte) (int, error) { return copy(sink, p), nil })); err != nil {
			b.Fatal(err)
		}
	}
}

// Reading ahead opens several sources at once, in bounds, and gives the same bytes; a fault of any of them
// is told where its entry is.
func TestSourcesAreOpenedAhead(t *testing.T) {
	const files = 60
	var open, most, opened atomic.Int64
	gate := make(chan struct{})
	entries := make([]archive.Entry, files)
	for i := range entries {
		e := fromGzip(t, fmt.Sprintf("%02d.csv", i), csv(100, uint64(i)), 1)
		inner := e.Open
		e.Open = func(ctx context.Context, offset, length int64) (io.ReadCloser, error) {
			if opened.Add(1) == 4 {
				close(gate) // several are under way: a far store's answers overlap
			}
			for n := open.Add(1); ; {
				if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
					break
				}
			}
			defer open.Add(-1)
			<-gate
			return inner(ctx, offset, length)
		}
		entries[i] = e
	}
	a := mustNew(t, entries...)
	data := whole(t, a)
	if n := most.Load(); n < 4 || n > 17 {
		t.Errorf("%d sources were opened at once", n)
	}
	for _, size := range []int{1, 7, 1000, 32 << 10} { // the reader begins slowly, and comes to the same
		r := a.NewReader(t.Context())
		got, err := io.ReadAll(io.LimitReader(r, int64(len(data)/2)))
		if err != nil || !bytes.Equal(got, data[:len(data)/2]) {
			t.Errorf("the first half differs, %v", err)
		}
		if _, err := r.Seek(int64(size), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		got, err = io.ReadAll(r)
		if err != nil || !bytes.Equal(got, data[size:]) {
			t.Errorf("what follows byte %d differs, %v", size, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	fault := errors.New("the store is away")
	entries[40].Open = func(context.Context, int64, int64) (io.ReadCloser, error) { return nil, fault }
	var got bytes.Buffer
	if _, err := a.WriteTo(t.Context(), &got); !errors.Is(err, fault) || !strings.Contains(err.Error(), `"40.csv"`) {
		t.Errorf("got %v", err)
	}
	if !bytes.HasPrefix(data, got.Bytes()) {
		t.Error("what was written before is not the archive's beginning")
	}
}

// A file that is another one, of the same size, is found by Check, and when it is copied; a middle of it is
// not looked at.
func TestAnotherFileOfTheSameSize(t *testing.T) {
	data := csv(500, 1)
	file := gz(t, data, 6)
	known := archive.Content{Size: int64(len(data)), CRC32: crc32.ChecksumIEEE(data)}
	spoiled := func(at int) []byte {
		b := bytes.Clone(file)
		b[at] ^= 1
		return b
	}
	for name, c := range map[string]struct {
		file []byte
		want error
	}{
		"right": {file, nil}, "header": {spoiled(3), archive.ErrGzip}, "crc": {spoiled(len(file) - 8), archive.ErrGzip},
		"length": {spoiled(len(file) - 1), archive.ErrGzip}, "short": {file[:len(file)-3], archive.ErrSource},
	} {
		e, err := archive.FromKnownGzip("04.csv", modified, int64(len(file)), opener(c.file), known)
		if err != nil {
			t.Fatal(err)
		}
		a := mustNew(t, e)
		_, err = a.WriteTo(t.Context(), io.Discard)
		if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), "04.csv") {
			t.Errorf("%s: copied with %v, want %v", name, err, c.want)
		}
		if err := a.Check(t.Context()); (err != nil) != (c.want != nil) {
			t.Errorf("%s: checked with %v", name, err)
		}
	}
	for _, size := range []int64{0, 19, 20} {
		if _, err := archive.FromKnownGzip("a", modified, size, opener(file), known); !errors.Is(err, archive.ErrGzip) {
			t.Errorf("%d bytes were taken for %d", size, known.Size)
		}
	}
}
