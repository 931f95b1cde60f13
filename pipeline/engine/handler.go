package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

const (
	// statementBytes is how much of a body is searched for where an INSERT ends and its data begins.
	statementBytes = 1 << 20
	// queryBytes bounds a statement that is not an INSERT with data.
	queryBytes = 16 << 20
	// appendBytes is how much of a body is handed over at a time.
	appendBytes = 1 << 20
)

// handler speaks ClickHouse's HTTP protocol.
type handler struct {
	lib      *library
	args     []string // of a connection
	slots    *slots
	turns    turns // of readers
	underWay *underWay
	stopping context.Context // ends when the endpoint stops; requests for records end then
	inserts  inserts         // those with a time
	started  time.Time
	maxBody  int64
	users    *users
	log      *slog.Logger
	version  string
	host     string
	timezone string
	// tableFunctions and functions are all that the engine has, in lower case.
	tableFunctions, functions map[string]bool
	yields                    bool // queries may have a nice value
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-ClickHouse-Server-Display-Name", h.host)
	header.Set("X-ClickHouse-Timezone", h.timezone)
	switch {
	case r.URL.Path == "/ping", r.URL.Path == "/replicas_status":
		header.Set("Content-Type", "text/html; charset=UTF-8")
		_, _ = io.WriteString(w, "Ok.\n") // whoever asked has gone
		return
	case strings.HasPrefix(r.URL.Path, controlPrefix):
		h.control(w, r)
		return
	case r.URL.Path != "/":
		http.Error(w, "There is no handle "+r.URL.Path, http.StatusNotFound)
		return
	}
	q, err := parseRequest(r)
	if err != nil {
		q = &request{}
	}
	defer q.close()
	patient := newPatientWriter(w)
	out := newResponse(patient, q)
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("request failed by a panic", "query_id", q.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			out.fail(h.log, exceptionf(codeUnknownException, "The endpoint failed by a panic; its log has more (LOGICAL_ERROR)"))
		}
	}()
	if err == nil {
		err = h.serve(r, q, out, patient)
	}
	if err == nil {
		err = out.finish()
	}
	if err != nil {
		e := asException(err)
		if !strings.Contains(e.message, "(version ") {
			e = &exception{code: e.code, message: e.message + " (version " + h.version + ")"}
		}
		if e.retryAfter == 0 {
			e.retryAfter = asException(err).retryAfter
		}
		if e.retryAfter > 0 {
			header.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.retryAfter.Seconds()))))
		}
		if e.code == codeAuthenticationFailed {
			header.Set("WWW-Authenticate", `Basic realm="ClickHouse server HTTP API"`)
		}
		out.fail(h.log, e)
		// Readers write parts of the text of their exceptions, and could end the process by it. So a fault that they report is looked for.
		if part, ok := spoiled(e, h.started); ok && q.reader == nil {
			h.endSpoiled(part)
		}
	}
}

// serve runs the request; all of its errors are for the client.
func (h *handler) serve(r *http.Request, q *request, out *response, patient *patientWriter) (err error) {
	if q.reader, err = h.users.check(r); err != nil {
		return err
	}
	q.gone = patient.hurry
	limit := h.maxBody
	if q.reader != nil {
		limit = min(limit, readerBody)
		_ = patient.control.SetReadDeadline(time.Now().Add(readPatience))
	}
	if err := q.readBody(r, limit); err != nil {
		return err
	}
	if q.reader != nil { // the end of the connection is read from now on
		_ = patient.control.SetReadDeadline(time.Time{})
	}
	if q.query == "" && q.body.size == 0 {
		if r.Method == http.MethodGet {
			_, err := io.WriteString(out, "Ok.\n")
			return err
		}
		return exceptionf(codeSyntaxError, "Empty query (SYNTAX_ERROR)")
	}
	if q.reader != nil {
		return h.serveReader(r, q, out)
	}
	st, data, err := q.statement()
	if err != nil {
		return err
	}
	if err := h.inserts.wait(r.Context(), q.settings["log_comment"]); err != nil { // before it takes a slot, which they may need
		return err
	}
	use := forOwner
	switch {
	case st.kind == statementInsert:
		use = forInsert
	case r.Header.Get(PurposeHeader) == PurposeRead:
		use = forReads
	}
	if use != forReads {
		patient.patience = ownerPatience
	}
	release, err := h.slots.take(r.Context(), use)
	if err != nil {
		return err
	}
	defer release()
	return h.work(r.Context(), q, st, data, out)
}

