package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/store"
	"github.com/kansa-audit/kansa/schema/codec"
)

const (
	// tailEvery is how often the tail looks for more.
	tailEvery = 500 * time.Millisecond
	// tailAtOnce bounds what one look sends; what is left comes with the next.
	tailAtOnce = 500
	// tailBeat keeps proxies from closing a connection on which nothing happens.
	tailBeat = 15 * time.Second
)

// tail registers the live tail: server-sent events, each an event and its place, from which a browser that lost the
// connection goes on by itself.
func (a *audit) tail() {
	type input struct {
		FilterParams
		LastEventID string `header:"Last-Event-ID" maxLength:"200"`
		Cursor      string `query:"cursor" maxLength:"200" doc:"Where to begin; now if empty"`
	}
	register(a, huma.Operation{
		OperationID: "audit-tail", Method: http.MethodGet, Path: "/api/v1/audit/tail", Summary: "New events as they are stored", Tags: []string{"events"},
		Description: "Server-sent events. The data of each is an event as JSON, its id is a cursor. None is skipped or repeated.",
		Responses:   map[string]*huma.Response{"200": {Description: "The events", Content: map[string]*huma.MediaType{"text/event-stream": {}}}},
		Middlewares: huma.Middlewares{func(ctx huma.Context, next func(huma.Context)) {
			a.slot(ctx, a.limits.tails, "tails", "live tails", next)
		}},
	}, func(ctx context.Context, in *input) (*huma.StreamResponse, error) {
		q, err := a.question(ctx, &in.FilterParams, "tail")
		if err != nil {
			return nil, err
		}
		from := in.Cursor
		if in.LastEventID != "" {
			from = in.LastEventID
		}
		if from != "" {
			if q.After, err = readCursor(from); err != nil {
				return nil, huma.Error400BadRequest("cursor is none of ours")
			}
		} else {
			floor, err := a.floor(ctx, q.Organization)
			if err != nil {
				return nil, err
			}
			// Behind everything that is stored: the sequence decides within one instant, and no clock is needed.
			if q.After, err = a.o.Store.Last(ctx, q.Organization, floor); err != nil {
				return nil, err
			}
		}
		return &huma.StreamResponse{Body: func(h huma.Context) {
			h.SetHeader("Content-Type", "text/event-stream")
			h.SetHeader("Cache-Control", "no-store")
			h.SetHeader("X-Accel-Buffering", "no")
			if err := a.follow(h, q); err != nil && h.Context().Err() == nil {
				a.o.Logger.WarnContext(h.Context(), "live tail ended", slog.Any("error", err))
			}
		}}, nil
	})
}

func (a *audit) follow(h huma.Context, q *store.Question) error {
	w := h.BodyWriter()
	flush := func() {}
	if f, ok := w.(http.Flusher); ok {
		flush = f.Flush
	}
	ctx := h.Context()
	look := time.NewTicker(tailEvery)
	defer look.Stop()
	if _, err := fmt.Fprint(w, ": the tail begins\n\n"); err != nil {
		return err
	}
	flush()
	said := time.Now()
	q.Limit, q.Follow = tailAtOnce, true
	seen := uint64(0)
	for {
		var err error
		if q.UpTo, err = a.floor(ctx, q.Organization); err != nil {
			return err
		}
		n := 0
		if q.UpTo != seen { // or there is nothing new of anybody
			if n, err = a.look(ctx, w, q); err != nil {
				return err
			}
			if n < tailAtOnce {
				seen = q.UpTo
			}
		}
		if n == 0 && time.Since(said) > tailBeat {
			if _, err := fmt.Fprint(w, ": nothing new\n\n"); err != nil {
				return err
			}
			n = 1
		}
		if n > 0 {
			said = time.Now()
			flush()
		}
		if n >= tailAtOnce {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
	}
}

// look sends new events and returns their number. Only a few tails query the engine at once, those of one organization a few times a
// second, and they write after the query: a client that does not read its tail holds no slot of the engine.
func (a *audit) look(ctx context.Context, w io.Writer, q *store.Question) (n int, err error) {
	paced, err := a.limits.pace.Take(ctx, q.Organization)
	if err != nil {
		return 0, nil //nolint:nilerr // the client has gone
	}
	began := time.Now()
	defer func() { time.AfterFunc(lookPace-time.Since(began), paced) }()
	release, err := a.limits.looks.Take(ctx, q.Organization)
	if err != nil {
		return 0, nil //nolint:nilerr // the client has gone
	}
	defer release()
	var text bytes.Buffer
	after := q.After
	err = a.o.Store.Events(ctx, q, func(e *codec.Stored) error {
		data, err := json.Marshal(a.shown(e))
		if err != nil {
			return fmt.Errorf("encode an event: %w", err)
		}
		after = store.Position{RecordedAt: e.RecordedAt, StreamSeq: e.StreamSeq, BatchIndex: e.BatchIndex}
		n++
		fmt.Fprintf(&text, "id: %s\ndata: %s\n\n", writeCursor(after), data)
		return nil
	})
	release()
	if err != nil {
		return 0, err
	}
	q.After = after
	_, err = w.Write(text.Bytes())
	return n, err
}
