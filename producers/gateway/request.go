package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/producers/mapping"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/tracecontext"
)

// Content types besides those of package codec.
const (
	contentCloudEvent  = "application/cloudevents+json"
	contentCloudEvents = "application/cloudevents-batch+json"
)

var contentTypes = []string{codec.ContentJSON, codec.ContentNDJSON, contentCloudEvent, contentCloudEvents, codec.ContentBlock}

// Headers that say what events may leave out; the query parameters organization and trail do the same.
const (
	headerOrganization = "Kansa-Organization"
	headerTrail        = "Kansa-Trail"
)

// maxKey bounds an Idempotency-Key.
const maxKey = 255

// request is one on its way through the gateway.
type request struct {
	g      *Gateway
	r      *http.Request
	id     string
	began  time.Time
	client Client

	contentType  string // without parameters
	binary       bool   // a CloudEvent whose attributes are headers
	organization string
	trail        schema.Trail
	mapping      *mapping.Mapping // of records that are not events; nil for none
	mapped       string           // its name
	key          string           // Idempotency-Key
	sum          [32]byte         // of what came with it
	bytes        int              // of the body, decompressed
	all          bool             // the answer has a result for every event

	lease    *lease
	overhead int64 // of the lease, for what is rejected
	overload error // there is not enough

	in      *codec.Intake
	held    []codec.Batch // until the body is read to its end
	sent    []sentBatch
	rejects []reject

	accepted, rejected int
	unrecorded         int           // of those accepted, whose trail is switched off
	failure            error         // the first one of the broker that is not a full stream, or that
	limited            time.Duration // how long to wait for the limit that takes longest; 0 if none was exceeded
}

type sentBatch struct {
	ack   producers.Ack
	index []uint32
	err   error
}

// serve answers, or returns the *problem to answer with.
func (rq *request) serve(w http.ResponseWriter) error {
	g, r := rq.g, rq.r
	if r.Method != http.MethodPost {
		p := newProblem(http.StatusMethodNotAllowed, "method", "Only POST is served here", "").at("method", r.Method).do("POST events")
		p.header = map[string]string{"Allow": http.MethodPost}
		return p
	}
	if g.requests.Add(1) > int64(g.cfg.MaxRequests) {
		g.requests.Add(-1)
		return busy(http.StatusServiceUnavailable, "The gateway has as many requests at hand as it may.", 1)
	}
	defer g.requests.Add(-1)
	if err := rq.authenticate(); err != nil {
		return err
	}
	if wait := g.cfg.Limits.Wait(rq.client.Name()); wait > 0 {
		return busy(http.StatusTooManyRequests, "This key publishes faster than its limit.", seconds(wait))
	}
	if err := rq.understand(); err != nil {
		return err
	}
	encoding, unknown := encoding(r)
	if unknown != nil {
		return unknown
	}
	l := &lease{m: g.memory, client: rq.client.Name()}
	defer l.keep(0)
	rq.lease = l
	body := &bodyReader{ctx: r.Context(), lease: l, limit: g.cfg.MaxBody, body: http.MaxBytesReader(w, r.Body, g.cfg.MaxBody), size: r.ContentLength}
	// The real clock, whatever Config.Now says. Where there is no connection, as in tests, there is no deadline.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(g.cfg.Timeout))
	data, err := body.read(encoding)
	if err != nil {
		body.release()
		return err
	}
	rq.bytes = len(data)
	ctx, cancel := context.WithTimeout(tracecontext.From(r.Context(), r.Header), g.cfg.Timeout)
	defer cancel()
	err = rq.take(ctx, data)
	body.release() // what was taken is copied
	if err != nil {
		return err
	}
	l.keep(int64(rq.bytes) + rq.overhead)
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // or the server would take its passing for the client's going
	rq.wait(ctx)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(g.cfg.Timeout))
	defer func() { _ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) }()
	return rq.answer(w)
}

