package settings

import (
	"testing"
	"time"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/exporter/reach"
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
