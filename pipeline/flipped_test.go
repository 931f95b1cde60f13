package pipeline_test

import (
	"encoding/binary"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/pipeline"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/config"
	"github.com/kansa-audit/kansa/pipeline/owntrail"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/pipeline/repair"
	"github.com/kansa-audit/kansa/pipeline/verify"
	"github.com/kansa-audit/kansa/producers"
	"github.com/kansa-audit/kansa/schema/sample"
)

// A bit flips in a file of the stream while nothing runs. The broker finds it by the record's checksum.
const (
	flipMessages = 20
	flipped      = 10
)

// The broker that was stopped in order trusts its index: one message can't be read, the others are delivered.
// Its number is missing, so nobody's hour is sealed from there on until somebody answers for it.
func TestFlippedBitInTheStream(t *testing.T) {
	t.Parallel()
	cfg := pipelinetest.Config(t)
	ids := publishAndStop(t, cfg, pipeline.RoleGateway)
	flip(t, cfg, false)
	s := pipelinetest.Start(t, cfg)
	untilOnce(t, s, append(ids[:flipped-1:flipped-1], ids[flipped:]...))
	pipelinetest.Until(t, time.Minute, func() (bool, any) { n := s.Rollup.Stats(); return n.Alarms > 0, n })
	if n := s.Rollup.Stats().Rows; n >= flipped { // those before it may be of an hour before
		t.Errorf("%d rows were sealed", n)
	}
	untilOwnEvent(t, s)
	_, err := repair.Ask(t.Context(), s.Client.NC, repair.Request{Accept: []rollup.Loss{{First: flipped, Last: flipped, By: "A. Auditor", Reason: "a bit flipped"}}})
	if err != nil {
		t.Fatal(err)
	}
	untilRowsAreSealed(t, s, flipMessages-1)
}

// The broker that was killed reads its blocks again, and cuts the newest off at the damaged record. What came
// after is gone, and its numbers are given to other messages. That is said, and neither do old and new messages
// of one number take each other's place, nor is what was stored before lost.
func TestFlippedBitInTheStreamOfABrokerThatWasKilled(t *testing.T) {
	t.Parallel()
	for name, role := range map[string]pipeline.Role{"before it was stored": pipeline.RoleGateway, "after it was stored": pipeline.RoleWriter} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := pipelinetest.Config(t)
			ids := publishAndStop(t, cfg, role)
			flip(t, cfg, true)
			s := pipelinetest.Start(t, cfg)
			if role == pipeline.RoleGateway {
				ids = ids[:flipped-1] // the stream's loss is no secret
			}
			ids = append(ids, publishEach(t, s, 2, flipMessages)...)
			untilOnce(t, s, ids)
			untilOwnEvent(t, s)
			untilRowsAreSealed(t, s, len(ids))
		})
	}
}

// publishAndStop publishes messages of one event each, one after the other, and returns their ids.
func publishAndStop(t *testing.T, cfg *config.Config, role pipeline.Role) []uuid.UUID {
	t.Helper()
	s, err := pipeline.Start(t.Context(), pipeline.Options{
		Config: cfg, Roles: []pipeline.Role{role}, EngineCommand: pipelinetest.EngineCommand(t), Logger: pipelinetest.Logger(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	ids := publishEach(t, s, 1, flipMessages)
	if role == pipeline.RoleWriter {
		untilOnce(t, s, ids)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return ids
}

func publishEach(t *testing.T, s *pipeline.System, seed uint64, n int) (ids []uuid.UUID) {
	t.Helper()
	p, err := producers.New(s.Client.JS, producers.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	events := sample.New(seed, nil)
	for range n {
		e := events.Next()
		ids = append(ids, e.ID)
		if err := p.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return ids
}

// flip changes a bit of a message in the only block of the stream. A broker that was killed has left no index
// that is up to date.
func flip(t *testing.T, cfg *config.Config, killed bool) {
	t.Helper()
	dir := filepath.Join(cfg.DataDir, "nats", "jetstream", "$G", "streams", broker.StreamAudit, "msgs")
	if killed {
		if err := os.Remove(filepath.Join(dir, "index.db")); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "1.blk")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const headers = 1 << 31 // a record begins with its length, and whether it has headers
	at := 0
	length := func() int { return int(binary.LittleEndian.Uint32(data[at:]) &^ headers) }
	for range flipped - 1 {
		at += length()
	}
	data[at+length()/2] ^= 4
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// untilOnce waits until just these events are stored, but for the system's own.
func untilOnce(t *testing.T, s *pipeline.System, ids []uuid.UUID) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var rows, distinct, expected uint64
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count(), uniqExact(id), countIf(id IN (?)) FROM audit_events WHERE source != '"+owntrail.Source+"'", ids).
			Scan(&rows, &distinct, &expected)
		return rows == uint64(len(ids)) && rows == distinct && rows == expected, []any{rows, distinct, expected, err}
	})
}

func untilOwnEvent(t *testing.T, s *pipeline.System) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		var n uint64
		err := s.Store.Conn().QueryRow(t.Context(), "SELECT count() FROM audit_events WHERE organization = '"+owntrail.Organization+"' AND event = 'messages.lost'").Scan(&n)
		return n > 0, []any{n, err}
	})
}

// untilRowsAreSealed waits until so many events, and what the system said of it, lie in partitions, all of which verify.
func untilRowsAreSealed(t *testing.T, s *pipeline.System, want int) {
	t.Helper()
	pipelinetest.Until(t, time.Minute, func() (bool, any) { n := s.Rollup.Stats(); return n.Rows > uint64(want), n })
	pipelinetest.Until(t, time.Minute, func() (bool, any) { // hours are added meanwhile
		report, err := verify.Path(t.Context(), filepath.Join(s.Config.DataDir, "partitions"), verify.Options{Key: s.Keys.Public(), FromStart: true})
		return err == nil && report.OK, []any{report, err}
	})
}
