package exporter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"gocloud.dev/blob"

	"github.com/kansa-audit/kansa/consumers"
	"github.com/kansa-audit/kansa/consumers/exporter/mail"
	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/consumers/exporter/sftp"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/tracecontext"
)

// ErrNotClosed means that hours of the range are not rolled up yet.
var ErrNotClosed = errors.New("the range is not rolled up yet")

// Mailer sends a mail; nil means that a server has taken it.
type Mailer interface {
	Send(ctx context.Context, m mail.Message) error
}

// Config of an exporter. The zero value of a field means its default.
type Config struct {
	Settings Settings
	// PublicURL is the address under which the API is reached by those who get a link.
	PublicURL string
	// LinkTTL is how long a link works; default 7 days.
	LinkTTL time.Duration
	// Closed returns the first instant up to which an organization's trails are rolled up.
	Closed func(ctx context.Context, organization string, trails []schema.Trail) (time.Time, error)
	// AlertAfter is how long deliveries to a destination fail before somebody is mailed; default 15 minutes.
	AlertAfter time.Duration
	// Record takes what the system has to answer for: deliveries and failures. May be nil.
	Record func(ctx context.Context, e schema.Event)
	// Reach says what destinations may connect to that do not come from the operator's configuration file; nil allows everything.
	Reach *reach.Policy
	// MailsPerDay is how many mails go out for an organization on one day, UTC; default no limit.
	MailsPerDay int
	// MailRefused is called for each mail that the limit holds back; may be nil.
	MailRefused func()
	// Receipts signs them; nil refuses destinations that want some.
	Receipts Receipts
	// Tracing has each attempt to deliver be a span, in the trace of its request. Default: none.
	Tracing trace.TracerProvider
	// CorrectEvery is how long a scheduled export waits after a failure that a person has to correct, such as
	// a wrong password; default 1 minute.
	CorrectEvery time.Duration
	// KeepStates is how long the state of an export that is over is kept; default 90 days, and no less than LinkTTL.
	KeepStates time.Duration
	Logger     *slog.Logger
	Now        func() time.Time
}

// Exporter handles what is on EXPORTS.
type Exporter struct {
	cfg     Config
	bucket  *blob.Bucket
	states  States
	links   Links
	mailer  Mailer
	js      jetstream.JetStream
	log     *slog.Logger
	failing failing
	clock   clock
	// unconditional has the addresses of buckets that do not know If-None-Match.
	unconditional sync.Map
	tracer        trace.Tracer
	stats         struct{ delivered, failed, givenUp atomic.Uint64 }
}

// Stats counts attempts to deliver since the exporter was made.
type Stats struct {
	Delivered uint64
	Failed    uint64 // and to be tried again
	GivenUp   uint64
}

// Stats returns the counts.
func (x *Exporter) Stats() Stats {
	return Stats{x.stats.delivered.Load(), x.stats.failed.Load(), x.stats.givenUp.Load()}
}

// New returns an exporter. mailer may be nil where no mail server is set up; links are refused then.
func New(bucket *blob.Bucket, states States, links Links, mailer Mailer, js jetstream.JetStream, cfg Config) *Exporter {
	if cfg.LinkTTL == 0 {
		cfg.LinkTTL = 7 * 24 * time.Hour
	}
	if cfg.KeepStates == 0 {
		cfg.KeepStates = 90 * 24 * time.Hour
	}
	cfg.KeepStates = max(cfg.KeepStates, cfg.LinkTTL)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.AlertAfter == 0 {
		cfg.AlertAfter = 15 * time.Minute
	}
	if cfg.CorrectEvery == 0 {
		cfg.CorrectEvery = time.Minute
	}
	if cfg.Record == nil {
		cfg.Record = func(context.Context, schema.Event) {}
	}
	if cfg.Tracing == nil {
		cfg.Tracing = noop.NewTracerProvider()
	}
	return &Exporter{
		tracer: cfg.Tracing.Tracer("github.com/kansa-audit/kansa/consumers/exporter"),
		cfg:    cfg, bucket: bucket, states: states, links: links, mailer: mailer, js: js, log: cfg.Logger,
		failing: failing{now: cfg.Now, of: map[string]failure{}}, clock: clock{changed: make(chan struct{}, 1)},
	}
}

