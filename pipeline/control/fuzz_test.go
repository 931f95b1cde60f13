package control

import (
	"context"
	"encoding/json"
	"log/slog"
	"testing"
	"time"
)

type anything struct {
	Organization string            `json:"organization"`
	Number       int               `json:"number"`
	Times        []time.Time       `json:"times"`
	Map          map[string]string `json:"map"`
}

func (a anything) Share() string { return a.Organization }

// Every question has an answer that can be read, also where the handler panics.
func FuzzQuestion(f *testing.F) {
	for _, text := range []string{`{}`, ``, `null`, `[]`, `{"organization":"acme","number":1e99}`, `{"times":["x"]}`, "\xff", `{"number":-1}`} {
		f.Add([]byte(text))
	}
	log := slog.New(slog.DiscardHandler)
	verb := On("do", time.Second, func(_ context.Context, q anything) (anything, error) {
		if q.Number < 0 {
			panic("on purpose")
		}
		return q, nil
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = verb.share(data)
		var a answer
		if err := json.Unmarshal(verb.answer(context.Background(), data, nil, log), &a); err != nil {
			t.Error(err)
		}
	})
}
