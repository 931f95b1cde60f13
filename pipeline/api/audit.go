package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"path"
	"reflect"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/analyst"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/operator"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/reconcile"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal"
)

// Audit are the parts behind the reading of events and the changing of settings; there is neither without them.
type Audit struct {
	Access *access.Store
	// Watch follows it, and ends what a credential opened with the credential.
	Watch *access.Watch
	// OpenID is another way to sign in; nil if there is none.
	OpenID *OpenID
	Store  *store.Store
	Bucket *blob.Bucket
	States exporter.States
	// Floor is the place in the stream up to which every event of an organization is in the table.
	Floor func(ctx context.Context, organization string) (uint64, error)
	// Hour is the length of a partition.
	Hour time.Duration
	// Integrity says how what is stored is sealed.
	Integrity *integrity.Desk
	// Differs says how an event differs from what was sealed; nothing if it does not, or is not sealed yet.
	Differs func(*codec.Stored) reconcile.Kind
	// JS is where the dead letters are.
	JS jetstream.JetStream
	// Ask asks a running system in the name of a person or key.
	Ask func(by string) operator.Client
	// Analysts asks a running system about analysts in the name of a person or key.
	Analysts func(by string) analyst.Client
	// Secure tells that browsers reach us by https only.
	Secure bool
	Record func(ctx context.Context, e schema.Event)
	// RecordNow returns nil when the event is on the broker's disk.
	RecordNow func(ctx context.Context, e schema.Event) error
	// Writers reports how far the writers have come.
	Writers deadletter.Writers
	Logger  *slog.Logger
}

type audit struct {
	o      *Audit
	api    huma.API
	limits *limits
	known  known
	// again counts questions that are the same.
	again *rate.Limiter
}

// version of the API as it stands in its document.
const version = "1.0.0"

// newAudit registers the routes.
func newAudit(mux *http.ServeMux, o *Audit, bounds *limits) {
	o.Logger = request.Logs(o.Logger)
	problems()
	config := huma.DefaultConfig("Kansa", version)
	config.Info.Description = "Audit events, exports and settings. Times are RFC 3339 in UTC; names are case-sensitive."
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "/openapi", "", ""
	config.CreateHooks = nil // no links to schemas in answers
	config.Transformers = append(config.Transformers, withRequestID)
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{
		"key":     {Type: "http", Scheme: "bearer", Description: "An API key: kansa_…"},
		"session": {Type: "apiKey", In: "cookie", Name: sessionCookie},
	}
	config.Components.Schemas = huma.NewMapRegistry("#/components/schemas/", schemaName)
	config.Components.Schemas.RegisterTypeAlias(reflect.TypeFor[exporter.Schedule](), reflect.TypeFor[Schedule]())
	a := &audit{o: o, api: humago.New(mux, config), limits: bounds, known: known{list: o.Store.Organizations, now: time.Now}, again: rate.New(1, readAgain, 1, time.Now)}
	a.api.UseMiddleware(a.bounded)
	a.signIn()
	a.reads()
	a.tail()
	a.settings()
	a.overview()
	a.letters()
	a.integrity()
	a.analysts()
}

// schemaName tells apart types of the same name in several packages.
func schemaName(t reflect.Type, hint string) string {
	name := huma.DefaultSchemaNamer(t, hint)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	switch path.Base(t.PkgPath()) {
	case "settings":
		return "Kept" + name
	case "integrity":
		return "Integrity" + name
	case "deadletter":
		return "Dead" + name
	}
	return name
}

// FilterParams are the parameters that choose events. Those of requirement Q7 have its names.
type FilterParams struct {
	Organization string    `query:"organization" doc:"Whose events; may be left out by who sees one only" maxLength:"64"`
	Start        time.Time `query:"start" doc:"Events that occurred at this time or later, such as 2026-11-22T04:00:00Z"`
	End          time.Time `query:"end" doc:"Events that occurred before this time"`
	Target       string    `query:"target" doc:"The type of the target" maxLength:"4096"`
	TargetID     string    `query:"targetId" maxLength:"4096"`
	AppID        string    `query:"appId" maxLength:"4096"`
	UserID       string    `query:"userId" doc:"The id of the actor" maxLength:"4096"`
	DataType     string    `query:"dataType" maxLength:"4096"`
	Trail        string    `query:"trail" enum:"activity,access"`
	Source       string    `query:"source" maxLength:"4096"`
	Event        string    `query:"event" doc:"The code of the event type" maxLength:"4096"`
	Action       string    `query:"action" maxLength:"4096"`
	Outcome      string    `query:"outcome" enum:"success,failure,denied"`
	IP           string    `query:"ip" maxLength:"4096"`
	Text         string    `query:"text" doc:"Found in descriptions, names, before, after and data; ASCII letters in any case" maxLength:"4096"`
}

