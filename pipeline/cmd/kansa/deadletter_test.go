package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
	"github.com/kansa-audit/kansa/schema"
)

// Dead letters are replayed to another subject, many are corrected at once, those that come back
// are reported, and what is not wanted is discarded with a record of it.
func TestDeadLettersAreResolved(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	start(t, "run", "writer", "--config", s.config)
	s.untilSetUp(t)
	event := func(n int, action string) string {
		return fmt.Sprintf(`{"occurred_at":"2026-11-22T04:05:06Z","organization":"acme","trail":"activity","source":"s","event":"e","action":%q,"data":{"n":12345678901234567890},"description":"%d"}`, action, n)
	}
	// letters publishes messages and returns the numbers of the letters that they become.
	letters := func(subject string, bodies ...string) (seqs []string) {
		t.Helper()
		stream := map[uint64]int{}
		for i, body := range bodies {
			ack, err := s.client.JS.Publish(t.Context(), subject, []byte(body))
			if err != nil {
				t.Fatal(err)
			}
			stream[ack.Sequence] = i
		}
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			seqs = make([]string, len(bodies))
			found := 0
			err := deadletter.Each(t.Context(), s.client.JS, "", func(l deadletter.Letter) bool {
				if i, ok := stream[l.StreamSeq]; ok {
					seqs[i] = strconv.FormatUint(l.Seq, 10)
					found++
				}
				return true
			})
			return found == len(bodies), []any{seqs, err}
		})
		return seqs
	}
	do := func(want int, says string, args ...string) {
		t.Helper()
		code, out, errs := kansa(t, "", append([]string{"deadletter"}, append(args, "--nats", s.broker.URL())...)...)
		if code != want || !strings.Contains(errs, says) {
			t.Errorf("kansa deadletter %s: exit code %d: %s%s; want %d, %q", strings.Join(args, " "), code, out, errs, want, says)
		}
	}
	stored := uint64(0)
	wantStored := func(n uint64) {
		t.Helper()
		stored += n
		pipelinetest.Until(t, time.Minute, func() (bool, any) {
			rows, err := s.store.Conn().Query(t.Context(), "SELECT count() FROM audit_events WHERE source = 's'")
			if err != nil {
				return false, err
			}
			defer rows.Close()
			var got uint64
			for rows.Next() {
				if err := rows.Scan(&got); err != nil {
					return false, err
				}
			}
			return got == stored, fmt.Sprintf("%d events are stored, want %d", got, stored)
		})
	}

	bad := letters("audit.events.acme.Activity", event(1, "do"), event(2, "do"), `null`)
	do(exitFailed, "1 replayed, 1 came back", "replay", letters("audit.events.acme.activity", `[]`)[0])
	do(0, "1 replayed", "replay", bad[0], "--data", writeFile(t, "corrected", []byte(event(3, "do"))))
	wantStored(1)
	do(0, "1 replayed", "replay", bad[1]) // its subject names no trail, and the event does
	wantStored(1)
	do(exitFailed, "name the organization", "replay", bad[2])
	do(exitFailed, "1 replayed, 1 came back", "replay", bad[2], "-o", "acme", "-t", "activity")

	other := letters("audit.events.globex.access", event(4, "do"))[0] // its event says acme: that alone must not move it there
	do(exitFailed, `1 replayed, 1 came back: organization "acme" disagrees`, "replay", other)
	do(0, "1 replayed", "replay", "--like", "disagrees", "--to", "acme", "-t", "activity")
	wantStored(1)

	many := letters("audit.events.acme.activity", event(5, "DO"), event(6, "DO"), event(7, "DO"))
	do(exitFailed, "3 replayed, 3 came back: action", "replay", "--like", "upper case")
	do(exitFailed, "no dead letter is meant", "replay", "--like", "upper case", "-o", "globex", "--set", "action=do")
	do(exitFailed, "no such dead letter", "replay", many[0])
	do(0, "3 replayed", "replay", "--like", "upper case", "--set", "action=do", "--set", "actor.id=u-7")
	wantStored(3)

	do(exitUsage, "--reason", "discard", "--all")
	do(0, "2 discarded", "discard", "--all", "--reason", "noise")
	if n, err := deadletter.Count(t.Context(), s.client.JS); n != 0 || err != nil {
		t.Errorf("%d letters are left, %v", n, err)
	}
	pipelinetest.Until(t, time.Minute, func() (bool, any) {
		rows, err := s.store.Conn().Query(t.Context(), "SELECT count(), uniqExact(recorded_by) FROM audit_events WHERE event = 'deadletter.discarded' AND attributes['why'] = 'noise' AND length(attributes['sha256']) = 64 AND startsWith(actor_id, 'cli') AND recorded_by = '"+schema.RecordedBySystem+"'")
		if err != nil {
			return false, err
		}
		defer rows.Close()
		var n, by uint64
		for rows.Next() {
			if err := rows.Scan(&n, &by); err != nil {
				return false, err
			}
		}
		return n == 2, fmt.Sprintf("%d records of a discard, want 2", n)
	})
}
