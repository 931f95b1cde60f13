package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kansa-audit/kansa/pipeline/config"
)

func TestDefaultsAreGood(t *testing.T) {
	t.Parallel()
	c, err := config.Load("")
	if err != nil {
		t.Fatal(err)
	}
	if c.Rollup.Hour != time.Hour || c.Retention.Days != 730 || c.Exports.LinkDays != 7 {
		t.Errorf("got %+v", c)
	}
}

// The table's expires_at ends in 2106.
func TestLongRetentionIsNoShortOne(t *testing.T) {
	t.Parallel()
	r := config.Retention{Days: 1, Organizations: map[string]int{"acme": 36500}}
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	if got, want := r.Expires("globex", now), now.AddDate(0, 0, 1); !got.Equal(want) {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := r.Expires("acme", now); got.Year() != 2106 || got.Unix() > 1<<32-1 {
		t.Errorf("got %s", got)
	}
}

func TestAddressesAreShownWithoutPasswords(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.NATS.URL = "nats://kansa:s3cr@t@a:4222,nats://kansa:s3cret@b:4222"
	c.ClickHouse.URL = "https://kansa:s3cret@c:8443/kansa"
	r := c.Redacted()
	if want := "nats://kansa:…@a:4222,nats://kansa:…@b:4222"; r.NATS.URL != want {
		t.Errorf("got %s, want %s", r.NATS.URL, want)
	}
	if want := "https://kansa:…@c:8443/kansa"; r.ClickHouse.URL != want {
		t.Errorf("got %s, want %s", r.ClickHouse.URL, want)
	}
	if !strings.Contains(c.NATS.URL, "s3cret") {
		t.Error("the configuration itself has lost its password")
	}
}

// Each fault names the key, the value and the remedy.
func TestFaults(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ text, says string }{
		{"data_dir: ''", "data_dir is empty: name a directory"},
		{"log: {format: xml}", `log.format is "xml": use text or json`},
		{"log: {level: loud}", `:1: log.level is "loud": give debug, info, warn or error`},
		{"streams: {replicas: 9}", "streams.replicas is 9"},
		{"streams: {duplicate_window: 1s}", "streams.duplicate_window is 1s"},
		{"streams: {audit_max_age: 1h}", "streams.audit_max_age is 1h0m0s"},
		{"writer: {insert_timeout: 50s}", "writer.insert_timeout is 50s: at most half of writer.ack_wait"},
		{"writer: {ack_wait: 2s, insert_timeout: 1s}", "writer.ack_wait is 2s"},
		{"writer: {memory: 5}", "writer.memory is 5"},
		{"writer: {linger: soon}", `:1: writer.linger is "soon": give a duration such as 30s`},
		{"nats: {tls_key_file: k}", "nats.tls_cert_file and nats.tls_key_file belong together"},
		{"nats: {url: 'nats://a:4222', tls_cert_file: a, tls_key_file: b}", "is for the embedded broker"},
		{"api: {oidc: {client_id: kansa}}", "api.oidc has no issuer"},
		{"api: {oidc: {issuer: 'http://login.example.com', client_id: k, client_secret: {file: f}}}", `api.oidc.issuer is "http://login.example.com": give an address such as https`},
		{"api: {oidc: {issuer: 'https://login.example.com'}}", "api.oidc.client_id is empty"},
		{"api: {oidc: {issuer: 'https://login.example.com', client_id: k}}", "api.oidc.client_secret is not set"},
		{"api: {oidc: {issuer: 'https://login.example.com', client_id: k, client_secret: {file: f}, create: true}}", "api.oidc.create is set without roles"},
		{"api: {oidc: {issuer: 'https://login.example.com', client_id: k, client_secret: {file: f}, roles: [{group: g, role: publisher}]}}", `roles[0].role is "publisher": use auditor or admin`},
		{"rollup: {hour: 500ms}", "rollup.hour is 500ms"},
		{"exports: {public_url: audit}", `exports.public_url is "audit"`},
		{"retention: {organizations: {a b: 1}}", `"a b" is no name of an organization`},
		{"destinations: [{name: x, organization: o, mail: [a@b.example]}]", "mail needs mail.host and exports.public_url"},
		{"destinations: [{name: x, organization: o}]", "0 of them are given"},
		{"mail: {host: 'smtp.example.com:25', from: a@b.example}", "mail: "},
		{"gateway: {max_body: 5}", "gateway.max_body is 5: give 524288 to 1073741824"},
		{"gateway: {max_events: 0}", "gateway.max_events is 0: give a positive number"},
		{"gateway: {max_events: 2000000}", "gateway.max_events is 2000000: give 1048576 at most"},
		{"gateway: {memory: 1000000}", "gateway.memory is 1000000: give 142606336 at least"},
		{"gateway: {client_memory: 1000000}", "gateway.client_memory is 1000000: give 134217728"},
		{"gateway: {client_memory: 999999999}", "gateway.client_memory is 999999999"},
		{"gateway: {max_requests: -1}", "gateway.max_requests is -1"},
		{"gateway: {timeout: 5s}", "gateway.timeout is 5s: at least gateway.retry_for, which is 10s"},
		{"gateway: {retry_for: 5m, timeout: 10m}", "gateway.retry_for is 5m0s: give 1s to 1m"},
		{"kafka: {}", ":1: unknown key kafka: use one of api,"},
		{"data_dir: d\nnats:\n  prot: 4222", ":3: unknown key nats.prot: did you mean port?"},
		{"nats:\n  port: 99999", ":2: nats.port is 99999: give 1 to 65535"},
		{"api: {listen: '127.0.0.1:4222'}", "nats.port is 127.0.0.1:4222, which is also that of api.listen: give it another port"},
		{"api: {listen: '127.0.0.1:8123'}\nclickhouse:\n  listen: '127.0.0.1:8123'", ":3: clickhouse.listen is 127.0.0.1:8123, which is also that of api.listen"},
		{"health: {listen: ':8080'}", "health.listen is :8080, which is also that of api.listen"},
		{"nats: {port: 4222.5}", `:1: nats.port is "4222.5": give a whole number`},
		{"api: {trusted_proxies: ['0.0.0.0/0']}", `"0.0.0.0/0" is everybody`},
		{"nats: {port: abc}", `:1: nats.port is "abc": give a whole number`},
		{"nats: {port: 99999999999999999999}", `nats.port is "99999999999999999999": give a whole number`},
		{"nats: 5", `:1: nats is "5": give keys and values`},
		{"nats: {listen: 'localhost:4222'}", "nats.listen is"},
		{"destinations: {a: b}", "destinations is keys and values: give a list"},
		{"api: {listen: 8080}", `api.listen is "8080": give an address and a port`},
		{"api: {listen: '127.0.0.1:http'}", "api.listen is"},
		{"streams: {replicas: 2}", "streams.replicas is 2: use 1, 3 or 5"},
		{"streams: {replicas: 3}", "streams.replicas is 3 without nats.url"},
		{"data_dir: a\n---\ndata_dir: b", ":3: a second YAML document begins here"},
		{"- data_dir", ":1: the file is not a list of keys and values"},
		{"nats: {port: 1}\nnats: {port: 2}", ":2: mapping key"},
		{"retention:\n  organizations:\n    acme: many", `:3: retention.organizations.acme is "many": give a whole number`},
		{"destinations: [{name: x, organization: o, sftp: {host: h, user: u, password: p, connect_timeout: soon}}]", `destinations[0].sftp.connect_timeout is "soon": give a duration`},
		{"data_dir: d\ndestinations:\n  - {name: x, organization: o}", ":3: destinations[0]: "},
		{"gateway: {anonymous: everybody}", `gateway.anonymous is "everybody"`},
		{"gateway: {anonymous: loopback}\nexports: {public_url: 'https://a.example.com'}", ":1: gateway.anonymous is loopback and exports.public_url"},
		{"gateway: {anonymous: loopback}\napi: {listen: '0.0.0.0:8080'}", "gateway.anonymous is loopback and api.listen"},
		{"limits: {mails_per_day: -1}", "limits.mails_per_day is -1"},
		{"exports: {allow: {networks: [localhost]}}", "exports.allow.networks[0] is"},
		{"exports: {allow: {kinds: [ftp]}}", "exports.allow.kinds[0] is"},
	} {
		path := filepath.Join(t.TempDir(), "kansa.yaml")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := config.Load(path)
		if !errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %q", c.text, err, c.says)
		}
		for _, of := range []string{"Go struct", "Go value", "config.", "[]interface", "yaml."} {
			if strings.Contains(err.Error(), of) {
				t.Errorf("%s: it names a type of Go: %v", c.text, err)
			}
		}
	}
}

