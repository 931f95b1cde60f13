package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/broker/brokertest"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/sample"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = time.Minute

// system is a broker that can be stopped and started again, and a gateway in front of it.
type system struct {
	*brokertest.Restartable
	publisher *producers.Publisher
	gateway   *gateway.Gateway
	http      *httptest.Server
}

// start starts one; limit is the bytes of AUDIT, 0 for none.
func start(t testing.TB, cfg gateway.Config, limit int64) *system {
	t.Helper()
	s := &system{Restartable: brokertest.StartRestartable(t, &broker.Settings{
		Replicas: 1, AuditMaxBytes: limit, DuplicateWindow: 10 * time.Minute, AckWait: patience, Hour: time.Hour,
	})}
	var err error
	s.publisher, err = producers.New(s.Connect(t).JS, producers.Config{
		RetryFor: time.Second, AckTimeout: 500 * time.Millisecond, FailWhenFull: true,
		Retrying: func(reason error) {
			if errors.Is(reason, producers.ErrStreamFull) {
				t.Errorf("the gateway waits for a full stream instead of answering: %v", reason)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.publisher.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	if cfg.Access == nil {
		cfg.Access = gateway.Loopback{}
	}
	if s.gateway, err = gateway.New(s.publisher, cfg); err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewServer(s.gateway)
	t.Cleanup(s.http.Close)
	return s
}

// answer is what every answer looks like to a client.
type answer struct {
	status int
	header http.Header
	raw    string

	RequestID string   `json:"request_id"`
	Type      string   `json:"type"`
	Status    int      `json:"status"`
	Title     string   `json:"title"`
	Detail    string   `json:"detail"`
	Where     string   `json:"where"`
	Value     string   `json:"value"`
	Remedy    string   `json:"remedy"`
	Limit     int64    `json:"limit"`
	Supported []string `json:"supported"`
	Accepted  int      `json:"accepted"`
	Rejected  int      `json:"rejected"`
	Results   []struct {
		Index  int    `json:"index"`
		ID     string `json:"id"`
		Status int    `json:"status"`
		Errors []struct {
			Field   string `json:"field"`
			Problem string `json:"problem"`
			Remedy  string `json:"remedy"`
		} `json:"errors"`
	} `json:"results"`
}

func (s *system) post(t testing.TB, query, contentType string, body []byte, headers ...string) answer {
	t.Helper()
	return s.send(t, http.MethodPost, query, contentType, bytes.NewReader(body), headers...)
}

func (s *system) send(t testing.TB, method, query, contentType string, body io.Reader, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.http.URL+gateway.Path+query, body)
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	res, err := s.http.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: res.StatusCode, header: res.Header, raw: string(raw)}
	if err := json.Unmarshal(raw, &a); err != nil && len(raw) > 0 {
		t.Fatalf("%v: %s", err, raw)
	}
	if a.status >= 400 && (res.Header.Get("Content-Type") != "application/problem+json" || a.Status != a.status || a.Title == "" || a.Type == "") {
		t.Errorf("no problem: %d %s: %s", a.status, res.Header.Get("Content-Type"), raw)
	}
	if a.RequestID == "" || a.RequestID != res.Header.Get("X-Request-Id") {
		t.Errorf("request id %q, %q", a.RequestID, res.Header.Get("X-Request-Id"))
	}
	return a
}

// made are made-up events, and as lines.
func made(t testing.TB, seed uint64, n int) (events []schema.Event, lines []byte) {
	t.Helper()
	src := sample.New(seed, nil)
	for range n {
		e := src.Next()
		var err error
		if lines, err = codec.AppendJSON(lines, &e); err != nil {
			t.Fatal(err)
		}
		events, lines = append(events, e), append(lines, '\n')
	}
	return events, lines
}

// withoutIDs takes the first member of each line away.
func withoutIDs(lines []byte) (bare []byte) {
	for l := range bytes.Lines(lines) {
		bare = append(append(bare, '{'), l[bytes.IndexByte(l, ',')+1:]...)
	}
	return bare
}

func line(change ...string) string {
	return strings.NewReplacer(change...).Replace(`{"occurred_at":"2026-11-22T04:05:06.789Z","organization":"acme","trail":"activity","source":"test","event":"thing.done","action":"do","description":"1"}`)
}

func wantStatus(t testing.TB, what string, a answer, status int, says string) {
	t.Helper()
	if a.status != status || !strings.Contains(a.raw, says) {
		t.Errorf("%s: %d %s; want %d, %q", what, a.status, a.raw, status, says)
	}
}

func TestContentTypesAndEncodings(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	var all []schema.Event
	seed := uint64(1)
	for _, encoding := range encodings {
		events, lines := made(t, seed, 300)
		seed++
		a := s.post(t, "", codec.ContentNDJSON, encoding.pack(t, lines), encoding.header()...)
		wantStatus(t, "ndjson "+encoding.name, a, http.StatusAccepted, `"accepted":300`)
		if a.Results != nil {
			t.Errorf("results nobody asked for: %s", a.raw)
		}
		all = append(all, events...)

		events, lines = made(t, seed, 30)
		seed++
		array := append(append([]byte{'['}, bytes.ReplaceAll(bytes.TrimSpace(lines), []byte{'\n'}, []byte{','})...), ']')
		wantStatus(t, "array "+encoding.name, s.post(t, "", "application/json; charset=utf-8", encoding.pack(t, array), encoding.header()...), http.StatusAccepted, `"accepted":30`)
		all = append(all, events...)

		events, lines = made(t, seed, 1)
		seed++
		wantStatus(t, "one "+encoding.name, s.post(t, "", codec.ContentJSON, encoding.pack(t, lines), encoding.header()...), http.StatusAccepted, `"accepted":1`)
		all = append(all, events...)

		events, _ = made(t, seed, 40)
		seed++
		block := codec.NewBlock()
		for i := range events {
			events[i].Organization, events[i].Trail = "acme", schema.Access
			block.Append(&events[i])
		}
		wantStatus(t, "block "+encoding.name, s.post(t, "?organization=acme&trail=access", codec.ContentBlock, encoding.pack(t, block.AppendNative(nil)), encoding.header()...),
			http.StatusAccepted, `"accepted":40`)
		all = append(all, events...)
	}
	// Without a length.
	events, lines := made(t, seed, 2000)
	wantStatus(t, "chunked", s.send(t, http.MethodPost, "", codec.ContentNDJSON, io.MultiReader(bytes.NewReader(lines))), http.StatusAccepted, `"accepted":2000`)
	s.WantOnce(t, append(all, events...))
	if got := s.gateway.Stats(); got.Accepted != uint64(len(all)+2000) || got.Rejected != 0 {
		t.Errorf("%+v", got)
	}
}

func TestCloudEvents(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	ce := func(id string) string {
		return `{"specversion":"1.0","id":"` + id + `","source":"/s","type":"a.b.created","time":"2026-11-22T04:05:06Z","subject":"t-1","data":{"x":1}}`
	}
	const acme = "?organization=acme&trail=activity"
	wantStatus(t, "structured", s.post(t, acme, "application/cloudevents+json", []byte(ce("1"))), http.StatusAccepted, `"accepted":1`)
	wantStatus(t, "batch", s.post(t, acme, "application/cloudevents-batch+json", []byte("["+ce("2")+","+ce("3")+"]")), http.StatusAccepted, `"accepted":2`)
	wantStatus(t, "binary", s.post(t, acme, "application/json", []byte(`{"x":1}`), "ce-specversion", "1.0", "ce-id", "4", "ce-source", "/s", "ce-type", "a.b.created",
		"ce-time", "2026-11-22T04:05:06Z", "ce-subject", "t-1", "ce-actorname", "Chlo%C3%A9"), http.StatusAccepted, `"accepted":1`)
	wantStatus(t, "text", s.post(t, acme, "text/plain", []byte(`hello`), "ce-specversion", "1.0", "ce-id", "5", "ce-source", "/s", "ce-type", "a.b.created",
		"ce-time", "2026-11-22T04:05:06Z"), http.StatusAccepted, `"accepted":1`)
	wantStatus(t, "no time", s.post(t, acme, "text/plain", nil, "ce-specversion", "1.0", "ce-id", "6", "ce-source", "/s", "ce-type", "a.b.created"),
		http.StatusUnprocessableEntity, `"field":"time"`)
	got := s.Stored(t)
	for i := 1; i <= 5; i++ {
		e, ok := got.Events["acme/activity/"+codec.HashedID("cloudevents", "/s", strconv.Itoa(i)).String()]
		want := `{"x":1}`
		if i == 5 {
			want = `"hello"`
		}
		if !ok || e.Action != "created" || e.Event != "a.b.created" || i != 5 && e.Target.ID != "t-1" || string(e.Data) != want || i == 4 && e.Actor.Name != "Chloé" {
			t.Errorf("%d: %v %+v", i, ok, e)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{MaxBody: 1 << 20, MaxEvents: 100}, 0)
	big := bytes.Repeat([]byte(line()+"\n"), 8000)
	nd, js := codec.ContentNDJSON, codec.ContentJSON
	for _, c := range []struct {
		name, query, contentType string
		body                     string
		headers                  []string
		status                   int
		says                     string
	}{
		{"no type", "", "", line(), nil, 415, `"where":"Content-Type"`},
		{"a form", "", "application/x-www-form-urlencoded", line(), nil, 415, "application/vnd.kansa.block"},
		{"unknown encoding", "", js, line(), []string{"Content-Encoding", "br"}, 415, `"supported":["gzip","snappy","zstd"]`},
		{"two encodings", "", js, line(), []string{"Content-Encoding", "gzip, zstd"}, 415, "Content-Encoding"},
		{"empty", "", js, "", nil, 400, "it holds no event"},
		{"blank lines", "", nd, "\n \n", nil, 400, "it holds no event"},
		{"empty array", "", js, "[]", nil, 400, "it holds no event"},
		{"no JSON", "", js, "{]", nil, 400, "not JSON at byte 2"},
		{"array cut off", "", js, "[" + line() + ",", nil, 400, "cut off"},
		{"after the array", "", js, "[" + line() + "] x", nil, 400, "not JSON at byte"},
		{"no gzip", "", js, line(), []string{"Content-Encoding", "gzip"}, 400, `"where":"body"`},
		{"no zstd", "", js, line(), []string{"Content-Encoding", "zstd"}, 400, `"where":"body"`},
		{"no snappy", "", js, "\xff\xff\xff", []string{"Content-Encoding", "snappy"}, 400, `"where":"body"`},
		{"parameter", "?org=acme", js, line(), nil, 400, `"value":"org"`},
		{"query", "?a=%zz", js, line(), nil, 400, "well-formed"},
		{"organization", "?organization=a.b", js, line(), nil, 400, "use 1 to 64 of"},
		{"trail", "?trail=other", js, line(), nil, 400, "use activity or access"},
		{"results", "?results=some", js, line(), nil, 400, "results=all"},
		{"twice", "?organization=acme", js, line(), []string{"Kansa-Organization", "globex"}, 400, "given twice"},
		{"key", "", js, line(), []string{"Idempotency-Key", ""}, 400, "Idempotency-Key"},
		{"long key", "", js, line(), []string{"Idempotency-Key", strings.Repeat("x", 256)}, 400, "Idempotency-Key"},
		{"a block of nobody", "?organization=acme", codec.ContentBlock, "x", nil, 400, "organization=…"},
		{"no block", "?organization=acme&trail=access", codec.ContentBlock, "x", nil, 400, "it ends within the header"},
		{"large", "", nd, string(big), nil, 413, `"limit":1048576`},
		{"large, packed", "", nd, string(pack(t, "gzip", big)), []string{"Content-Encoding", "gzip"}, 413, `"limit":1048576`},
		{"many", "", nd, strings.Repeat(line()+"\n", 101), nil, 413, "at most 100 events"},
		{"many in an array", "", js, "[" + strings.Repeat(line()+",", 100) + line() + "]", nil, 413, "at most 100 events"},
		{"invalid", "", js, line("acme", "a.b", `"action":"do",`, ""), nil, 422, `"field":"action","problem":"is missing"`},
		{"none valid", "", nd, "{]\n7\n", nil, 422, `"rejected":2`},
		{"disagrees", "?organization=globex", js, line(), nil, 422, `disagrees with the request, which says \"globex\"`},
		{"disagrees in a header", "", js, line(), []string{"Kansa-Trail", "access"}, 422, `disagrees with the request, which says \"access\"`},
		{"a browser", "", js, line(), []string{"Origin", "http://evil.example"}, 403, "Origin"},
		{"a proxy", "", js, line(), []string{"X-Forwarded-For", "203.0.113.9"}, 403, "X-Forwarded-For"},
	} {
		a := s.post(t, c.query, c.contentType, []byte(c.body), c.headers...)
		wantStatus(t, c.name, a, c.status, c.says)
		if a.Remedy == "" && c.status != 403 {
			t.Errorf("%s: no remedy: %s", c.name, a.raw)
		}
	}
	a := s.send(t, http.MethodGet, "", "", nil)
	wantStatus(t, "get", a, http.StatusMethodNotAllowed, "POST")
	if a.header.Get("Allow") != "POST" {
		t.Errorf("Allow: %q", a.header.Get("Allow"))
	}
	if got := s.Stored(t); len(got.Times) > 0 {
		t.Errorf("%d events are stored", len(got.Times))
	}
}

// Events that are good are stored, whatever their neighbours are.
func TestMixedResults(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{}, 0)
	const id = "0196f1d0-0000-7000-8000-000000000001"
	body := line(`{"occ`, `{"id":"`+id+`","occ`, `"action":"do"`, `"action":"DO"`) + "\n" + line() + "\n{]\n" + line("acme", "globex")
	a := s.post(t, "", codec.ContentNDJSON, []byte(body), "X-Request-Id", "mine-1")
	if a.status != http.StatusMultiStatus || a.Accepted != 2 || a.Rejected != 2 || len(a.Results) != 2 || a.RequestID != "mine-1" {
		t.Fatal(a.status, a.raw)
	}
	if r := a.Results[0]; r.Index != 0 || r.ID != id || r.Status != 422 || len(r.Errors) != 1 || r.Errors[0].Remedy != "write do" {
		t.Errorf("%+v", r)
	}
	if r := a.Results[1]; r.Index != 2 || r.ID != "" || !strings.Contains(r.Errors[0].Problem, "not JSON at byte 2") {
		t.Errorf("%+v", r)
	}
	a = s.post(t, "?results=all&organization=acme", codec.ContentNDJSON, []byte(body))
	if a.status != http.StatusMultiStatus || a.Accepted != 1 || len(a.Results) != 4 {
		t.Fatal(a.status, a.raw)
	}
	got := s.Stored(t)
	if r := a.Results[1]; r.Status != 202 || got.Times["acme/activity/"+r.ID] != 1 {
		t.Errorf("%+v is not stored", r)
	}
	if len(got.Times) != 3 {
		t.Errorf("%d events are stored", len(got.Times))
	}
	// Many faults are bounded.
	a = s.post(t, "", codec.ContentNDJSON, []byte(strings.Repeat("{}\n", 5000)+line()))
	if a.status != http.StatusMultiStatus || len(a.Results) != 5000 || len(a.Results[999].Errors) == 0 || len(a.Results[1000].Errors) != 0 {
		t.Errorf("%d, %d results", a.status, len(a.Results))
	}
	// A block's bad rows, too.
	block := codec.NewBlock()
	events, _ := made(t, 9, 3)
	events[1].Action = "UP"
	for i := range events {
		block.Append(&events[i])
	}
	a = s.post(t, "?organization=acme&trail=activity", codec.ContentBlock, block.AppendNative(nil))
	if a.status != http.StatusMultiStatus || a.Accepted != 2 || a.Results[0].Index != 1 || a.Results[0].ID != events[1].ID.String() {
		t.Error(a.status, a.raw)
	}
}

type only string

func (o only) Authenticate(r *http.Request) (gateway.Client, error) {
	switch r.Header.Get("Authorization") {
	case "":
		return nil, gateway.ErrUnauthenticated
	case "Bearer bad":
		return nil, fmt.Errorf("the key has expired")
	}
	return o, nil
}

func (o only) Name() string { return string(o) }

func (o only) MayPublish(organization string, _ schema.Trail) error {
	if organization != string(o) {
		return fmt.Errorf("the key is not of this organization")
	}
	return nil
}

func TestAccess(t *testing.T) {
	t.Parallel()
	s := start(t, gateway.Config{Access: only("acme")}, 0)
	key := []string{"Authorization", "Bearer good"}
	a := s.post(t, "", codec.ContentJSON, []byte(line()))
	wantStatus(t, "nobody", a, http.StatusUnauthorized, "not authenticated")
	if a.header.Get("WWW-Authenticate") != "Bearer" {
		t.Error(a.header)
	}
	wantStatus(t, "expired", s.post(t, "", codec.ContentJSON, []byte(line()), "Authorization", "Bearer bad"), http.StatusForbidden, "expired")
	wantStatus(t, "own", s.post(t, "", codec.ContentJSON, []byte(line()), key...), http.StatusAccepted, `"accepted":1`)
	wantStatus(t, "another's", s.post(t, "", codec.ContentJSON, []byte(line("acme", "globex")), key...), http.StatusForbidden, "not of this organization")
	wantStatus(t, "another's block", s.post(t, "?organization=globex&trail=access", codec.ContentBlock, block(t), key...), http.StatusForbidden, "not of this organization")
	wantStatus(t, "both", s.post(t, "", codec.ContentNDJSON, []byte(line()+"\n"+line("acme", "globex")), key...), http.StatusMultiStatus, `"status":403`)
	if got := s.Stored(t); len(got.Times) != 2 {
		t.Errorf("%d events are stored", len(got.Times))
	}
}

func block(t *testing.T) []byte {
	events, _ := made(t, 1, 2)
	b := codec.NewBlock()
	for i := range events {
		b.Append(&events[i])
	}
	return b.AppendNative(nil)
}
