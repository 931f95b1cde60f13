package pipeline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

func post(t *testing.T, url string, body []byte) (status int, accepted int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", codec.ContentNDJSON)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Accepted int `json:"accepted"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatalf("%v: %s", err, raw)
	}
	return res.StatusCode, answer.Accepted
}

// What is posted can be queried, once.
func TestPostedIsQueryable(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Gateway.Anonymous = "loopback"
	s := pipelinetest.Start(t, c, pipeline.RoleWriter, pipeline.RoleGateway)
	source := sample.New(11, nil)
	const requests, each = 20, 200
	for range requests {
		var body []byte
		for range each {
			e := source.Next()
			var err error
			if body, err = codec.AppendJSON(body, &e); err != nil {
				t.Fatal(err)
			}
			body = append(body, '\n')
		}
		if status, n := post(t, s.API.URL()+gateway.Path, body); status != http.StatusAccepted || n != each {
			t.Fatalf("%d, %d accepted", status, n)
		}
	}
	pipelinetest.UntilStored(t, s.Store, requests*each, time.Minute)
	if status, _ := post(t, s.API.URL()+gateway.Path, []byte(line(1))); status != http.StatusAccepted {
		t.Errorf("%d", status)
	}
	pipelinetest.UntilStored(t, s.Store, requests*each+1, time.Minute)
}

// A process that is told to stop answers the requests that it has, and takes no more.
func TestGatewayDrains(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Gateway.Anonymous = "loopback"
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	s, err := pipeline.Start(t.Context(), pipeline.Options{Config: c, Roles: []pipeline.Role{pipeline.RoleGateway}, Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	reading, answered := make(chan struct{}), make(chan int, 1)
	client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	go func() {
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got100Continue: func() { close(reading) }})
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.API.URL()+gateway.Path, r)
		if err != nil {
			t.Error(err)
		}
		req.Header.Set("Content-Type", codec.ContentNDJSON)
		req.Header.Set("Expect", "100-continue") // which the gateway says when it reads the body
		res, err := client.Do(req)
		if err != nil {
			t.Error(err)
			answered <- 0
			return
		}
		defer res.Body.Close()
		answered <- res.StatusCode
	}()
	select {
	case <-reading:
	case <-time.After(time.Minute):
		t.Fatal("the body is not asked for")
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // it takes no more
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.API.URL()+"/healthz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
		if err == nil {
			_ = res.Body.Close()
		}
		return err != nil && strings.Contains(err.Error(), "refused"), err
	})
	if _, err := io.WriteString(w, line(1)+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if status := await.Receive(t, await.Limit, "the answer to the request under way", answered); status != http.StatusAccepted {
		t.Errorf("answered with %d", status)
	}
	if err := await.Receive(t, await.Limit, "the system to close", closed); err != nil {
		t.Error(err)
	}
}

// The gateway answers a request at once while the stream is full, and takes it again when there is
// room.
func TestGatewayAnswersFullStreamAtOnce(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Gateway.Anonymous, c.Gateway.RetryFor, c.Gateway.Timeout = "loopback", time.Minute, 2*time.Minute
	s := pipelinetest.Start(t, c, pipeline.RoleWriter, pipeline.RoleGateway)
	if status, _ := post(t, s.API.URL()+gateway.Path, []byte(line(1))); status != http.StatusAccepted {
		t.Fatalf("%d", status)
	}
	limit := func(bytes int64) {
		t.Helper()
		st, err := s.Client.JS.Stream(t.Context(), broker.StreamAudit)
		if err != nil {
			t.Fatal(err)
		}
		cfg := st.CachedInfo().Config
		cfg.MaxBytes = bytes
		if _, err := s.Client.JS.UpdateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	limit(1)
	began := time.Now()
	res, err := http.Post(s.API.URL()+gateway.Path, codec.ContentJSON, strings.NewReader(line(2)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(raw), `"urn:kansa:problem:stream-full"`) || res.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s, %v", res.StatusCode, raw, err)
	}
	if took := time.Since(began); took > c.Gateway.RetryFor/2 {
		t.Errorf("it took %s: the gateway tried again", took)
	}
	limit(-1)
	if status, _ := post(t, s.API.URL()+gateway.Path, []byte(line(2))); status != http.StatusAccepted {
		t.Errorf("with room: %d", status)
	}
	pipelinetest.UntilStored(t, s.Store, 2, time.Minute)
}
