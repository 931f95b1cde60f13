package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// A small body that becomes a huge one is refused at the limit, not afterwards.
func TestBombs(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{MaxBody: 1 << 20}, 0)
	zeros := make([]byte, 64<<20)
	for _, name := range []string{"gzip", "snappy stream", "zstd", "zstd stream"} {
		bomb := pack(t, name, zeros)
		if len(bomb) > 1<<20 && name != "snappy stream" {
			t.Fatalf("%s: a bomb of %d bytes", name, len(bomb))
		}
		encoding, _, _ := strings.Cut(name, " ")
		a := s.post(t, "", codec.ContentNDJSON, bomb, "Content-Encoding", encoding)
		if a.status != http.StatusRequestEntityTooLarge && (encoding != "zstd" || a.status != http.StatusBadRequest) {
			t.Errorf("%s: %d %s", name, a.status, a.raw)
		}
	}
	// It says that it is 4 GB, in 5 bytes.
	wantStatus(t, "a lie", s.post(t, "", codec.ContentNDJSON, []byte("\xff\xff\xff\xff\x0f"), "Content-Encoding", "snappy"), http.StatusRequestEntityTooLarge, "limit")
	wantStatus(t, "nesting", s.post(t, "", codec.ContentJSON, bytes.Repeat([]byte("["), 1<<20)), http.StatusBadRequest, "not")
	// What the bombs took is given back.
	wantStatus(t, "afterwards", s.post(t, "", codec.ContentJSON, []byte(line())), http.StatusAccepted, "")
}

// A full stream is answered at once with 503 and a type of its own, and works again when there is
// room; nothing is lost or twice.
func TestFullStream(t *testing.T) {
	t.Parallel()
	const limit = 128 << 10
	s := start(t, gateway.Config{}, limit)
	var accepted []schema.Event
	var refused answer
	var again []byte
	var waiting []schema.Event
	for seed := uint64(1); refused.status == 0; seed++ {
		events, lines := made(t, seed, 200)
		a := s.post(t, "?results=all", codec.ContentNDJSON, lines, "Idempotency-Key", fmt.Sprint("k", seed))
		switch {
		case a.status == http.StatusAccepted:
			accepted = append(accepted, events...)
		case seed > 30:
			t.Fatal("the stream is never full")
		default:
			if a.status != http.StatusServiceUnavailable && a.status != http.StatusMultiStatus || a.header.Get("Retry-After") != "10" {
				t.Fatal(a.status, a.header, a.raw)
			}
			if !strings.Contains(a.raw, "The stream of events is full") {
				t.Error(a.raw)
			}
			for i, r := range a.Results {
				if r.Status == http.StatusAccepted {
					accepted = append(accepted, events[i])
				} else if r.Status == http.StatusServiceUnavailable && r.ID == events[i].ID.String() {
					waiting = append(waiting, events[i])
				} else {
					t.Errorf("%+v", r)
				}
			}
			refused, again = a, lines
			t.Logf("full after %d events: %d, %d accepted", len(accepted), a.status, a.Accepted)
			s.WantOnce(t, accepted)
			s.Settings.AuditMaxBytes = 1
			s.SetUp(t)
			one := s.post(t, "", codec.ContentJSON, []byte(line()))
			if one.status != http.StatusServiceUnavailable || one.Type != "urn:kansa:problem:stream-full" || !strings.Contains(one.raw, "none of these is stored") {
				t.Error(one.status, one.raw)
			}
			// Room, and the same request again, with its key.
			s.Settings.AuditMaxBytes = 0
			s.SetUp(t)
			wantStatus(t, "again", s.post(t, "", codec.ContentNDJSON, again, "Idempotency-Key", fmt.Sprint("k", seed)), http.StatusAccepted, `"accepted":200`)
		}
	}
	if len(waiting) == 0 {
		t.Error("nothing was refused")
	}
	s.WantOnce(t, append(accepted, waiting...))
}

