package exporter_test

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"
	"gocloud.dev/blob"
	"gocloud.dev/blob/memblob"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start is the hour of the first partition of every test.
var start = time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC)

// fixture is an exporter on a real broker, with partitions that were made up.
type fixture struct {
	client *broker.Client
	bucket *blob.Bucket
	keys   *keys.Keys
	keyDir string
	states exporter.States
	links  exporter.Links
	mails  *mailbox
	// exporter is that of run.
	exporter *exporter.Exporter
	settings *settings.Store
	// correctEvery is that of the exporter's configuration.
	correctEvery time.Duration
	// backoff is the pause before another attempt; default 50 ms.
	backoff time.Duration

	mu       sync.Mutex
	closed   time.Time
	now      time.Time
	recorded []schema.Event
}

// mailbox keeps what is sent, and fails as it is told. The real mail server is in package mail's tests.
type mailbox struct {
	mu   sync.Mutex
	sent []mail.Message
	fail error
	// failTo is the one recipient that fail is for; empty for all.
	failTo string
}

// refuse has mails to an address, or all mails if that is empty, fail with an error; nil ends it.
func (m *mailbox) refuse(to string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail, m.failTo = err, to
}

func (m *mailbox) Send(_ context.Context, msg mail.Message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil && (m.failTo == "" || m.failTo == msg.To) {
		return m.fail
	}
	m.sent = append(m.sent, msg)
	return nil
}

