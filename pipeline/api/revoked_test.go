package api

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// A download that is under way ends within a second of its link's revocation, also when the client does not read it.
func TestRevokedLinkEndsOpenDownload(t *testing.T) {
	t.Parallel()
	c := brokertest.SetUp(t)
	kv, err := c.JS.KeyValue(t.Context(), broker.BucketExports)
	if err != nil {
		t.Fatal(err)
	}
	states := exporter.States{KV: kv}
	e := exporter.Export{Request: exporter.Request{ID: "x1", Organization: "acme"}}
	if err := states.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	d := &downloads{o: Options{States: states}}
	began, ended := make(chan struct{}, 1), make(chan struct{})
	server := httptest.NewServer(guarded(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, done := d.whileValid(r.Context(), w, "x1")
		defer close(ended)
		defer done()
		for part := make([]byte, 1<<20); ; {
			if _, err := w.Write(part); err != nil {
				return
			}
			select {
			case began <- struct{}{}:
			default:
			}
		}
	}), 10*time.Minute, newRefusals(time.Now), slog.New(slog.DiscardHandler)))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	await.Receive(t, await.Limit, "the response to begin", began)
	now := time.Now()
	e.Revoked = &now
	if err := states.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		if took := time.Since(now); took > time.Second {
			t.Errorf("it ended after %s", took)
		}
	case <-time.After(time.Minute):
		t.Fatal("it goes on")
	}
}