func (p *FilterParams) filter() schema.Filter {
	return schema.Filter{
		Start: p.Start, End: p.End, TargetType: p.Target, TargetID: p.TargetID, AppID: p.AppID, ActorID: p.UserID, DataType: p.DataType, Trail: schema.Trail(p.Trail),
		Source: p.Source, Event: p.Event, Action: p.Action, Outcome: schema.Outcome(p.Outcome), IP: p.IP, Text: p.Text,
	}
}

// question checks who asks, and tells the trail what is asked (requirement B5).
func (a *audit) question(ctx context.Context, p *FilterParams, what string) (*store.Question, error) {
	organization, w, err := a.may(ctx, access.Auditor, p.Organization)
	if err != nil {
		return nil, err
	}
	q := &store.Question{Organization: organization, Filter: p.filter()}
	if err := q.Check(); err != nil {
		return nil, huma.Error400BadRequest(err.Error())
	}
	asked, err := json.Marshal(q.Filter)
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	a.tellRead(ctx, w, "events.read", organization, what, "filter", string(asked))
	return q, nil
}

// readAgain is how long the same reading by the same one from the same place counts as one. Who follows a trail, page
// after page, would otherwise fill it with his own reading.
const readAgain = time.Minute

func (a *audit) tellRead(ctx context.Context, w *who, code, organization, what, name, value string) {
	if wait, _ := a.again.Take(strings.Join([]string{w.String(), w.ip, code, organization, what, value}, "\x00")); wait == 0 {
		a.tell(ctx, w, code, "read", schema.Success, organization, what, map[string]string{name: value})
	}
}

// Event is an event as the API shows it.
type Event struct {
	codec.Stored
	Differs reconcile.Kind
}

// shown is an event as the API shows it.
func (a *audit) shown(e *codec.Stored) Event { return Event{*e, a.o.Differs(e)} }

// MarshalJSON writes the event as it was published, and where it was recorded.
func (e Event) MarshalJSON() ([]byte, error) {
	text, err := json.Marshal(e.Event)
	if err != nil {
		return nil, err
	}
	by, err := json.Marshal(e.RecordedBy)
	if err != nil {
		return nil, err
	}
	if e.Differs != "" {
		text = fmt.Appendf(text[:len(text)-1], `,"differs_from_sealed":%q}`, e.Differs)
	}
	return fmt.Appendf(text[:len(text)-1], `,"recorded_at":%q,"stream_seq":%d,"batch_index":%d,"recorded_by":%s}`, e.RecordedAt.UTC().Format(codec.TimeLayout), e.StreamSeq, e.BatchIndex, by), nil
}

// Schema is that of the document: huma can't know what the fields that hold any JSON are.
func (Event) Schema(huma.Registry) *huma.Schema {
	text := func() *huma.Schema { return &huma.Schema{Type: huma.TypeString} }
	at := &huma.Schema{Type: huma.TypeString, Format: "date-time"}
	anything := &huma.Schema{}
	named := func(names ...string) *huma.Schema {
		o := &huma.Schema{Type: huma.TypeObject, Properties: map[string]*huma.Schema{}}
		for _, n := range names {
			o.Properties[n] = text()
		}
		return o
	}
	s := named("id", "organization", "trail", "source", "event", "action", "outcome", "app_id", "description", "data_type", "recorded_by")
	s.Properties["id"].Format = "uuid"
	s.Properties["occurred_at"], s.Properties["recorded_at"] = at, at
	s.Properties["actor"], s.Properties["target"] = named("type", "id", "name"), named("type", "id", "name")
	s.Properties["context"] = named("ip", "user_agent", "session_id", "trace_id", "location")
	s.Properties["differs_from_sealed"] = &huma.Schema{
		Type: huma.TypeString, Enum: []any{string(reconcile.Changed), string(reconcile.Added)},
		Description: "The table was changed after the event's hour was sealed, and the event is not what was sealed. kansa restore repairs it.",
	}
	s.Properties["before"], s.Properties["after"], s.Properties["data"] = anything, anything, anything
	s.Properties["attributes"] = &huma.Schema{Type: huma.TypeObject, AdditionalProperties: text()}
	s.Properties["stream_seq"], s.Properties["batch_index"] = &huma.Schema{Type: huma.TypeInteger}, &huma.Schema{Type: huma.TypeInteger}
	s.Required = []string{"id", "occurred_at", "organization", "trail", "source", "event", "action", "recorded_at", "stream_seq", "batch_index", "recorded_by"}
	return s
}

