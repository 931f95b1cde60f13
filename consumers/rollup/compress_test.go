package rollup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/kansa-audit/kansa/consumers/exporter/archive"
)

// textOf makes rows as a CSV has them, some with line breaks within quotes.
func textOf(rows int) []byte {
	rnd := rand.New(rand.NewPCG(1, uint64(rows)))
	b := []byte("\"id\",\"text\"\r\n")
	for i := range rows {
		b = fmt.Appendf(b, "\"%016x\",\"row %d of \"\"many\"\",\r\nuser-%d\"\r\n", rnd.Uint64(), i, rnd.IntN(500))
	}
	return b
}

// The file is one plain member, whatever its size, for every reader there is; and the same rows are the same
// file, in whatever pieces they come.
func TestCompressedIsOnePlainMember(t *testing.T) {
	for _, rows := range []int{0, 1, 100, 15_000, 60_000} { // up to some blocks
		want := textOf(rows)
		var file, again bytes.Buffer
		var text bytes.Buffer
		stored, err := compress(&file, bytes.NewReader(want), &text)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(text.Bytes(), want) || stored.n != int64(file.Len()) {
			t.Errorf("%d rows: %d bytes of text, %d of file", rows, text.Len(), stored.n)
		}
		if head := file.Bytes()[:10]; !bytes.Equal(head[:8], []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0}) {
			t.Errorf("%d rows: the header is %x", rows, head)
		}
		gz, err := gzip.NewReader(bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		gz.Multistream(false)
		if got, err := io.ReadAll(gz); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d rows: %d bytes come out of %d, %v", rows, len(got), len(want), err)
		}
		open := func(_ context.Context, offset, length int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(bytes.NewReader(file.Bytes()), offset, length)), nil
		}
		content := archive.Content{Size: int64(len(want)), CRC32: crc32.ChecksumIEEE(want)}
		if _, err := archive.FromGzip(t.Context(), "04.csv", time.Time{}, stored.n, open, &content); err != nil {
			t.Errorf("%d rows: no archive takes it: %v", rows, err)
		}
		if _, err := compress(&again, iotest.HalfReader(bytes.NewReader(want))); err != nil || !bytes.Equal(again.Bytes(), file.Bytes()) {
			t.Errorf("%d rows: made again it is another file, %v", rows, err)
		}
		gunzip(t, file.Bytes(), want)
	}
}

// gunzip holds the file against what the system's own program makes of it.
func gunzip(t *testing.T, file, want []byte) {
	t.Helper()
	program, err := exec.LookPath("gunzip")
	if err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Logf("left out: %v", err)
		return
	}
	cmd := exec.CommandContext(t.Context(), program, "-c")
	cmd.Stdin = bytes.NewReader(file)
	if got, err := cmd.Output(); err != nil || !bytes.Equal(got, want) {
		t.Errorf("gunzip: %d bytes, %v; want %d", len(got), err, len(want))
	}
}

// A failure of either end, or of a sink, is told, and leaves nothing running: TestMain looks.
func TestCompressFails(t *testing.T) {
	fault := errors.New("some fault")
	long := textOf(100_000)
	for name, c := range map[string]struct {
		file io.Writer
		rows io.Reader
		sink io.Writer
		want error
	}{
		"cut off":       {io.Discard, io.MultiReader(bytes.NewReader(long[:3<<20]), iotest.ErrReader(io.ErrUnexpectedEOF)), io.Discard, io.ErrUnexpectedEOF},
		"source":        {io.Discard, iotest.ErrReader(fault), io.Discard, fault},
		"file":          {failing{fault, 0}, bytes.NewReader(long), io.Discard, fault},
		"file, the end": {failing{fault, 10}, strings.NewReader("a"), io.Discard, fault},
		"sink":          {io.Discard, bytes.NewReader(long), failing{fault, 0}, fault},
	} {
		if _, err := compress(c.file, c.rows, c.sink); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// failing takes only writes of some length.
type failing struct {
	err   error
	takes int
}

func (f failing) Write(p []byte) (int, error) {
	if len(p) == f.takes {
		return len(p), nil
	}
	return 0, f.err
}

// What is held does not grow with the text.
func TestCompressHoldsLittle(t *testing.T) {
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	most := uint64(0)
	row := bytes.Repeat([]byte("\"same\",\"same\"\r\n"), 4<<10)
	readers := make([]io.Reader, 1000) // 60 MB
	for i := range readers {
		readers[i] = io.MultiReader(bytes.NewReader(row), readerFunc(func([]byte) (int, error) {
			if i%100 == 0 {
				runtime.GC()
				runtime.ReadMemStats(&now)
				most = max(most, now.HeapAlloc)
			}
			return 0, io.EOF
		}))
	}
	if _, err := compress(io.Discard, io.MultiReader(readers...)); err != nil {
		t.Fatal(err)
	}
	if held := int64(most) - int64(before.HeapAlloc); held > 24<<20 {
		t.Errorf("%d MiB are held", held>>20)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