func TestBrokerStops(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{Timeout: 10 * time.Second}, 0)
	events, lines := made(t, 1, 50)
	s.Stop()
	a := s.post(t, "", codec.ContentNDJSON, lines, "Idempotency-Key", "k")
	wantStatus(t, "stopped", a, http.StatusServiceUnavailable, "broker")
	if a.header.Get("Retry-After") == "" || len(a.Results) != 50 || a.Results[49].Status != http.StatusServiceUnavailable {
		t.Error(a.raw)
	}
	s.Start(t)
	await.State(t, patience, "the connection to be there again", func() (bool, any) {
		a = s.post(t, "", codec.ContentNDJSON, lines, "Idempotency-Key", "k")
		return a.status == http.StatusAccepted, a.raw
	})
	wantStatus(t, "started", a, http.StatusAccepted, `"accepted":50`)
	s.WantOnce(t, events)
}

// Requirement B2: the same request with the same key is stored once, also through another gateway, and though others publish the
// while; another body is refused.
func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	other, err := gateway.New(s.publisher, gateway.Config{Access: gateway.Loopback{}})
	if err != nil {
		t.Fatal(err)
	}
	second := httptest.NewServer(other)
	defer second.Close()
	_, lines := made(t, 1, 500)
	bare := withoutIDs(lines) // so that they are the gateway's
	var wg sync.WaitGroup
	noise, _ := made(t, 2, 200)
	for i := range noise {
		wg.Go(func() {
			one, err := codec.AppendJSON(nil, &noise[i])
			if err != nil {
				t.Error(err)
			}
			s.post(t, "", codec.ContentJSON, one)
		})
	}
	var ids []string
	for i := range 4 {
		if i == 2 {
			s.http.Config.Handler = other // one that knows nothing of the others
		}
		a := s.post(t, "?results=all", codec.ContentNDJSON, pack(t, "gzip", bare), "Content-Encoding", "gzip", "Idempotency-Key", `"order 7"`)
		wantStatus(t, "again", a, http.StatusAccepted, `"accepted":500`)
		for j, r := range a.Results {
			if i == 0 {
				ids = append(ids, r.ID)
			} else if r.ID != ids[j] {
				t.Fatalf("event %d has id %s and %s", j, ids[j], r.ID)
			}
		}
	}
	if id := uuid.MustParse(ids[0]); id.Version() != 8 || id.Variant() != uuid.RFC4122 {
		t.Errorf("%s is of version %d", id, id.Version())
	}
	await.Return(t, await.Limit, "all requests with the key to be answered", wg.Wait)
	a := s.post(t, "", codec.ContentNDJSON, lines, "Idempotency-Key", "order 7")
	wantStatus(t, "another body", a, http.StatusUnprocessableEntity, "Another body came with this key within the last 10m0s")
	wantStatus(t, "another key", s.post(t, "", codec.ContentNDJSON, bare, "Idempotency-Key", "order 8"), http.StatusAccepted, "500")
	// A request that came to nothing uses no key up.
	wantStatus(t, "invalid", s.post(t, "", codec.ContentJSON, []byte(`{}`), "Idempotency-Key", "order 9"), http.StatusUnprocessableEntity, "missing")
	wantStatus(t, "mended", s.post(t, "", codec.ContentJSON, []byte(line()), "Idempotency-Key", "order 9"), http.StatusAccepted, "")
	got := s.Stored(t)
	for k, n := range got.Times {
		if n != 1 {
			t.Errorf("%s is stored %d times", k, n)
		}
	}
	if want := 500 + 500 + 200 + 1; len(got.Times) != want {
		t.Errorf("%d events are stored, want %d", len(got.Times), want)
	}
}

// Many clients share messages; all that was acknowledged is stored, once.
func TestManyClients(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	var mu sync.Mutex
	var all []schema.Event
	var wg sync.WaitGroup
	for client := range uint64(20) {
		wg.Go(func() {
			for round := range uint64(15) {
				events, lines := made(t, 1+client*100+round, int(1+client))
				wantStatus(t, "post", s.post(t, "", codec.ContentNDJSON, lines), http.StatusAccepted, "")
				mu.Lock()
				all = append(all, events...)
				mu.Unlock()
			}
		})
	}
	await.Return(t, await.Limit, "all clients to end", wg.Wait)
	s.WantOnce(t, all)
	if got := s.Stored(t).Messages; got > 20*15*3 {
		t.Errorf("%d messages", got)
	}
}

