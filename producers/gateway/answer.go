package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// result is what became of one event.
type result struct {
	Index  int    `json:"index"`
	ID     string `json:"id,omitempty"`
	Status int    `json:"status"` // 202; 422 for the event's faults, 403, or 429 and 503 to send it again
	// NotRecorded tells that the event's trail is switched off: there is nothing wrong with it, and it was left out.
	NotRecorded bool    `json:"not_recorded,omitempty"`
	Errors      []fault `json:"errors,omitempty"`
}

// fault is a schema.Fault whose texts do not lie in the body, and are cut.
type fault struct {
	Field   string `json:"field,omitempty"`
	Value   string `json:"value,omitempty"`
	Problem string `json:"problem"`
	Remedy  string `json:"remedy,omitempty"`
}

// maxExplained bounds the events whose faults are told; of the others that were not accepted, index and status are.
const maxExplained = 1000

// A short line can make a long result, so results have a part of the lease, too: taken for many at once.
const (
	rejectsAtOnce  = 1024
	bytesPerReject = 256
)

type reject struct {
	index  int
	status int
	errors []fault
}

// reject notes an event that is not accepted. They come in the order of their indexes.
func (rq *request) reject(index int, _ uuid.UUID, err error) {
	if len(rq.rejects)%rejectsAtOnce == 0 {
		rq.hold(rejectsAtOnce * bytesPerReject)
	}
	r := reject{index: index, status: http.StatusUnprocessableEntity}
	explain := len(rq.rejects) < maxExplained
	var invalid *schema.ValidationError
	var one *schema.Fault
	var limited *LimitError
	switch {
	case errors.As(err, &invalid):
		if !explain {
			break
		}
		rq.hold(int64(len(invalid.Faults)+1) * bytesPerReject)
		for _, f := range invalid.Faults {
			r.errors = append(r.errors, copyFault(f))
		}
		if invalid.More > 0 {
			r.errors = append(r.errors, fault{Problem: "and " + strconv.Itoa(invalid.More) + " more"})
		}
	case errors.As(err, &one):
		if explain {
			r.errors = []fault{copyFault(one)}
		}
	case errors.As(err, &limited):
		r.status = http.StatusTooManyRequests
		rq.limited = max(rq.limited, limited.Wait)
		if explain {
			r.errors = []fault{{Problem: limited.Reason}}
		}
	default: // of Client.MayPublish
		r.status = http.StatusForbidden
		if explain {
			r.errors = []fault{{Problem: err.Error()}}
		}
	}
	rq.rejects = append(rq.rejects, r)
}

// hold takes more of the memory for results.
func (rq *request) hold(n int64) {
	if rq.overload != nil {
		return
	}
	rq.overhead += n
	rq.overload = rq.lease.take(rq.r.Context(), rq.lease.held+n)
}

func copyFault(f *schema.Fault) fault {
	clone := func(s string) string { return strings.Clone(cut(s)) }
	return fault{Field: clone(f.Field), Value: clone(f.Value), Problem: strings.Clone(f.Problem), Remedy: strings.Clone(f.Remedy)}
}

// summary is the answer to a request of which something was accepted.
type summary struct {
	RequestID string `json:"request_id"`
	Accepted  int    `json:"accepted"`
	Rejected  int    `json:"rejected,omitempty"`
	// NotRecorded counts those of Accepted whose trail is switched off.
	NotRecorded int             `json:"not_recorded,omitempty"`
	Results     json.RawMessage `json:"results,omitempty"`
}

