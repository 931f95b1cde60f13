package settings

import (
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/reach"
	"github.com/kansa-audit/kansa/schema"
)

// No document of a setting, and no destination in a request, ends the process; and none that is accepted names what is the
// server's.
func FuzzDestination(f *testing.F) {
	for _, text := range []string{
		`{"name":"d","organization":"acme","sftp":{"host":"h","user":"u","password":"p"},"schedule":{"cron":"0 15 1 * * *","time_zone":"Asia/Tokyo","period":"24h0m0s"}}`,
		`{"name":"d","organization":"acme","mail":["a@example.com"],"schedule":{"cron":"TZ=0","every":"-1s","period":"0s"}}`,
		`{"name":"d","organization":"acme","bucket":"s3://archives?region=eu-central-1","bucket_key_id":"a","bucket_secret":"b"}`,
		`{"name":"d","organization":"acme","bucket":"file:///etc","filter":{"start":"2026-11-20T00:00:00Z"},"format":"cef","age_recipients":["age1"]}`,
		`{"name":"d","organization":"acme","sftp":{"host":"[::1","port":-1,"user":"\u0000","private_key":"-----BEGIN","host_keys":["SHA256:"],"connect_timeout":"-5s","concurrency":9999}}`,
		`{"version":2,"value":{},"secrets":{"sftp.password":"x"}}`, `{"version":1,"value":null}`, `null`, `[]`, `{"schedule":{"period":"9223372036854775807ns","every":"1ns"}}`,
	} {
		f.Add([]byte(text))
	}
	s := &Store{Hour: time.Hour, Reach: new(reach.Policy), Now: func() time.Time { return time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC) }}
	f.Fuzz(func(t *testing.T, data []byte) {
		if doc, err := read(data); err == nil {
			_, _ = show(&doc)
		}
		var d exporter.Destination
		if decode(data, &d) != nil || d.Normalize() != nil || s.CheckDestination(&d) != nil {
			return
		}
		if d.FromFile || d.SFTP != nil && (d.SFTP.PasswordFile != "" || d.SFTP.PrivateKeyFile != "") || d.Bucket != "" && d.BucketKeyID == "" {
			t.Errorf("accepted: %+v", d)
		}
	})
}

// No rules of an organization end the process. Rules that are accepted are within their bounds, and are stored as they are.
func FuzzOrganization(f *testing.F) {
	for _, text := range []string{
		`{"name":"acme","exports_off":["access"],"exports_per_day":3,"retention_days":730,"retention_bytes":1,"hold":{"reason":"case 17"}}`,
		`{"name":"a b","exports_off":["x"],"exports_per_day":-1,"retention_days":99999999999,"hold":{}}`, `{"retention_days":1e3}`, `{"hold":null}`, `null`, `[]`, `{"name":"\ud800"}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var o, again Organization
		if decode(data, &o) != nil || o.check() != nil {
			return
		}
		if o.ExportsPerDay < 0 || o.RetentionDays < 1 || o.RetentionBytes < 0 || o.Hold != nil && o.Hold.Reason == "" || schema.CheckOrganization(o.Name) != nil {
			t.Errorf("accepted: %+v", o)
		}
		stored, err := encode(o)
		if err != nil {
			t.Fatalf("accepted, and cannot be stored: %+v: %v", o, err)
		}
		if err := decode(stored, &again); err != nil || again.Name != o.Name || again.RetentionDays != o.RetentionDays || len(again.ExportsOff) != len(o.ExportsOff) {
			t.Errorf("stored as %s: %v", stored, err)
		}
	})
}

// No request to switch a trail ends the process, over any document of switches. No trail is switched off under HIPAA or without a reason.
func FuzzSwitchTrails(f *testing.F) {
	f.Add([]byte(`{"activity":false,"reason":"moving house"}`), []byte(`{"version":1,"turns":{"activity":[{"on":false,"at":"2026-11-20T00:00:00Z"}]}}`))
	f.Add([]byte(`{"hipaa":true,"access":false,"reason":" "}`), []byte(`{"version":1,"hipaa":true}`))
	f.Add([]byte(`{"access":true}`), []byte(`{"version":1,"turns":{"access":[{"on":true},{"on":true},{"on":false}],"x":null}}`))
	f.Add([]byte(`null`), []byte(`null`))
	f.Fuzz(func(t *testing.T, request, document []byte) {
		r, err := schema.ParseRecording(document, time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC))
		if err != nil {
			return
		}
		_ = shown("acme", r)
		var want SwitchTrails
		if decode(request, &want) != nil || want.check("acme", r, "ann") != nil {
			return
		}
		for trail, on := range want.wants() {
			off := on != nil && !*on
			if off && (r.On(trail) && strings.TrimSpace(want.Reason) == "" || want.HIPAA != nil && *want.HIPAA || r.HIPAA && want.HIPAA == nil) {
				t.Errorf("%s is switched off by %s over %s", trail, request, document)
			}
		}
	})
}