// work runs a statement in a session of its own. The caller holds a slot.
func (h *handler) work(ctx context.Context, q *request, st statement, data [][]byte, out *response) error {
	// libchdb attaches state to the thread that a query runs on.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s, err := h.lib.open(h.args...)
	if err != nil {
		return err
	}
	defer s.close()
	if q.reader != nil {
		known, err := catalogueOf(s, q.reader.Database)
		if err != nil {
			return err
		}
		if st, err = h.confine(q, st, known); err != nil {
			return err
		}
		q.confinement = q.reader.confinement(known)
	}
	// An owner's comment has a meaning of its own; see late.go.
	var mark string
	if q.reader != nil || st.kind == statementSelect && q.settings["log_comment"] == "" {
		mark = uuid.NewString()
		q.settings["log_comment"] = mark
	}
	if err := h.prepare(s, q); err != nil {
		return err
	}
	if mark != "" {
		defer h.killWhen(ctx, mark, q.gone)()
	}
	format := q.defaultFormat
	if st.format != "" {
		format = st.format
	}
	if st.kind == statementInsert {
		return h.insert(s, q, st, data, out)
	}
	out.w.Header().Set("X-ClickHouse-Format", format)
	return h.query(ctx, s, q, st, format, out)
}

// statement puts the query together: the address's part, a line break, and the body.
func (q *request) statement() (statement, [][]byte, error) {
	body, err := q.body.bytes()
	if err != nil {
		return statement{}, nil, err
	}
	text := q.query
	if text == "" {
		text = string(body[:min(len(body), statementBytes)])
		st, err := parseStatement(text)
		if st.kind == statementInsert {
			return st, [][]byte{body[min(st.data, len(body)):]}, err
		}
		if len(body) <= statementBytes {
			return st, nil, err
		}
	} else {
		st, err := parseStatement(text)
		if st.kind == statementInsert && st.data == len(text) && strings.TrimSpace(st.text) == strings.TrimSpace(text) && len(body) > 0 && st.format == "Values" {
			// The address holds the table, the body may go on with FORMAT or VALUES.
			head := text + "\n"
			whole, err := parseStatement(head + string(body[:min(len(body), statementBytes)]))
			if err == nil && whole.data > len(head) {
				return whole, [][]byte{body[min(whole.data-len(head), len(body)):]}, nil
			}
		}
		if st.kind == statementInsert {
			var data [][]byte
			if rest := text[min(st.data, len(text)):]; rest != "" {
				data = append(data, []byte(rest+"\n"))
			}
			return st, append(data, body), err
		}
		if len(body) == 0 {
			return st, nil, err
		}
		text += "\n"
	}
	if len(text)+len(body) > queryBytes {
		return statement{}, nil, exceptionf(codeSyntaxError, "The query is larger than %d bytes (SYNTAX_ERROR)", queryBytes)
	}
	if q.query == "" {
		text = ""
	}
	st, err := parseStatement(text + string(body))
	return st, nil, err
}

// SettingNice is the nice value of a query's threads. Where they could not return to the normal priority, the query uses half of the
// processors instead.
const SettingNice = "os_thread_priority"

// giveUpHalf has a query that is to give way, and cannot, use half of the processors.
func giveUpHalf(settings map[string]string) {
	if settings[SettingNice] != "" {
		delete(settings, SettingNice)
		settings["max_threads"] = strconv.Itoa(max(1, runtime.NumCPU()/2))
	}
}

