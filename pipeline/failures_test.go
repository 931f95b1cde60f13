package pipeline_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/tally"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/doctor"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/pipeline/status"
	"github.com/kansa-audit/kansa/schema"
)

// everywhere waits until /readyz, which the console shows, kansa doctor, kansa top and the metrics report that a check found something.
func everywhere(t *testing.T, s *pipeline.System, role, check, reason, remedy string) {
	t.Helper()
	began := time.Now()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		_, body := get(t, s.Health.URL()+"/readyz", "")
		_, metrics := get(t, s.Health.URL()+"/metrics", "")
		seen, err := status.Ask(t.Context(), s.Client.NC, status.Question{}, 10*time.Second)
		if err != nil || len(seen) != 1 || seen[0].Status == nil {
			return false, []any{seen, err}
		}
		top := false
		for _, f := range seen[0].Status.Health.Findings {
			top = top || f.Role == role && f.Check == check && strings.Contains(f.Reason, reason) && strings.Contains(f.Remedy, remedy)
		}
		return strings.Contains(body, ": "+role+": "+check+": ") && top &&
			strings.Contains(metrics, fmt.Sprintf("kansa_health_check{check=%q,role=%q,", check, role)) &&
			!strings.Contains(metrics, fmt.Sprintf("kansa_health_check{check=%q,role=%q,severity=\"failing\"} 1", check, role)), body
	})
	t.Logf("%s/%s was reported after %s", role, check, time.Since(began).Round(time.Millisecond))
	report, err := doctor.Look(t.Context(), doctor.System{Client: s.Client})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if f.Check == check && strings.Contains(f.Reason, reason) {
			return
		}
	}
	t.Errorf("doctor does not report %s/%s: %s: %+v", role, check, reason, report.Findings)
}

