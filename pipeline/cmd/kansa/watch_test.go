package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/doctor"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

// Doctor and top speak of a running system, and doctor's exit code says whether something is failing.
func TestDoctorAndTopCommands(t *testing.T) {
	if code, out, _ := kansa(t, "", "doctor", "--nats=nats://127.0.0.1:1"); code != exitFailed || !strings.Contains(out, "failing  broker: broker: ") || !strings.Contains(out, "what to do: start kansa up") {
		t.Errorf("without a broker: %d\n%s", code, out)
	}
	s := startServers(t)
	start(t, "run", "-c", s.config, "writer", "rollup", "exporter")
	s.untilSetUp(t)
	s.publish(t, 500, nil)
	at := "--nats=" + s.broker.URL()
	pipelinetest.Until(t, 2*time.Minute, func() (bool, any) {
		code, out, errs := kansa(t, "", "doctor", "-c", s.config)
		return code == 0 && strings.Contains(out, "warning  role api: ") && strings.Contains(out, "It works; "), out + errs
	})
	var r doctor.Report
	if code, out, errs := kansa(t, "", "doctor", "--json", at); code != 0 || json.Unmarshal([]byte(out), &r) != nil || !r.OK || len(r.Processes) != 1 || len(r.Facts) < 5 {
		t.Errorf("%d %s%s", code, out, errs)
	}
	var seen top
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		code, out, errs := kansa(t, "", "top", "--once", "--json", "--every=200ms", at)
		if err := json.Unmarshal([]byte(out), &seen); code != 0 || err != nil {
			t.Fatalf("%d %v %s%s", code, err, out, errs)
		}
		return len(seen.Processes) == 1 && seen.Processes[0].State != "silent" && seen.Rates != nil && seen.Figures["sealed_until"] > 0 && len(seen.Streams) == 7, seen
	})
	if code, out, errs := kansa(t, "", "top", "--once", "--every=200ms", at); code != 0 || !strings.Contains(out, "writer,rollup,exporter") || !strings.Contains(out, "AUDIT") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if code, _, errs := kansa(t, "", "top", "--every=1ms", at); code != exitFailed || !strings.Contains(errs, "100ms at least") {
		t.Errorf("%d %s", code, errs)
	}
}