// Handle is a consumers.Handler for EXPORTS.
func (x *Exporter) Handle(ctx context.Context, msg jetstream.Msg) (err error) {
	ctx, span := x.tracer.Start(tracecontext.From(ctx, msg.Headers()), "deliver", trace.WithSpanKind(trace.SpanKindConsumer))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}()
	var t task
	if err := json.Unmarshal(msg.Data(), &t); err != nil {
		return consumers.Permanent(fmt.Errorf("read the export request: %w", err))
	}
	organization := strings.TrimPrefix(msg.Subject(), schema.SubjectExports+".")
	if t.Request == nil {
		return consumers.Permanent(errors.New("read the export request: it holds no request"))
	}
	if err := t.Request.Validate(); err != nil {
		return consumers.Permanent(err)
	}
	if t.Request.Organization != organization {
		return consumers.Permanent(fmt.Errorf("export %s came on %s and speaks of organization %s", t.Request.ID, msg.Subject(), t.Request.Organization))
	}
	if err := x.export(ctx, *t.Request); err != nil && !t.Once {
		return err
	}
	return nil
}

// export brings one export a step further. What it returns decides whether it is tried again.
func (x *Exporter) export(ctx context.Context, r Request) error {
	e, found, err := x.states.Get(ctx, r.ID)
	if err != nil {
		return err
	}
	if e.State == Done || e.State == Failed {
		return nil
	}
	now := x.cfg.Now().UTC()
	if !found {
		e = Export{Request: r, Created: now}
	}
	e.Updated, e.Sent, e.Error = now, 0, ""
	err = x.try(ctx, &e)
	e.Updated = x.cfg.Now().UTC()
	switch {
	case err == nil:
		e.State = Done
		x.stats.delivered.Add(1)
		x.log.Info("export delivered", slog.String("export", e.ID), slog.String("file", e.File),
			slog.Int64("bytes", e.Bytes), slog.Uint64("rows", e.Rows), slog.Uint64("attempts", e.Attempts))
	case errors.Is(err, ErrNotClosed), errors.Is(err, errHeld):
		e.State, e.Error = Waiting, err.Error()
		err = consumers.Later(err, waitForHour)
	case errors.Is(err, consumers.ErrPermanent) && (!e.Scheduled || errors.Is(err, ErrNoDestination)):
		e.State, e.Error = Failed, err.Error()
		x.stats.givenUp.Add(1)
	default:
		// What a schedule requests is never given up while its destination is there: it is delivered once the cause is corrected.
		x.stats.failed.Add(1)
		e.State, e.Error = Retrying, err.Error()
		x.failing.note(e.ID, err)
		if errors.Is(err, consumers.ErrPermanent) {
			err = consumers.Later(err, x.cfg.CorrectEvery)
		}
	}
	if e.State != Retrying {
		x.failing.note(e.ID, nil)
	}
	// Even when we are told to stop, what happened is kept.
	keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if putErr := x.states.Put(keep, e); putErr != nil {
		if err != nil { // its text alone: an outcome that is not kept is not final
			putErr = fmt.Errorf("%w; the attempt failed: %s", putErr, err.Error())
		}
		return putErr
	}
	if ctx.Err() == nil || e.State == Done {
		x.after(keep, &e, err)
	}
	if !e.Plain() && e.areaIsOver(x.cfg.Now()) {
		if err := x.removeArea(ctx, e.ID); err != nil {
			x.log.Warn("working area is left to the sweeper", slog.String("export", e.ID), slog.Any("error", err))
		}
	}
	return err
}

// after tells those who have to know what became of an attempt, and goes on with the schedule. It fails nothing:
// the archive is where it is.
func (x *Exporter) after(ctx context.Context, e *Export, outcome error) {
	if e.State == Waiting {
		return
	}
	if e.State != Retrying || e.Attempts <= 1 {
		x.cfg.Record(ctx, e.record())
	}
	if e.Destination != "" && !errors.Is(outcome, ErrNoDestination) {
		if err := x.health(ctx, e); err != nil {
			x.log.Warn("health of a destination not kept", slog.String("destination", e.Organization+"/"+e.Destination), slog.Any("error", err))
		}
	}
	if err := x.spread(ctx, e); err != nil {
		x.log.Warn("exports that wait for the same server are retried after their pause", slog.String("export", e.ID), slog.Any("error", err))
	}
	if e.Scheduled && e.State == Done {
		if err := x.advance(ctx, e); err != nil {
			x.log.Warn("schedule goes on with its next look", slog.String("destination", e.Organization+"/"+e.Destination), slog.Any("error", err))
		}
	}
}