// Page is some of the events that were asked for.
type Page struct {
	Events []Event `json:"events"`
	// Next goes on behind the last event, now or later: in the order in which they were recorded, none is skipped and
	// none repeated, however many come meanwhile. Empty where the newest come first.
	Next string `json:"next,omitempty"`
	// More tells that there are more at this moment.
	More bool `json:"more"`
}

func (a *audit) reads() {
	type logsInput struct {
		FilterParams
		SpreadsheetSafe bool   `query:"spreadsheet_safe" doc:"Puts an apostrophe before values of CSV and TSV that a spreadsheet would take for a formula"`
		Format          string `query:"format" enum:"tsv,csv,ndjson,cef" doc:"In place of Accept. cef: a line for each event in the Common Event Format; a value that is too long for its key has its SHA-256 in its place, and the whole one is in the event whose id externalId is"`
		Accept          string `header:"Accept"`
	}
	register(a, huma.Operation{
		OperationID: "audit-logs", Method: http.MethodGet, Path: "/api/v1/audit/logs", Tags: []string{"events"},
		Summary:     "The trail as text, of any size",
		Description: "Tab-separated with 14 columns by default: EventTime, Source, Event, Target, TargetId, TargetName, Action, AppId, UserId, UserName, IpAddress, Description, Data, DataType. Values are in quotes, as in CSV.",
		Responses: map[string]*huma.Response{"200": {Description: "The events, in the order in which they were recorded", Content: map[string]*huma.MediaType{
			typeTSV: {}, typeCSV: {}, typeNDJSON: {}, codec.FormatCEF.ContentType(): {},
		}}},
		Middlewares: huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
			a.slot(ctx, a.limits.logs, "logs", "readings of the trail as text", next)
		}},
	}, func(ctx context.Context, in *logsInput) (*huma.StreamResponse, error) {
		form, kind := chooseTable(in.Format, in.Accept)
		name := string(form)
		if in.Format == string(codec.FormatCEF) {
			form, kind, name = store.CSV, codec.FormatCEF.ContentType(), in.Format
		}
		if form == "" {
			return nil, huma.Error406NotAcceptable("Accept: " + in.Accept + ": there is text/tab-separated-values, text/csv and application/x-ndjson")
		}
		q, err := a.question(ctx, &in.FilterParams, "logs as "+name)
		if err != nil {
			return nil, err
		}
		text, err := a.o.Store.Stream(ctx, q, form)
		if err == nil && name == string(codec.FormatCEF) {
			text, err = newCEF(text)
		}
		if err == nil && in.SpreadsheetSafe && (kind == typeCSV || kind == typeTSV) {
			text = newMarked(text)
		}
		if err != nil {
			return nil, err
		}
		return &huma.StreamResponse{Body: func(h huma.Context) {
			defer text.Close()
			// What fails before the first byte has an answer of its own.
			first := make([]byte, 64<<10)
			n, err := io.ReadFull(text, first)
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				a.o.Logger.ErrorContext(h.Context(), "logs could not be read", slog.Any("error", err))
				_ = huma.WriteErr(a.api, h, http.StatusServiceUnavailable, "the events can not be read at the moment")
				return
			}
			h.SetHeader("Content-Type", kind)
			h.SetHeader("Content-Disposition", fmt.Sprintf("inline; filename=%q", "audit-"+q.Organization+"."+name))
			w := h.BodyWriter()
			if _, err = w.Write(first[:n]); err == nil {
				_, err = io.Copy(w, text)
			}
			if err != nil {
				// The text is not complete, and who reads it has to learn of it: the connection breaks.
				a.o.Logger.WarnContext(h.Context(), "logs ended on the way", slog.Any("error", err))
				panic(http.ErrAbortHandler)
			}
		}}, nil
	})

	type eventsInput struct {
		FilterParams
		Order  string `query:"order" enum:"newest,recorded" default:"newest" doc:"newest: by page; recorded: by cursor, complete"`
		Offset int    `query:"offset" minimum:"0" maximum:"1000000"`
		Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
		Cursor string `query:"cursor" doc:"next of the page before; order is recorded then" maxLength:"200"`
	}
	register(a, huma.Operation{
		OperationID: "audit-events", Middlewares: huma.Middlewares{a.queried}, Method: http.MethodGet, Path: "/api/v1/audit/events", Summary: "Events as JSON, page by page", Tags: []string{"events"},
	}, func(ctx context.Context, in *eventsInput) (*struct{ Body Page }, error) {
		q, err := a.question(ctx, &in.FilterParams, "events")
		if err != nil {
			return nil, err
		}
		q.Newest, q.Limit, q.Offset = in.Order == "newest" && in.Cursor == "", in.Limit+1, in.Offset
		if in.Cursor != "" {
			if q.After, err = readCursor(in.Cursor); err != nil || in.Offset != 0 {
				return nil, huma.Error400BadRequest("cursor is none of ours, or stands beside offset: take next of the page before, alone")
			}
		}
		if !q.Newest {
			if q.UpTo, err = a.floor(ctx, q.Organization); err != nil {
				return nil, err
			}
		}
		page, err := a.page(ctx, q, in.Limit)
		if err != nil {
			return nil, err
		}
		if page.Next == "" && !q.Newest {
			page.Next = in.Cursor
		}
		return &struct{ Body Page }{*page}, nil
	})

	type eventInput struct {
		ID           string `path:"id" format:"uuid"`
		Organization string `query:"organization" maxLength:"64"`
	}
	find := func(ctx context.Context, in *eventInput, what string) (*codec.Stored, error) {
		organization, w, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		id, err := uuid.Parse(in.ID)
		if err != nil {
			return nil, huma.Error400BadRequest("id " + in.ID + " is no UUID")
		}
		a.tellRead(ctx, w, "events.read", organization, what, "id", id.String())
		return a.o.Store.Event(ctx, organization, id)
	}
	register(a, huma.Operation{
		OperationID: "audit-event", Middlewares: huma.Middlewares{a.queried}, Method: http.MethodGet, Path: "/api/v1/audit/events/{id}", Summary: "One event", Tags: []string{"events"}, Errors: []int{404},
	}, func(ctx context.Context, in *eventInput) (*struct{ Body Event }, error) {
		e, err := find(ctx, in, "event")
		if err != nil {
			return nil, err
		}
		return &struct{ Body Event }{a.shown(e)}, nil
	})
	register(a, huma.Operation{
		OperationID: "audit-proof", Middlewares: huma.Middlewares{a.queried}, Method: http.MethodGet, Path: "/api/v1/audit/events/{id}/proof", Tags: []string{"events"}, Errors: []int{404, 409},
		Summary:   "The proof that an event is in a sealed hour, for kansa verify",
		Responses: map[string]*huma.Response{"200": {Description: "The proof", Content: map[string]*huma.MediaType{"application/octet-stream": {}}}},
	}, func(ctx context.Context, in *eventInput) (*struct {
		ContentType string `header:"Content-Type"`
		Disposition string `header:"Content-Disposition"`
		Body        []byte
	}, error,
	) {
		e, err := find(ctx, in, "proof")
		if err != nil {
			return nil, err
		}
		p := schema.Partition{Organization: e.Organization, Trail: e.Trail, Hour: e.RecordedAt.UTC().Truncate(a.o.Hour), Length: a.o.Hour}
		var proof *seal.Proof
		if proof, err = verify.ProveStored(ctx, a.o.Bucket, p, verify.Event{ID: e.ID.String()}); err != nil {
			return nil, err
		}
		data, err := proof.Encode()
		if err != nil {
			return nil, fmt.Errorf("encode the proof: %w", err)
		}
		return &struct {
			ContentType string `header:"Content-Type"`
			Disposition string `header:"Content-Disposition"`
			Body        []byte
		}{"application/octet-stream", `attachment; filename="` + e.ID.String() + `.proof"`, data}, nil
	})

	type histogramInput struct {
		FilterParams
		Bars int `query:"bars" minimum:"1" maximum:"500" default:"60" doc:"About how many steps"`
	}
	type histogram struct {
		Width int         `json:"width_seconds"`
		Start time.Time   `json:"start"`
		End   time.Time   `json:"end"`
		Bars  []store.Bar `json:"bars" nullable:"false"`
	}
	register(a, huma.Operation{
		OperationID: "audit-histogram", Middlewares: huma.Middlewares{a.queried}, Method: http.MethodGet, Path: "/api/v1/audit/histogram", Summary: "Events over time", Tags: []string{"events"},
	}, func(ctx context.Context, in *histogramInput) (*struct{ Body histogram }, error) {
		if in.End.IsZero() {
			in.End = time.Now().UTC().Truncate(time.Second).Add(time.Second)
		}
		if in.Start.IsZero() {
			in.Start = in.End.Add(-24 * time.Hour)
		}
		q, err := a.question(ctx, &in.FilterParams, "histogram")
		if err != nil {
			return nil, err
		}
		width := step(in.End.Sub(in.Start) / time.Duration(in.Bars))
		bars, err := a.o.Store.Histogram(ctx, q, width)
		if err != nil {
			return nil, err
		}
		return &struct{ Body histogram }{histogram{int(width.Seconds()), in.Start.UTC(), in.End.UTC(), bars}}, nil
	})
	register(a, huma.Operation{
		OperationID: "audit-catalogue", Middlewares: huma.Middlewares{a.queried}, Method: http.MethodGet, Path: "/api/v1/audit/catalogue", Summary: "The types of events seen", Tags: []string{"events"},
	}, func(ctx context.Context, in *struct {
		Organization string `query:"organization" maxLength:"64"`
	}) (*struct {
		Body []store.Seen `nullable:"false"`
	}, error,
	) {
		organization, _, err := a.may(ctx, access.Auditor, in.Organization)
		if err != nil {
			return nil, err
		}
		seen, err := a.o.Store.Catalogue(ctx, organization)
		return &struct {
			Body []store.Seen `nullable:"false"`
		}{seen}, err
	})
}

