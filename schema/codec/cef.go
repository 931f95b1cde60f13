package codec

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// An event in CEF is a line of the form of ArcSight's Common Event Format, header version 0 (requirements I7, I8):
//
//	CEF:0|vendor|product|version|class id|name|severity|extension
//
// The class id is the event's type, the name what was done with what. All of an event is in it: in the standard's own
// keys where it has some, and as JSON in
//
//	cs1  metadata    when, what, where it was stored, within what; all attributes
//	cs2  actor       type, id, name
//	cs3  before      as it was recorded
//	cs4  after       as it was recorded
//	cs5  data        as it was recorded
//
// A value that is longer than the standard allows for its key (4,000 bytes for cs1 to cs6) is given to
// Options.Overflow, and "sha256:" with its hash stands in its place.

// TooLong takes the place of a value that is too long for its key, where those are not kept (requirement I9).
const TooLong = "Value for this key exceeds mapped dictionary key allowed length"

// Device is who speaks in the header of CEF. An event's attributes of the names AttributeVendor, AttributeProduct and
// AttributeVersion go before: they say what it was when the event happened.
type Device struct{ Vendor, Product, Version string }

// The attributes that say which device an event is of.
const (
	AttributeVendor  = "device_vendor"
	AttributeProduct = "device_product"
	AttributeVersion = "device_version"
)

func (d *Device) complete() {
	if d.Vendor == "" {
		d.Vendor = "Kansa"
	}
	if d.Product == "" {
		d.Product = "Kansa"
	}
	if d.Version == "" {
		d.Version = "1" // of the schema
	}
}

// Overflow is a value that has no room in CEF.
type Overflow struct {
	Event      uuid.UUID
	RecordedAt time.Time
	Key        string // of CEF
	Field      string // what it holds, in words: description, metadata
	SHA256     [sha256.Size]byte
	Value      string
}

// AppendOverflow appends o as a line of NDJSON: the value is there as a string, whatever it is, and its SHA-256 is
// that of the string's UTF-8.
func AppendOverflow(dst []byte, o *Overflow) []byte {
	dst = append(append(append(dst, `{"event":"`...), o.Event.String()...), `","recorded_at":"`...)
	dst = o.RecordedAt.UTC().AppendFormat(dst, TimeLayout)
	dst = append(append(append(dst, `","key":"`...), o.Key...), `","field":"`...)
	dst = append(dst, o.Field...)
	dst = append(dst, `","sha256":"`...)
	dst = hex.AppendEncode(dst, o.SHA256[:])
	dst = appendJSONString(append(dst, `","value":`...), o.Value)
	return append(dst, '}', '\n')
}

// A cefKey is a key of the extension whose limit an event may exceed.
type cefKey struct {
	name  string
	limit int    // in bytes; the standard counts characters, of which there are no more
	holds string // in words: the label, where there is one
}

var (
	cefAct        = &cefKey{"act", 63, "action"}
	cefCat        = &cefKey{"cat", 1023, "trail"}
	cefOutcome    = &cefKey{"outcome", 63, "outcome"}
	cefExternalID = &cefKey{"externalId", 40, "id"}
	cefMsg        = &cefKey{"msg", 1023, "description"}
	cefSuser      = &cefKey{"suser", 1023, "actor.name"}
	cefSuid       = &cefKey{"suid", 1023, "actor.id"}
	cefShost      = &cefKey{"shost", 1023, "context.ip"}
	cefFileID     = &cefKey{"fileId", 1023, "target.id"}
	cefFname      = &cefKey{"fname", 1023, "target.name"}
	cefFileType   = &cefKey{"fileType", 1023, "target.type"}
	cefSource     = &cefKey{"sourceServiceName", 1023, "source"}
	cefApp        = &cefKey{"destinationServiceName", 1023, "app_id"}
	cefAgent      = &cefKey{"requestClientApplication", 1023, "context.user_agent"}
	cefMetadata   = &cefKey{"cs1", 4000, "metadata"}
	cefActor      = &cefKey{"cs2", 4000, "actor"}
	cefBefore     = &cefKey{"cs3", 4000, "before"}
	cefAfter      = &cefKey{"cs4", 4000, "after"}
	cefData       = &cefKey{"cs5", 4000, "data"}
)

// Limits of the header, in bytes.
const (
	cefVendor  = 63
	cefVersion = 31
	cefClassID = 1023
	cefName    = 512
)

