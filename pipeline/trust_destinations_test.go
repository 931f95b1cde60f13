package pipeline_test

// Organizations' admins as attackers, by what they save.

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
)

// Rows 1, 2, 3, 17, 18: destinations that reach into the server, end it, or use up what it has, are refused with the field that is wrong;
// the process goes on, and what is right is still taken.
func TestDestinationsCannotHarmTheServer(t *testing.T) {
	t.Parallel()
	c := pipelinetest.Config(t)
	c.Exports.Allow.Networks = nil // the default
	s := pipelinetest.Start(t, c)
	admin := newClient(t, s, "admin", "acme", access.Admin)
	server := func(more string) string {
		return `{"name":"d","organization":"acme","sftp":{"host":"127.0.0.1","port":22,"user":"u"` + more + `}}`
	}
	scheduled := func(schedule string) string {
		return `{"name":"d","organization":"acme","mail":["someone@elsewhere.example"],"schedule":` + schedule + `}`
	}
	for name, c := range map[string]struct{ body, says string }{
		"password file":    {server(`,"password_file":"` + c.DataDir + `/seal.key"`), "password_file"},
		"private key file": {server(`,"private_key_file":"` + c.DataDir + `/settings.key"`), "private_key_file"},
		"another's folder": {`{"name":"d","organization":"acme","bucket":"file://` + c.DataDir + `/partitions?prefix=other/"}`, "bucket"},
		"endpoint":         {`{"name":"d","organization":"acme","bucket":"s3://b?region=us-east-1&endpoint=http://127.0.0.1:1","bucket_key_id":"a","bucket_secret":"b"}`, "bucket"},
		"own identity":     {`{"name":"d","organization":"acme","bucket":"s3://archives?region=us-east-1"}`, "bucket_key_id"},
		"claims the file":  {`{"name":"d","organization":"acme","FromFile":true,"bucket":"file:///tmp"}`, "FromFile"},
		"cron":             {scheduled(`{"cron":"TZ=0"}`), "cron"},
		"cron of nothing":  {scheduled(`{"cron":"0 0 0 30 2 *"}`), "never"},
		"all the time":     {scheduled(`{"every":"1ms","period":"30s"}`), "every"},
		"period":           {scheduled(`{"every":"1h","period":"1500ms"}`), "multiple"},
	} {
		for _, query := range []string{"", "?force=true"} {
			res, text := admin.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/d"+query, c.body)
			if res.StatusCode != http.StatusUnprocessableEntity && res.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), c.says) {
				t.Errorf("%s%s: %d %s", name, query, res.StatusCode, text)
			}
		}
	}
	if res, _ := (client{s, ""}).do(t, http.MethodGet, "/console/schedule?cron=TZ%3D0", ""); res.StatusCode >= http.StatusInternalServerError {
		t.Errorf("the console's schedule: %d", res.StatusCode)
	}
	// A test connects neither to this machine nor to a metadata service, and says nothing of what is there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan struct{}, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("220 secret-banner ESMTP\r\n"))
			_ = conn.Close()
			accepted <- struct{}{}
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "localhost", "169.254.169.254", "0.0.0.0", "::1", "::ffff:127.0.0.1"} {
		body := fmt.Sprintf(`{"name":"d","organization":"acme","sftp":{"host":%q,"port":%s,"user":"u","password":"p"}}`, host, port)
		res, text := admin.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/d", body)
		var saved struct {
			Destination json.RawMessage
			Test        struct{ Error string }
		}
		if err := json.Unmarshal(text, &saved); err != nil || res.StatusCode != http.StatusOK || saved.Destination != nil || !strings.Contains(saved.Test.Error, "not allowed here") || strings.Contains(string(text), "banner") {
			t.Errorf("%s: %d %s", host, res.StatusCode, text)
		}
	}
	if len(accepted) > 0 {
		t.Error("a connection was made")
	}
	if res, text := admin.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/good?force=true", `{"name":"good","organization":"acme","sftp":{"host":"sftp.example.com","user":"u","password":"p"}}`); res.StatusCode != http.StatusOK {
		t.Errorf("a good destination: %d %s", res.StatusCode, text)
	}
}

// Row 18: where the operator allows a network, a test says of a server that is none of SSH just that.
func TestConnectionTestRepeatsNoBanner(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	admin := newClient(t, s, "admin", "acme", access.Admin)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte([]string{"220 secret-banner ESMTP\r\n", "secret-banner\r\n"}[n%2]))
			_ = conn.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		_, text := admin.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/d", `{"name":"d","organization":"acme","sftp":{"host":"127.0.0.1","port":`+port+`,"user":"u","password":"p"}}`)
		if strings.Contains(string(text), "banner") || !strings.Contains(string(text), "does not speak SSH") {
			t.Errorf("%s", text)
		}
	}
	// Nor does it reach Kansa's own parts, where the network is allowed.
	for name, address := range map[string]string{"NATS": strings.TrimPrefix(s.NATSURL(), "nats://"), "API": strings.TrimPrefix(s.API.URL(), "http://"), "ClickHouse": strings.TrimPrefix(s.Engine.URL(), "http://")} {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		_, text := admin.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/d", `{"name":"d","organization":"acme","sftp":{"host":"`+host+`","port":`+port+`,"user":"u","password":"p"}}`)
		if !strings.Contains(string(text), "an address of Kansa itself") {
			t.Errorf("%s: %s", name, text)
		}
	}
}

// Row 16: a test of a server that does not answer holds up no other organization.
func TestSlowServerHoldsUpNoOtherOrganization(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connected, release := make(chan struct{}), make(chan struct{})
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		close(connected)
		_, _ = conn.Read(make([]byte, 1<<16)) // its greeting
		<-release
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	slow, other := newClient(t, s, "slow", "acme", access.Admin), newClient(t, s, "other", "globex", access.Admin)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		slow.do(t, http.MethodPut, "/api/v1/organizations/acme/destinations/d", `{"name":"d","organization":"acme","sftp":{"host":"127.0.0.1","port":`+port+`,"user":"u","password":"p","connect_timeout":"30s"}}`)
	}()
	select {
	case <-connected:
	case <-time.After(time.Minute):
		t.Fatal("the slow server was not connected to")
	}
	res, text := other.do(t, http.MethodPut, "/api/v1/organizations/globex/destinations/d?force=true", `{"name":"d","organization":"globex","sftp":{"host":"sftp.example.com","user":"u","password":"p"}}`)
	if res.StatusCode != http.StatusOK {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	select {
	case <-ended:
		t.Error("the slow server's test ended before the other organization was answered")
	default:
	}
	close(release)
	await.Receive(t, await.Limit, "the test of the slow server to end", ended)
}