// page reads one more than the limit, to know whether there are more.
func (a *audit) page(ctx context.Context, q *store.Question, limit int) (*Page, error) {
	page := &Page{Events: []Event{}}
	err := a.o.Store.Events(ctx, q, func(e *codec.Stored) error {
		if len(page.Events) == limit {
			page.More = true
			return nil
		}
		page.Events = append(page.Events, a.shown(e))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if n := len(page.Events); n > 0 && !q.Newest {
		last := &page.Events[n-1]
		page.Next = writeCursor(store.Position{RecordedAt: last.RecordedAt, StreamSeq: last.StreamSeq, BatchIndex: last.BatchIndex})
	}
	return page, nil
}

func (a *audit) floor(ctx context.Context, organization string) (uint64, error) {
	floor, err := a.o.Floor(ctx, organization)
	// Nothing is stored yet: a question up to 0 would be one without a bound.
	return max(floor, 1), err
}

func writeCursor(p store.Position) string {
	text, _ := p.MarshalText() // numbers
	return base64.RawURLEncoding.EncodeToString(text)
}

func readCursor(s string) (p store.Position, err error) {
	text, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = p.UnmarshalText(text)
	}
	if err == nil && p.IsZero() {
		err = errors.New("it is empty")
	}
	return p, err
}

// steps are the widths of a histogram's bars.
var steps = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour,
}

func step(least time.Duration) time.Duration {
	for _, s := range steps {
		if s >= least {
			return s
		}
	}
	return steps[len(steps)-1]
}

const (
	typeTSV    = "text/tab-separated-values; charset=utf-8"
	typeCSV    = "text/csv; charset=utf-8"
	typeNDJSON = "application/x-ndjson"
)

// chooseTable finds the form that is asked for, the parameter first.
func chooseTable(format, accept string) (store.Table, string) {
	forms := []struct {
		form        store.Table
		kind, media string
	}{{store.TSV, typeTSV, "text/tab-separated-values"}, {store.CSV, typeCSV, "text/csv"}, {store.NDJSON, typeNDJSON, "application/x-ndjson"}}
	for _, f := range forms {
		if format == string(f.form) {
			return f.form, f.kind
		}
	}
	if accept == "" {
		return store.TSV, typeTSV
	}
	for part := range strings.SplitSeq(accept, ",") {
		media, _, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		for _, f := range forms {
			// A browser asks for HTML first and takes anything after it.
			if media == f.media || media == "*/*" || media == "text/*" || media == "text/html" {
				return f.form, f.kind
			}
		}
	}
	return "", ""
}
