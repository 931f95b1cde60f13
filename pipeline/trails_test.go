package pipeline_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/render"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// secondWriter writes beside the system's own until the test ends.
func secondWriter(t *testing.T, s *pipeline.System) {
	t.Helper()
	stream, err := s.Client.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	w, err := writer.New([]writer.Stream{stream}, s.Client.NC, s.Store, tally.Ledger{JS: s.Client.JS}, nil, writer.Config{Recording: recording.New(s.Client.JS), Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := await.Receive(t, await.Limit, "the watch of trails to end", ended); err != nil {
			t.Error(err)
		}
	})
}

// trails has three ways to publish for one organization: each knows what of its own has to be recorded.
type trails struct {
	s         *pipeline.System
	sdk       *producers.Publisher
	publisher client // over HTTP
}

// sendAll publishes an event each way, and tells which was said to be left out. Where it came is in the description.
func (x *trails) sendAll(t *testing.T, org, what string) (sdk, posted bool) {
	t.Helper()
	e := qlik(1)
	e.ID, e.Organization, e.Trail, e.Description = uuid.New(), org, schema.Access, what+" sdk"
	ack, err := x.sdk.PublishAsync(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if err := ack.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	text := func(how string) []byte {
		e.ID, e.Description = uuid.New(), what+" "+how
		data, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	res, body := x.publisher.do(t, http.MethodPost, gateway.Path, string(text("http")))
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("posted: %d %s", res.StatusCode, body)
	}
	msg := nats.NewMsg(schema.EventSubject(org, schema.Access))
	msg.Header.Set(schema.HeaderContentType, codec.ContentJSON)
	msg.Data = text("raw")
	if _, err := x.s.Client.JS.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
	return ack.Unrecorded(), strings.Contains(string(body), "not_recorded")
}

// Requirements Z1, Z2, Z9, N2: one of two trails is switched off. It stops at once for the SDK, the gateway and who
// publishes with neither, whichever of two writers has the message; what was recorded stays; after it is on again all is
// recorded. The accounts agree, and the archive, sealed as it is and rendered, says when it was off, who wanted it and why.
func TestTrailIsSwitchedOff(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	secondWriter(t, s)
	sdk, err := producers.New(s.Client.JS, producers.Config{Logger: pipelinetest.Logger(t)})
	if err != nil {
		t.Fatal(err)
	}
	x := &trails{s, sdk, newClient(t, s, "all-apps", "", access.Publisher)}
	t.Cleanup(func() {
		if err := sdk.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	admin := newClient(t, s, "ann", "acme", access.Admin)
	const path = "/api/v1/organizations/acme/trails"
	switchTo := func(want string) settings.Trails {
		t.Helper()
		res, body := admin.do(t, http.MethodGet, path, "")
		if res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		res, body = admin.do(t, http.MethodPut, path, want, "If-Match", res.Header.Get("ETag"))
		var got settings.Trails
		if err := json.Unmarshal(body, &got); err != nil || res.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
		return got
	}
	if a, b := x.sendAll(t, "acme", "before"); a || b {
		t.Error("left out, and nothing is off")
	}
	// The broker's own time is what counts: what comes in while the switch is turned is on one side or the other.
	stop, streaming := make(chan struct{}), make(chan int, 1)
	go func() {
		n := 0
		defer func() { streaming <- n }()
		for ; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			e := qlik(2)
			e.ID, e.Trail = uuid.New(), schema.Access
			data, err := json.Marshal(e)
			if err != nil {
				t.Error(err)
				return
			}
			msg := nats.NewMsg(schema.EventSubject("acme", schema.Access))
			msg.Header.Set(schema.HeaderContentType, codec.ContentJSON)
			msg.Data = data
			if _, err := s.Client.JS.PublishMsg(context.Background(), msg); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	off := switchTo(`{"access":false,"reason":"privacy review"}`)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		a, b := x.sendAll(t, "acme", "turning")
		return a && b, []any{a, b}
	})
	for range 3 { // whatever they are told, none of it is recorded
		x.sendAll(t, "acme", "off")
	}
	if a, b := x.sendAll(t, "globex", "other"); a || b {
		t.Error("another organization is left out")
	}
	publishAll(t, s, qlik(3)) // the other trail
	on := switchTo(`{"access":true}`)
	begins := on.Access.Gaps[0].To
	stream, err := s.Client.JS.Stream(t.Context(), broker.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		info, err := stream.Info(t.Context())
		return err == nil && info.TimeStamp.After(begins), err
	})
	if a, b := x.sendAll(t, "acme", "after"); a || b {
		t.Error("on again, and left out")
	}
	close(stop)
	await.Receive(t, await.Limit, "the publisher to end", streaming)
	end := time.Now().Add(time.Second)
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // all is sealed, and nothing waits for a repair
		progress, err := s.Intake.Closed(t.Context(), "acme", schema.Trails)
		return err == nil && progress.After(end), []any{progress, err}
	})

	gap := on.Access.Gaps[0]
	if !gap.From.Equal(off.Access.Gaps[0].From) || gap.Reason != "privacy review" || gap.By == "" {
		t.Errorf("the gap is %+v", on.Access.Gaps)
	}
	rows, err := s.Store.Conn().Query(t.Context(), "SELECT recorded_at, description FROM audit_events WHERE organization = 'acme' AND trail = 'access'")
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]int{}
	for rows.Next() {
		var at time.Time
		var what string
		if err := rows.Scan(&at, &what); err != nil {
			t.Fatal(err)
		}
		stored[what]++
		if !at.Before(gap.From) && at.Before(gap.To) {
			t.Errorf("%q was recorded at %s, between %s and %s", what, at, gap.From, gap.To)
		}
	}
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]int{"before": 1, "off": 0, "after": 1} {
		for _, how := range []string{" sdk", " http", " raw"} {
			if stored[what+how] != want {
				t.Errorf("%s%s is stored %d times, want %d", what, how, stored[what+how], want)
			}
		}
	}
	// The auditor.
	checkArchive(t, s, gap, end)
	// Requirement I14, Q2: the change is told, with what was before and after, by whom and why.
	operator := newClient(t, s, "operator", "", access.Auditor)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var p struct{ Events []schema.Event }
		operator.json(t, "/api/v1/audit/events?organization=acme&event=trails.updated", &p)
		if len(p.Events) != 2 {
			return false, len(p.Events)
		}
		e := p.Events[1] // the first of the two
		return e.Description == "privacy review" && strings.Contains(string(e.Before), `"access":true`) && strings.Contains(string(e.After), `"access":false`) && strings.Contains(e.Actor.ID, "key:"), e
	})
}

