package main

import (
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter/render"
)

func TestContentFlags(t *testing.T) {
	t.Parallel()
	f := contentFlags{Format: "cef", CEFOverflow: "text", Filter: []string{"event=report.published", "start=2026-11-01", "text=a=b,c"}}
	c, err := f.content()
	if err != nil || c.CEFOverflow != render.OverflowText || c.Filter.Event != "report.published" || c.Filter.Start.Month() != 11 || c.Filter.Text != "a=b,c" {
		t.Errorf("%+v, %v", c, err)
	}
	if got := contentText(&c); !strings.Contains(got, "cef.zip, overflow as text, only {") {
		t.Errorf("for people it is %q", got)
	}
	for want, f := range map[string]contentFlags{
		`--filter "evnt=a": write FIELD=VALUE`: {Filter: []string{"evnt=a"}}, `--filter "event": write`: {Filter: []string{"event"}},
		"given twice": {Filter: []string{"event=a", "event=b"}}, "--filter start: write 2026": {Filter: []string{"start=yesterday"}}, `outcome "good"`: {Filter: []string{"outcome=good"}},
	} {
		if _, err := f.content(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
