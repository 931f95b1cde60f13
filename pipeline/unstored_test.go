package pipeline_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/schema"
)

// publishOne publishes a message of one event, or what is given in its place, and returns its place in the stream.
func publishOne(t *testing.T, s *pipeline.System, organization, body string) uint64 {
	t.Helper()
	msg := nats.NewMsg(schema.EventSubject(organization, schema.Activity))
	msg.Header.Set(schema.HeaderContentType, "application/json")
	if msg.Data = []byte(body); body == "" {
		msg.Data = fmt.Appendf(nil, `{"occurred_at":%q,"source":"test","event":"e.x","action":"a"}`, time.Now().UTC().Format(time.RFC3339))
	}
	ack, err := s.Client.JS.PublishMsg(t.Context(), msg)
	if err != nil {
		t.Fatal(err)
	}
	return ack.Sequence
}

// stolen takes the next message of the writer's consumer away from the writer. Until it has one, it has messages published.
func stolen(t *testing.T, s *pipeline.System, organization, body string) jetstream.Msg {
	t.Helper()
	consumer, err := s.Client.JS.Consumer(t.Context(), broker.StreamAudit, broker.ConsumerWriter)
	if err != nil {
		t.Fatal(err)
	}
	taken := make(chan jetstream.Msg, 1)
	failed := make(chan error, 1)
	go func() {
		for t.Context().Err() == nil {
			batch, err := consumer.Fetch(1, jetstream.FetchMaxWait(5*time.Second))
			if err != nil {
				failed <- err
				return
			}
			for msg := range batch.Messages() {
				taken <- msg
				return
			}
		}
	}()
	var msg jetstream.Msg
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		publishOne(t, s, organization, body)
		select {
		case err := <-failed:
			t.Fatal(err)
		case msg = <-taken:
		default:
		}
		return msg != nil && strings.HasPrefix(msg.Subject(), "audit.events."+organization+"."), "the writer gets every message"
	})
	return msg
}

func progressOf(t *testing.T, s *pipeline.System) rollup.Progress {
	t.Helper()
	kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRollup)
	if err != nil {
		t.Fatal(err)
	}
	return rollup.Progress{JS: s.Client.JS, KV: kv}
}

// untilBlocked waits until just these organizations' trails are blocked.
func untilBlocked(t *testing.T, s *pipeline.System, want ...string) []rollup.Block {
	t.Helper()
	var blocks []rollup.Block
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var err error
		if blocks, err = progressOf(t, s).Blocks(t.Context(), s.Config.Rollup.Hour); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, b := range blocks {
			names = append(names, b.Organization)
		}
		return strings.Join(names, ",") == strings.Join(want, ","), blocks
	})
	return blocks
}

// untilSealedBeyond waits until an organization's hours are sealed beyond an instant.
func untilSealedBeyond(t *testing.T, s *pipeline.System, organization string, at time.Time) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		until, err := progressOf(t, s).Sealed(t.Context(), organization, []schema.Trail{schema.Activity})
		return err == nil && until.After(at), []any{organization, until, err}
	})
}

