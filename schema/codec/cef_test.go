package codec

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

// cefRecord is a line as the standard has it read.
type cefRecord struct {
	header    []string // vendor, product, version, class id, name, severity
	extension map[string]string
}

var cefKeyPattern = regexp.MustCompile(`^[A-Za-z0-9_.]+$`)

// parseCEF reads a line by the letter of the standard: in the header \\ and \| are escapes, and a line break has no
// place; in the extension \\, \=, \n and \r are. Pairs are parted by one space; all spaces but the last before a key
// belong to the value before it. No key is there twice.
func parseCEF(line string) (*cefRecord, error) {
	if strings.ContainsAny(line, "\r\n") {
		return nil, fmt.Errorf("a line break")
	}
	rest, ok := strings.CutPrefix(line, "CEF:0|")
	if !ok {
		return nil, fmt.Errorf("it begins with %.8q", line)
	}
	r := &cefRecord{extension: map[string]string{}}
	for len(r.header) < 6 {
		var b strings.Builder
		i := 0
		for ; i < len(rest) && rest[i] != '|'; i++ {
			if rest[i] == '\\' {
				if i++; i == len(rest) || rest[i] != '\\' && rest[i] != '|' {
					return nil, fmt.Errorf("a wrong escape in the header")
				}
			}
			b.WriteByte(rest[i])
		}
		if i == len(rest) {
			return nil, fmt.Errorf("the header ends in field %d", len(r.header))
		}
		r.header, rest = append(r.header, b.String()), rest[i+1:]
	}
	// An = that is not escaped stands behind a key and nowhere else.
	var equals []int
	for i := 0; i < len(rest); i++ {
		switch rest[i] {
		case '\\':
			i++
		case '=':
			equals = append(equals, i)
		}
	}
	key, from := "", 0
	for n := 0; n <= len(equals); n++ {
		end := len(rest)
		next := ""
		if n < len(equals) {
			space := strings.LastIndexByte(rest[:equals[n]], ' ')
			next = rest[space+1 : equals[n]]
			if end = space; n == 0 && space != -1 || n > 0 && space < from || !cefKeyPattern.MatchString(next) {
				return nil, fmt.Errorf("%q is no key", next)
			}
		}
		if n > 0 {
			value, err := unescapeCEF(rest[from:end])
			if err != nil {
				return nil, err
			}
			if _, twice := r.extension[key]; twice {
				return nil, fmt.Errorf("%s is there twice", key)
			}
			r.extension[key] = value
		}
		if n < len(equals) {
			key, from = next, equals[n]+1
		}
	}
	return r, nil
}

func unescapeCEF(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '\\' {
			if i++; i == len(s) {
				return "", fmt.Errorf("an escape of nothing")
			}
			switch s[i] {
			case '\\', '=':
				c = s[i]
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			default:
				return "", fmt.Errorf("a wrong escape \\%c", s[i])
			}
		}
		b.WriteByte(c)
	}
	return b.String(), nil
}

// The limits of the standard's dictionary, as facts say them and not as the encoder has them.
var cefLimits = map[string]int{
	"act": 63, "cat": 1023, "outcome": 63, "msg": 1023, "externalId": 40, "suser": 1023, "suid": 1023, "shost": 1023, "fname": 1023, "fileId": 1023, "fileType": 1023,
	"sourceServiceName": 1023, "destinationServiceName": 1023, "requestClientApplication": 1023, "cs1": 4000, "cs2": 4000, "cs3": 4000, "cs4": 4000, "cs5": 4000,
	"cs1Label": 1023, "cs2Label": 1023, "cs3Label": 1023, "cs4Label": 1023, "cs5Label": 1023, "c6a2Label": 1023, "c6a2": 45, "src": 15, "rt": 20, "start": 20,
}

func checkCEF(t *testing.T, line string) *cefRecord {
	t.Helper()
	r, err := parseCEF(line)
	if err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	for i, limit := range []int{63, 63, 31, 1023, 512, 2} {
		if len(r.header[i]) > limit {
			t.Errorf("header field %d has %d bytes: %q", i, len(r.header[i]), r.header[i])
		}
	}
	if n, err := strconv.Atoi(r.header[5]); err != nil || n < 0 || n > 10 {
		t.Errorf("severity %q", r.header[5])
	}
	for key, value := range r.extension {
		limit, ok := cefLimits[key]
		if !ok || len(value) > limit || value == "" {
			t.Errorf("key %s has %d bytes, %d are allowed", key, len(value), limit)
		}
		if strings.HasPrefix(key, "cs") && !strings.HasSuffix(key, "Label") && r.extension[key+"Label"] == "" {
			t.Errorf("%s has no label", key)
		}
	}
	return r
}

