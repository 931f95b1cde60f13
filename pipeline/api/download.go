package api

import (
	"context"
	_ "embed" // page.html
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/rate"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/schema"
)

// downloads serves archives to those who hold a link.
type downloads struct {
	o     Options
	slots *rate.Slots

	mu sync.Mutex
	// recent holds the plans of the archives asked for last, the latest at the end: a download manager
	// asks for many ranges of one archive, and laying it out again reads all its manifests.
	recent []recentPlan
}

type recentPlan struct {
	export string
	plan   *exporter.Plan
}

const recentPlans = 8

func (d *downloads) register(mux *http.ServeMux, bounds *limits) {
	mux.Handle("GET /download/{token}/{file}", bounds.bounded(http.HandlerFunc(d.serve)))
}

func (d *downloads) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "private, no-store")
	plan, e, err := d.open(r.Context(), r.PathValue("token"))
	var gone *exporter.Gone
	switch {
	case errors.Is(err, exporter.ErrNoLink):
		answer(w, http.StatusNotFound, "This link does not work", "It has expired, was revoked, or is not complete. Ask for a new export.")
		return
	case errors.As(err, &gone):
		d.o.Logger.WarnContext(r.Context(), "link to an archive that is gone", slog.String("export", e.ID), slog.String("reason", gone.Reason))
		answer(w, http.StatusGone, "This archive is gone", "The link has not expired, but "+gone.Reason+". Ask for a new export of the hours that are left.")
		return
	case err != nil:
		// The address holds the token, so it is not logged.
		d.o.Logger.ErrorContext(r.Context(), "download failed", slog.String("export", e.ID), slog.Any("error", err))
		answer(w, http.StatusServiceUnavailable, "The archive can't be read at the moment", "Try again in a few minutes.")
		return
	}
	release, reached := d.slots.Take(e.ID, e.Organization)
	if release == nil {
		d.o.Limits.Refused.Add("downloads_" + reached)
		retryAfter(h.Set, slotAgain)
		answer(w, http.StatusTooManyRequests, "Too many downloads", "Too many are under way ("+boundsOf[reached]+"). Try again when one has ended.")
		return
	}
	defer release()
	d.record(r, &e)
	ctx, done := d.whileValid(r.Context(), w, e.ID)
	defer done()
	body := plan.NewReader(ctx)
	defer body.Close()
	h.Set("Content-Type", plan.ContentType())
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": plan.Name}))
	h.Set("ETag", plan.ETag())
	d.o.Logger.InfoContext(r.Context(), "download", slog.String("export", e.ID), slog.String("range", r.Header.Get("Range")))
	http.ServeContent(w, r, plan.Name, plan.Modified, body)
}

// validEvery is how often is looked whether the link of a download under way was revoked.
const validEvery = 500 * time.Millisecond

// whileValid returns a context that ends when the links of an export are revoked, and the response with it.
func (d *downloads) whileValid(ctx context.Context, w http.ResponseWriter, export string) (valid context.Context, done func()) {
	valid, end := context.WithCancelCause(ctx)
	stop := held(valid, w)
	var looking sync.WaitGroup
	looking.Go(func() {
		tick := time.NewTicker(validEvery)
		defer tick.Stop()
		for {
			select {
			case <-valid.Done():
				return
			case <-tick.C:
			}
			// A failed lookup ends nothing: the next one follows soon.
			if e, ok, err := d.o.States.Get(valid, export); err == nil && (!ok || e.Revoked != nil) {
				end(access.ErrEnded)
			}
		}
	})
	return valid, func() {
		stop()
		end(context.Canceled)
		looking.Wait()
	}
}

// record tells the own trail who fetched what (requirements Q3, Z6).
func (d *downloads) record(r *http.Request, e *exporter.Export) {
	attributes := map[string]string{}
	if ranges := r.Header.Get("Range"); ranges != "" {
		attributes["range"] = ranges[:min(len(ranges), 200)]
	}
	agent := strings.ToValidUTF8(r.UserAgent(), "?")
	d.o.Record(r.Context(), schema.Event{
		Event: "export.downloaded", Action: "download", Organization: e.Organization, Trail: schema.Access, Target: schema.Target{Type: "export", ID: e.ID, Name: e.File},
		Actor: schema.Actor{Type: "link", ID: e.ID}, Context: schema.Context{IP: request.From(r.Context()).IP, UserAgent: agent[:min(len(agent), 200)]}, Attributes: attributes,
	})
}

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// answer is the same short page for everything that is no archive.
func answer(w http.ResponseWriter, code int, title, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	w.WriteHeader(code)
	_ = page.Execute(w, struct{ Title, Text string }{title, text}) // who asked may be gone
}

// open finds the archive behind a token.
func (d *downloads) open(ctx context.Context, token string) (*exporter.Plan, exporter.Export, error) {
	link, err := d.o.Links.Open(ctx, token)
	if err != nil {
		return nil, exporter.Export{}, err
	}
	e, ok, err := d.o.States.Get(ctx, link.Export)
	switch {
	case err != nil:
		return nil, e, err
	case !ok:
		return nil, e, fmt.Errorf("the state of export %s is gone", link.Export)
	case e.Revoked != nil:
		return nil, e, exporter.ErrNoLink
	}
	if err := exporter.Available(ctx, d.o.Bucket, &e); err != nil {
		return nil, e, err
	}
	if plan := d.cached(link.Export); plan != nil {
		return plan, e, nil
	}
	plan, err := exporter.PlanLink(ctx, d.o.Bucket, &e)
	if err != nil {
		return nil, e, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recent = append(d.recent, recentPlan{link.Export, plan}); len(d.recent) > recentPlans {
		d.recent = slices.Delete(d.recent, 0, 1)
	}
	return plan, e, nil
}

func (d *downloads) cached(export string) *exporter.Plan {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range d.recent {
		if r.export == export {
			return r.plan
		}
	}
	return nil
}