// untilEvents waits until the operator's trail has so many events of a kind.
func events(t *testing.T, s *pipeline.System, code string) (n uint64) {
	t.Helper()
	err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events FINAL WHERE organization = '"+owntrail.Organization+"' AND event = '"+code+"'").Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func askRepair(t *testing.T, s *pipeline.System, q repair.Request) *repair.Report {
	t.Helper()
	report, err := repair.Ask(t.Context(), s.Client.NC, q)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Another client acknowledges a message of the writer's consumer, or the broker gives it up because max_deliver was lowered. Only its
// organization waits, everything that reports health names the message and the command, and the command stores it.
func TestStolenMessageIsStoredFromTheStream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body     string
		lose     func(t *testing.T, s *pipeline.System, msg jetstream.Msg)
		rows     uint64
		rejected int
	}{
		"acknowledged by another client": {rows: 1, lose: func(t *testing.T, _ *pipeline.System, msg jetstream.Msg) {
			t.Helper()
			if err := msg.DoubleAck(t.Context()); err != nil {
				t.Fatal(err)
			}
		}},
		"terminated by another client": {rows: 1, lose: func(t *testing.T, _ *pipeline.System, msg jetstream.Msg) {
			t.Helper()
			if err := msg.Term(); err != nil {
				t.Fatal(err)
			}
		}},
		"partly against the rules": {
			body: `[{"occurred_at":"2026-11-22T04:05:06Z","source":"test","event":"e.x","action":"a"},{"occurred_at":"2026-11-22T04:05:06Z","source":"test"}]`,
			rows: 1, rejected: 1, lose: func(t *testing.T, _ *pipeline.System, msg jetstream.Msg) {
				t.Helper()
				if err := msg.DoubleAck(t.Context()); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := pipelinetest.Start(t, pipelinetest.Config(t))
			publishOne(t, s, "globex", "")
			msg := stolen(t, s, "acme", c.body)
			meta, err := msg.Metadata()
			if err != nil {
				t.Fatal(err)
			}
			seq := meta.Sequence.Stream
			c.lose(t, s, msg)

			blocks := untilBlocked(t, s, "acme")
			if b := blocks[0]; b.Kind != rollup.KindUnstored || !strings.Contains(b.Reason, fmt.Sprintf("message %d of acme/activity", seq)) {
				t.Errorf("blocked by %+v", b)
			}
			untilSealedBeyond(t, s, "globex", blocks[0].Hour.Add(3*time.Second)) // and retries have not given the alarm again
			untilSealedBeyond(t, s, owntrail.Organization, blocks[0].Hour.Add(3*time.Second))
			if n := events(t, s, "messages.unstored"); n != 1 {
				t.Errorf("%d events say that it is blocked", n)
			}
			finds(t, s, true, map[string]string{"rollup/agreement": ""})

			report := askRepair(t, s, repair.Request{})
			if len(report.Differences) != 1 || report.Differences[0].StreamSeq != seq || report.Differences[0].Kind != repair.Unstored || report.Differences[0].Organization != "acme" || report.Well() {
				t.Errorf("repair reports %+v", report)
			}
			if _, err := repair.Ask(t.Context(), s.Client.NC, repair.Request{Accept: []rollup.Loss{{First: seq, Last: seq, By: "ann", Reason: "gone"}}}); err == nil || !strings.Contains(err.Error(), "the stream still has message") {
				t.Errorf("a message that the stream has was accepted as lost: %v", err)
			}
			if report = askRepair(t, s, repair.Request{Fix: true}); len(report.Differences) != 1 {
				t.Fatalf("repair did %+v", report)
			}
			if d := report.Differences[0]; d.Done == "" || d.Left != "" || d.Stream != c.rows {
				t.Errorf("repair did %+v", d)
			}
			untilBlocked(t, s)
			if report := askRepair(t, s, repair.Request{}); !report.Well() {
				t.Errorf("left is %+v", report)
			}
			untilSealedBeyond(t, s, "acme", meta.Timestamp)
			var rows uint64
			if err := s.Store.Conn().QueryRow(t.Context(), fmt.Sprintf("SELECT count() FROM audit_events WHERE stream_seq = %d", seq)).Scan(&rows); err != nil || rows != c.rows {
				t.Errorf("%d rows, %v", rows, err)
			}
			letters := s.Client.JS.ListStreams(t.Context())
			for info := range letters.Info() {
				if info.Config.Name == broker.StreamDeadLetter && (c.rejected > 0) != (info.State.Msgs > 0) {
					t.Errorf("%d dead letters", info.State.Msgs)
				}
			}
			pipelinetest.Until(t, time.Minute, func() (bool, any) { n := events(t, s, "sealing.resumed"); return n == 1, n })
			if c.rejected > 0 {
				finds(t, s, true, map[string]string{"kansa/dead letters": "dead letters wait"})
				return
			}
			finds(t, s, true, nil)
		})
	}
}

