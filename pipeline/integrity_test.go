package pipeline_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/integrity"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
)

// Requirements B1, N1: what became of each hour, the head of the chain, and a verification of what is stored, which
// finds what was changed; for those who may read, of their own organization.
func TestIntegrity(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	s := pipelinetest.Start(t, c)
	auditor := newClient(t, s, "auditor", "acme", access.Auditor)
	const path = "/api/v1/organizations/acme/integrity"
	var empty integrity.Overview
	auditor.json(t, path, &empty)
	if len(empty.Chains) != 2 || empty.Chains[0].Head != nil {
		t.Errorf("before anything: %+v", empty)
	}
	began := time.Now().Truncate(time.Second)
	publishAll(t, s, qlik(1), qlik(2))
	var o integrity.Overview
	sealed := func(o *integrity.Overview) *integrity.Chain {
		for i := range o.Chains {
			if o.Chains[i].Trail == schema.Activity {
				return &o.Chains[i]
			}
		}
		return nil
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		o = integrity.Overview{}
		auditor.json(t, path, &o)
		ch := sealed(&o)
		return ch != nil && ch.Head != nil && ch.Head.Number >= 3, o
	})
	chain := sealed(&o)
	if len(o.Keys) != 1 || o.Keys[0].Key != s.Keys.Public() || chain.Head.Key != o.Keys[0] || len(o.Keys[0].Fingerprint) != 64 || !chain.Alarm.IsZero() || o.HourSeconds != 1 {
		t.Errorf("%+v", o)
	}
	hours := func() []integrity.Hour {
		var all []integrity.Hour
		q := url.Values{"trail": {"activity"}, "from": {began.Add(-3 * time.Second).UTC().Format(time.RFC3339)}, "to": {chain.SealedUntil.Add(time.Hour / 10).Format(time.RFC3339)}}
		auditor.json(t, path+"/hours?"+q.Encode(), &all)
		return all
	}
	states := map[integrity.State]int{}
	rows := uint64(0)
	var full integrity.Hour
	for _, h := range hours() {
		states[h.State]++
		rows += h.Rows
		if h.State == integrity.Sealed {
			full = h
		}
	}
	if states[integrity.None] < 2 || states[integrity.Sealed] == 0 || states[integrity.Open] < 100 || states[integrity.Fault]+states[integrity.Alarm]+states[integrity.Removed] > 0 || rows < 2 {
		t.Errorf("hours: %v, %d rows", states, rows)
	}

	verified := func(body string) integrity.Verification {
		t.Helper()
		res, data := auditor.do(t, http.MethodPost, path+"/verifications", body)
		var asked integrity.Verification
		if err := json.Unmarshal(data, &asked); err != nil || res.StatusCode != http.StatusAccepted {
			t.Fatalf("%d %s", res.StatusCode, data)
		}
		var o integrity.Overview
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			o = integrity.Overview{}
			auditor.json(t, path, &o)
			return o.Verification.ID == asked.ID && o.Verification.State != "running", o.Verification
		})
		return *o.Verification
	}
	if v := verified("{}"); !v.OK || v.State != "done" || v.Rows < 2 || v.Hours < 3 || v.Key != s.Keys.Public() || v.Done != v.Total {
		t.Errorf("verified: %+v", v)
	}
	stranger := "kansa+5ca1ab1e+" + strings.Repeat("A", 44)
	if res, data := auditor.do(t, http.MethodPost, path+"/verifications", `{"key":"`+stranger+`"}`); res.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("what is no key: %d %s", res.StatusCode, data)
	}
	// Somebody changes a byte of what is stored, and removes another file.
	p := schema.Partition{Organization: "acme", Trail: schema.Activity, Hour: full.Start, Length: time.Second}
	file := filepath.Join(c.DataDir, "partitions", filepath.FromSlash(p.CSVKey()))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if v := verified(`{"trails":["activity"]}`); v.OK || v.Faulty != 1 || !strings.HasSuffix(v.Faults[0].File, ".csv.gz") || !v.Faults[0].Hour.Equal(full.Start) {
		t.Errorf("after a byte was changed: %+v", v)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for _, h := range hours() {
		if h.Start.Equal(full.Start) && (h.State != integrity.Fault || h.Problem == "") {
			t.Errorf("a file is missing: %+v", h)
		}
	}

	globex := newClient(t, s, "other", "globex", access.Admin)
	globex.get(t, http.StatusForbidden, path)
	globex.get(t, http.StatusForbidden, path+"/hours?trail=activity&from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z")
	for who, want := range map[client]int{globex: http.StatusForbidden, newClient(t, s, "app", "acme", access.Publisher): http.StatusForbidden} {
		if res, data := who.do(t, http.MethodPost, path+"/verifications", "{}"); res.StatusCode != want {
			t.Errorf("%d %s", res.StatusCode, data)
		}
	}
	if text := auditor.get(t, http.StatusBadRequest, path+"/hours?trail=activity&from=2026-01-01T00:00:00Z&to=2027-01-02T00:00:00Z"); !strings.Contains(string(text), "800") {
		t.Errorf("a year of seconds: %s", text)
	}
	if res, _ := globex.do(t, http.MethodPost, "/api/v1/organizations/globex/integrity/verifications", "{}"); res.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("nothing to verify: %d", res.StatusCode)
	}
}