// Editors of Windows begin a file with a byte order mark and end lines with CRLF.
func TestFilesOfWindowsAreRead(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kansa.yaml")
	if err := os.WriteFile(path, []byte("\ufeffdata_dir: d\r\nnats:\r\n  port: 4e3\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil || c.DataDir != "d" || c.NATS.Port != 4000 {
		t.Errorf("%+v, %v", c, err)
	}
}

// A file that says nothing, and keys without a value, mean the defaults.
func TestWhatIsLeftOutHasItsDefault(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\n", "# nothing\n", "---\n", "{}", "nats:\napi:\n  listen:\n", "data_dir: kansa-data\n---\n"} {
		path := filepath.Join(t.TempDir(), "kansa.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if diff := cmp.Diff(config.Default(), c); diff != "" {
			t.Errorf("%q (-default +read):\n%s", text, diff)
		}
	}
}

// A bound is taken away by 0, as the documentation says, also where it is a duration.
func TestZeroIsADuration(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kansa.yaml")
	if err := os.WriteFile(path, []byte("streams: {audit_max_age: 0, dead_letter_max_age: 0}\nwriter: {id_window: 0}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil || c.Streams.AuditMaxAge != 0 || c.Streams.DeadLetterMaxAge != 0 || c.Writer.IDWindow != 0 {
		t.Errorf("%+v, %v", c, err)
	}
}
