package exporter_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/goccy/go-yaml"
	"github.com/klauspost/compress/gzip"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/archive"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
	"github.com/kansa-audit/kansa/schema/seal"
)

// history makes partitions of events that were really encoded, one after another from start on, as the rollup does:
// every fifth hour is empty. It returns all events by trail.
func (f *fixture) history(t *testing.T, hours int) map[schema.Trail][]codec.Stored {
	t.Helper()
	all := map[schema.Trail][]codec.Stored{}
	src := sample.New(3, func() time.Time { return start })
	for _, trail := range schema.Trails {
		var previous *seal.Sealed
		for h := range hours {
			p := schema.Partition{Organization: "acme", Trail: trail, Hour: start.Add(time.Duration(h) * time.Hour), Length: time.Hour}
			text := codec.AppendCSVHeader(nil)
			rows := h % 5 * 20
			for i := range rows {
				e := codec.Stored{Event: src.Next(), RecordedAt: p.Hour.Add(time.Duration(i) * time.Millisecond), StreamSeq: uint64(1000*h + i + 1)}
				e.Organization, e.Trail = "acme", trail
				switch i {
				case 1:
					e.Description = "=HYPERLINK(\"http://example.com\")"
				case 2:
					e.After = json.RawMessage(fmt.Sprintf(`{"big":%q}`, strings.Repeat("x|=\\", 2000+h)))
				case 3:
					e.Attributes = map[string]string{"pipeline_id": "p-1", "pipeline_name": "Sales", "domain_name": "example.com"}
				}
				text = codec.AppendCSV(text, &e)
				all[trail] = append(all[trail], e)
			}
			m := seal.New(p)
			if previous != nil {
				m.Follow(previous)
			}
			if rows > 0 {
				r := seal.NewRows(p, codec.CSVColumns)
				if _, err := r.Write(text); err != nil {
					t.Fatal(err)
				}
				content, err := r.Close()
				if err != nil {
					t.Fatal(err)
				}
				m.Describe(content)
				file := bytes.NewBufferString("")
				gz, err := gzip.NewWriterLevel(file, gzip.BestSpeed)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = gz.Write(text)
				if err := gz.Close(); err != nil {
					t.Fatal(err)
				}
				copy(file.Bytes(), seal.GzipHeader)
				m.FileBytes, m.FileSHA256 = int64(file.Len()), sha(file.Bytes())
				if err := f.bucket.WriteAll(t.Context(), p.CSVKey(), file.Bytes(), nil); err != nil {
					t.Fatal(err)
				}
			}
			data, err := f.keys.Seal(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.bucket.WriteAll(t.Context(), p.ManifestKey(), data, nil); err != nil {
				t.Fatal(err)
			}
			if previous, err = seal.Parse(data); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

func historyOf(t *testing.T, hours int) (*fixture, map[schema.Trail][]codec.Stored) {
	t.Helper()
	f := newFixture(t, 0)
	f.closed = start.Add(time.Duration(hours) * time.Hour)
	return f, f.history(t, hours)
}

func prepare(t *testing.T, f *fixture, r *exporter.Request) *exporter.Plan {
	t.Helper()
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	plan, err := exporter.Prepare(t.Context(), f.bucket, r, func(uint64, uint64) {})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// save writes an archive into a file of its name.
func save(t *testing.T, plan *exporter.Plan) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), plan.Name)
	file, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := plan.WriteTo(t.Context(), file); err != nil || n != plan.Size() {
		t.Fatalf("%d of %d bytes: %v", n, plan.Size(), err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return name
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("REQUIRE_ALL") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// filesOf reads a ZIP.
func filesOf(t *testing.T, name string) map[string]string {
	t.Helper()
	z, err := zip.OpenReader(name)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	files := map[string]string{}
	for _, e := range z.File {
		in, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		files[e.Name] = string(data)
	}
	return files
}

func content(format codec.Format, edit func(*render.Content)) render.Content {
	c := render.Content{Format: format}
	if edit != nil {
		edit(&c)
	}
	return c
}

func yes() *bool { b := true; return &b }

// What Windows Explorer takes for the name of a file.
var explorerName = regexp.MustCompile(`^[A-Za-z0-9_+.-]+$`)

// Requirement I6: JSON, CEF, and CSV in a .zip that is named by organization, trail and day; Z10: profiles; Z7, B1: with
// manifests that can be verified offline. Every archive opens in unzip and in Python, and sha256sum finds its files.
func TestRenderedArchives(t *testing.T) {
	t.Parallel()
	const hours = 12
	f, all := historyOf(t, hours)
	rows := len(all[schema.Activity]) + len(all[schema.Access])
	key := filepath.Join(t.TempDir(), "seal.pub")
	for name, c := range map[string]render.Content{
		"plain":        {},
		"csv safe":     content("csv", func(c *render.Content) { c.SpreadsheetSafe = yes() }),
		"csv qlik":     content("csv", func(c *render.Content) { c.Profile = codec.ProfileQlik }),
		"csv dataprep": content("csv", func(c *render.Content) { c.Profile = codec.ProfileDataPrep }),
		"tsv":          content("tsv", nil),
		"tsv kansa":    content("tsv", func(c *render.Content) { c.Profile, c.SpreadsheetSafe = codec.ProfileKansa, yes() }),
		"ndjson":       content("ndjson", nil),
		"json":         content("json", nil),
		"cef":          content("cef", nil),
		"cef text":     content("cef", func(c *render.Content) { c.CEFOverflow = render.OverflowText }),
		"filter":       content("ndjson", func(c *render.Content) { c.Filter.Action = "publish" }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := day(strings.ReplaceAll(name, " ", "-"))
			r.To, r.Content = start.Add(hours*time.Hour), c
			plan := prepare(t, f, &r)
			if again, err := exporter.PlanArchive(t.Context(), f.bucket, &r); err != nil || again.ETag() != plan.ETag() || again.Rows != plan.Rows {
				t.Errorf("laid out again: %+v, %v", again, err)
			}
			if err := plan.Check(t.Context()); err != nil {
				t.Error(err)
			}
			zipped := save(t, plan)
			if !explorerName.MatchString(plan.Name) || !strings.HasPrefix(plan.Name, "kansa_acme_access+activity_20261120T000000Z_") || !strings.HasSuffix(plan.Name, c.ArchiveSuffix()) {
				t.Errorf("its name is %s", plan.Name)
			}
			// Any piece of it can be had.
			whole, err := os.ReadFile(zipped)
			if err != nil {
				t.Fatal(err)
			}
			in := plan.NewReader(t.Context())
			defer in.Close()
			if _, err := in.Seek(plan.Size()/2, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if half, err := io.ReadAll(in); err != nil || !bytes.Equal(half, whole[plan.Size()/2:]) {
				t.Errorf("the second half has %d bytes, %v", len(half), err)
			}
			dir := t.TempDir()
			run(t, dir, "unzip", "-q", zipped)
			run(t, dir, "sha256sum", "--quiet", "--strict", "-c", exporter.Checksums)
			run(t, dir, "python3", "-c", "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); assert z.testzip() is None", zipped)
			files := filesOf(t, zipped)
			checkFiles(t, &r, files, all)
			want := uint64(rows)
			if c.Filter.Action != "" {
				want = 0
				for _, events := range all {
					for i := range events {
						if c.Filter.Match(&events[i].Event) {
							want++
						}
					}
				}
			}
			if plan.Rows != want || want == 0 {
				t.Errorf("%d rows, want %d", plan.Rows, want)
			}
			for path := range files {
				if archive.CheckName(path) != nil {
					t.Errorf("Windows does not take %s", path)
				}
			}
			report := func(rendered bool) *verify.Report {
				pub, err := verify.ReadKey(writeFile(t, key+strings.ReplaceAll(name, " ", ""), files[seal.PublicKey]))
				if err != nil {
					t.Fatal(err)
				}
				got, err := verify.Path(t.Context(), zipped, verify.Options{Key: pub, Rendered: rendered, FromStart: true})
				if err != nil {
					t.Fatal(err)
				}
				return got
			}
			if got := report(c.Rendered()); !got.OK || got.Hours != 2*hours || (got.Rendered > 0) != c.Rendered() {
				t.Errorf("kansa verify: %+v, %v", got, got.Faults)
			}
			pub := key + strings.ReplaceAll(name, " ", "")
			const verifier = "../../schema/seal/testdata/verify.py"
			if c.Rendered() {
				if out, err := exec.Command("python3", verifier, pub, zipped).Output(); err == nil {
					t.Errorf("the Python verifier takes it: %s", out)
				}
			} else {
				run(t, ".", "python3", verifier, pub, zipped)
				for i := range 20 { // whatever byte is another, but of README.txt, which is not sealed
					bad := bytes.Clone(whole)
					at := len(whole)/4 + i*(len(whole)*3/4)/20
					bad[at] ^= 1
					if out, err := exec.Command("python3", verifier, pub, writeFile(t, filepath.Join(t.TempDir(), "bad.zip"), string(bad))).Output(); err == nil {
						t.Errorf("with byte %d of %d changed the Python verifier takes it: %s", at, len(whole), out)
					}
				}
			}
			if got := report(false); got.OK == c.Rendered() {
				t.Errorf("without --rendered it is OK: %v", got.OK)
			}
		})
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// checkFiles holds the files of an archive against the events.
func checkFiles(t *testing.T, r *exporter.Request, files map[string]string, all map[schema.Trail][]codec.Stored) {
	t.Helper()
	readme := files["README.txt"]
	for _, want := range []string{"acme", "2026-11-20T00:00:00Z", "2026-11-20T12:00:00Z", "kansa verify", "sha256sum -c SHA256SUMS.txt"} {
		if !strings.Contains(readme, want) {
			t.Errorf("no word of %s in\n%s", want, readme)
		}
	}
	if strings.Contains(readme, "<no value>") || strings.Count(readme, "\n") != strings.Count(readme, "\r\n") {
		t.Errorf("README.txt is\n%q", readme)
	}
	warns := strings.Contains(readme, "Before you open a file in a spreadsheet")
	if cells := r.Format == "" || r.Format == "csv" || r.Format == "tsv"; warns != (cells && !r.Safe()) {
		t.Errorf("it warns of spreadsheets: %v", warns)
	}
	if (files[exporter.RenderedList] != "") != r.Rendered() {
		t.Errorf("%s is %q", exporter.RenderedList, files[exporter.RenderedList])
	}
	e, err := codec.NewEncoder(codec.Options{Format: cmpOr(r.Format), Profile: r.Profile, SpreadsheetSafe: r.Safe(), Overflow: overflowOf(r)})
	if err != nil {
		t.Fatal(err)
	}
	suffix := ".csv"
	if r.Rendered() {
		suffix = r.Suffix()
	}
	for _, trail := range schema.Trails {
		for h := range 12 {
			path := schema.Partition{Organization: "acme", Trail: trail, Hour: start.Add(time.Duration(h) * time.Hour), Length: time.Hour}.Path()
			if files[path+".manifest"] == "" {
				t.Errorf("no manifest of %s", path)
			}
			var want []byte
			big := 0
			for i := range all[trail] {
				s := &all[trail][i]
				if !s.RecordedAt.Truncate(time.Hour).Equal(start.Add(time.Duration(h)*time.Hour)) || !r.Filter.Match(&s.Event) {
					continue
				}
				if want == nil {
					want = e.AppendBegin(want)
				}
				want = e.Append(want, s)
				if len(s.After) > 4000 {
					big++
				}
			}
			if want != nil {
				want = e.AppendEnd(want)
			}
			if got := files[path+suffix]; got != string(want) {
				t.Errorf("%s has %d bytes, want %d", path+suffix, len(got), len(want))
			}
			beside := files[path+render.OverflowSuffix]
			if keeps := r.Format == "cef" && r.CEFOverflow != render.OverflowText; strings.Count(beside, "\n") != big && keeps || beside != "" && !keeps {
				t.Errorf("%s has %d values beside, want %d", path, strings.Count(beside, "\n"), big)
			}
		}
	}
	if suffix != ".csv" {
		for name := range files {
			if strings.HasSuffix(name, ".csv") && !strings.HasSuffix(name, ".rendered.csv") {
				t.Errorf("%s has the name of what is sealed", name)
			}
		}
	}
}

func cmpOr(f codec.Format) codec.Format {
	if f == "" {
		return codec.FormatCSV
	}
	return f
}

func overflowOf(r *exporter.Request) func(codec.Overflow) {
	if r.CEFOverflow == render.OverflowText {
		return nil
	}
	return func(codec.Overflow) {}
}

// Requirement I9: by default what is too long for CEF is in the archive, in a file beside, found by its SHA-256.
func TestOverflowIsBeside(t *testing.T) {
	t.Parallel()
	f, all := historyOf(t, 4)
	r := day("beside")
	r.To, r.Format = start.Add(4*time.Hour), codec.FormatCEF
	files := filesOf(t, save(t, prepare(t, f, &r)))
	found := 0
	for name, text := range files {
		if !strings.HasSuffix(name, render.OverflowSuffix) {
			continue
		}
		events := files[strings.TrimSuffix(name, render.OverflowSuffix)+".cef"]
		for line := range strings.Lines(text) {
			var o struct{ Event, Key, SHA256, Value string }
			if err := json.Unmarshal([]byte(line), &o); err != nil {
				t.Fatal(err)
			}
			if sha([]byte(o.Value)) != o.SHA256 || !strings.Contains(events, " "+o.Key+"=sha256:"+o.SHA256+" ") || !strings.Contains(events, o.Event) {
				t.Errorf("%s: %s of event %s is not in the CEF", name, o.Key, o.Event)
			}
			if slices.ContainsFunc(all[schema.Access], func(s codec.Stored) bool { return string(s.After) == o.Value }) ||
				slices.ContainsFunc(all[schema.Activity], func(s codec.Stored) bool { return string(s.After) == o.Value }) {
				found++
			}
		}
	}
	if found != 2*3 {
		t.Errorf("%d values are beside, want 6", found)
	}
	if !strings.Contains(files["README.txt"], "overflow.ndjson") {
		t.Error("README.txt does not say what the file beside is")
	}
}

// keysBelow lists the objects of working areas, with when they were written.
func keysBelow(t *testing.T, b *blob.Bucket) map[string]time.Time {
	t.Helper()
	keys := map[string]time.Time{}
	list := b.List(&blob.ListOptions{Prefix: schema.WorkPrefix})
	for {
		o, err := list.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return keys
		}
		if err != nil {
			t.Fatal(err)
		}
		keys[o.Key] = o.ModTime
	}
}

// What was rendered before an interruption is not rendered again.
func TestRenderingIsResumed(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 12)
	r := day("resumed")
	r.To, r.Format = start.Add(12*time.Hour), codec.FormatNDJSON
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	calls := 0
	_, err := exporter.Prepare(ctx, f.bucket, &r, func(rows, of uint64) {
		if calls++; rows > of/3 {
			stop()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	before := keysBelow(t, f.bucket)
	if len(before) < 4 {
		t.Fatalf("only %d objects are there", len(before))
	}
	if _, err := exporter.PlanArchive(t.Context(), f.bucket, &r); !errors.Is(err, render.ErrNotRendered) {
		t.Errorf("an archive that is not rendered yet: %v", err)
	}
	first := prepare(t, f, &r)
	after := keysBelow(t, f.bucket)
	for key, at := range before {
		if !strings.HasSuffix(key, ".json") { // a file without a statement behind it is not whole
			if _, whole := before[strings.TrimSuffix(key, ".ndjson.gz")+".json"]; !whole {
				continue
			}
		}
		if !after[key].Equal(at) {
			t.Errorf("%s was made again", key)
		}
	}
	if _, err := f.bucket.Attributes(t.Context(), schema.WorkPrefix+"resumed/index.json"); err != nil {
		t.Error(err)
	}
	if again := prepare(t, f, &r); again.ETag() != first.ETag() {
		t.Error("again it is another archive")
	}
	// The same files in another area are the same bytes.
	other := r
	other.ID = "other"
	if o := prepare(t, f, &other); o.ETag() != first.ETag() || o.Name == first.Name {
		t.Error("asked for anew it is another archive, or has the same name")
	}
}

// A partition that is not what its manifest says is not rendered.
func TestTamperedPartitionIsNotRendered(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 12)
	key := func(h int) string {
		return schema.Partition{Organization: "acme", Trail: schema.Access, Hour: start.Add(time.Duration(h) * time.Hour), Length: time.Hour}.CSVKey()
	}
	data, err := f.bucket.ReadAll(t.Context(), key(1))
	if err != nil {
		t.Fatal(err)
	}
	gz, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(gz)
	if err != nil {
		t.Fatal(err)
	}
	// Another text of the same compressed size: stored blocks are as long as they are.
	forged := bytes.Replace(text, []byte(`"success"`), []byte(`"failure"`), 1)
	for _, bad := range [][]byte{data[:len(data)/2], zipOf(t, forged)} {
		if err := f.bucket.WriteAll(t.Context(), key(1), bad, nil); err != nil {
			t.Fatal(err)
		}
		sealed, err := f.bucket.ReadAll(t.Context(), strings.TrimSuffix(key(1), schema.CSVSuffix)+schema.ManifestSuffix)
		if err != nil {
			t.Fatal(err)
		}
		m, err := seal.Parse(sealed)
		if err != nil {
			t.Fatal(err)
		}
		c := render.Content{Format: codec.FormatJSON}
		a := render.Area{Bucket: f.bucket, Export: "forged", Content: &c}
		err = a.Render(t.Context(), []render.Source{{Partition: m.Partition(), Rows: m.Rows, CSVBytes: m.CSVBytes, CSVSHA256: m.CSVSHA256}}, func(int, uint64) {})
		if err == nil || !strings.Contains(err.Error(), "2026/11/20/01") {
			t.Errorf("got %v", err)
		}
		if keys := keysBelow(t, f.bucket); len(keys) != 0 {
			t.Errorf("it left %v", keys)
		}
	}
}

func zipOf(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	_, _ = gz.Write(text)
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Requirement Z11: an archive that only its recipient opens, made once, and fetched in pieces.
func TestArchiveForRecipient(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 6)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []codec.Format{"", codec.FormatCEF} {
		r := day("sealed" + string(format))
		r.To, r.Format, r.Recipients = start.Add(6*time.Hour), format, []string{id.Recipient().String()}
		plan := prepare(t, f, &r)
		again := prepare(t, f, &r)
		link, err := exporter.PlanArchive(t.Context(), f.bucket, &r)
		if err != nil {
			t.Fatal(err)
		}
		if again.ETag() != plan.ETag() || link.ETag() != plan.ETag() || link.Size() != plan.Size() || plan.Rows == 0 || !strings.HasSuffix(plan.Name, ".zip.age") ||
			plan.ContentType() != "application/octet-stream" {
			t.Errorf("it was made twice, or is not what it is: %+v, %+v, %+v", plan, again, link)
		}
		name := save(t, plan)
		whole, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		in := link.NewReader(t.Context())
		for _, at := range []int64{0, 100, plan.Size() - 10, 7} {
			if _, err := in.Seek(at, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			piece := make([]byte, 10)
			if _, err := io.ReadFull(in, piece); err != nil || !bytes.Equal(piece, whole[at:at+10]) {
				t.Errorf("bytes at %d: %v", at, err)
			}
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		opened, err := age.Decrypt(bytes.NewReader(whole), id)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(opened)
		if err != nil {
			t.Fatal(err)
		}
		files := filesOf(t, writeFile(t, strings.TrimSuffix(name, ".age"), string(data)))
		if len(files) < 12 || bytes.Contains(whole, []byte("acme/")) {
			t.Errorf("%d files", len(files))
		}
	}
	if _, err := verify.Path(t.Context(), writeFile(t, filepath.Join(t.TempDir(), "x.zip.age"), ""), verify.Options{Key: "kansa+0"}); err == nil {
		t.Error("an encrypted archive was verified")
	}
}

func sha(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// Requirement I15: what does not go together is said by field, value and remedy, and a secret key is not repeated.
func TestContentFaults(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]render.Content{
		`format "xml"`: {Format: "xml"}, `profile "splunk"`: {Profile: "splunk"}, `cef_overflow "file" is for cef only`: {CEFOverflow: render.OverflowFile},
		`cef_overflow "drop"`: {Format: "cef", CEFOverflow: "drop"}, `outcome "good"`: {Filter: schema.Filter{Outcome: "good"}},
		`age_recipients[0] "ssh-nonsense"`: {Recipients: []string{"ssh-nonsense"}}, `age_recipients[0] is a secret key`: {Recipients: []string{"AGE-SECRET-KEY-1XYZ"}},
		`spreadsheet_safe "ndjson"`: {Format: "ndjson", SpreadsheetSafe: yes()},
	} {
		r := day("x")
		r.Content = c
		err := r.Validate()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "1XYZ") {
			t.Errorf("no word of %s in %v", want, err)
		}
		d := exporter.Destination{Name: "d", Organization: "acme", Mail: []string{"a@example.com"}, Content: c}
		if err := d.Normalize(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("of a destination: no word of %s in %v", want, err)
		}
	}
}

// A request says what it holds; else its destination does. What differs is another archive; what does not is the same.
func TestContentOfRequests(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 24)
	dir := t.TempDir()
	d := exporter.Destination{
		Name: "siem", Organization: "acme", FromFile: true, Bucket: "file://" + filepath.ToSlash(dir), Schedule: &exporter.Schedule{Since: start},
		Content: render.Content{Format: codec.FormatCEF, CEFOverflow: render.OverflowText},
	}
	f.run(t, d)
	in := f.intake()
	estimate, err := in.Estimate(t.Context(), exporter.Request{Organization: "acme", Destination: "siem"})
	if err != nil || !estimate.Approximate || estimate.Rows == 0 || len(keysBelow(t, f.bucket)) != 0 {
		t.Errorf("%+v, %v", estimate, err)
	}
	f.tick(t, "siem")
	e := f.until(t, exporter.ScheduledID("acme", "siem", start), is(exporter.Done))
	if e.Format != codec.FormatCEF || e.CEFOverflow != render.OverflowText || !strings.HasSuffix(e.File, ".cef.zip") || e.RowsRendered == 0 || e.RowsRendered != e.RowsToRender {
		t.Errorf("got %+v", e)
	}
	if files := filesOf(t, filepath.Join(dir, e.File)); !strings.HasPrefix(files["acme/access/2026/11/20/03.cef"], "CEF:0|Kansa|Kansa|1|") {
		t.Errorf("got %.100q", files["acme/access/2026/11/20/03.cef"])
	}
	f.mu.Lock()
	f.now = f.now.Add(time.Second)
	f.mu.Unlock()
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // it is delivered: its working area goes
		left := keysBelow(t, f.bucket)
		return len(left) == 0, left
	})
	// A link to cells that are rendered gets them marked; one to the partitions themselves stays what was sealed.
	qlik := anonymous(day(""))
	qlik.Format, qlik.Profile = codec.FormatCSV, codec.ProfileQlik
	asked, err := in.Ask(t.Context(), qlik)
	if err != nil || !asked.Export.Safe() {
		t.Fatalf("%+v, %v", asked, err)
	}
	done := f.until(t, asked.Export.ID, is(exporter.Done))
	plan, err := exporter.PlanArchive(t.Context(), f.bucket, &done.Request)
	if err != nil || plan.Size() != done.Bytes || plan.Name != done.File {
		t.Fatalf("%+v, %v", plan, err)
	}
	rows, err := csv.NewReader(strings.NewReader(filesOf(t, save(t, plan))["acme/access/2026/11/20/03.rendered.csv"])).ReadAll()
	if err != nil || len(rows) != 61 || len(rows[0]) != 14 || !strings.HasPrefix(rows[2][11], "'=HYPERLINK") {
		t.Errorf("%d rows, %v: %q", len(rows), err, rows[2])
	}
	again, err := in.Ask(t.Context(), qlik)
	if err != nil || !again.Again {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	plain, err := in.Ask(t.Context(), anonymous(day("")))
	if err != nil || plain.Again || !plain.Export.Plain() {
		t.Errorf("the same range, copied: %+v, %v", plain, err)
	}
	off := qlik
	no := false
	off.SpreadsheetSafe = &no
	if asked, err = in.Ask(t.Context(), off); err != nil || asked.Again || asked.Export.Safe() {
		t.Errorf("without marks: %+v, %v", asked, err)
	}
	f.until(t, asked.Export.ID, is(exporter.Done))
	f.until(t, plain.Export.ID, is(exporter.Done))
}

// A destination's fields are in its YAML and JSON as they are named here, and its recipients hold for all it gets.
func TestContentOfDestination(t *testing.T) {
	t.Parallel()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	text := "name: siem\norganization: acme\nbucket: file:///srv\nformat: cef\ncef_overflow: text\nspreadsheet_safe: false\nfilter:\n  actor_id: u-7\n  start: 2026-11-20T00:00:00Z\n" +
		"age_recipients: [" + id.Recipient().String() + "]\n"
	var d, again exporter.Destination
	if err := yaml.UnmarshalWithOptions([]byte(text), &d, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	if err := d.Normalize(); err != nil {
		t.Fatal(err)
	}
	if d.Format != codec.FormatCEF || d.Filter.ActorID != "u-7" || !d.Filter.Start.Equal(start) || d.SpreadsheetSafe == nil || len(d.Recipients) != 1 {
		t.Errorf("got %+v", d)
	}
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&again); err != nil || again.Content.Key() != d.Content.Key() || again.Content.Key() == "" {
		t.Errorf("%v: %s", err, data)
	}
	f, _ := historyOf(t, 1)
	dir := t.TempDir()
	d.Bucket, d.FromFile = "file://"+filepath.ToSlash(dir), true
	f.run(t, d)
	r := exporter.Request{Organization: "acme", Destination: "siem", From: start, To: start.Add(time.Hour)}
	r.Format = codec.FormatJSON
	asked, err := f.intake().Ask(t.Context(), r)
	if err != nil || len(asked.Export.Recipients) != 1 || asked.Export.Format != codec.FormatJSON || !asked.Export.Filter.IsZero() {
		t.Fatalf("%+v, %v", asked, err)
	}
	if e := f.until(t, asked.Export.ID, is(exporter.Done)); !strings.HasSuffix(e.File, ".json.zip.age") {
		t.Errorf("got %+v", e)
	}
}

// A working area goes when its links do; links that have expired, and exports that are long over, are forgotten.
func TestSweep(t *testing.T) {
	t.Parallel()
	f, _ := historyOf(t, 24)
	f.run(t)
	in := f.intake()
	var ids []string
	for i, format := range []codec.Format{codec.FormatJSON, codec.FormatCEF, ""} {
		r := anonymous(day(""))
		r.Format = format
		asked, err := in.Ask(t.Context(), r)
		if err != nil {
			t.Fatal(i, err)
		}
		ids = append(ids, asked.Export.ID)
		f.until(t, asked.Export.ID, is(exporter.Done))
	}
	sweep := func() exporter.Swept {
		t.Helper()
		s, err := f.exporter.Sweep(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	areas := func() (n int) {
		for _, id := range ids {
			for key := range keysBelow(t, f.bucket) {
				if strings.HasPrefix(key, schema.WorkPrefix+id+"/") {
					n++
					break
				}
			}
		}
		return n
	}
	if s := sweep(); s != (exporter.Swept{}) || areas() != 2 {
		t.Errorf("what is needed was swept: %+v, %d areas are left", s, areas())
	}
	if _, err := in.Revoke(t.Context(), ids[0], "test"); err != nil {
		t.Fatal(err)
	}
	if s := sweep(); s != (exporter.Swept{Areas: 1}) || areas() != 1 {
		t.Errorf("of a revoked one: %+v, %d areas are left", s, areas())
	}
	pass := func(d time.Duration) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.now = f.now.Add(d)
	}
	pass(7*24*time.Hour + time.Second)
	if s := sweep(); s != (exporter.Swept{Areas: 1, Links: 3}) || areas() != 0 {
		t.Errorf("after seven days: %+v, %d areas are left", s, areas())
	}
	pass(90 * 24 * time.Hour)
	if s := sweep(); s != (exporter.Swept{States: 3}) {
		t.Errorf("after 90 days: %+v", s)
	}
	if keys, err := f.states.KV.Keys(t.Context()); len(keys) != 0 {
		t.Errorf("left are %q, %v", keys, err)
	}
	// The same can be asked for, and is remembered, as if it never was.
	r := anonymous(day(""))
	r.Format = codec.FormatJSON
	first, err := in.Ask(t.Context(), r)
	if err != nil || first.Again {
		t.Fatalf("%+v, %v", first, err)
	}
	if second, err := in.Ask(t.Context(), r); err != nil || !second.Again || second.Export.ID != first.Export.ID {
		t.Errorf("%+v, %v", second, err)
	}
	f.until(t, first.Export.ID, is(exporter.Done))
}