// prepare gives a session its tables, database and settings; what forbids comes last.
func (h *handler) prepare(s *session, q *request) error {
	for _, t := range q.external {
		name := quoteIdentifier(t.name)
		if err := s.exec("CREATE TEMPORARY TABLE " + name + " (" + t.structure + ") ENGINE = Memory"); err != nil {
			return err
		}
		data, err := t.data.bytes()
		if err != nil {
			return err
		}
		res, err := s.insert("INSERT INTO "+name, t.format, nil, pieces([][]byte{data}))
		if err != nil {
			return err
		}
		res.close()
	}
	if q.database != "" && q.database != "default" {
		if err := s.exec("USE " + quoteIdentifier(q.database)); err != nil {
			return err
		}
	}
	if !h.yields {
		giveUpHalf(q.settings)
		giveUpHalf(q.confinement)
	}
	if q.reader == nil && q.readonly && q.settings["readonly"] == "" {
		q.settings["readonly"] = "2" // as GET on a server: settings may change, data may not
	}
	if q.reader == nil {
		return s.apply(q.settings)
	}
	if err := s.apply(q.settings); err != nil {
		return err
	}
	if err := s.apply(q.confinement); err != nil {
		return err
	}
	return s.apply(map[string]string{"readonly": "1"})
}

func (h *handler) insert(s *session, q *request, st statement, data [][]byte, out *response) error {
	end, err := h.inserts.begin(untilOf(q.settings["log_comment"]))
	if err != nil {
		return err
	}
	defer end()
	res, err := s.insert(st.text, st.format, q.params, pieces(data))
	if err != nil {
		return err
	}
	defer res.close()
	out.summary.add(res)
	return nil
}

// pieces yields data in portions that the engine copies.
func pieces(data [][]byte) func() ([]byte, error) {
	return func() ([]byte, error) {
		for len(data) > 0 && len(data[0]) == 0 {
			data = data[1:]
		}
		if len(data) == 0 {
			return nil, nil
		}
		n := min(len(data[0]), appendBytes)
		piece := data[0][:n]
		data[0] = data[0][n:]
		return piece, nil
	}
}

// query runs everything but an INSERT with data, streamed where the format allows it.
func (h *handler) query(ctx context.Context, s *session, q *request, st statement, format string, out *response) error {
	l := formatLayout(format)
	out.w.Header().Set("Content-Type", l.contentType)
	if !strings.EqualFold(format, "Native") || q.revision == 0 {
		return h.send(ctx, s, q, st, format, l, out, out)
	}
	f := &reframer{revision: q.revision}
	sink := writerFunc(func(p []byte) (int, error) { return len(p), f.write(out, p) })
	if err := h.send(ctx, s, q, st, format, l, sink, out); err != nil {
		return err
	}
	return f.close()
}

// send puts the output into the sink, which leads to out.
func (h *handler) send(ctx context.Context, s *session, q *request, st statement, format string, l layout, sink io.Writer, out *response) error {
	if st.kind == statementSelect && l.streams && !st.totals && !isTrue(q.settings["extremes"]) {
		done, err := h.stream(ctx, s, q, st, format, l, sink, out)
		if done || err != nil {
			return err
		}
	}
	res, err := s.query(st.text, format, q.params)
	if err != nil {
		return err
	}
	defer res.close()
	out.summary.add(res)
	_, err = sink.Write(res.data())
	return err
}

// stream sends a SELECT's blocks as they come. It reports false if the engine cannot stream the statement
// and has not run it.
func (h *handler) stream(ctx context.Context, s *session, q *request, st statement, format string, l layout, sink io.Writer, out *response) (bool, error) {
	stream, err := s.stream(st.text, format, q.params)
	if err != nil {
		if e := asException(err); e.code == codeBadArguments && strings.Contains(e.message, "Streaming query is not supported") {
			return false, nil
		}
		return true, err
	}
	defer stream.close()
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return true, fmt.Errorf("%w: %w", errGone, context.Cause(ctx))
		}
		res, err := stream.next()
		if err != nil || res == nil {
			return true, err
		}
		out.summary.add(res)
		data := res.data()
		if !first {
			data = l.body(data)
		}
		_, err = sink.Write(data)
		res.close()
		if err == nil {
			err = out.pace()
		}
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return true, err
		}
	}
}
