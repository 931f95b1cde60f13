package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/mod/sumdb/note"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/partitions"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// archiveSettings say what archivePart assembles.
type archiveSettings struct {
	Dir   string    `json:"dir"` // of the partitions
	From  time.Time `json:"from"`
	Hours int       `json:"hours"`
	Out   string    `json:"out"`
}

// archiveOrganization and archiveTrail are those of every partition made here.
const (
	archiveOrganization = "acme"
	archiveTrail        = schema.Activity
)

// archivePart lays out an archive and writes it to a file, as the exporter does to a server.
func archivePart(ctx context.Context, s *session) (r report, err error) {
	var set archiveSettings
	if err := s.in.Decode(&set); err != nil {
		return r, fmt.Errorf("read settings: %w", err)
	}
	s.say(r)
	ctx = s.untilTold(ctx, nil)
	began := time.Now()
	bucket, err := partitions.OpenDirectory(set.Dir)
	if err != nil {
		return r, fmt.Errorf("open the partition store: %w", err)
	}
	defer bucket.Close()
	plan, err := exporter.PlanArchive(ctx, bucket, &exporter.Request{
		ID: "bench", Organization: archiveOrganization, Trails: []schema.Trail{archiveTrail},
		From: set.From, To: set.From.Add(time.Duration(set.Hours) * time.Hour),
	})
	if err != nil {
		return r, err
	}
	out, err := os.Create(set.Out)
	if err != nil {
		return r, fmt.Errorf("write the archive: %w", err)
	}
	w := &firstWrite{w: out}
	n, err := plan.WriteTo(ctx, w)
	if err = errors.Join(err, out.Close()); err != nil {
		return r, err
	}
	r = report{Bytes: uint64(n), Stored: plan.Rows, FirstByte: w.at.Sub(began).Seconds(), Seconds: time.Since(began).Seconds(), Done: true}
	s.say(r)
	<-ctx.Done() // so that the parent can look at what it used
	return r, nil
}

// firstWrite notes when the first byte came.
type firstWrite struct {
	w  io.Writer
	at time.Time
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if f.at.IsZero() {
		f.at = time.Now()
	}
	return f.w.Write(p)
}

// archiveDetails is what is kept of the measurement.
type archiveDetails struct {
	Partitions  int      `json:"partitions"`
	Rows        uint64   `json:"rows"`
	ZipBytes    uint64   `json:"zip_bytes"`
	Seconds     float64  `json:"seconds"`
	FirstByteMs float64  `json:"first_byte_ms"`
	PeakMiB     float64  `json:"peak_mib"`
	CopySeconds float64  `json:"copy_seconds"` // of every partition's bytes into one file
	CpSeconds   float64  `json:"cp_seconds"`   // of the finished archive
	ZipSeconds  *float64 `json:"zip_1_seconds"`
}

func (b *bench) archive(ctx context.Context) error {
	d, err := b.assemble(ctx, "archive", scale(b, 17_520, 1_752), true)
	if err != nil {
		return err
	}
	sum := &b.result.Summary
	sum.ArchiveCopyRatio, sum.ArchiveFirstByteMs = figure(d.CopySeconds/d.Seconds), figure(d.FirstByteMs)
	zip := "–"
	if d.ZipSeconds != nil {
		sum.ArchiveZipRatio = figure(*d.ZipSeconds / d.Seconds)
		zip = number(*d.ZipSeconds)
	}
	b.say("archive: %.2f s; a copy of the bytes %.2f s, zip -1 %s s", d.Seconds, d.CopySeconds, zip)
	b.result.add("archive", d, table{
		title:  "Archive: hourly partitions to one ZIP",
		header: []string{"partitions", "MB", "seconds", "first byte, ms", "copying the partitions' bytes, s", "cp of the ZIP, s", "zip -1, s", "peak MiB"},
		rows: [][]string{{
			fmt.Sprint(d.Partitions), number(float64(d.ZipBytes) / 1e6), fmt.Sprintf("%.2f", d.Seconds), fmt.Sprintf("%.0f", d.FirstByteMs),
			fmt.Sprintf("%.2f", d.CopySeconds), fmt.Sprintf("%.2f", d.CpSeconds), zip, fmt.Sprintf("%.0f", d.PeakMiB),
		}},
	})
	return nil
}

