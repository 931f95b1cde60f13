package codec

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/schema"
)

var testNow = time.Date(2026, 11, 22, 5, 0, 0, 0, time.UTC)

// texts try whoever takes a separator, a quote, a line or a byte for what it is not.
var texts = []string{
	"", "a", "report", "two\nlines", "two\r\nlines", "\n\n", "\"quoted\"", `"`, `""`, ",", ";", "a\tb", "\\", `\n`, `\"`, " leading and trailing ",
	"佐藤 花子", "ünïcödé ✓", "😀", "\u2028", "\x00", "\x7f", "=1+1", "'", "<script>&", strings.Repeat("x", 127), strings.Repeat("é", 64), strings.Repeat("long ", 50),
}

var jsons = []string{``, `null`, `{}`, `{"a": [1, 2.50, "x\n"]}`, `"text"`, `12345678901234567890`, "{\n  \"pretty\": true\n}", `["é","\u00e9"]`}

// randomEvents are complete and valid.
func randomEvents(n int) []schema.Event {
	r := rand.New(rand.NewPCG(7, 11))
	pick := func() string { return texts[r.IntN(len(texts))] }
	value := func() json.RawMessage {
		if v := jsons[r.IntN(len(jsons))]; v != "" {
			return json.RawMessage(v)
		}
		return nil
	}
	events := make([]schema.Event, n)
	for i := range events {
		e := &events[i]
		*e = schema.Event{
			ID: uuid.UUID{0: byte(i), 6: 0x70, 8: 0x80, 14: byte(i >> 8), 15: byte(r.Uint32())}, OccurredAt: testNow.Add(-time.Duration(r.Int64N(1e17))).Truncate(time.Microsecond),
			Organization: "acme", Trail: schema.Activity,
			Source: "reports", Event: fmt.Sprintf("report.e%d", i%7), Action: "update", Outcome: []schema.Outcome{schema.Success, schema.Failure, schema.Denied}[i%3],
			Actor: schema.Actor{Type: pick(), ID: pick(), Name: pick()}, Target: schema.Target{Type: pick(), ID: pick(), Name: pick()},
			AppID: pick(), Context: schema.Context{IP: pick(), UserAgent: pick(), SessionID: pick(), TraceID: pick(), Location: pick()},
			Description: pick() + pick(), Before: value(), After: value(), Data: value(), DataType: pick(),
		}
		if i%4 == 0 {
			e.Attributes = map[string]string{}
			for range r.IntN(20) {
				e.Attributes["k"+pick()] = pick()
			}
			if len(e.Attributes) == 0 {
				e.Attributes = nil
			}
		}
		if i%100 == 50 {
			e.Description = strings.Repeat("0123456789abcde\n", 4000)
		}
	}
	return events
}

func blockOf(events []schema.Event) *Block {
	b := NewBlock()
	for i := range events {
		b.Append(&events[i])
	}
	return b
}

// withOwner sets what a block does not keep.
func withOwner(events []schema.Event) []schema.Event {
	for i := range events {
		events[i].Organization, events[i].Trail = "acme", schema.Activity
	}
	return events
}