func (rq *request) authenticate() error {
	c, err := rq.g.cfg.Access.Authenticate(rq.r)
	if err == nil {
		rq.client = c
		return nil
	}
	if errors.Is(err, ErrUnauthenticated) {
		p := newProblem(http.StatusUnauthorized, "unauthenticated", "Who asks is not known", err.Error()).at("Authorization", "").do("send a valid API key")
		p.header = map[string]string{"WWW-Authenticate": "Bearer"}
		return p
	}
	return newProblem(http.StatusForbidden, "forbidden", "Not allowed", err.Error())
}

// understand reads everything that comes before the body.
func (rq *request) understand() error {
	r := rq.r
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return malformed("The query is not well-formed.").at("query", "").do("percent-encode it")
	}
	if err := rq.mappingOf(query); err != nil {
		return err
	}
	given := r.Header.Get("Content-Type")
	kind, _, err := mime.ParseMediaType(given)
	rq.contentType = kind
	switch {
	case rq.mapping != nil: // it says how the body is read
	case kind == contentCloudEvent, kind == contentCloudEvents:
	case r.Header.Get("Ce-Specversion") != "":
		rq.binary = true
	case err != nil, kind != codec.ContentJSON && kind != codec.ContentNDJSON && kind != codec.ContentBlock:
		p := newProblem(http.StatusUnsupportedMediaType, "content-type", "The content type is not supported", "").
			at("Content-Type", given).do("send one of those supported, or a CloudEvent in the binary mode with the header ce-specversion")
		p.Supported = contentTypes
		p.header = map[string]string{"Accept-Post": strings.Join(contentTypes, ", ")}
		return p
	}
	for name := range query {
		if name != "organization" && name != "trail" && name != "results" && name != "mapping" && name != "zone" {
			return malformed("There is no such parameter.").at("query", name).do("use organization, trail, results, mapping, zone")
		}
	}
	organization, err := one(query, r.Header, "organization", headerOrganization)
	if err != nil {
		return err
	}
	trail, err := one(query, r.Header, "trail", headerTrail)
	if err != nil {
		return err
	}
	rq.organization, rq.trail = organization, schema.Trail(trail)
	if f := schema.CheckOrganization(organization); organization != "" && f != nil {
		return malformed("The organization "+f.Problem+".").at("organization", organization).do(f.Remedy)
	}
	if f := schema.CheckTrail(rq.trail); trail != "" && f != nil {
		return malformed("The trail "+f.Problem+".").at("trail", trail).do(f.Remedy)
	}
	if rq.mapping == nil && kind == codec.ContentBlock && (organization == "" || trail == "") {
		return malformed("A columnar block does not say whose events it holds.").at("query", "").do("add ?organization=…&trail=…")
	}
	switch results := query.Get("results"); results {
	case "":
	case "all":
		rq.all = true
	default:
		return malformed("There is no such choice of results.").at("results", results).do("use results=all, or leave it out")
	}
	return rq.idempotencyKey()
}

// mappingOf finds the mapping of the request, or else of the client. "none" is for events of a client that has one.
func (rq *request) mappingOf(query url.Values) error {
	client, hasOwn := rq.client.(MappedClient)
	name := query.Get("mapping")
	if name == "" && hasOwn {
		name = client.Mapping()
	}
	if name == "" || name == "none" {
		if zone := query.Get("zone"); zone != "" {
			return malformed("A zone is for records of a mapping.").at("zone", zone).do("name the mapping, too, or leave it out")
		}
		return nil
	}
	m, ok := rq.g.cfg.Mappings[name]
	if !ok {
		p := malformed("There is no such mapping.").at("mapping", name).do("use one of those supported, or none for events")
		p.Supported = slices.Sorted(maps.Keys(rq.g.cfg.Mappings))
		return p
	}
	if zone := query.Get("zone"); zone != "" {
		var err error
		if m, err = m.InZone(zone); err != nil {
			return malformed("It is not a time zone.").at("zone", zone).do("use a name of the tz database such as Asia/Tokyo, or an offset such as +09:00")
		}
	}
	rq.mapping, rq.mapped = m, name
	return nil
}