// A request that is as large as may be is answered, and its client's next one has to wait for it.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	// The bodies that do not end must not time out before the third request, however busy the machine is.
	s := start(t, gateway.Config{MaxBody: 4 << 20, Memory: 48 << 20, ClientMemory: 16 << 20, Timeout: 2 * patience}, 0)
	events, lines := made(t, 1, 6000)
	wantStatus(t, "large", s.post(t, "", codec.ContentNDJSON, lines), http.StatusAccepted, `"accepted":6000`)
	s.WantOnce(t, events)
	// Bodies that don't end hold their memory: two fit.
	began := make(chan struct{}, 2)
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		wg.Go(func() {
			// Again if it is refused: the handler of the large request gives its memory back after its answer.
			for ctx.Err() == nil {
				r, w := io.Pipe()
				go func() {
					_, _ = w.Write([]byte("{"))
					select {
					case began <- struct{}{}:
					default:
					}
					<-ctx.Done()
					_ = w.Close()
				}()
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.http.URL+gateway.Path, r)
				req.ContentLength = 4 << 20
				req.Header.Set("Content-Type", codec.ContentNDJSON)
				if res, err := s.http.Client().Do(req); err == nil {
					_ = res.Body.Close()
				}
			}
		})
	}
	await.Receive(t, await.Limit, "the first request to be read", began)
	await.Receive(t, await.Limit, "the second request to be read", began)
	var a answer
	pipelinetest.Until(t, patience, func() (bool, any) { // both are being read
		a = s.post(t, "", codec.ContentNDJSON, lines[:bytes.LastIndexByte(lines[:1<<20], '\n')])
		return a.status == http.StatusTooManyRequests, a.raw
	})
	wantStatus(t, "third", a, http.StatusTooManyRequests, "of this client")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After %q", a.header.Get("Retry-After"))
	}
	cancel()
	await.Return(t, await.Limit, "both requests to end", wg.Wait)
	pipelinetest.Until(t, patience, func() (bool, any) { // memory is given back
		a = s.post(t, "", codec.ContentJSON, []byte(line()))
		return a.status == http.StatusAccepted, a.raw
	})
}

func TestSlowBodyIsEnded(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{Timeout: 300 * time.Millisecond}, 0)
	r, w := io.Pipe()
	defer w.Close()
	go func() { _, _ = w.Write([]byte("{")) }()
	wantStatus(t, "slow", s.send(t, http.MethodPost, "", codec.ContentJSON, r), http.StatusRequestTimeout, "in time")
}

type panics struct{}

func (panics) Authenticate(*http.Request) (gateway.Client, error) { panic("secret of the house") }

