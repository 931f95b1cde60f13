package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/settings"
)

// Requirements Z1, Z3: trails are switched by commands, which say what was switched, and why something is not.
func TestTrailCommands(t *testing.T) {
	s := startServers(t)
	start(t, "run", "-c", s.config, "exporter")
	at := "--nats=" + s.broker.URL()
	do := func(want int, says string, args ...string) string {
		t.Helper()
		code, out, errs := kansa(t, "", append(args, at)...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Errorf("kansa %s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), code, want, says, out, errs)
		}
		return out
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, _, _ := kansa(t, "", "trail", "list", at)
		return code == 0, nil
	})
	do(exitUsage, "--reason", "trail", "off", "acme", "access")
	do(exitFailed, "reason", "trail", "off", "acme", "access", "--reason= ")
	do(exitUsage, "activity", "trail", "off", "acme", "audit", "--reason=why")
	if out := do(0, "privacy review", "trail", "off", "acme", "access", "--reason=privacy review"); !strings.Contains(out, "access    off") {
		t.Errorf("off:\n%s", out)
	}
	do(0, "access", "organization", "show", "acme")
	do(exitFailed, "what the system and its operators did", "trail", "off", "kansa", "activity", "--reason=why")
	do(0, "yes", "organization", "set", "acme", "--hipaa")
	do(exitFailed, "under HIPAA", "trail", "off", "acme", "access", "activity", "--reason=why")
	var shown struct{ Trails settings.Trails }
	if err := json.Unmarshal([]byte(do(0, "", "organization", "set", "acme", "--no-hipaa", "--json")), &shown); err != nil || shown.Trails.HIPAA || !shown.Trails.Access.On {
		t.Errorf("%+v, %v", shown, err)
	}
	do(0, "activity  off", "trail", "off", "acme", "activity", "--reason=why")
	do(0, "activity  on", "trail", "on", "acme", "activity")
	var listed settings.Trails
	if err := json.Unmarshal([]byte(do(0, "", "trail", "list", "--json")), &listed); err != nil || len(listed.Access.Gaps) != 1 || len(listed.Activity.Gaps) != 1 || listed.Access.Gaps[0].Reason != "privacy review" {
		t.Errorf("%+v, %v", listed, err)
	}
	do(0, "acme", "organization", "list")
}