// heals waits until nothing is failing, and new events are stored and sealed of both organizations.
func heals(t *testing.T, s *pipeline.System) {
	t.Helper()
	from := time.Now()
	for _, organization := range []string{"acme", "globex"} {
		publishOne(t, s, organization, "")
	}
	for _, organization := range []string{"acme", "globex"} {
		untilSealedBeyond(t, s, organization, from.Add(time.Second))
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		_, body := get(t, s.Health.URL()+"/readyz", "")
		return strings.HasPrefix(body, "ready\n") && !strings.Contains(body, "failing"), body
	})
	if report := askRepair(t, s, repair.Request{}); !report.Well() {
		t.Errorf("left is %+v", report)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Everything that can stop the writer or the rollup is provoked on the real parts. All tools report it, with a remedy, and following the
// remedy makes it well again. Where it concerns one organization, the other is sealed meanwhile.
func TestFailuresAreReportedAndRemedied(t *testing.T) {
	t.Parallel()
	streams := func(t *testing.T, s *pipeline.System) { t.Helper(); askRepair(t, s, repair.Request{Streams: true}) }
	fix := func(t *testing.T, s *pipeline.System) { t.Helper(); askRepair(t, s, repair.Request{Fix: true}) }
	stream := func(t *testing.T, s *pipeline.System, name string) jetstream.Stream {
		t.Helper()
		st, err := s.Client.JS.Stream(t.Context(), name)
		must(t, err)
		return st
	}
	change := func(t *testing.T, s *pipeline.System, name string, edit func(*jetstream.StreamConfig)) {
		t.Helper()
		cfg := stream(t, s, name).CachedInfo().Config
		edit(&cfg)
		_, err := s.Client.JS.UpdateStream(t.Context(), cfg)
		must(t, err)
	}
	for name, c := range map[string]struct {
		// provoke returns what undoes it, if the remedy is not a command.
		provoke        func(t *testing.T, s *pipeline.System) func()
		role, check    string
		reason, remedy string
		others         bool // globex is sealed meanwhile
		heal           func(t *testing.T, s *pipeline.System)
	}{
		"the stream loses a message that was not stored": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				msg := stolen(t, s, "acme", "")
				meta, err := msg.Metadata()
				must(t, err)
				must(t, stream(t, s, broker.StreamAudit).DeleteMsg(t.Context(), meta.Sequence.Stream))
				must(t, msg.DoubleAck(t.Context()))
				return nil
			},
			role: "rollup", check: "sealing", reason: "messages of the stream are lost", remedy: "kansa repair",
			heal: func(t *testing.T, s *pipeline.System) {
				t.Helper()
				d := askRepair(t, s, repair.Request{}).Differences[0]
				if d.Kind != repair.Lost {
					t.Errorf("%+v", d)
				}
				askRepair(t, s, repair.Request{Accept: []rollup.Loss{{First: d.StreamSeq, Last: d.StreamSeq, By: "ann", Reason: "a test"}}})
			},
		},
		"ledger entries contradict each other": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				seq := publishOne(t, s, "acme", "")
				msg, err := stream(t, s, broker.StreamAudit).GetMsg(t.Context(), seq)
				must(t, err)
				must(t, tally.Ledger{JS: s.Client.JS}.Put(t.Context(), []tally.Tally{{
					StreamSeq: seq, RecordedAt: msg.Time.UTC().Truncate(time.Microsecond), Organization: "acme", Trail: schema.Activity, Rows: 7, Sum: 7,
				}}))
				return nil
			},
			role: "rollup", check: "agreement", reason: "contradict each other", remedy: "kansa repair", others: true, heal: fix,
		},
		"the ledger is deleted": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				must(t, s.Client.JS.DeleteStream(t.Context(), broker.StreamTallies))
				publishOne(t, s, "acme", "")
				return nil
			},
			role: "kansa", check: "streams", reason: "stream TALLIES is missing", remedy: "kansa repair --streams",
			heal: func(t *testing.T, s *pipeline.System) {
				t.Helper()
				streams(t, s)
				pipelinetest.Until(t, time.Minute, func() (bool, any) { r := askRepair(t, s, repair.Request{Fix: true}); return r.Well(), r })
			},
		},
		"the ledger is full": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				change(t, s, broker.StreamTallies, func(c *jetstream.StreamConfig) { c.MaxBytes = 1 })
				publishOne(t, s, "acme", "")
				return nil
			},
			role: "writer", check: "storing", reason: "maximum bytes exceeded", remedy: "kansa repair --streams", heal: streams,
		},
		"the dead letters are full": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				change(t, s, broker.StreamDeadLetter, func(c *jetstream.StreamConfig) { c.MaxBytes = 1 })
				publishOne(t, s, "acme", "no event")
				return nil
			},
			role: "writer", check: "storing", reason: "maximum bytes exceeded", remedy: "kansa repair --streams", heal: streams,
		},
		"the announcements are deleted": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				must(t, s.Client.JS.DeleteStream(t.Context(), broker.StreamPartitions))
				return nil
			},
			role: "rollup", check: "sealing", reason: "announce", remedy: "kansa repair --streams", heal: streams,
		},
		"the partition store is not there": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				dir := filepath.Join(s.Config.DataDir, "partitions")
				must(t, os.Rename(dir, dir+".away"))
				must(t, os.WriteFile(dir, nil, 0o600))
				return func() { must(t, os.Remove(dir)); must(t, os.Rename(dir+".away", dir)) }
			},
			role: "rollup", check: "sealing", reason: "not a directory", remedy: "partition store",
		},
		"the sealing key is gone": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				key := filepath.Join(s.Config.DataDir, "seal.key")
				must(t, os.Rename(key, key+".away"))
				return func() { must(t, os.Rename(key+".away", key)) }
			},
			role: "rollup", check: "sealing", reason: "the sealing key is missing", remedy: "put the sealing key back",
		},
		"the last manifest of one organization is gone": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				dir := filepath.Join(s.Config.DataDir, "partitions", "acme")
				must(t, os.Rename(dir, dir+".away")) // all of them, or another one comes meanwhile
				must(t, os.MkdirAll(filepath.Join(dir, "activity", "2020", "01", "01"), 0o700))
				must(t, os.WriteFile(filepath.Join(dir, "activity", "2020", "01", "01", "00.manifest"), []byte("nothing"), 0o600))
				return func() { must(t, os.RemoveAll(dir)); must(t, os.Rename(dir+".away", dir)) }
			},
			role: "rollup", check: "agreement", reason: "not a manifest", remedy: "put the manifest back", others: true,
		},
		"the switches of one organization cannot be read": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				kv, err := s.Client.JS.KeyValue(t.Context(), broker.BucketRecording)
				must(t, err)
				_, err = kv.PutString(t.Context(), "acme", "nonsense")
				must(t, err)
				publishOne(t, s, "acme", "")
				return func() { _, err := kv.PutString(t.Context(), "acme", `{"version":1}`); must(t, err) }
			},
			role: "writer", check: "storing", reason: "the switches of the trails can not be read: acme", remedy: "nats kv put",
		},
		"the ticks are deleted": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				must(t, s.Client.JS.DeleteStream(t.Context(), broker.StreamHours))
				return nil
			},
			role: "kansa", check: "streams", reason: "stream HOURS is missing", remedy: "kansa repair --streams", heal: streams,
		},
		"the stream of events removes what is acknowledged": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				change(t, s, broker.StreamAudit, func(c *jetstream.StreamConfig) { c.Retention = jetstream.InterestPolicy })
				return nil
			},
			role: "kansa", check: "streams", reason: "retention is interest and should be limits", remedy: "kansa repair --streams", heal: streams,
		},
		"the stream of events drops the oldest": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				change(t, s, broker.StreamAudit, func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld })
				return nil
			},
			role: "kansa", check: "streams", reason: "discard is old and should be new", remedy: "kansa repair --streams", heal: streams,
		},
		"the stream of events keeps less": {
			provoke: func(t *testing.T, s *pipeline.System) func() {
				t.Helper()
				change(t, s, broker.StreamAudit, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour })
				return nil
			},
			role: "kansa", check: "settings", reason: "max_age is 1h0m0s and should be 168h0m0s", remedy: "kansa repair --streams", heal: streams,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := pipelinetest.Config(t)
			cfg.Writer.AckWait, cfg.Writer.InsertTimeout = 5*time.Second, time.Second
			s := pipelinetest.Start(t, cfg)
			heals(t, s)
			undo := c.provoke(t, s)
			everywhere(t, s, c.role, c.check, c.reason, c.remedy)
			if c.others {
				from := time.Now()
				publishOne(t, s, "globex", "")
				untilSealedBeyond(t, s, "globex", from.Add(time.Second))
			}
			if undo != nil {
				undo()
			}
			if c.heal != nil {
				c.heal(t, s)
			}
			heals(t, s)
		})
	}
}