// records reads the body by the mapping. Of the organization, the request decides, then the key, then the mapping.
func (rq *request) records(body []byte) error {
	o := mapping.Options{Mapping: rq.mapping, Organization: rq.organization, Trail: rq.trail, Now: rq.g.cfg.Now, WithoutID: true}
	if client, ok := rq.client.(MappedClient); ok && o.Organization == "" {
		o.Organization = client.Organization()
	}
	any := false
	for line, err := range mapping.Lines(bytes.NewReader(body), o) {
		any = true
		switch {
		case err != nil:
			return fmt.Errorf("read the records: %w", err)
		case line.Skipped:
			continue
		}
		if err := rq.in.Event(line.Raw, &line.Event, line.Err); err != nil {
			return err
		}
	}
	if !any {
		return errors.New("there is no record")
	}
	return nil
}

// one is a value that may be given as a parameter or as a header, and has to be the same everywhere.
func one(query url.Values, h http.Header, parameter, header string) (string, error) {
	value := ""
	for _, v := range append(query[parameter], h.Values(header)...) {
		if value != "" && v != value {
			return "", malformed("It is given twice, with different values.").at(parameter, v).do("give it once, as parameter " + parameter + " or as header " + header)
		}
		value = v
	}
	return value, nil
}

func (rq *request) idempotencyKey() error {
	values := rq.r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return nil
	}
	key := values[0]
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' { // a string of RFC 8941
		key = key[1 : len(key)-1]
	}
	good := len(values) == 1 && key != "" && len(key) <= maxKey
	for i := range len(key) {
		good = good && ' ' <= key[i] && key[i] <= '~'
	}
	if !good {
		return malformed("It is no key.").at("Idempotency-Key", values[0]).do("give one key of 1 to " + strconv.Itoa(maxKey) + " printable ASCII characters, such as a UUID")
	}
	rq.key = key
	return nil
}

// take reads the events of body and hands them to the publisher. When it returns an error, nothing was handed
// over.
func (rq *request) take(ctx context.Context, body []byte) error {
	g := rq.g
	rq.in = &codec.Intake{
		Organization: rq.organization, Trail: rq.trail, Now: g.cfg.Now(), MaxEvents: g.cfg.MaxEvents,
		Permit: rq.permit, Reject: rq.reject,
	}
	if rq.key != "" {
		if err := rq.identify(body); err != nil {
			return err
		}
	}
	// A line stands for itself, so that the first can be on their way while the last are read.
	atOnce := rq.contentType == codec.ContentNDJSON && !rq.binary
	rq.in.Take = func(b codec.Batch) {
		if atOnce {
			rq.publish(ctx, b)
		} else {
			rq.held = append(rq.held, b)
		}
	}
	err := rq.read(body)
	if err == nil && len(rq.sent) == 0 {
		err = rq.overload
	}
	if err != nil {
		rq.in.Discard()
		for _, b := range rq.held {
			b.Block.GiveBack()
		}
		var p *problem
		switch {
		case errors.As(err, &p):
			return p
		case errors.Is(err, codec.ErrTooMany):
			p := tooLarge(int64(g.cfg.MaxEvents))
			p.Title, p.Detail = "Too many events", fmt.Sprintf("A request holds at most %d events.", g.cfg.MaxEvents)
			return p
		}
		form := rq.contentType
		if rq.mapping != nil {
			form = "what the mapping " + rq.mapped + " reads"
		}
		return malformed("The body is not "+form+": "+cut(strings.TrimPrefix(err.Error(), codec.ErrMalformed.Error()+": "))+".").
			at("body", "").do("send what the Content-Type or the mapping says, with one event at least")
	}
	for _, b := range rq.held {
		rq.publish(ctx, b)
	}
	rq.held = nil
	atOnce = true
	rq.in.Flush()
	return nil
}

func (rq *request) read(body []byte) error {
	switch {
	case rq.mapping != nil:
		return rq.records(body)
	case rq.binary:
		return rq.in.CloudEvent(rq.ceAttributes(), body)
	case rq.contentType == codec.ContentNDJSON:
		return rq.in.Lines(body)
	case rq.contentType == codec.ContentBlock:
		return rq.in.Block(body)
	case rq.contentType == codec.ContentJSON:
		return rq.in.JSON(body)
	default:
		return rq.in.CloudEvents(body)
	}
}

