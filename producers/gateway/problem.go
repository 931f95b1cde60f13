package gateway

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// problem is an answer of RFC 9457. Where, value and remedy are the members that the faults of an event have,
// too.
type problem struct {
	Type      string   `json:"type"`
	Title     string   `json:"title"`
	Status    int      `json:"status"`
	Detail    string   `json:"detail,omitempty"`
	Where     string   `json:"where,omitempty"` // header, parameter, or part of the request
	Value     string   `json:"value,omitempty"` // what was there, cut after some characters
	Remedy    string   `json:"remedy,omitempty"`
	RequestID string   `json:"request_id,omitempty"`
	Limit     int64    `json:"limit,omitempty"`
	Supported []string `json:"supported,omitempty"`
	// Of a request none of whose events was accepted.
	Accepted *int            `json:"accepted,omitempty"`
	Rejected int             `json:"rejected,omitempty"`
	Results  json.RawMessage `json:"results,omitempty"`

	retryAfter int // seconds
	header     map[string]string
}

func (p *problem) Error() string { return p.Title + ": " + p.Detail }

func newProblem(status int, name, title, detail string) *problem {
	return &problem{Type: "urn:kansa:problem:" + name, Title: title, Status: status, Detail: detail}
}

func (p *problem) at(where, value string) *problem {
	p.Where, p.Value = where, cut(value)
	return p
}

func (p *problem) do(remedy string) *problem {
	p.Remedy = remedy
	return p
}

// shown is how much of a faulty value an answer repeats.
const shown = 64

func cut(s string) string {
	if len(s) <= shown {
		return s
	}
	return s[:shown] + "…" // what is cut within a character becomes U+FFFD
}

func (p *problem) write(w http.ResponseWriter) {
	h := w.Header()
	for k, v := range p.header {
		h.Set(k, v)
	}
	if p.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	h.Set("Content-Type", "application/problem+json")
	body, err := json.Marshal(p)
	if err != nil { // nothing in it can fail
		body = []byte("{}")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(p.Status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone has nobody to be told
}

func tooLarge(limit int64) *problem {
	p := newProblem(http.StatusRequestEntityTooLarge, "too-large", "The body is too large",
		"A body has at most "+strconv.FormatInt(limit, 10)+" bytes, as sent and as decompressed.")
	p.Limit = limit
	return p.at("body", "").do("send fewer events in one request")
}

func malformed(detail string) *problem {
	return newProblem(http.StatusBadRequest, "malformed", "The request cannot be read", detail)
}

func busy(status int, detail string, retryAfter int) *problem {
	name, title := "unavailable", "Try again later"
	if status == http.StatusTooManyRequests {
		name, title = "too-much-at-once", "Too much at once"
	}
	p := newProblem(status, name, title, detail).do("send it again after some seconds; with the same Idempotency-Key nothing is stored twice")
	p.retryAfter = retryAfter
	return p
}

var (
	errBusy       = busy(http.StatusServiceUnavailable, "The requests at hand fill the gateway's memory.", 1)
	errClientBusy = busy(http.StatusTooManyRequests, "The requests of this client at hand are as large together as they may be.", 1)
)
