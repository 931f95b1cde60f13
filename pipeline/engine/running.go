package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// RunningQuery is a reader's query that still runs or waits.
type RunningQuery struct {
	QueryID  string    `json:"query_id"`
	ReaderID string    `json:"reader_id"`
	Username string    `json:"username"`
	Query    string    `json:"query"`
	Address  string    `json:"address,omitempty"`
	Started  time.Time `json:"started"`
}

// FinishedQuery is a reader's query that has ended, well or not.
type FinishedQuery struct {
	RunningQuery
	Duration time.Duration `json:"duration"`
	Rows     uint64        `json:"rows"`
	// Code and Error are of ClickHouse's exception. Code is 0 after success.
	Code  int    `json:"code,omitempty"`
	Error string `json:"error,omitempty"`
}

// Refused reports whether the query was refused because of what it asked for.
func (f *FinishedQuery) Refused() bool {
	return f.Code == codeReadonly || f.Code == codeAccessDenied || f.Code == codeNotImplemented
}

const (
	// recordedStatement bounds the statement in a record, recordedError its error.
	recordedStatement, recordedError = 4000, 500
	// mostFinished bounds the records that wait for the parent.
	mostFinished = 4096
	// killEvery is how often a cancelled query is killed until it ends: a kill before it runs has
	// no effect.
	killEvery = 100 * time.Millisecond
)

var (
	errKilled  = &exception{code: codeQueryWasCancelled, message: "Code: 394. DB::Exception: Query was killed (QUERY_WAS_CANCELLED)"}
	errRemoved = &exception{code: codeAuthenticationFailed, message: "Code: 516. DB::Exception: The account was removed or has expired (AUTHENTICATION_FAILED)"}
)

// underWay are the readers' queries that run, and the records of those that have ended.
type underWay struct {
	mu       sync.Mutex
	running  map[*readerQuery]struct{}
	finished []FinishedQuery
	more     chan struct{} // has a value when finished may have one
	dropped  int
	log      *slog.Logger
}

type readerQuery struct {
	RunningQuery
	cancel context.CancelCauseFunc
}

func newUnderWay(log *slog.Logger) *underWay {
	return &underWay{running: map[*readerQuery]struct{}{}, more: make(chan struct{}, 1), log: log}
}

// begin registers a query. The context ends when it is cancelled. The caller calls end once.
func (u *underWay) begin(ctx context.Context, q RunningQuery) (context.Context, *readerQuery) {
	ctx, cancel := context.WithCancelCause(ctx)
	q.Query = strings.ToValidUTF8(q.Query[:min(len(q.Query), recordedStatement)], "")
	r := &readerQuery{RunningQuery: q, cancel: cancel}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.running[r] = struct{}{}
	return ctx, r
}

func (u *underWay) end(r *readerQuery, rows uint64, err error) {
	r.cancel(nil)
	f := FinishedQuery{RunningQuery: r.RunningQuery, Duration: time.Since(r.Started), Rows: rows}
	if err != nil {
		e := asException(err)
		f.Code, f.Error = e.code, strings.ToValidUTF8(e.message[:min(len(e.message), recordedError)], "")
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.running, r)
	u.add(f)
}

// add keeps records. The caller holds mu.
func (u *underWay) add(all ...FinishedQuery) {
	u.finished = append(u.finished, all...)
	if over := len(u.finished) - mostFinished; over > 0 {
		u.finished = slices.Delete(u.finished, 0, over)
		if u.dropped += over; u.dropped == over {
			u.log.Error("records of queries were dropped: the parent process does not fetch them", slog.Int("dropped", over))
		}
	}
	select {
	case u.more <- struct{}{}:
	default:
	}
}

// cancel ends the queries that match.
func (u *underWay) cancel(cause error, match func(*RunningQuery) bool) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for r := range u.running {
		if match(&r.RunningQuery) {
			r.cancel(cause)
			n++
		}
	}
	return n
}

func (u *underWay) list() []RunningQuery {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := make([]RunningQuery, 0, len(u.running))
	for r := range u.running {
		all = append(all, r.RunningQuery)
	}
	slices.SortFunc(all, func(a, b RunningQuery) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.QueryID, b.QueryID))
	})
	return all
}

// fetch waits for records and takes them.
func (u *underWay) fetch(ctx context.Context) []FinishedQuery {
	for {
		u.mu.Lock()
		all := u.finished
		u.finished = nil
		u.mu.Unlock()
		if len(all) > 0 {
			return all
		}
		select {
		case <-u.more:
		case <-ctx.Done():
			return nil
		}
	}
}