func TestPanicIsNotTold(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	s := start(t, gateway.Config{Access: panics{}, Logger: slog.New(slog.NewJSONHandler(&log, nil))}, 0)
	a := s.post(t, "", codec.ContentJSON, []byte(line()), "X-Request-Id", "r-1")
	wantStatus(t, "panic", a, http.StatusInternalServerError, "r-1")
	if strings.Contains(a.raw, "secret") || !strings.Contains(log.String(), "secret of the house") || !strings.Contains(log.String(), `"request_id":"r-1"`) {
		t.Error(a.raw, log.String())
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// A log says what failed and of whom, and nothing of what was sent.
func TestLogHoldsNoBodies(t *testing.T) {
	t.Parallel()
	var log lockedBuffer
	s := start(t, gateway.Config{Logger: slog.New(slog.NewJSONHandler(&log, nil))}, 0)
	s.post(t, "", codec.ContentJSON, []byte(line("acme", "TOP.SECRET")), "Authorization", "Bearer hunter2", "Idempotency-Key", "classified")
	s.post(t, "?organization=a.secret", codec.ContentJSON, []byte(line()))
	text := log.String()
	for _, secret := range []string{"SECRET", "secret", "hunter2", "classified"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the log: %s", secret, text)
		}
	}
	var one struct {
		Status   int    `json:"status"`
		Client   string `json:"client"`
		Rejected int    `json:"rejected"`
	}
	if err := json.Unmarshal([]byte(strings.SplitN(text, "\n", 2)[0]), &one); err != nil || one.Status != 422 || one.Client != schema.RecordedByAnonymous || one.Rejected != 1 {
		t.Errorf("%v %+v: %s", err, one, text)
	}
}

func TestOnlyThisMachine(t *testing.T) {
	t.Parallel()
	for addr, good := range map[string]bool{"127.0.0.1:5": true, "[::1]:5": true, "203.0.113.9:5": false, "[2001:db8::1]:5": false, "x": false} {
		_, err := gateway.Loopback{}.Authenticate(&http.Request{RemoteAddr: addr, Header: http.Header{}})
		if (err == nil) != good {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

func TestSettingsAreChecked(t *testing.T) {
	t.Parallel()
	_, err := gateway.New(nil, gateway.Config{MaxBody: 5, Memory: 1, ClientMemory: -1, MaxRequests: -1, MaxEvents: -1})
	for _, name := range []string{"MaxBody is 5", "Memory is 1:", "ClientMemory is -1", "MaxRequests is -1", "MaxEvents is -1"} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not say %q", err, name)
		}
	}
}

// Whatever comes, the answer is one of those that are promised, and what is acknowledged is stored.
func FuzzBody(f *testing.F) {
	s := start(f, gateway.Config{MaxBody: 1 << 20, MaxEvents: 1000}, 0)
	events, lines := made(f, 1, 3)
	b := codec.NewBlock()
	for i := range events {
		b.Append(&events[i])
	}
	types := []string{codec.ContentNDJSON, codec.ContentJSON, "application/cloudevents+json", "application/cloudevents-batch+json", codec.ContentBlock}
	for i, name := range []string{"plain", "gzip", "snappy", "snappy stream", "zstd", "zstd stream"} {
		f.Add(pack(f, name, lines), uint8(0), uint8(i), "")
		f.Add(pack(f, name, b.AppendNative(nil)), uint8(4), uint8(i), "k")
	}
	f.Add([]byte(line()), uint8(1), uint8(0), "")
	f.Add([]byte(`[{"specversion":"1.0","id":"1","source":"/s","type":"t","time":"2026-11-22T04:05:06Z"}]`), uint8(3), uint8(0), "")
	js := s.Connect(f).JS
	f.Fuzz(func(t *testing.T, body []byte, kind, encoding uint8, key string) {
		req := httptest.NewRequest(http.MethodPost, gateway.Path+"?organization=acme&trail=activity&results=all", bytes.NewReader(body))
		req.RemoteAddr = "127.0.0.1:1"
		req.Header.Set("Content-Type", types[int(kind)%len(types)])
		if e := encodings[int(encoding)%len(encodings)].encoding; e != "" {
			req.Header.Set("Content-Encoding", e)
		}
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		before := messages(t, js)
		w := httptest.NewRecorder()
		s.gateway.ServeHTTP(w, req)
		var a answer
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Fatal(err, w.Body)
		}
		switch w.Code {
		case http.StatusAccepted, http.StatusMultiStatus:
			if a.Accepted == 0 || len(a.Results) != a.Accepted+a.Rejected || messages(t, js) == 0 { // the same events again may be known
				t.Errorf("%d: %s", w.Code, w.Body)
			}
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
			if messages(t, js) != before {
				t.Errorf("%d, but something is stored: %s", w.Code, w.Body)
			}
		default:
			t.Errorf("%d: %s", w.Code, w.Body)
		}
	})
}

func messages(t *testing.T, js jetstream.JetStream) uint64 {
	st, err := js.Stream(t.Context(), broker.StreamAudit)
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return st.CachedInfo().State.Msgs
}