// A consumer that is changed from outside gets its settings back within seconds, that is reported, and nothing is lost by it.
func TestChangedConsumersAreRestored(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stream, consumer string
		edit             func(*jetstream.ConsumerConfig)
		reason           string
	}{
		"max_deliver":     {broker.StreamAudit, broker.ConsumerWriter, func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 }, "max_deliver is 1 and should be -1"},
		"ack_wait":        {broker.StreamAudit, broker.ConsumerWriter, func(c *jetstream.ConsumerConfig) { c.AckWait = time.Second }, "ack_wait is 1s and should be 5s"},
		"filter":          {broker.StreamAudit, broker.ConsumerWriter, func(c *jetstream.ConsumerConfig) { c.FilterSubject = "audit.events.nobody.*.*" }, "filter_subject is audit.events.nobody"},
		"max_ack_pending": {broker.StreamAudit, broker.ConsumerBulkWriter, func(c *jetstream.ConsumerConfig) { c.MaxAckPending = 1 }, "max_ack_pending is 1 and should be 50000"},
		"of the rollup":   {broker.StreamHours, broker.ConsumerRollup, func(c *jetstream.ConsumerConfig) { c.MaxDeliver = 1 }, "consumer rollup of stream HOURS: max_deliver"},
		"ack_policy":      {broker.StreamAudit, broker.ConsumerWriter, nil, "ack_policy is none and should be explicit"},
		"paused":          {broker.StreamHours, broker.ConsumerRollup, nil, "pause_until is"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := pipelinetest.Config(t)
			cfg.Writer.AckWait, cfg.Writer.InsertTimeout = 5*time.Second, time.Second
			s := pipelinetest.Start(t, cfg)
			heals(t, s)
			st, err := s.Client.JS.Stream(t.Context(), c.stream)
			must(t, err)
			consumer, err := st.Consumer(t.Context(), c.consumer)
			must(t, err)
			have := consumer.CachedInfo().Config
			switch name {
			case "paused":
				_, err = st.PauseConsumer(t.Context(), c.consumer, time.Now().Add(time.Hour))
			case "ack_policy":
				must(t, st.DeleteConsumer(t.Context(), c.consumer))
				have.AckPolicy, have.MaxAckPending, have.AckWait, have.DeliverPolicy = jetstream.AckNonePolicy, 0, 0, jetstream.DeliverNewPolicy
				_, err = st.CreateConsumer(t.Context(), have)
			default:
				c.edit(&have)
				_, err = st.UpdateConsumer(t.Context(), have)
			}
			must(t, err)
			publishOne(t, s, "acme", "")
			everywhere(t, s, "kansa", "consumers", c.reason, "kansa repair")
			pipelinetest.Until(t, time.Minute, func() (bool, any) { // until the watchdog has made it again, if it was deleted
				all, err := s.Client.Changes(t.Context())
				consumer, missing := st.Consumer(t.Context(), c.consumer)
				if missing != nil || consumer.CachedInfo().Config.AckPolicy != jetstream.AckExplicitPolicy {
					return false, missing
				}
				return err == nil && len(all) == 0, []any{all, err}
			})
			// Repair stores messages that were settled meanwhile without being stored.
			pipelinetest.Until(t, time.Minute, func() (bool, any) { r := askRepair(t, s, repair.Request{Fix: true}); return r.Well(), r })
			heals(t, s)
			if n := events(t, s, "consumer.changed"); n == 0 {
				t.Error("no event says that it was changed")
			}
		})
	}
}

// The schedule of the rollup's ticks and the tick that waits are removed: both come back by themselves.
func TestRemovedTicksComeBack(t *testing.T) {
	t.Parallel()
	s := pipelinetest.Start(t, pipelinetest.Config(t))
	heals(t, s)
	hours, err := s.Client.JS.Stream(t.Context(), broker.StreamHours)
	must(t, err)
	must(t, hours.Purge(t.Context()))
	heals(t, s)
}