// killWhen ends the engine's query with a mark when ctx does, and returns what stops that. The
// stream of a query can only be left between two blocks; KILL QUERY … ASYNC ends it within one.
func (h *handler) killWhen(ctx context.Context, mark string, gone func()) (stop func()) {
	ended := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
			return
		}
		gone()
		for {
			if err := h.kill(mark); err != nil {
				h.log.Warn("query of a client that is gone was not killed; trying again", slog.Any("error", err))
			}
			select {
			case <-ended:
				return
			case <-time.After(killEvery):
			}
		}
	})
	return func() { close(ended); watch.Wait() }
}

func (h *handler) kill(mark string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s, err := h.lib.open(h.args...)
	if err != nil {
		return err
	}
	defer s.close()
	return s.exec("KILL QUERY WHERE Settings['log_comment'] = " + quoteString(mark) + " ASYNC")
}

// serveReader runs a reader's query within its limits and records it.
func (h *handler) serveReader(r *http.Request, q *request, out *response) (err error) {
	text := q.query
	if text == "" {
		body, err := q.body.bytes()
		if err != nil {
			return err
		}
		text = string(body[:min(len(body), recordedStatement)])
	}
	out.summary.hidden = true
	ctx, running := h.underWay.begin(r.Context(), RunningQuery{
		QueryID: q.id, ReaderID: q.reader.ID, Username: q.reader.Username, Query: text, Address: addressOf(r.RemoteAddr), Started: time.Now(),
	})
	defer func() { h.underWay.end(running, out.summary.resultRows, err) }()
	if !h.users.has(q.reader) { // removed since it was checked
		return errRemoved
	}
	err = h.readerQuery(ctx, q, out)
	if cause := context.Cause(ctx); err != nil && (errors.Is(cause, errKilled) || errors.Is(cause, errRemoved)) {
		return cause
	}
	return err
}

func (h *handler) readerQuery(ctx context.Context, q *request, out *response) error {
	if id, ok := killStatement(q); ok {
		return h.killOwn(ctx, q, id, out)
	}
	if err := q.checkRequest(); err != nil {
		return err
	}
	st, data, err := q.statement()
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeoutCause(ctx, readerWait, busyf(codeTooManyQueries, readerWait, "Too many simultaneous queries: none ended within %s (TOO_MANY_SIMULTANEOUS_QUERIES)", readerWait))
	defer cancel()
	leave, err := h.turns.take(wait, q.reader)
	if err != nil {
		return err
	}
	defer leave()
	release, err := h.slots.take(wait, forReader)
	if err != nil {
		return err
	}
	defer release()
	return h.work(ctx, q, st, data, out)
}

// killStatement reads KILL QUERY WHERE query_id = '…' of exactly this form.
func killStatement(q *request) (id string, ok bool) {
	text := q.query
	if body, err := q.body.bytes(); err == nil {
		text += string(body[:min(len(body), recordedStatement)])
	}
	s := scanner{text: text}
	for _, keyword := range []string{"KILL", "QUERY", "WHERE", "query_id"} {
		if !s.next().is(keyword) {
			return "", false
		}
	}
	if s.next().text != "=" {
		return "", false
	}
	t := s.next()
	if t.kind != tokenString || text[t.start] != '\'' || strings.Contains(text[t.start:t.end], `\`) {
		return "", false
	}
	id = strings.ReplaceAll(text[t.start+1:t.end-1], "''", "'")
	end := s.next()
	if end.is("SYNC") || end.is("ASYNC") {
		end = s.next()
	}
	if end.text == ";" {
		end = s.next()
	}
	return id, end.kind == tokenEnd
}

// killOwn ends a query of the same reader, and answers as a server does.
func (h *handler) killOwn(ctx context.Context, q *request, id string, out *response) error {
	n := h.underWay.cancel(errKilled, func(r *RunningQuery) bool { return r.QueryID == id && r.ReaderID == q.reader.ID })
	release, err := h.slots.take(ctx, forReader)
	if err != nil {
		return err
	}
	defer release()
	q.database, q.settings, q.params = q.reader.Database, map[string]string{}, nil
	return h.work(ctx, q, statement{kind: statementSelect, text: fmt.Sprintf(
		"SELECT 'waiting' AS kill_status, %s AS query_id, %s AS user FROM numbers(%d)", quoteString(id), quoteString(q.reader.Username), n)}, nil, out)
}

// errGone is what a query ends with whose client went away.
var errGone = errors.New("the client is gone")