// storedOfCEF is the event of a line. values gives back what stands for its SHA-256.
func storedOfCEF(t *testing.T, r *cefRecord, values map[string]string) *Stored {
	t.Helper()
	get := func(key string) string {
		v := r.extension[key]
		if whole, ok := values[v]; ok {
			return whole
		}
		return v
	}
	var m struct {
		CreatedAt, RecordedAt                                time.Time
		StreamSeq                                            uint64
		BatchIndex                                           uint32
		Organization, DataType, SessionID, TraceID, Location string
		Attributes                                           map[string]string
	}
	if err := json.Unmarshal([]byte(get("cs1")), &m); err != nil {
		t.Fatalf("cs1 %q: %v", get("cs1"), err)
	}
	var actor schema.Actor
	if v := get("cs2"); v != "" {
		if err := json.Unmarshal([]byte(v), &actor); err != nil {
			t.Fatalf("cs2 %q: %v", v, err)
		}
	}
	if actor.ID != get("suid") || actor.Name != get("suser") {
		t.Errorf("suid %q, suser %q; the actor is %+v", get("suid"), get("suser"), actor)
	}
	s := &Stored{
		Event: schema.Event{
			ID: uuid.MustParse(get("externalId")), OccurredAt: m.CreatedAt, Organization: m.Organization, Trail: schema.Trail(get("cat")), Source: get("sourceServiceName"),
			Event: r.header[3], Action: get("act"), Outcome: schema.Outcome(get("outcome")), Actor: actor,
			Target: schema.Target{Type: get("fileType"), ID: get("fileId"), Name: get("fname")}, AppID: get("destinationServiceName"),
			Context: schema.Context{
				IP: get("shost") + get("src") + get("c6a2"), UserAgent: get("requestClientApplication"), SessionID: m.SessionID, TraceID: m.TraceID, Location: m.Location,
			},
			Description: get("msg"), Before: json.RawMessage(get("cs3")), After: json.RawMessage(get("cs4")), Data: json.RawMessage(get("cs5")), DataType: m.DataType,
			Attributes: m.Attributes,
		},
		RecordedAt: m.RecordedAt, StreamSeq: m.StreamSeq, BatchIndex: m.BatchIndex,
	}
	if rt, start := get("rt"), get("start"); rt != strconv.FormatInt(s.RecordedAt.UnixMilli(), 10) || start != strconv.FormatInt(s.OccurredAt.UnixMilli(), 10) {
		t.Errorf("rt %s, start %s; it is %s, %s", rt, start, s.RecordedAt, s.OccurredAt)
	}
	return s
}

// Requirement I7: the header, conformant to the standard; I8: cs1 to cs4 with labels, and the standard's own keys.
func TestCEF(t *testing.T) {
	t.Parallel()
	s := Stored{
		Event: schema.Event{
			ID: uuid.MustParse("0193500b-7c00-7abc-8def-0123456789ab"), OccurredAt: testNow.Add(1234567 * time.Microsecond), Organization: "acme", Trail: schema.Activity,
			Source: "reports", Event: "report.published", Action: "publish", Outcome: schema.Denied, Actor: schema.Actor{Type: "user", ID: "u-7", Name: "a=b|c\\d\nLF"},
			Target: schema.Target{Type: "re|port", ID: "r42", Name: "Sales "}, AppID: "app", Context: schema.Context{IP: "203.0.113.9", UserAgent: "curl", SessionID: "s"},
			Description: "Published = done", Before: json.RawMessage(`{"a":"x\n"}`), After: json.RawMessage("{\n}"), Data: json.RawMessage(`1.50`), DataType: "d",
			Attributes: map[string]string{AttributeVendor: "Acme|Inc", AttributeVersion: "26.\\1", "k": "v"},
		},
		RecordedAt: testNow.Add(2 * time.Second), StreamSeq: 7, BatchIndex: 3,
	}
	const want = `CEF:0|Acme\|Inc|Kansa|26.\\1|report.published|Publish re\|port|7|rt=1795323602000 start=1795323601234 ` +
		`externalId=0193500b-7c00-7abc-8def-0123456789ab cat=activity act=publish outcome=denied suid=u-7 suser=a\=b|c\\d\nLF src=203.0.113.9 ` +
		`sourceServiceName=reports destinationServiceName=app requestClientApplication=curl fileId=r42 fname=Sales  fileType=re|port msg=Published \= done ` +
		`cs1={"createdAt":"2026-11-22T05:00:01.234567Z","recordedAt":"2026-11-22T05:00:02.000000Z","streamSeq":7,"batchIndex":3,"organization":"acme",` +
		`"entityType":"re|port","entityName":"Sales ","actionType":"publish","dataType":"d","sessionId":"s","attributes":{"device_vendor":"Acme|Inc","device_version":"26.\\\\1","k":"v"}} cs1Label=metadata ` +
		`cs2={"type":"user","id":"u-7","name":"a\=b|c\\\\d\\nLF"} cs2Label=actor cs3={"a":"x\\n"} cs3Label=before cs4={\n} cs4Label=after cs5=1.50 cs5Label=data` + "\n"
	if diff := cmp.Diff(want, encode(t, Options{Format: FormatCEF}, []Stored{s})); diff != "" {
		t.Fatal(diff)
	}
	for ip, key := range map[string]string{"2001:db8::1": "c6a2", "192.0.2.1": "src", "host.example": "shost", "192.0.2.1:80": "shost", "fe80::1%eth0": "shost", "::ffff:192.0.2.1": "c6a2"} {
		s.Context.IP = ip
		r := checkCEF(t, strings.TrimSuffix(encode(t, Options{Format: FormatCEF}, []Stored{s}), "\n"))
		if r.extension[key] != ip {
			t.Errorf("%s is not in %s: %v", ip, key, r.extension)
		}
		if _, err := netip.ParseAddr(r.extension["src"]); key != "src" && err == nil {
			t.Errorf("%s is in src, too", ip)
		}
	}
}

