package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kansa-audit/kansa/schema"
)

// kindFlat is a JSON array of flat objects that all have all fields: what Telegraf reads best. With fields
// left out, as events have them, it would make an insert of its own for every combination.
const kindFlat = "flat"

// flatEvents is how many events a message of kindFlat holds.
const flatEvents = 200

const peerTable = "telegraf_events"

// flatJSON is e as Telegraf's JSON parser takes it whole: one object of strings.
func flatJSON(e *schema.Event) ([]byte, error) {
	flat := map[string]string{
		"organization": e.Organization, "trail": string(e.Trail), "id": e.ID.String(), "occurred_at": e.OccurredAt.Format("2006-01-02T15:04:05.000000Z07:00"),
	}
	for i := range schema.Fields {
		switch f := &schema.Fields[i]; f.Kind {
		case schema.KindText, schema.KindJSON:
			flat[f.Column] = f.Text(e)
		case schema.KindMap:
			text, err := json.Marshal(e.Attributes)
			if err != nil {
				return nil, err
			}
			flat[f.Column] = string(text)
		}
	}
	return json.Marshal(flat)
}

// peerTableSQL has the columns of audit_events that come from the event, durable like it, without its view.
func peerTableSQL() string {
	columns := []string{"timestamp DateTime64(6, 'UTC')", "organization LowCardinality(String)", "trail LowCardinality(String)", "id String"}
	for i := range schema.Fields {
		if k := schema.Fields[i].Kind; k != schema.KindID && k != schema.KindTime {
			columns = append(columns, schema.Fields[i].Column+" String")
		}
	}
	return "CREATE TABLE " + peerTable + " (" + strings.Join(columns, ", ") + ") ENGINE = MergeTree PARTITION BY toYYYYMM(timestamp)" +
		" ORDER BY (organization, trail, timestamp) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1"
}

// The stream's subjects have a slot at their end; see broker.Shards.
const telegrafConfig = `[agent]
  interval = "10s"
  flush_interval = "100ms"
  flush_jitter = "0s"
  metric_batch_size = %[1]d
  metric_buffer_limit = %[2]d
  omit_hostname = true
  quiet = true
[[inputs.nats_consumer]]
  servers = [%[3]q]
  subjects = []
  jetstream_subjects = ["audit.events.*.*.*"]
  jetstream_stream = "AUDIT"
  queue_group = "telegraf"
  max_undelivered_messages = %[4]d
  name_override = %[5]q
  tagexclude = ["subject"]
  data_format = "json"
  json_string_fields = ["*"]
  json_time_key = "occurred_at"
  json_time_format = "2006-01-02T15:04:05.000000Z07:00"
[[outputs.sql]]
  driver = "clickhouse"
  data_source_name = %[6]q
  timestamp_column = "timestamp"
  batch_transactions = true
  connection_max_idle = 4
`

// peerRun is Telegraf with one size of batch.
type peerRun struct {
	BatchSize int  `json:"metric_batch_size"`
	Load      load `json:"load"`
}

// peer lets Telegraf do the writer's work: the same broker, the same stream, the same engine.
func (b *bench) peer(ctx context.Context) error {
	program, err := filepath.Abs(b.Telegraf)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		b.result.miss("Telegraf", fmt.Errorf("%w; make build/telegraf builds it", err))
		b.say("no Telegraf: %v", err)
		return nil
	}
	var runs []peerRun
	bestRate := 0.0
	t := table{
		title:  "Peer: Telegraf on the same stream and the same endpoint",
		header: []string{"metric_batch_size", "events/s", "Kansa, columnar, is faster by", "CPU µs an event (producer, broker, Telegraf, engine)", "peak MiB (the same)"},
	}
	// The first is the one people recommend; the second shows whether more at once would help it.
	for _, size := range []int{1000, 10_000} {
		l, err := b.telegraf(ctx, program, size)
		if err != nil {
			return fmt.Errorf("batches of %d: %w", size, err)
		}
		b.say("telegraf, batches of %d: %s events/s", size, number(l.EventsPerS))
		runs = append(runs, peerRun{size, l})
		bestRate = max(bestRate, l.EventsPerS)
		faster := "–"
		if k := b.result.Summary.IngestEventsPerS; k != nil {
			faster = number(*k/l.EventsPerS) + " ×"
		}
		t.rows = append(t.rows, append([]string{fmt.Sprint(size), number(l.EventsPerS), faster}, costs(l)...))
	}
	sum := &b.result.Summary
	sum.PeerEventsPerS = figure(bestRate)
	if sum.IngestEventsPerS != nil {
		sum.PeerRatio = figure(*sum.IngestEventsPerS / bestRate)
	} else {
		b.result.miss("peer_ratio", "ingest was not measured in this run")
	}
	t.notes = []string{"The summary's ratio is to the faster of the two."}
	b.result.add("peer", runs, t)
	return nil
}

func (b *bench) telegraf(ctx context.Context, program string, batch int) (l load, err error) {
	s, err := b.newStack("peer")
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.startBroker(ctx); err != nil {
		return l, err
	}
	if err := s.startEngine(ctx); err != nil {
		return l, err
	}
	if err := s.store.Conn().Exec(ctx, peerTableSQL()); err != nil {
		return l, fmt.Errorf("make its table: %w", err)
	}
	dsn := url.URL{Scheme: "http", User: url.UserPassword(s.engine.Username(), s.engine.Password()), Host: s.engine.Addr(), Path: "/kansa"}
	config := filepath.Join(s.dir, "telegraf.conf")
	// Room for a few batches to be on their way at once, and no more messages at once than fit into that.
	text := fmt.Sprintf(telegrafConfig, batch, 20*batch, s.broker.now().URL, max(4*batch/flatEvents, 40), peerTable, dsn.String())
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return l, fmt.Errorf("configure Telegraf: %w", err)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(context.WithoutCancel(ctx), program, "--config", config)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return l, fmt.Errorf("start Telegraf: %w", err)
	}
	exited := make(chan struct{})
	go func() { defer close(exited); _ = cmd.Wait() }() // ends by a signal
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-exited
		}
		if err != nil {
			err = fmt.Errorf("%w; Telegraf says: %s", err, log.String()[:min(log.Len(), 1000)])
		}
	}()
	const ahead = 100_000
	p, err := s.start(ctx, "producer", producerSettings{Broker: s.broker.now().URL, Kind: kindFlat, Limit: ahead})
	if err != nil {
		return l, err
	}
	stored := func() (n uint64, err error) {
		err = s.store.Conn().QueryRow(ctx, "SELECT count() FROM "+peerTable).Scan(&n)
		if err == nil {
			p.tell(order{Limit: n + ahead})
		}
		return n, err
	}
	feed := func(span time.Duration) (n uint64, err error) {
		for end := time.Now().Add(span); ; {
			if n, err = stored(); err != nil || time.Now().After(end) {
				return n, err
			}
			if err := sleep(ctx, 200*time.Millisecond); err != nil {
				return n, err
			}
		}
	}
	warmUp, span := b.span()
	first, err := feed(warmUp)
	if err != nil {
		return l, fmt.Errorf("count what is stored: %w", err)
	}
	began, before := time.Now(), s.usages()
	before["writer"] = usageOf(cmd.Process.Pid)
	last, err := feed(span)
	if err != nil {
		return l, fmt.Errorf("count what is stored: %w", err)
	}
	after := s.usages()
	after["writer"] = usageOf(cmd.Process.Pid)
	l = between("telegraf", time.Since(began), last-first, before, after)
	if last == first {
		return l, errors.New("it stores nothing")
	}
	_, err = p.finish(ctx)
	return l, err
}
