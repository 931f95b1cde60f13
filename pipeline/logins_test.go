package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/recording/recordingtest"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest/await"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema"
)

// natsApp is an application that logs in to the broker with a key.
type natsApp struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	refused chan error
}

func logIn(t *testing.T, url string, options ...nats.Option) *natsApp {
	t.Helper()
	a := &natsApp{refused: make(chan error, 100)}
	var err error
	a.nc, err = nats.Connect(url, append(options, nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		select {
		case a.refused <- err:
		default:
		}
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.nc.Close)
	if a.js, err = jetstream.New(a.nc); err != nil {
		t.Fatal(err)
	}
	return a
}

// untilRefused waits for the broker's word that something is not permitted.
func (a *natsApp) untilRefused(t *testing.T, what string) {
	t.Helper()
	select {
	case err := <-a.refused:
		if !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: %v", what, err)
		}
	case <-time.After(time.Minute):
		t.Errorf("%s: not refused", what)
	}
}

// Requirement Q1, issue 6: a login for each application, by its API key. It publishes for its own organization, is told when
// that one's trails are switched, and neither sees nor reaches anything else.
func TestLogins(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	key := func(name, organization string, role access.Role) string {
		return newClient(t, s, name, organization, role).key
	}
	acmeKey := key("acme-app", "acme", access.Publisher)
	acme, globex := logIn(t, s.NATSURL(), nats.Token(acmeKey)), logIn(t, s.NATSURL(), nats.UserInfo("globex", key("globex-app", "globex", access.Publisher)))
	all := logIn(t, s.NATSURL(), nats.Token(key("all-apps", "", access.Publisher)))
	operator := logIn(t, s.NATSURL(), nats.Token(key("operator", "", access.Admin)))
	seen, err := globex.nc.SubscribeSync(nats.InboxPrefix + ">")
	if err != nil {
		t.Fatal(err)
	}
	if err := globex.nc.Flush(); err != nil {
		t.Fatal(err)
	}

	publish := func(a *natsApp, organization string, retryFor time.Duration) error {
		p, err := producers.New(a.js, producers.Config{RetryFor: retryFor})
		if err != nil {
			t.Fatal(err)
		}
		e := qlik(1)
		e.Organization = organization
		return errors.Join(p.Publish(t.Context(), e), p.Close(t.Context()))
	}
	for _, organization := range []string{"acme", "globex"} {
		if err := publish(all, organization, time.Minute); err != nil {
			t.Errorf("the operator's publisher for %s: %v", organization, err)
		}
	}
	if err := publish(acme, "acme", time.Minute); err != nil {
		t.Errorf("acme for itself: %v", err)
	}
	reader := newClient(t, s, "reader", "acme", access.Auditor)
	reader.untilRead(t, "/api/v1/audit/events?trail=activity&event=report.published", 2)

	// It is told when its trail is switched off.
	p, err := producers.New(acme.js, producers.Config{})
	if err != nil {
		t.Fatal(err)
	}
	told, err := acme.nc.SubscribeSync(schema.SubjectRecording + ".acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := acme.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	recordingtest.Turn(t, s.Client.JS, "acme", schema.Activity, false)
	if _, err := told.NextMsg(time.Minute); err != nil {
		t.Errorf("not told of the switch: %v", err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		ack, err := p.PublishAsync(t.Context(), qlik(2))
		if err == nil {
			err = ack.Wait(t.Context())
		}
		return err == nil && ack.Unrecorded(), err
	})
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}

	// Nothing else: no other organization, stream, bucket, question to the roles, nor anybody's answers.
	for len(acme.refused) > 0 {
		t.Errorf("acme was refused: %v", await.Receive(t, await.Limit, "what acme was refused", acme.refused))
	}
	for _, subject := range []string{
		"audit.events.globex.activity", "audit.deadletter.acme", "audit.exports.acme", "audit.hours.x", "kansa.exporter.organization.list", "$JS.API.INFO", "$JS.API.STREAM.NAMES",
		"$JS.API.STREAM.MSG.GET.AUDIT", "$JS.API.DIRECT.GET.AUDIT", "$JS.API.STREAM.DELETE.AUDIT", "$JS.API.CONSUMER.MSG.NEXT.AUDIT.writer", "$JS.ACK.AUDIT.writer.1.1.1.1.0", "$KV.kansa_recording.acme", "$KV.kansa_access.key.x", "audit.relay.acme.activity", "audit.events.kansa.activity",
		"$JS.API.DIRECT.GET.KV_kansa_recording.$KV.kansa_recording.globex", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.INFO", "_INBOX.x",
	} {
		if err := acme.nc.PublishRequest(subject, "_INBOX.mine.x", nil); err != nil {
			t.Fatal(err)
		}
		acme.untilRefused(t, "publish on "+subject)
	}
	for _, subject := range []string{">", "*.>", "audit.>", "audit.events.>", "audit.events.acme.>", "audit.recording.*", "audit.recording.globex", "kansa.>", "$KV.>", "$JS.>", "$SYS.>", "_R_.>", "$NRG.>"} {
		if _, err := acme.nc.SubscribeSync(subject); err != nil {
			t.Fatal(err)
		}
		acme.untilRefused(t, "subscribe to "+subject)
	}
	if err := publish(acme, "globex", 100*time.Millisecond); err == nil {
		t.Error("acme published for globex")
	}
	if _, err := operator.js.Stream(t.Context(), broker.StreamAudit); err != nil {
		t.Errorf("the operator: %v", err)
	}
	if err := globex.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if m, err := seen.NextMsg(time.Millisecond); err == nil {
		t.Errorf("globex sees %q on %s", m.Data, m.Subject)
	}

	// Others are not let in.
	for name, options := range map[string][]nats.Option{
		"nobody": nil, "wrong": {nats.Token("kansa_wrong")}, "as a user": {nats.UserInfo(acmeKey, "x")}, "auditor": {nats.Token(reader.key)},
		"admin of one": {nats.Token(key("acme-admin", "acme", access.Admin))},
	} {
		if nc, err := nats.Connect(s.NATSURL(), options...); !errors.Is(err, nats.ErrAuthorization) {
			nc.Close()
			t.Errorf("%s: %v", name, err)
		}
	}
	// Each is told; the same application's many connections are one login.
	for range 5 {
		logIn(t, s.NATSURL(), nats.Token(acmeKey)).nc.Close()
	}
	admin := newClient(t, s, "console", "", access.Admin)
	for organization, want := range map[string][]string{
		"acme":  {"signin.allowed acme-app NATS", "signin.refused reader NATS: it takes", "signin.refused acme-admin NATS: it takes"},
		"kansa": {"signin.allowed operator NATS", "signin.refused - NATS: there is no key", "signin.refused - NATS: the key is not known"},
	} {
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			var page struct{ Events []schema.Event }
			if err := json.Unmarshal(admin.get(t, http.StatusOK, "/api/v1/audit/events?trail=access&limit=500&organization="+organization), &page); err != nil {
				return false, err
			}
			times := map[string]int{}
			for _, e := range page.Events {
				for _, w := range want {
					if strings.HasPrefix(e.Event+" "+e.Actor.ID+" "+e.Description, w) && e.Context.IP == "127.0.0.1" {
						times[w]++
					}
				}
			}
			return len(times) == len(want) && times["signin.allowed acme-app NATS"] <= 1, times
		})
	}
}