// try makes an attempt. A panic ends it like any other failure, so that the export's state says so.
func (x *Exporter) try(ctx context.Context, e *Export) (err error) {
	defer func() {
		if p := recover(); p != nil {
			x.log.Error("delivery panicked", slog.String("export", e.ID), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
			err = consumers.Permanent(fmt.Errorf("delivery panicked: %v: report this with the log", p))
		}
	}()
	return x.attempt(ctx, e)
}

func (x *Exporter) attempt(ctx context.Context, e *Export) error {
	closed, err := x.cfg.Closed(ctx, e.Organization, e.Trails)
	if err != nil {
		return fmt.Errorf("find which hours are rolled up: %w", err)
	}
	if e.To.After(closed) {
		return fmt.Errorf("%w: it goes to %s, rolled up is until %s", ErrNotClosed, e.To.Format(time.RFC3339), closed.Format(time.RFC3339))
	}
	var d Destination
	if len(e.MailTo) == 0 {
		d, err = x.cfg.Settings.Destination(ctx, e.Organization, e.Destination)
		if errors.Is(err, ErrNoDestination) {
			return consumers.Permanent(err)
		}
		if err != nil {
			return err
		}
		if d.Paused {
			return fmt.Errorf("%w: destination %s is paused", errHeld, d.Name)
		}
	}
	if e.Scheduled {
		if err := x.allowed(ctx, e.Organization, e.Trails); err != nil {
			return err
		}
	}
	if len(e.MailTo) == 0 {
		if err := d.CheckTenant(x.cfg.Reach); err != nil {
			return consumers.Permanent(fmt.Errorf("destination %s: %w", d.Name, err))
		}
	}
	plan, err := x.prepare(ctx, e)
	if err != nil {
		return err
	}
	e.Attempts++
	e.State, e.File, e.Bytes, e.Files, e.Rows = Running, plan.Name, plan.Size(), plan.Len(), plan.Rows
	if err := x.states.Put(ctx, *e); err != nil {
		return err
	}
	switch {
	case len(e.MailTo) > 0:
		return x.deliverLink(ctx, e, plan, e.MailTo)
	case d.SFTP != nil:
		server := x.guarded(&d)
		return x.deliverSFTP(ctx, e, &server, plan)
	case d.Bucket != "":
		return x.deliverBucket(ctx, e, &d, plan)
	default:
		return x.deliverLink(ctx, e, plan, d.Mail)
	}
}

// prepare lays an archive out. What has to be rendered or encrypted before is, and people see how far it is.
func (x *Exporter) prepare(ctx context.Context, e *Export) (*Plan, error) {
	if e.Plain() {
		return PlanArchive(ctx, x.bucket, &e.Request)
	}
	e.State = Running
	if err := x.states.Put(ctx, *e); err != nil { // before there is a working area: Sweep goes by it
		return nil, err
	}
	if err := x.states.mark(ctx, e.ID); err != nil {
		return nil, err
	}
	var rows, of atomic.Uint64
	stop := x.showWhile(ctx, *e, func(s *Export) { s.RowsRendered, s.RowsToRender = rows.Load(), of.Load() })
	plan, err := Prepare(ctx, x.bucket, &e.Request, func(done, all uint64) { rows.Store(done); of.Store(all) })
	stop()
	e.RowsRendered, e.RowsToRender = rows.Load(), of.Load()
	return plan, err
}

// errHeld means that somebody decided that this is not to be delivered now.
var errHeld = errors.New("held back")

// allowed tells whether an organization exports these trails.
func (x *Exporter) allowed(ctx context.Context, organization string, trails []schema.Trail) error {
	rules, err := x.cfg.Settings.Rules(ctx, organization)
	if err != nil {
		return err
	}
	for _, t := range trails {
		if slices.Contains(rules.Off, t) {
			return fmt.Errorf("%w: exports of %s are switched off for %s", errHeld, t, organization)
		}
	}
	return nil
}

// progressEvery is how often the state of a running export is kept.
const progressEvery = 2 * time.Second

func (x *Exporter) deliverSFTP(ctx context.Context, e *Export, cfg *sftp.Config, plan *Plan) error {
	if cfg.Receipt {
		if err := x.canReceipt(ctx); err != nil {
			return err
		}
	}
	client, err := sftp.Dial(ctx, *cfg, x.log)
	if err != nil {
		return classify(err, sftp.Permanent(err))
	}
	defer client.Close()
	var sent atomic.Int64
	stop := x.showProgress(ctx, *e, &sent)
	body := plan.NewReader(ctx)
	defer body.Close()
	up, err := client.Upload(ctx, plan.Name, plan.Size(), body, func(n int64) { sent.Store(n) })
	stop()
	if err != nil {
		return classify(err, sftp.Permanent(err))
	}
	switch {
	case cfg.Receipt && up.PickedUp:
		e.Note = "it was picked up before it could be read back, so it has no receipt"
		x.log.Warn("archive was picked up before it could be read back; it has no receipt", slog.String("export", e.ID), slog.String("file", e.File))
	case cfg.Receipt:
		if err := x.receipt(ctx, e, cfg, plan.Name, up); err != nil {
			return err
		}
	}
	e.Sent = plan.Size()
	return nil
}

// dialer returns what connects to a destination; nil for one of the operator's configuration file, which may reach everything.
func (x *Exporter) dialer(d *Destination) func(ctx context.Context, network, address string) (net.Conn, error) {
	if d.FromFile || x.cfg.Reach == nil {
		return nil
	}
	return x.cfg.Reach.Dialer(sftp.DefaultConnectTimeout).DialContext
}

// guarded is the server of a destination, which is reached as the policy allows.
func (x *Exporter) guarded(d *Destination) sftp.Config {
	server := *d.SFTP
	server.Dial = x.dialer(d)
	return server
}

// showProgress shows how much of e is sent, until the returned function is called.
func (x *Exporter) showProgress(ctx context.Context, e Export, sent *atomic.Int64) (stop func()) {
	return x.showWhile(ctx, e, func(e *Export) { e.Sent = sent.Load() })
}

// showWhile keeps the state of e now and then, until the returned function is called.
func (x *Exporter) showWhile(ctx context.Context, e Export, look func(*Export)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				look(&e)
				e.Updated = x.cfg.Now().UTC()
				if err := x.states.Put(ctx, e); err != nil && ctx.Err() == nil {
					x.log.Warn("progress of an export not kept", slog.String("export", e.ID), slog.Any("error", err))
				}
			}
		}
	}()
	return func() { cancel(); <-ended }
}