// A message that was acknowledged and not stored is reported within a minute, long before its hour is over and cannot be sealed.
func TestUnstoredMessageIsReportedBeforeItsHourEnds(t *testing.T) {
	t.Parallel()
	cfg := pipelinetest.Config(t)
	cfg.Rollup.Hour = time.Hour
	s := pipelinetest.Start(t, cfg)
	msg := stolen(t, s, "acme", "")
	must(t, msg.DoubleAck(t.Context()))
	everywhere(t, s, "rollup", "agreement", "of acme/activity was acknowledged but never stored", "kansa repair --fix")
	askRepair(t, s, repair.Request{Fix: true})
	finds(t, s, true, nil)
}

// The ledger loses its beginning, its middle, or all: repair makes the entries again from the stream and stores what the table does not
// have either. Nothing that the stream has can be given up or removed.
func TestLostLedgerIsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		lose func(t *testing.T, ledger jetstream.Stream)
		rows bool // rows are gone, too
	}{
		"all of it": {lose: func(t *testing.T, ledger jetstream.Stream) {
			t.Helper()
			if err := ledger.Purge(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, rows: true},
		"its beginning": {lose: func(t *testing.T, ledger jetstream.Stream) {
			t.Helper()
			if err := ledger.Purge(t.Context(), jetstream.WithPurgeSequence(3)); err != nil {
				t.Fatal(err)
			}
		}},
		"its middle": {lose: func(t *testing.T, ledger jetstream.Stream) {
			t.Helper()
			if err := ledger.DeleteMsg(t.Context(), 3); err != nil {
				t.Fatal(err)
			}
		}, rows: true},
		"its end": {lose: func(t *testing.T, ledger jetstream.Stream) {
			t.Helper()
			info, err := ledger.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := ledger.DeleteMsg(t.Context(), info.State.LastSeq); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := pipelinetest.Config(t)
			cfg.Writer.Linger = time.Millisecond
			writing, err := pipeline.Start(t.Context(), pipeline.Options{
				Config: cfg, Roles: []pipeline.Role{pipeline.RoleWriter}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
			})
			if err != nil {
				t.Fatal(err)
			}
			const n = 8
			for i := range n { // each with an entry of its own
				publishOne(t, writing, []string{"acme", "globex"}[i%2], "")
				pipelinetest.UntilStored(t, writing.Store, uint64(i+1), time.Minute)
			}
			pipelinetest.Until(t, time.Minute, func() (bool, any) { // entries are written after the rows
				entries, _, err := tally.Ledger{JS: writing.Client.JS}.Between(t.Context(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
				return len(entries) == n, []any{entries, err}
			})
			ledger, err := writing.Client.JS.Stream(t.Context(), broker.StreamTallies)
			if err != nil {
				t.Fatal(err)
			}
			c.lose(t, ledger)
			if c.rows {
				if err := writing.Store.Conn().Exec(t.Context(), "DELETE FROM audit_events WHERE stream_seq = 3"); err != nil {
					t.Fatal(err)
				}
			}
			if err := writing.Close(); err != nil {
				t.Fatal(err)
			}
			s := pipelinetest.Start(t, cfg)
			var report *repair.Report
			pipelinetest.Until(t, time.Minute, func() (bool, any) { report = askRepair(t, s, repair.Request{}); return len(report.Blocked) > 0, report })
			for _, d := range report.Differences {
				if d.Kind != repair.Unstored {
					t.Errorf("%+v", d)
				}
			}
			if _, err := repair.Ask(t.Context(), s.Client.NC, repair.Request{Accept: []rollup.Loss{{First: 1, Last: n, By: "ann", Reason: "gone"}}}); err == nil {
				t.Error("messages that the stream has were accepted as lost")
			}
			report = askRepair(t, s, repair.Request{Fix: true, Replace: true})
			for _, d := range report.Differences {
				if d.Done == "" || d.Left != "" {
					t.Errorf("%+v", d)
				}
			}
			untilBlocked(t, s)
			for _, organization := range []string{"acme", "globex"} {
				untilSealedBeyond(t, s, organization, time.Now())
			}
			if rows, distinct, err := pipelinetest.Stored(t, s.Store); err != nil || rows != n || distinct != n {
				t.Errorf("%d rows, %d different, %v", rows, distinct, err)
			}
			pipelinetest.Until(t, time.Minute, func() (bool, any) { report := askRepair(t, s, repair.Request{}); return report.Well(), report })
		})
	}
}
