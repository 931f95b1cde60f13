package engine

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// request is what an HTTP request asks for.
type request struct {
	id             string
	reader         *Reader           // the sender, unless it is the owner
	confinement    map[string]string // settings of a reader's query
	gone           func()            // makes writing to the client fail
	query          string            // of the address
	database       string
	defaultFormat  string
	revision       uint64
	settings       map[string]string
	params         map[string]string
	compress       bool
	wait           bool
	readonly       bool
	head           bool
	acceptEncoding string
	body           *spool
	external       []externalTable
}

// externalTable is a table that travels with the query.
type externalTable struct {
	name, format, structure string
	data                    *spool
}

func (q *request) close() {
	if q.body != nil {
		q.body.close()
	}
	for _, t := range q.external {
		t.data.close()
	}
}

// ignoredParameters have no meaning for an engine with one process and no sessions.
var ignoredParameters = []string{"quota_key", "role", "stacktrace", "buffer_size", "session_timeout", "session_check", "user", "password", "close_session"}

// parseRequest reads the address and the headers; the body comes later, when its sender is known.
func parseRequest(r *http.Request) (*request, error) {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, exceptionf(codeBadArguments, "The address is malformed: %s (BAD_ARGUMENTS)", err)
	}
	q := &request{
		id:             uuid.NewString(),
		defaultFormat:  "TabSeparated",
		settings:       map[string]string{},
		params:         map[string]string{},
		readonly:       r.Method != http.MethodPost && r.Method != http.MethodPut,
		head:           r.Method == http.MethodHead,
		acceptEncoding: preferredEncoding(r.Header.Get("Accept-Encoding")),
		database:       r.Header.Get("X-ClickHouse-Database"),
	}
	if format := r.Header.Get("X-ClickHouse-Format"); format != "" {
		q.defaultFormat = format
	}
	multipart := strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data")
	external := map[string]string{}
	for name, all := range values {
		value := all[len(all)-1]
		switch name {
		case "query":
			q.query = value
		case "query_id":
			if value != "" {
				q.id = value
			}
		case "database":
			q.database = value
		case "default_format":
			q.defaultFormat = value
		case "compress":
			q.compress = isTrue(value)
		case "decompress":
		case "wait_end_of_query":
			q.wait = isTrue(value)
		case "client_protocol_version":
			if q.revision, err = strconv.ParseUint(value, 10, 32); err != nil {
				return nil, exceptionf(codeBadArguments, "client_protocol_version %s is no number (BAD_ARGUMENTS)", quoteString(value))
			}
		case "session_id":
			return nil, exceptionf(codeNotImplemented, "The embedded engine has no HTTP sessions (NOT_IMPLEMENTED)")
		default:
			switch {
			case slices.Contains(ignoredParameters, name):
			case strings.HasPrefix(name, "param_"):
				q.params[strings.TrimPrefix(name, "param_")] = value
			case multipart && (strings.HasSuffix(name, "_structure") || strings.HasSuffix(name, "_format")):
				external[name] = value
			default:
				q.settings[name] = value
			}
		}
	}
	// Blocks that are compressed by themselves gain nothing from a content encoding.
	if q.compress || q.settings["enable_http_compression"] == "0" {
		q.acceptEncoding = ""
	}
	for name, structure := range external {
		if table, ok := strings.CutSuffix(name, "_structure"); ok {
			format := external[table+"_format"]
			if format == "" {
				format = "TabSeparated"
			}
			q.external = append(q.external, externalTable{name: table, format: format, structure: structure, data: &spool{}})
		}
	}
	return q, nil
}

// readBody takes the whole body before the engine is asked, so that a client that dies while it sends has
// changed nothing, and a slow one holds no connection.
func (q *request) readBody(r *http.Request, limit int64) error {
	q.body = &spool{limit: limit}
	if len(q.external) > 0 {
		return q.readMultipart(r, limit)
	}
	src, done, err := newDecoder(r.Header.Get("Content-Encoding"), r.Body)
	if err != nil {
		return exceptionf(codeCannotDecompress, "The body cannot be read: %s (CANNOT_DECOMPRESS)", err)
	}
	defer done()
	if isTrue(r.URL.Query().Get("decompress")) {
		src = newBlockReader(src)
	}
	if _, err := io.Copy(q.body, src); err != nil {
		var e *exception
		if errors.As(err, &e) {
			return e
		}
		return exceptionf(codeCannotDecompress, "The body cannot be read: %s (CANNOT_DECOMPRESS)", err)
	}
	return nil
}

func (q *request) readMultipart(r *http.Request, limit int64) error {
	parts, err := r.MultipartReader()
	if err != nil {
		return exceptionf(codeBadArguments, "The body is malformed: %s (BAD_ARGUMENTS)", err)
	}
	for {
		part, err := parts.NextPart()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return exceptionf(codeBadArguments, "The body is malformed: %s (BAD_ARGUMENTS)", err)
		}
		to := q.body
		if name := part.FormName(); name != "query" {
			i := slices.IndexFunc(q.external, func(t externalTable) bool { return t.name == name })
			if i < 0 {
				return exceptionf(codeBadArguments, "Part %s of the body has no structure (BAD_ARGUMENTS)", quoteString(name))
			}
			to = q.external[i].data
			to.limit = limit
		}
		if _, err := io.Copy(to, part); err != nil {
			return fmt.Errorf("read the body: %w", err)
		}
	}
}

// preferredEncoding picks the first encoding of the list that the endpoint can make.
func preferredEncoding(accept string) string {
	for _, part := range strings.Split(accept, ",") {
		name, weight, _ := strings.Cut(strings.TrimSpace(part), ";")
		if strings.ReplaceAll(weight, " ", "") == "q=0" {
			continue
		}
		switch name = strings.ToLower(strings.TrimSpace(name)); name {
		case "gzip", "deflate", "br", "zstd", "lz4":
			return name
		}
	}
	return ""
}

func isTrue(value string) bool { return value == "1" || strings.EqualFold(value, "true") }