func (rq *request) answer(w http.ResponseWriter) error {
	results := rq.results()
	if rq.accepted == 0 {
		return rq.refusal(results)
	}
	status := http.StatusAccepted
	if rq.rejected > 0 {
		status = http.StatusMultiStatus
		rq.log(status, "some events were not accepted")
	}
	switch {
	case errors.Is(rq.failure, producers.ErrStreamFull):
		w.Header().Set("Retry-After", strconv.Itoa(retryWhenFull))
	case rq.failure != nil:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	case rq.limited > 0:
		w.Header().Set("Retry-After", strconv.Itoa(seconds(rq.limited)))
	}
	body, err := json.Marshal(summary{rq.id, rq.accepted, rq.rejected, rq.unrecorded, results})
	if err != nil { // nothing in it can fail
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // a client that is gone has nobody to be told
	return nil
}

// retryAfter is in how many seconds a broker that failed may be there again.
const retryAfter = 2

// retryWhenFull is in how many seconds a stream that is full may have room: when messages age out,
// or an operator makes room.
const retryWhenFull = 10

// seconds is a wait as Retry-After has it.
func seconds(wait time.Duration) int { return int(math.Ceil(wait.Seconds())) }

// refusal is the problem of a request of which nothing was accepted.
func (rq *request) refusal(results json.RawMessage) *problem {
	var p *problem
	if errors.Is(rq.failure, producers.ErrStreamFull) {
		p = newProblem(http.StatusServiceUnavailable, "stream-full", "The stream of events is full", "The broker has no room for more events: none of these is stored.").
			do("send it again after Retry-After seconds, with the same Idempotency-Key or the same event ids; an operator can raise streams.audit_max_bytes")
		p.retryAfter = retryWhenFull
	} else if rq.failure != nil {
		p = busy(http.StatusServiceUnavailable, describe(rq.failure), retryAfter)
	} else if rq.limited > 0 {
		// Events that break a rule are refused for good when the request comes again.
		p = busy(http.StatusTooManyRequests, "A limit is reached; results say which.", seconds(rq.limited)).
			do("send it again after Retry-After seconds; with the same Idempotency-Key nothing is stored twice")
	} else {
		p = newProblem(http.StatusUnprocessableEntity, "invalid", "No event was accepted", "Each of them breaks a rule; results say which.").
			do("mend the events and send them again")
		forbidden := 0
		for _, r := range rq.rejects {
			if r.status == http.StatusForbidden {
				forbidden++
			}
		}
		if forbidden == len(rq.rejects) {
			p.Type, p.Title, p.Status, p.Detail = "urn:kansa:problem:forbidden", "Not allowed", http.StatusForbidden, "The events are of organizations that are not the client's."
			p.Remedy = "send events of your own organization"
		}
	}
	p.Accepted, p.Rejected, p.Results = new(int), rq.rejected, results
	return p
}

// describe says why the broker did not take something, without names of what is inside.
func describe(err error) string {
	var api *jetstream.APIError
	switch {
	case errors.Is(err, producers.ErrStreamFull):
		return "The stream of events is full: the event is not stored."
	case errors.As(err, &api) && api.Code == http.StatusServiceUnavailable:
		return "The broker's stream cannot be written."
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "The broker did not acknowledge the events in time, so that it is not known whether they are stored."
	}
	return "The broker did not take the events."
}

// results is what became of the events, in order: of all, or of those not accepted.
func (rq *request) results() json.RawMessage {
	if rq.rejected == 0 && !rq.all {
		return nil
	}
	failed, left := map[int]string{}, map[int]bool{}
	for i := range rq.sent {
		s := &rq.sent[i]
		if s.err == nil && !s.ack.Unrecorded() {
			continue
		}
		for _, index := range s.index {
			if left[int(index)] = s.err == nil; s.err != nil {
				failed[int(index)] = describe(s.err)
			}
		}
	}
	out := []byte{'['}
	rejects, explained := rq.rejects, 0
	for i, id := range rq.in.IDs {
		r := result{Index: i, Status: http.StatusAccepted}
		if id != uuid.Nil {
			r.ID = id.String()
		}
		if len(rejects) > 0 && rejects[0].index == i {
			r.Status, r.Errors = rejects[0].status, rejects[0].errors
			rejects = rejects[1:]
		} else if why := failed[i]; why != "" {
			r.Status = http.StatusServiceUnavailable
			if explained < maxExplained {
				r.Errors = []fault{{Problem: why, Remedy: "send it again"}}
			}
			explained++
		} else if !rq.all {
			continue
		}
		r.NotRecorded = left[i]
		if len(out) > 1 {
			out = append(out, ',')
		}
		if len(r.Errors) == 0 { // many
			out = append(out, `{"index":`...)
			out = strconv.AppendInt(out, int64(i), 10)
			if r.ID != "" {
				out = append(append(append(out, `,"id":"`...), r.ID...), '"')
			}
			out = append(out, `,"status":`...)
			out = strconv.AppendInt(out, int64(r.Status), 10)
			if r.NotRecorded {
				out = append(out, `,"not_recorded":true`...)
			}
			out = append(out, '}')
			continue
		}
		one, err := json.Marshal(r)
		if err != nil { // nothing in it can fail
			panic(err)
		}
		out = append(out, one...)
	}
	return append(out, ']')
}
