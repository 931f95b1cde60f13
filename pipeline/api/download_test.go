package api_test

import (
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gocloud.dev/blob/memblob"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/api"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/keys"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/seal"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { http.DefaultClient.CloseIdleConnections() }))
}

// Requirement Z6: a link serves the archive, with Range, until it expires.
func TestDownload(t *testing.T) {
	c := brokertest.SetUp(t)
	exports, err := c.JS.KeyValue(t.Context(), broker.BucketExports)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := c.JS.KeyValue(t.Context(), broker.BucketLinks)
	if err != nil {
		t.Fatal(err)
	}
	bucket := memblob.OpenBucket(nil)
	t.Cleanup(func() { _ = bucket.Close() })
	hour := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	sealer, err := keys.Open(t.Context(), t.TempDir(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	m := seal.New(schema.Partition{Organization: "acme", Trail: schema.Access, Hour: hour, Length: time.Hour})
	data, err := sealer.Seal(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := bucket.WriteAll(t.Context(), m.Partition().ManifestKey(), data, nil); err != nil {
		t.Fatal(err)
	}
	var sick atomic.Bool
	now := hour.Add(24 * time.Hour)
	links := exporter.Links{KV: kv, Now: func() time.Time { return now }}
	states := exporter.States{KV: exports}
	server, err := api.Start(t.Context(), api.Options{
		Listen: "127.0.0.1:0", Bucket: bucket, States: states, Links: links, Logger: slog.New(slog.DiscardHandler),
		Public: true, Details: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if sick.Load() {
				http.Error(w, "no connection to NATS", http.StatusServiceUnavailable)
			}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	e := exporter.Export{Request: exporter.Request{ID: "x1", Organization: "acme", Trails: schema.Trails, From: hour, To: hour.Add(time.Hour), MailTo: []string{"a@b.example"}}}
	if err := states.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	token, err := links.Create(t.Context(), exporter.Link{Export: "x1", Expires: now.Add(7 * 24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	get := func(path, ranges string) (int, http.Header, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL()+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode, res.Header, string(body)
	}
	path := exporter.DownloadPath(token, e.FileName())
	code, header, whole := get(path, "")
	if code != http.StatusOK || !strings.HasPrefix(whole, "PK") || !strings.Contains(header.Get("Content-Disposition"), e.FileName()) || header.Get("ETag") == "" {
		t.Errorf("%d %v, %d bytes", code, header, len(whole))
	}
	code, header, part := get(path, "bytes=10-99")
	if code != http.StatusPartialContent || part != whole[10:100] || !strings.HasPrefix(header.Get("Content-Range"), "bytes 10-99/") {
		t.Errorf("a range: %d %v %q", code, header, part)
	}
	if code, _, _ := get(path, "bytes=999999-"); code != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range beyond the end: %d", code)
	}
	// Of an archive whose hour retention removed, the link says so, again and again; without a statement it is a loss.
	removed := schema.Partition{Organization: "acme", Trail: schema.Access, Hour: hour.Add(-time.Hour), Length: time.Hour}
	e.ID, e.Promise = "x2", exporter.Promise{ETag: "x", Oldest: []string{removed.CSVKey()}}
	if err := states.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	goneToken, err := links.Create(t.Context(), exporter.Link{Export: "x2", Expires: now.Add(7 * 24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, _ := get(exporter.DownloadPath(goneToken, e.FileName()), ""); code != http.StatusServiceUnavailable {
		t.Errorf("an archive that lost an hour: %d", code)
	}
	lost := seal.New(removed)
	if data, err = sealer.Seal(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	sealed, err := seal.Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	statement, err := sealer.SealRemoval(t.Context(), seal.NewRemoval(sealed, now, "retention of 500 bytes"))
	if err != nil {
		t.Fatal(err)
	}
	if err := bucket.WriteAll(t.Context(), removed.RemovedKey(), statement, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		code, _, text := get(exporter.DownloadPath(goneToken, e.FileName()), "")
		if code != http.StatusGone || !strings.Contains(text, "removed on 2026-11-23 by the organization") || !strings.Contains(text, "retention of 500 bytes") {
			t.Errorf("an archive whose hour was removed: %d %s", code, text)
		}
	}
	_, _, wrong := get(exporter.DownloadPath("wrong", e.FileName()), "")
	now = now.Add(8 * 24 * time.Hour)
	code, _, expired := get(path, "")
	if code != http.StatusNotFound || expired != wrong || strings.Contains(expired, "PK") {
		t.Errorf("expired: %d %q; wrong token: %q", code, expired, wrong)
	}
	if code, _, body := get("/healthz", ""); code != http.StatusOK {
		t.Errorf("healthz: %d %s", code, body)
	}
	if code, _, body := get("/readyz", ""); code != http.StatusOK {
		t.Errorf("readyz: %d %s", code, body)
	}
	sick.Store(true)
	if code, _, body := get("/readyz", ""); code != http.StatusServiceUnavailable || !strings.Contains(body, "NATS") {
		t.Errorf("readyz without NATS: %d %s", code, body)
	}
}
