package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
	"github.com/kansa-audit/kansa/schema/seal/sealtest"
)

// What an auditor and an operator do, by the command line alone.
func TestVerifyProveRotate(t *testing.T) {
	t.Parallel()
	key := sealtest.NewKey()
	s := sealtest.New(key)
	var last codec.Stored
	for h := range 3 {
		p := sealtest.Partition("acme", schema.Access, h)
		list := s.Events(p, 20)
		s.Add(p, list)
		last = list[13]
	}
	data := t.TempDir()
	file := func(name string) string { return filepath.Join(data, filepath.FromSlash(name)) }
	write := func(name string, text []byte) {
		if err := os.MkdirAll(filepath.Dir(file(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file(name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range s.Files {
		write("partitions/"+name, text)
	}
	write("seal.key", []byte(key.Private+"\n"))
	write("auditor.pub", []byte(key.Public+"\n"))
	store, auditor := file("partitions"), file("auditor.pub")
	want := func(code int, says []string, args ...string) (stdout string) {
		t.Helper()
		got, out, errs := kansa(t, "", args...)
		for _, s := range says {
			if !strings.Contains(out+errs, s) {
				t.Errorf("kansa %s: it does not say %q", strings.Join(args, " "), s)
			}
		}
		if got != code {
			t.Errorf("kansa %s: exit code %d, want %d", strings.Join(args, " "), got, code)
		}
		if t.Failed() {
			t.Logf("kansa %s:\n%s%s", strings.Join(args, " "), out, errs)
		}
		return out
	}
	want(0, []string{"VERIFIED", "60 rows", "1–3"}, "verify", store, "--key", auditor, "--from-start", "--from", "2026-11-22T04:00:00Z")
	want(1, []string{"NOT VERIFIED", "ends at"}, "verify", store, "--key", auditor, "--to", "2026-11-23")
	var report verify.Report
	if err := json.Unmarshal([]byte(want(0, nil, "verify", store, "--key", auditor, "--json")), &report); err != nil || !report.OK || report.Rows != 60 {
		t.Errorf("%+v, %v", report, err)
	}
	proof := file("event.proof")
	want(0, []string{"row 14 of 20"}, "prove", store, "--event", last.ID.String(), "-o", proof)
	want(0, []string{"VERIFIED", last.ID.String()}, "verify", proof, "-k", auditor)
	want(0, []string{last.ID.String()}, "prove", store, "--seq", "1044.1", "-o", "-")
	want(1, []string{"no such event"}, "prove", store, "--seq", "1.1", "-o", proof)
	for _, args := range [][]string{
		{"verify", store},
		{"verify", "nowhere", "-k", auditor},
		{"verify", store, "-k", file("seal.key")},
		{"verify", store, "-k", "nowhere"},
		{"verify", store, "-k", auditor, "--from", "yesterday"},
		{"prove", store, "-o", "-"},
		{"prove", store, "--seq", "x", "-o", "-"},
		{"prove", store, "--event", "x", "-o", "-"},
		{"prove", store, "--seq", "1044.1", "-o", file("a.zip")},
	} {
		want(exitUsage, nil, args...)
	}
	if got := want(0, nil, "key", "show", "--data-dir", data); got != key.Public+"\n" {
		t.Errorf("key show: %s", got)
	}
	fresh := strings.TrimSpace(want(0, []string{"rotation 1"}, "key", "rotate", "--data-dir", data))
	if got := want(0, nil, "key", "show", "--all", "--data-dir", data); got != key.Public+"\n"+fresh+"\n" {
		t.Errorf("key show --all: %s", got)
	}
	want(1, []string{"nowhere"}, "key", "rotate", "--data-dir", file("nowhere"))
	// Sealed with the new key; the auditor has the old one.
	p := sealtest.Partition("acme", schema.Access, 3)
	sealed, err := os.ReadFile(file("seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	s.Key = sealtest.ParseKey(strings.TrimSpace(string(sealed)))
	s.Add(p, s.Events(p, 5))
	write("partitions/"+p.CSVKey(), s.Files[p.CSVKey()])
	write("partitions/"+p.ManifestKey(), s.Files[p.ManifestKey()])
	want(0, []string{"65 rows"}, "verify", store, "--key", auditor)
	want(0, []string{"65 rows"}, "verify", store, "--key", file("seal.pub"))
	csv := s.Files[p.CSVKey()]
	csv[100] ^= 1
	write("partitions/"+p.CSVKey(), csv)
	want(1, []string{"FAULT " + p.CSVKey(), "hour " + p.Hour.Format(time.RFC3339)}, "verify", store, "--key", auditor)
	want(1, []string{"FAULT"}, "verify", file("partitions/"+p.CSVKey()), "--key", auditor)
	want(1, nil, "verify", proof, "-k", file("seal.pub")) // a proof of before, with a key of after
	want(0, []string{"VERIFIED"}, "verify", proof, "-k", file("seal.pub"), "--rotations", store)
}