func newFixture(t *testing.T, hours int) *fixture {
	t.Helper()
	f := &fixture{bucket: memblob.OpenBucket(nil), mails: &mailbox{}, closed: start.Add(time.Duration(hours) * time.Hour), now: start.AddDate(0, 0, 5)}
	t.Cleanup(func() { _ = f.bucket.Close() })
	f.client = brokertest.SetUp(t)
	f.keyDir = t.TempDir()
	var err error
	if f.keys, err = keys.Open(t.Context(), f.keyDir, f.bucket); err != nil {
		t.Fatal(err)
	}
	box, err := settings.OpenBox(filepath.Join(t.TempDir(), settings.KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	f.settings = &settings.Store{
		Box: box, Record: f.record, Logger: logger(t), Now: f.clock, Defaults: settings.Organization{ExportsPerDay: 3, RetentionDays: 730},
	}
	for bucket, kv := range map[string]*jetstream.KeyValue{
		broker.BucketExports: &f.states.KV, broker.BucketLinks: &f.links.KV, broker.BucketSettings: &f.settings.KV,
	} {
		if *kv, err = f.client.JS.KeyValue(t.Context(), bucket); err != nil {
			t.Fatal(err)
		}
	}
	f.links.Now = f.clock
	for _, trail := range schema.Trails {
		for h := range hours {
			f.partition(t, trail, h, h%5*100) // every fifth hour is empty
		}
	}
	return f
}

func (f *fixture) record(_ context.Context, e schema.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.recorded = append(f.recorded, e)
}

// codes are those of the events that were recorded.
func (f *fixture) codes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	codes := make([]string, len(f.recorded))
	for i := range f.recorded {
		codes[i] = f.recorded[i].Event
	}
	return codes
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) closedUntil(context.Context, string, []schema.Trail) (time.Time, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed, nil
}

// partition makes one as the rollup does.
func (f *fixture) partition(t *testing.T, trail schema.Trail, hour, rows int) {
	t.Helper()
	p := schema.Partition{Organization: "acme", Trail: trail, Hour: start.Add(time.Duration(hour) * time.Hour), Length: time.Hour}
	m := seal.New(p)
	if rows > 0 {
		text := bytes.Repeat(fmt.Appendf(nil, "\"%s\",%d\r\n", p, rows), rows+1)
		var file bytes.Buffer
		gz := gzip.NewWriter(&file)
		_, _ = gz.Write(text)
		if err := gz.Close(); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(text)
		m.Describe(seal.Content{
			Rows: uint64(rows), FirstSeq: 1, LastSeq: 1, Digest: seal.Digest{Rows: uint64(rows)}, Bytes: int64(len(text)), SHA256: sum, CRC32: crc32.ChecksumIEEE(text),
		})
		m.FileBytes, m.FileSHA256 = int64(file.Len()), hex.EncodeToString(sum[:])
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
}

// run works on what is asked for until the test ends.
func (f *fixture) run(t *testing.T, destinations ...exporter.Destination) {
	t.Helper()
	var file []exporter.Destination // of the operator's configuration
	for _, d := range destinations {
		if d.FromFile {
			file = append(file, d)
			continue
		}
		if _, err := f.settings.SaveDestination(t.Context(), d, settings.Change{By: "test"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.settings.Provision(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	f.exporter = exporter.New(f.bucket, f.states, f.links, f.mails, f.client.JS, exporter.Config{
		Settings: f.settings, PublicURL: "https://audit.example.com/", Closed: f.closedUntil, Now: f.clock, Record: f.record, Logger: logger(t), CorrectEvery: f.correctEvery,
		Receipts: &keys.Receipts{Dir: f.keyDir, Bucket: f.bucket},
	})
	queue, err := f.client.JS.Consumer(t.Context(), broker.StreamExports, broker.ConsumerExporter)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	w := consumers.Work{
		Queue: queue, Handle: f.exporter.Handle, Parallel: 2, AckWait: 30 * time.Second, Logger: logger(t),
		Backoff: func(uint64) time.Duration { return cmp.Or(f.backoff, 50*time.Millisecond) },
	}
	go func() { ended <- w.Run(ctx) }()
	clockEnded := make(chan error, 1)
	go func() { clockEnded <- f.exporter.RunSchedules(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := await.Receive(t, await.Limit, "the exporter's clock to end", clockEnded); err != nil {
			t.Error(err)
		}
		if err := await.Receive(t, await.Limit, "the exporter's work to end", ended); err != nil {
			t.Error(err)
		}
	})
}

func (f *fixture) submit(t *testing.T, r exporter.Request) {
	t.Helper()
	if err := exporter.Submit(t.Context(), f.client.JS, r); err != nil {
		t.Fatal(err)
	}
}

// until waits for a state that want accepts.
func (f *fixture) until(t *testing.T, id string, want func(exporter.Export) bool) exporter.Export {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	watch, err := f.states.KV.Watch(ctx, "export."+id)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop() //nolint:errcheck // the test is over with it
	var last exporter.Export
	for {
		select {
		case <-ctx.Done():
			t.Fatalf("export %s stays %+v", id, last)
		case entry := <-watch.Updates():
			if entry == nil {
				continue
			}
			e, _, err := f.states.Get(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if last = e; want(e) {
				return e
			}
		}
	}
}

func is(s exporter.State) func(exporter.Export) bool {
	return func(e exporter.Export) bool { return e.State == s }
}

func day(id string) exporter.Request {
	return exporter.Request{ID: id, Organization: "acme", Trails: schema.Trails, From: start, To: start.AddDate(0, 0, 1), MailTo: []string{"auditor@acme.example"}}
}

// Requirement Z7: a ZIP with one CSV for every hour, and N5: the same range again gives the same bytes.
func TestArchiveHoldsTheRange(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 48)
	r := day("x")
	r.From, r.To = start.Add(3*time.Hour), start.Add(30*time.Hour)
	plan, err := exporter.PlanArchive(t.Context(), f.bucket, &r)
	if err != nil {
		t.Fatal(err)
	}
	again, err := exporter.PlanArchive(t.Context(), f.bucket, &r)
	if err != nil || again.ETag() != plan.ETag() {
		t.Errorf("again it is %s, %v; it was %s", again.ETag(), err, plan.ETag())
	}
	var file bytes.Buffer
	if n, err := plan.WriteTo(t.Context(), &file); err != nil || n != plan.Size() {
		t.Fatalf("%d of %d bytes: %v", n, plan.Size(), err)
	}
	z, err := zip.NewReader(bytes.NewReader(file.Bytes()), plan.Size())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range z.File {
		names = append(names, e.Name)
		rc, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil { // checks the CRC-32
			t.Errorf("%s: %v", e.Name, err)
		}
	}
	for _, want := range []string{"README.txt", "seal.pub", "acme/access/2026/11/20/03.csv", "acme/activity/2026/11/21/05.manifest", "acme/access/2026/11/20/05.manifest"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in it", want)
		}
	}
	for _, not := range []string{"acme/access/2026/11/20/02.manifest", "acme/access/2026/11/21/06.manifest", "acme/access/2026/11/20/05.csv"} {
		if slices.Contains(names, not) {
			t.Errorf("%s is in it", not)
		}
	}
	if manifests := 2 * 27; len(names) != 3+manifests+2*22 {
		t.Errorf("%d files", len(names))
	}
}

func TestEmptyRangeSaysSo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 1)
	r := day("x")
	r.Organization = "nobody"
	plan, err := exporter.PlanArchive(t.Context(), f.bucket, &r)
	if err != nil || plan.Len() != 3 || plan.Rows != 0 { // EMPTY.txt, README.txt, seal.pub
		t.Errorf("%+v, %v", plan, err)
	}
}

// Requirement Z6: when it is ready, a link by mail; its token is kept only as a hash.
func TestLinkIsMailedWhenTheRangeIsClosed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 12)
	f.run(t)
	f.submit(t, day("mailed"))
	f.until(t, "mailed", is(exporter.Waiting))
	if len(f.mails.sent) != 0 {
		t.Fatal("a mail was sent before the hours were closed")
	}
	for h := 12; h < 24; h++ {
		f.partition(t, schema.Activity, h, 10)
	}
	f.mu.Lock()
	f.closed = start.AddDate(0, 0, 1)
	f.mu.Unlock()
	e := f.until(t, "mailed", is(exporter.Done))
	if e.Rows == 0 || e.Bytes == 0 || e.Expires == nil || !e.Expires.Equal(f.clock().Add(7*24*time.Hour)) {
		t.Errorf("got %+v", e)
	}
	f.mails.mu.Lock()
	text := f.mails.sent[0].Text
	f.mails.mu.Unlock()
	_, rest, _ := strings.Cut(text, "https://audit.example.com/download/")
	token, _, _ := strings.Cut(rest, "/")
	if link, err := f.links.Open(t.Context(), token); err != nil || link.Export != "mailed" {
		t.Errorf("the link opens %+v, %v", link, err)
	}
	keys, err := f.links.KV.Keys(t.Context())
	if err != nil || len(keys) != 1 || strings.Contains(keys[0], token) || len(token) != 43 {
		t.Errorf("kept are %q of token %q, %v", keys, token, err)
	}
	f.mu.Lock()
	f.now = f.now.Add(7*24*time.Hour + time.Second)
	f.mu.Unlock()
	for _, bad := range []string{token, "wrong", ""} {
		if _, err := f.links.Open(t.Context(), bad); !errors.Is(err, exporter.ErrNoLink) {
			t.Errorf("after seven days %q gives %v", bad, err)
		}
	}
}

func TestMailThatFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.run(t)
	for id, fail := range map[string]error{"refused": &mail.Error{Class: mail.ErrRefused}, "down": &mail.Error{Class: mail.ErrConnection}} {
		f.mails.mu.Lock()
		f.mails.fail = fail
		f.mails.mu.Unlock()
		f.submit(t, day(id))
		if id == "refused" {
			if e := f.until(t, id, is(exporter.Failed)); e.Error == "" || e.Attempts != 1 {
				t.Errorf("got %+v", e)
			}
			continue
		}
		f.until(t, id, func(e exporter.Export) bool { return e.State == exporter.Retrying && e.Attempts > 1 && e.Error != "" })
		f.mails.mu.Lock()
		f.mails.fail = nil
		f.mails.mu.Unlock()
		if e := f.until(t, id, is(exporter.Done)); e.Error != "" {
			t.Errorf("got %+v", e)
		}
	}
}