func severity(o schema.Outcome) string {
	switch o {
	case schema.Failure, schema.Unknown: // what may have failed is worth a look
		return "5"
	case schema.Denied:
		return "7"
	default:
		return "3"
	}
}

func (e *Encoder) appendCEF(dst []byte, s *Stored) []byte {
	d := e.o.Device
	if len(s.Attributes) > 0 {
		d.Vendor = cmp.Or(s.Attributes[AttributeVendor], d.Vendor)
		d.Product = cmp.Or(s.Attributes[AttributeProduct], d.Product)
		d.Version = cmp.Or(s.Attributes[AttributeVersion], d.Version)
	}
	dst = append(dst, "CEF:0|"...)
	dst = appendHeaderValue(dst, d.Vendor, cefVendor)
	dst = appendHeaderValue(dst, d.Product, cefVendor)
	dst = appendHeaderValue(dst, d.Version, cefVersion)
	dst = appendHeaderValue(dst, s.Event.Event, cefClassID)
	dst = appendHeaderValue(dst, e.cefNameOf(s), cefName)
	dst = append(append(dst, severity(s.Outcome)...), '|')

	dst = strconv.AppendInt(append(dst, "rt="...), s.RecordedAt.UnixMilli(), 10)
	dst = strconv.AppendInt(append(dst, " start="...), s.OccurredAt.UnixMilli(), 10)
	e.scratch = appendID(e.scratch[:0], s)
	dst = e.appendPair(dst, s, cefExternalID, text(e.scratch))
	dst = e.appendPair(dst, s, cefCat, string(s.Trail))
	dst = e.appendPair(dst, s, cefAct, s.Action)
	dst = e.appendPair(dst, s, cefOutcome, string(s.Outcome))
	dst = e.appendPair(dst, s, cefSuid, s.Actor.ID)
	dst = e.appendPair(dst, s, cefSuser, s.Actor.Name)
	dst = e.appendSource(dst, s)
	dst = e.appendPair(dst, s, cefSource, s.Source)
	dst = e.appendPair(dst, s, cefApp, s.AppID)
	dst = e.appendPair(dst, s, cefAgent, s.Context.UserAgent)
	dst = e.appendPair(dst, s, cefFileID, s.Target.ID)
	dst = e.appendPair(dst, s, cefFname, s.Target.Name)
	dst = e.appendPair(dst, s, cefFileType, s.Target.Type)
	dst = e.appendPair(dst, s, cefMsg, s.Description)
	e.more = e.appendMetadata(e.more[:0], s)
	dst = e.appendCustom(dst, s, cefMetadata, text(e.more))
	if s.Actor != (schema.Actor{}) {
		e.more = appendActor(e.more[:0], &s.Actor)
		dst = e.appendCustom(dst, s, cefActor, text(e.more))
	}
	dst = e.appendCustom(dst, s, cefBefore, text(s.Before))
	dst = e.appendCustom(dst, s, cefAfter, text(s.After))
	return e.appendCustom(dst, s, cefData, text(s.Data))
}

// cefNameOf is what was done with what, for people: Publish report.
func (e *Encoder) cefNameOf(s *Stored) string {
	action, size := utf8.DecodeRuneInString(s.Action)
	if size == 0 {
		return s.Event.Event
	}
	e.scratch = utf8.AppendRune(e.scratch[:0], unicode.ToUpper(action))
	e.scratch = append(e.scratch, s.Action[size:]...)
	if s.Target.Type != "" {
		e.scratch = append(append(e.scratch, ' '), s.Target.Type...)
	}
	return text(e.scratch)
}

// appendHeaderValue appends a value of the header and its |. What has no room is cut off: all of it is in the extension.
func appendHeaderValue(dst []byte, v string, limit int) []byte {
	if len(v) > limit {
		for limit > 0 && !utf8.RuneStart(v[limit]) {
			limit--
		}
		v = v[:limit]
	}
	for i := range len(v) {
		switch c := v[i]; c {
		case '\\', '|':
			dst = append(dst, '\\', c)
		case '\n', '\r': // the header has no way to say them
			dst = append(dst, ' ')
		default:
			dst = append(dst, c)
		}
	}
	return append(dst, '|')
}