// checkArchive holds the manifests, kansa verify and README.txt of archives against a gap.
func checkArchive(t *testing.T, s *pipeline.System, gap schema.RecordingGap, end time.Time) {
	t.Helper()
	key := filepath.Join(s.Config.DataDir, "seal.pub")
	trusted, err := verify.ReadKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []codec.Format{"", codec.FormatNDJSON} {
		r := exporter.Request{
			ID: "gap" + string(format), Organization: "acme", Trails: schema.Trails, From: end.Add(-time.Hour), To: end.Add(time.Minute).Truncate(time.Second), MailTo: []string{"a@example.com"},
			Content: render.Content{Format: format},
		}
		plan, err := exporter.Prepare(t.Context(), s.Bucket, &r, func(uint64, uint64) {})
		if err != nil {
			t.Fatal(err)
		}
		var file bytes.Buffer
		if _, err := plan.WriteTo(t.Context(), &file); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(t.TempDir(), "archive.zip")
		if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		report, err := verify.Path(t.Context(), name, verify.Options{Key: trusted, Rendered: format != ""})
		if err != nil || !report.OK {
			t.Fatalf("%v: %+v", err, report)
		}
		for _, series := range report.Series {
			if series.Trail != schema.Access {
				if len(series.Gaps) != 0 {
					t.Errorf("%s has gaps: %+v", series.Trail, series.Gaps)
				}
				continue
			}
			if len(series.Gaps) != 1 || !series.Gaps[0].From.Equal(gap.From) || !series.Gaps[0].To.Equal(gap.To) || !series.Gaps[0].Off() || !strings.HasSuffix(series.Gaps[0].Reason, gap.Reason) || series.Gaps[0].By != gap.By {
				t.Errorf("the manifests say %+v, want %+v", series.Gaps, gap)
			}
		}
		readme := readFile(t, file.Bytes(), "README.txt")
		for _, want := range []string{"NOT ALL OF THIS TIME WAS RECORDED", "access    " + gap.From.Format(time.RFC3339Nano), "switched off: privacy review (" + gap.By + ")"} {
			if !strings.Contains(readme, want) {
				t.Errorf("README.txt does not say %q:\n%s", want, readme)
			}
		}
	}
}

// readFile reads a file of an archive.
func readFile(t *testing.T, file []byte, name string) string {
	t.Helper()
	z, err := zip.NewReader(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	f, err := z.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Requirement Z3, by the API: what HIPAA holds on is not switched off, and whose right it is not is refused.
func TestSwitchesThatAreRefused(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t), pipeline.RoleExporter, pipeline.RoleAPI)
	const path = "/api/v1/organizations/acme/trails"
	clients := map[string]client{
		"admin": newClient(t, s, "admin", "acme", access.Admin), "operator": newClient(t, s, "operator", "", access.Admin),
		"auditor": newClient(t, s, "auditor", "acme", access.Auditor), "publisher": newClient(t, s, "publisher", "acme", access.Publisher),
		"stranger": newClient(t, s, "stranger", "globex", access.Admin), "nobody": {s, ""},
	}
	off := `{"activity":false,"reason":"why"}`
	for name, want := range map[string][2]int{
		"admin": {200, 412}, "operator": {200, 412}, "auditor": {200, 403}, "publisher": {403, 403}, "stranger": {403, 403}, "nobody": {401, 401},
	} {
		clients[name].get(t, want[0], path)
		if res, body := clients[name].do(t, http.MethodPut, path, off, "If-Match", `"99"`); res.StatusCode != want[1] {
			t.Errorf("%s: %d %s, want %d", name, res.StatusCode, body, want[1])
		}
	}
	tag := ""
	put := func(path, body string, want int, says string) {
		t.Helper()
		res, text := clients["operator"].do(t, http.MethodPut, path, body, "If-Match", tag)
		if res.StatusCode != want || !strings.Contains(string(text), says) {
			t.Errorf("%s %s: %d %s, want %d and %q", path, body, res.StatusCode, text, want, says)
		}
		if want == http.StatusOK {
			tag = res.Header.Get("ETag")
		}
	}
	put(path, `{"activity":false}`, 422, "reason")
	put(path, `{"activity":false,"why":"x"}`, 422, "why")
	put(path, `{"hipaa":true}`, 200, `"hipaa":true`)
	put(path, off, 409, "HIPAA")
	put(path, `{"hipaa":false}`, 200, `"hipaa":false`)
	put(path, off, 200, `"reason":"why"`)
	tag = ""
	put("/api/v1/organizations/"+owntrail.Organization+"/trails", off, 409, "what the system")
}