// assemble makes partitions and an archive of them; with peers, what is beside it is measured too.
func (b *bench) assemble(ctx context.Context, name string, hours int, peers bool) (d archiveDetails, err error) {
	s, err := b.newStack(name)
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	from := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	store, texts := filepath.Join(s.dir, "partitions"), filepath.Join(s.dir, "text")
	if !peers {
		texts = ""
	}
	if err := makePartitions(ctx, store, texts, from, hours, scale(b, 500, 200)); err != nil {
		return d, err
	}
	b.say("%d partitions are there", hours)
	zip := filepath.Join(s.dir, "archive.zip")
	if peers { // the first to read finds what was just written; so that all do alike, all is read once before
		if _, err := copyAll(ctx, store, filepath.Join(s.dir, "warm")); err != nil {
			return d, err
		}
	}
	p, err := s.start(ctx, "archive", archiveSettings{Dir: store, From: from, Hours: hours, Out: zip})
	if err != nil {
		return d, err
	}
	r, err := p.until(ctx, func(r report) bool { return r.Done })
	if err != nil {
		return d, err
	}
	d = archiveDetails{
		Partitions: hours, Rows: r.Stored, ZipBytes: r.Bytes, Seconds: r.Seconds, FirstByteMs: 1000 * r.FirstByte, PeakMiB: p.usage().PeakMiB,
	}
	if _, err := p.finish(ctx); err != nil || !peers {
		return d, err
	}
	if d.CopySeconds, err = copyAll(ctx, store, filepath.Join(s.dir, "copy")); err != nil {
		return d, err
	}
	began := time.Now()
	if err := copyFile(filepath.Join(s.dir, "copy.zip"), zip); err != nil {
		return d, err
	}
	d.CpSeconds = time.Since(began).Seconds()
	program, err := exec.LookPath("zip")
	if err != nil {
		b.result.miss("zip -1", err)
		return d, nil
	}
	began = time.Now()
	cmd := exec.CommandContext(ctx, program, "-1", "-q", "-r", filepath.Join(s.dir, "zip-1.zip"), ".")
	cmd.Dir = texts
	if out, err := cmd.CombinedOutput(); err != nil {
		return d, fmt.Errorf("zip -1: %w: %s", err, out)
	}
	took := time.Since(began).Seconds()
	d.ZipSeconds = &took
	return d, nil
}

// makePartitions fills a partition store with hours of rows events each, and a directory, if named, with the
// same files uncompressed: what zip(1) would be given. Sixteen different texts take turns; nobody here would
// notice if it were one. The manifests are signed, but their rows are not of the hour, and they form no chain.
func makePartitions(ctx context.Context, dir, texts string, from time.Time, hours, rows int) error {
	type variant struct {
		text, file []byte
		content    seal.Content
		sha        string
	}
	private, _, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	variants := make([]variant, 16)
	events := make([]codec.Stored, 0, rows*len(variants))
	eachEvent(rows*len(variants), func(e *schema.Event) {
		events = append(events, codec.Stored{Event: *e, RecordedAt: e.OccurredAt, StreamSeq: uint64(len(events)) + 1})
	})
	for i := range variants {
		v := &variants[i]
		v.text = codec.AppendCSVHeader(nil)
		for j := range rows {
			v.text = codec.AppendCSV(v.text, &events[i*rows+j])
		}
		var file bytes.Buffer
		gz, err := gzip.NewWriterLevel(&file, gzip.BestSpeed)
		if err != nil {
			return fmt.Errorf("compress: %w", err)
		}
		gz.ModTime = time.Unix(0, 0)
		if _, err := gz.Write(v.text); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
		if err := gz.Close(); err != nil {
			return fmt.Errorf("compress: %w", err)
		}
		v.file = file.Bytes()
		textSum, fileSum := sha256.Sum256(v.text), sha256.Sum256(v.file)
		v.sha = hex.EncodeToString(fileSum[:])
		v.content = seal.Content{
			Rows: uint64(rows), FirstSeq: 1, LastSeq: uint64(rows), Digest: seal.Digest{Rows: uint64(rows)}, Bytes: int64(len(v.text)), SHA256: textSum,
			CRC32: crc32.ChecksumIEEE(v.text), Root: textSum,
		}
	}
	for h := range hours {
		if err := ctx.Err(); err != nil {
			return err
		}
		v := &variants[h%len(variants)]
		p := schema.Partition{Organization: archiveOrganization, Trail: archiveTrail, Hour: from.Add(time.Duration(h) * time.Hour), Length: time.Hour}
		m := seal.New(p)
		m.Describe(v.content)
		m.FileBytes, m.FileSHA256 = int64(len(v.file)), v.sha
		manifest, err := seal.Sign(m, signer)
		if err != nil {
			return err
		}
		files := map[string][]byte{filepath.Join(dir, p.CSVKey()): v.file, filepath.Join(dir, p.ManifestKey()): manifest}
		if texts != "" {
			files[filepath.Join(texts, p.Path()+".csv")] = v.text
			files[filepath.Join(texts, p.ManifestKey())] = manifest
		}
		for name, data := range files {
			if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
				return fmt.Errorf("make partitions: %w", err)
			}
			if err := os.WriteFile(name, data, 0o644); err != nil {
				return fmt.Errorf("make partitions: %w", err)
			}
		}
	}
	return nil
}

// copyAll is a plain copy: every file under dir, one after another, into one file.
func copyAll(ctx context.Context, dir, to string) (seconds float64, err error) {
	began := time.Now()
	out, err := os.Create(to)
	if err != nil {
		return 0, fmt.Errorf("copy: %w", err)
	}
	buf := make([]byte, 256<<10)
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf)
		return errors.Join(err, in.Close(), ctx.Err())
	})
	if err = errors.Join(err, out.Close()); err != nil {
		return 0, fmt.Errorf("copy: %w", err)
	}
	seconds = time.Since(began).Seconds()
	return seconds, os.Remove(to)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	return nil
}