var errNoMail = errors.New("no mail server is set up: give mail.host and exports.public_url in the configuration")

func (x *Exporter) deliverLink(ctx context.Context, e *Export, plan *Plan, to []string) error {
	if x.mailer == nil || x.cfg.PublicURL == "" {
		return consumers.Permanent(errNoMail)
	}
	// An upload that finds a wrong file on its way leaves nothing; a mail can't be taken back.
	if err := plan.Check(ctx); err != nil {
		return err
	}
	expires := x.cfg.Now().UTC().Add(x.cfg.LinkTTL).Truncate(time.Second)
	// A repeated attempt makes another link: the first one's token is in nobody's hands but its mail's.
	token, err := x.links.Create(ctx, Link{Export: e.ID, Expires: expires})
	if err != nil {
		return err
	}
	trails := make([]string, len(e.Trails))
	for i, t := range e.Trails {
		trails[i] = string(t)
	}
	body := mail.Download{
		Organization: e.Organization, Trails: trails, From: e.From, To: e.To, Events: int64(e.Rows), Files: int64(e.Files),
		Size: e.Bytes, FileName: e.File, Link: absolute(x.cfg.PublicURL, DownloadPath(token, e.File)), Expires: expires,
	}
	e.Expires, e.Promise = &expires, plan.promise()
	for i, address := range to {
		m, err := body.Message(address)
		if err != nil {
			return consumers.Permanent(err)
		}
		m.ID = fmt.Sprintf("%s.%d.%d", e.ID, i, e.Attempts)
		if err := x.mayMail(ctx, e.Organization); err != nil {
			return consumers.Later(err, x.cfg.CorrectEvery)
		}
		if err := x.mailer.Send(ctx, m); err != nil {
			return classify(err, mail.Permanent(err))
		}
	}
	return nil
}

func classify(err error, permanent bool) error {
	if permanent {
		return consumers.Permanent(err)
	}
	return err
}

// Submit asks for an export. Asking again with the same id asks for nothing more.
func Submit(ctx context.Context, js jetstream.JetStream, r Request) error {
	if err := r.Validate(); err != nil {
		return err
	}
	return submit(ctx, js, task{Request: &r}, r.ID)
}

// submit puts a task on the stream, once for each message id.
func submit(ctx context.Context, js jetstream.JetStream, t task, id string) error {
	data, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode export %s: %w", t.Request.ID, err)
	}
	msg := nats.NewMsg(schema.SubjectExports + "." + t.Request.Organization)
	msg.Data = data
	msg.Header.Set(nats.MsgIdHdr, id)
	tracecontext.Into(ctx, msg.Header)
	if _, err := js.PublishMsg(ctx, msg); err != nil {
		return fmt.Errorf("request export %s: %w", t.Request.ID, err)
	}
	return nil
}
