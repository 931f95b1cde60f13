package pipeline_test

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// A disk that is full under everything: events are refused, /readyz says why, and when there is room again all
// goes on by itself; what was acknowledged is stored.
func TestSystemOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir, fill, free := pipelinetest.SmallDisk(t, 256<<20)
	cfg := pipelinetest.Config(t)
	cfg.DataDir = filepath.Join(dir, "data")
	s := pipelinetest.Start(t, cfg)
	ready := func() (status int, text string) {
		r, err := http.Get(s.Health.URL() + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	p, err := producers.New(s.Client.JS, producers.Config{RetryFor: time.Second, AckTimeout: time.Second, Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	events := sample.New(3, nil)
	acked := uint64(0)
	publish := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := p.Publish(ctx, events.Next())
		if err == nil {
			acked++
		}
		return err
	}
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	pipelinetest.UntilStored(t, s.Store, acked, time.Minute)
	fill()
	pipelinetest.Until(t, time.Minute, func() (bool, any) { return publish() != nil, "acknowledged on a full disk" })
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		status, text := ready()
		return status == http.StatusServiceUnavailable && strings.Contains(text, "can not write"), text
	})
	free()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		status, text := ready()
		return status == http.StatusOK, text
	})
	if err := publish(); err != nil {
		t.Error(err)
	}
	// A message that was given up may have been stored nevertheless.
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		rows, distinct, err := pipelinetest.Stored(t, s.Store)
		return err == nil && distinct >= acked && rows == distinct, []any{rows, distinct, acked, err}
	})
	if err := p.Close(t.Context()); err != nil {
		t.Log(err) // those that were refused
	}
}