// All of an event is in CEF, with what is too long for it beside it.
func TestCEFRoundTrip(t *testing.T) {
	t.Parallel()
	stored := storedEvents(300)
	stored[0].Action = strings.Repeat("a", 64)
	stored[1].Context.UserAgent, stored[1].Target.ID, stored[1].Target.Name = strings.Repeat("u", 1024), strings.Repeat("i", 4096), strings.Repeat("é", 512)
	stored[2].Before = json.RawMessage(`"` + strings.Repeat("x", 3999) + `"`)
	stored[3].Before = json.RawMessage(`"` + strings.Repeat("x", 3998) + `"`) // fits
	stored[4].Attributes = map[string]string{AttributeProduct: strings.Repeat("é", 40), "big": strings.Repeat("=", 9000)}
	stored[5].Actor.Name = strings.Repeat("\\", 1024)
	roundTripCEF(t, stored, 8)
}

func roundTripCEF(t *testing.T, stored []Stored, least int) {
	t.Helper()
	values := map[string]string{}
	var side []byte
	o := Options{Format: FormatCEF, Overflow: func(o Overflow) {
		limit := cefLimits[o.Key]
		if o.SHA256 != sha256.Sum256([]byte(o.Value)) || len(o.Value) <= limit {
			t.Errorf("%s: %d bytes, hash %x", o.Key, len(o.Value), o.SHA256)
		}
		values[o.Stands(limit)] = strings.Clone(o.Value)
		side = AppendOverflow(side, &o)
	}}
	lines := strings.Split(encode(t, o, stored), "\n")
	if len(lines) != len(stored)+1 || len(values) < least {
		t.Fatalf("%d lines, %d values beside them", len(lines), len(values))
	}
	for i := range stored {
		got := storedOfCEF(t, checkCEF(t, lines[i]), values)
		if diff := cmp.Diff(canonicalStored(t, &stored[i]), canonicalStored(t, got)); diff != "" {
			t.Fatalf("event %d (-stored +read):\n%s", i, diff)
		}
	}
	for line := range strings.Lines(string(side)) {
		var o struct{ Event, RecordedAt, Key, Field, SHA256, Value string }
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256([]byte(o.Value)); o.SHA256 != fmt.Sprintf("%x", sum) || o.Field == "" || uuid.Validate(o.Event) != nil {
			t.Errorf("got %.300s", line)
		}
	}
}

// Requirement I9: what is too long becomes the sentence, and nothing else is lost.
func TestCEFTooLongAsText(t *testing.T) {
	t.Parallel()
	stored := storedEvents(2)
	stored[0].After, stored[0].Action = json.RawMessage(`"`+strings.Repeat("x", 4000)+`"`), strings.Repeat("a", 64)
	lines := strings.Split(encode(t, Options{Format: FormatCEF}, stored), "\n")
	r := checkCEF(t, lines[0])
	const sentence = "Value for this key exceeds mapped dictionary key allowed length"
	if r.extension["cs4"] != sentence || r.extension["cs4Label"] != "after" || r.extension["act"] != sentence {
		t.Errorf("cs4 is %q, act %q", r.extension["cs4"], r.extension["act"])
	}
	want := stored[0]
	want.After, want.Action = json.RawMessage(sentence), sentence
	if diff := cmp.Diff(canonicalStored(t, &want), canonicalStored(t, storedOfCEF(t, r, nil))); diff != "" {
		t.Error(diff)
	}
}

func FuzzCEF(f *testing.F) {
	for i, s := range texts {
		f.Add(s, texts[(i+3)%len(texts)], uint64(i))
	}
	f.Add(" a=b  c\\=d\\", "\\|x=\r\n y=z ", uint64(3))
	f.Fuzz(func(t *testing.T, a, b string, n uint64) {
		s := anyStored(a, b, n)
		s.Event.Event = strings.Map(func(r rune) rune { // a code has no white space
			if r <= ' ' {
				return -1
			}
			return r
		}, s.Event.Event)
		if len(s.Event.Event) > 256 {
			s.Event.Event = "long"
		}
		roundTripCEF(t, []Stored{*s}, 0)
	})
}