// Requirement I2: each period once, in order, those missed in an outage too.
// Two attempts at once, of a request that was redelivered: the slower one fails, and has nothing to say any more.
func TestFinalStateStays(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0)
	for _, c := range []struct{ before, then, want exporter.State }{
		{exporter.Running, exporter.Retrying, exporter.Retrying},
		{exporter.Done, exporter.Retrying, exporter.Done},
		{exporter.Done, exporter.Failed, exporter.Done},
		{exporter.Failed, exporter.Running, exporter.Failed},
		{exporter.Failed, exporter.Done, exporter.Done},
	} {
		id := string(c.before + "-" + c.then)
		for _, state := range []exporter.State{c.before, c.then} {
			if err := f.states.Put(t.Context(), exporter.Export{Request: exporter.Request{ID: id}, State: state}); err != nil {
				t.Fatal(err)
			}
		}
		e, _, err := f.states.Get(t.Context(), id)
		if err != nil || e.State != c.want {
			t.Errorf("%s, then %s: %s, %v; want %s", c.before, c.then, e.State, err, c.want)
		}
	}
}

func TestScheduleCatchesUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24*4)
	dir := t.TempDir()
	server := localSFTP(t, dir)
	d := exporter.Destination{Name: "daily", Organization: "acme", SFTP: server, Schedule: &exporter.Schedule{Since: start}}
	f.run(t, d)
	f.mu.Lock()
	f.closed = start.AddDate(0, 0, 3).Add(time.Hour) // three days, and a piece of the fourth
	f.mu.Unlock()
	for range 3 { // looking again changes nothing
		f.tick(t, "daily")
	}
	for i := range 3 {
		f.until(t, exporter.ScheduledID("acme", "daily", start.AddDate(0, 0, i)), is(exporter.Done))
	}
	all, err := f.states.List(t.Context())
	if err != nil || len(all) != 3 {
		t.Errorf("%d exports, %v; want 3", len(all), err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files %q, %v; want 3", files, err)
	}
	for _, file := range files {
		z, err := zip.OpenReader(file)
		if err != nil {
			t.Fatal(err)
		}
		if len(z.File) != 3+2*24+2*19 && len(z.File) != 3+2*24+2*20 {
			t.Errorf("%s has %d files", file, len(z.File))
		}
		_ = z.Close()
	}
	hidden, err := os.ReadDir(dir)
	if err != nil || len(hidden) != 3 {
		t.Errorf("%d names in the folder, %v; want 3", len(hidden), err)
	}
}

func TestBadRequestsAreGivenUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 24)
	f.run(t)
	for _, body := range []string{"nonsense", "{}", `{"request":{"id":"a b"}}`} {
		if _, err := f.client.JS.Publish(t.Context(), "audit.exports.acme", []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	other, err := exporter.EncodeRequest(day("smuggled"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.client.JS.Publish(t.Context(), "audit.exports.globex", other); err != nil {
		t.Fatal(err)
	}
	r := day("nowhere")
	r.MailTo, r.Destination = nil, "nowhere"
	f.submit(t, r)
	if e := f.until(t, "nowhere", is(exporter.Failed)); !strings.Contains(e.Error, "there is no such destination: nowhere") {
		t.Errorf("got %+v", e)
	}
	if _, found, err := f.states.Get(t.Context(), "smuggled"); found || err != nil {
		t.Errorf("a request on another organization's subject was taken: %v", err)
	}
}

// A partition's file that is gone, or is another hour's, is found before a link to it is mailed.
func TestPartitionThatIsNotItsManifests(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(ctx context.Context, b *blob.Bucket, key, other string) error{
		"gone": func(ctx context.Context, b *blob.Bucket, key, _ string) error { return b.Delete(ctx, key) },
		"swapped": func(ctx context.Context, b *blob.Bucket, key, other string) error {
			return b.Copy(ctx, key, other, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, 24)
			key := func(hour int) string {
				return schema.Partition{Organization: "acme", Trail: schema.Access, Hour: start.Add(time.Duration(hour) * time.Hour), Length: time.Hour}.CSVKey()
			}
			if err := spoil(t.Context(), f.bucket, key(3), key(4)); err != nil {
				t.Fatal(err)
			}
			f.run(t)
			f.submit(t, day(name))
			e := f.until(t, name, is(exporter.Retrying))
			if !strings.Contains(e.Error, "2026/11/20/03.csv") {
				t.Errorf("it does not name the file: %s", e.Error)
			}
			f.mails.mu.Lock()
			defer f.mails.mu.Unlock()
			if len(f.mails.sent) != 0 {
				t.Error("a link to it was mailed")
			}
		})
	}
}