// A key that is revoked, or expires, ends the connections that were made with it.
func TestLoginsEnd(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	revoked, other := newClient(t, s, "revoked", "acme", access.Publisher), newClient(t, s, "other", "acme", access.Publisher)
	a, b := logIn(t, s.NATSURL(), nats.Token(revoked.key)), logIn(t, s.NATSURL(), nats.Token(other.key))
	closed, still := a.nc.StatusChanged(nats.CLOSED), b.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	if res, text := newClient(t, s, "admin", "", access.Admin).do(t, http.MethodDelete, "/api/v1/keys/revoked", ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("%d %s", res.StatusCode, text)
	}
	await.Receive(t, await.Limit, "the connection of the revoked key to be closed", closed) // it tried again, and was refused
	if err := b.nc.Flush(); err != nil || len(still) > 0 {
		t.Errorf("the other key's connection: %v", err)
	}

	// However slow the machine, one of them is in before it expires.
	for lasts := time.Second; ; lasts *= 2 {
		k := access.Key{Name: "for-" + lasts.String(), Organization: "acme", Role: access.Publisher, Expires: time.Now().Add(lasts)}
		secret, err := s.Access.CreateKey(t.Context(), &k)
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect(s.NATSURL(), nats.Token(secret))
		if errors.Is(err, nats.ErrAuthorization) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		status := nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
		await.Receive(t, await.Limit, "the connection of the expired key to be closed", status)
		if time.Now().Before(k.Expires) {
			t.Error("it was ended before it expired")
		}
		nc.Close()
		break
	}

	// Who has none and tries on and on is told a few times.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 20 {
		if nc, err := nats.Connect(s.NATSURL(), nats.Token("kansa_wrong")); err == nil {
			nc.Close()
		}
	}
	admin := newClient(t, s, "console", "", access.Admin)
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var page struct{ Events []schema.Event }
		if err := json.Unmarshal(admin.get(t, http.StatusOK, "/api/v1/audit/events?trail=access&limit=500&organization=kansa"), &page); err != nil {
			return false, err
		}
		refused, limited := 0, 0
		for _, e := range page.Events {
			switch e.Event {
			case "signin.refused":
				refused++
			case "request.limited":
				limited++
			}
		}
		return limited > 0 && refused <= 20 && ctx.Err() == nil, []int{refused, limited}
	})
}
