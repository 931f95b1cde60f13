package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"slices"
	"sync"

	"github.com/kansa-audit/kansa/consumers/exporter"
)

// downloads serves archives to those who hold a link.
type downloads struct {
	o Options

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

func (d *downloads) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /download/{token}/{file}", d.serve)
}

func (d *downloads) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "private, no-store")
	plan, export, err := d.open(r.Context(), r.PathValue("token"))
	switch {
	case errors.Is(err, exporter.ErrNoLink):
		http.Error(w, "This link does not work or has expired. Ask for a new export.", http.StatusNotFound)
		return
	case err != nil:
		// The address holds the token, so it is not logged.
		d.o.Logger.Error("download failed", slog.String("export", export), slog.Any("error", err))
		http.Error(w, "The archive can't be read at the moment. Try again in a few minutes.", http.StatusServiceUnavailable)
		return
	}
	body := plan.NewReader(r.Context())
	defer body.Close()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": plan.Name}))
	h.Set("ETag", plan.ETag())
	d.o.Logger.Info("download", slog.String("export", export), slog.String("range", r.Header.Get("Range")))
	http.ServeContent(w, r, plan.Name, plan.Modified, body)
}

// open finds the archive behind a token.
func (d *downloads) open(ctx context.Context, token string) (*exporter.Plan, string, error) {
	link, err := d.o.Links.Open(ctx, token)
	if err != nil {
		return nil, "", err
	}
	if plan := d.cached(link.Export); plan != nil {
		return plan, link.Export, nil
	}
	e, ok, err := d.o.States.Get(ctx, link.Export)
	if err != nil {
		return nil, link.Export, err
	}
	if !ok {
		return nil, link.Export, fmt.Errorf("the state of export %s is gone", link.Export)
	}
	plan, err := exporter.PlanArchive(ctx, d.o.Bucket, &e.Request)
	if err != nil {
		return nil, link.Export, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.recent = append(d.recent, recentPlan{link.Export, plan}); len(d.recent) > recentPlans {
		d.recent = slices.Delete(d.recent, 0, 1)
	}
	return plan, link.Export, nil
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