// appendSource appends where the actor came from: an address as such, anything else as the name of a host.
func (e *Encoder) appendSource(dst []byte, s *Stored) []byte {
	ip := s.Context.IP
	if ip == "" {
		return dst
	}
	a, err := netip.ParseAddr(ip)
	if err == nil {
		e.scratch = a.AppendTo(e.scratch[:0])
	}
	switch {
	case err != nil || a.Zone() != "" || text(e.scratch) != ip:
		return e.appendPair(dst, s, cefShost, ip)
	case a.Is4():
		return append(append(dst, " src="...), ip...)
	default:
		return append(append(append(dst, " c6a2="...), ip...), " c6a2Label=Source IPv6 Address"...)
	}
}

func (e *Encoder) appendCustom(dst []byte, s *Stored, key *cefKey, value string) []byte {
	if value == "" {
		return dst
	}
	dst = e.appendPair(dst, s, key, value)
	return append(append(append(append(dst, ' '), key.name...), "Label="...), key.holds...)
}

// appendPair appends a key and its value, unless that is empty.
func (e *Encoder) appendPair(dst []byte, s *Stored, key *cefKey, value string) []byte {
	if value == "" {
		return dst
	}
	dst = append(append(append(dst, ' '), key.name...), '=')
	if len(value) > key.limit {
		return e.appendTooLong(dst, s, key, value)
	}
	return appendExtension(dst, value)
}

func (e *Encoder) appendTooLong(dst []byte, s *Stored, key *cefKey, value string) []byte {
	if e.o.Overflow == nil {
		return append(dst, TooLong...)
	}
	o := Overflow{Event: s.ID, RecordedAt: s.RecordedAt, Key: key.name, Field: key.holds, Value: value}
	o.SHA256 = sha256.Sum256([]byte(value))
	e.o.Overflow(o)
	return append(dst, o.Stands(key.limit)...)
}

// Stands is what stands in the place of the value under a key of a limit: "sha256:" and 64 hexadecimal digits, or
// where these have no room, which is so with act only, the hash in base64 for URLs.
func (o *Overflow) Stands(limit int) string {
	const prefix = "sha256:"
	if limit >= len(prefix)+2*sha256.Size {
		return prefix + hex.EncodeToString(o.SHA256[:])
	}
	return prefix + base64.RawURLEncoding.EncodeToString(o.SHA256[:])
}

// cefEscaped marks the bytes that the extension has no other way to say.
var cefEscaped = [256]byte{'\\': '\\', '=': '=', '\n': 'n', '\r': 'r'}

// appendExtension escapes a value of the extension.
func appendExtension(dst []byte, v string) []byte {
	from := 0
	for i := range len(v) {
		if c := cefEscaped[v[i]]; c != 0 {
			dst = append(append(dst, v[from:i]...), '\\', c)
			from = i + 1
		}
	}
	return append(dst, v[from:]...)
}

// appendMetadata is cs1: what an event says that has no key of its own, and what people look for together.
func (e *Encoder) appendMetadata(dst []byte, s *Stored) []byte {
	dst = e.times[1].append(append(dst, `{"createdAt":"`...), s.OccurredAt.UnixMicro())
	dst = e.times[0].append(append(dst, `","recordedAt":"`...), s.RecordedAt.UnixMicro())
	dst = strconv.AppendUint(append(dst, `","streamSeq":`...), s.StreamSeq, 10)
	dst = strconv.AppendUint(append(dst, `,"batchIndex":`...), uint64(s.BatchIndex), 10)
	for _, m := range [...]struct{ begin, value string }{
		{`,"organization":`, s.Organization},
		{`,"recordedBy":`, s.RecordedBy},
		{`,"entityType":`, s.Target.Type},
		{`,"entityName":`, s.Target.Name},
		{`,"actionType":`, s.Action},
		{`,"dataType":`, s.DataType},
		{`,"sessionId":`, s.Context.SessionID},
		{`,"traceId":`, s.Context.TraceID},
		{`,"location":`, s.Context.Location},
	} {
		if m.value != "" {
			dst = appendJSONString(append(dst, m.begin...), m.value)
		}
	}
	if len(s.Attributes) > 0 {
		dst = e.appendAttributes(append(dst, `,"attributes":`...), s.Attributes)
	}
	return append(dst, '}')
}

func appendActor(dst []byte, a *schema.Actor) []byte {
	dst = append(dst, '{')
	for _, m := range [...]struct{ begin, value string }{{`"type":`, a.Type}, {`"id":`, a.ID}, {`"name":`, a.Name}} {
		if m.value == "" {
			continue
		}
		if dst[len(dst)-1] != '{' {
			dst = append(dst, ',')
		}
		dst = appendJSONString(append(dst, m.begin...), m.value)
	}
	return append(dst, '}')
}