// identify makes what the request is known by: the ids of its events are made of it, so that the same request
// again makes the same events, and these the same messages, which the broker knows.
func (rq *request) identify(body []byte) error {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %q\n", rq.contentType, rq.organization, rq.trail, rq.mapped)
	if rq.binary {
		h.Write([]byte(strings.Join(ceLines(rq.r.Header), "\n")))
		h.Write([]byte{0})
	}
	h.Write(body)
	h.Sum(rq.sum[:0])
	if rq.g.known.clashes(rq.client.Name(), rq.key, rq.sum, rq.in.Now) {
		return newProblem(http.StatusUnprocessableEntity, "idempotency-key", "The key was used for another request",
			"Another body came with this key within the last "+rq.g.cfg.Window.String()+".").
			at("Idempotency-Key", rq.key).do("make a new key for each request, and keep it only to send the same body again")
	}
	sum := hex.EncodeToString(rq.sum[:])
	rq.in.ID = func(index int) uuid.UUID {
		return codec.HashedID("request", rq.key, sum, strconv.Itoa(index))
	}
	return nil
}

// permit says whether the client may publish for an organization on a trail, and may do so now.
func (rq *request) permit(organization string, trail schema.Trail) error {
	if err := rq.client.MayPublish(organization, trail); err != nil {
		return err
	}
	return rq.g.cfg.Limits.Allow(rq.client.Name(), organization)
}

func (rq *request) publish(ctx context.Context, b codec.Batch) {
	if rq.key != "" && len(rq.sent) == 0 {
		rq.g.known.remember(rq.client.Name(), rq.key, rq.sum, rq.in.Now)
	}
	rq.g.cfg.Limits.Count(rq.client.Name(), b.Organization, b.Block.Rows(), b.Block.Bytes())
	// With a key, alone: in other company the events would be another message, which the broker does not know.
	ack, err := rq.g.publisher.PublishBlock(ctx, producers.Block{
		Organization: b.Organization, Trail: b.Trail, Events: b.Block, RecordedBy: rq.client.Name(), Alone: rq.key != "",
	})
	rq.sent = append(rq.sent, sentBatch{ack, b.Index, err})
}

// wait returns when the outcome of everything is known, or ctx has ended.
func (rq *request) wait(ctx context.Context) {
	for i := range rq.sent {
		s := &rq.sent[i]
		if s.err == nil {
			s.err = s.ack.Wait(ctx)
		}
		if s.err == nil {
			rq.accepted += len(s.index)
			if s.ack.Unrecorded() {
				rq.unrecorded += len(s.index)
			}
		} else if rq.failure == nil || errors.Is(rq.failure, producers.ErrStreamFull) { // events of any other failure may be stored
			rq.failure = s.err
		}
	}
	rq.rejected = len(rq.in.IDs) - rq.accepted
	rq.g.accepted.Add(uint64(rq.accepted - rq.unrecorded))
	rq.g.unrecorded.Add(uint64(rq.unrecorded))
	rq.g.rejected.Add(uint64(rq.rejected))
}

// ceLines are the attributes of a binary CloudEvent as they came, in order.
func ceLines(h http.Header) []string {
	var lines []string
	for name, values := range h {
		if strings.HasPrefix(name, "Ce-") {
			for _, v := range values {
				lines = append(lines, name+":"+v)
			}
		}
	}
	slices.Sort(lines)
	return append(lines, "Content-Type:"+h.Get("Content-Type"))
}

// ceAttributes are the attributes of a CloudEvent in the binary mode: the headers ce-*, percent-decoded, and the
// type of its data.
func (rq *request) ceAttributes() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, line := range ceLines(rq.r.Header) {
			name, value, _ := strings.Cut(line, ":")
			if name == "Content-Type" {
				name = "datacontenttype"
				if value == "" {
					continue
				}
			} else {
				name = strings.ToLower(strings.TrimPrefix(name, "Ce-"))
				if decoded, err := url.PathUnescape(value); err == nil {
					value = decoded
				}
			}
			if !yield(name, value) {
				return
			}
		}
	}
}
