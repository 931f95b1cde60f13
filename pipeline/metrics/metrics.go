// Package metrics tells Prometheus how the pipeline is doing.
//
// It asks the broker and the parts when it is scraped, and keeps nothing itself.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kansa-audit/kansa/consumers/exporter"
	"github.com/kansa-audit/kansa/consumers/floor"
	"github.com/kansa-audit/kansa/consumers/recording"
	"github.com/kansa-audit/kansa/consumers/rollup"
	"github.com/kansa-audit/kansa/consumers/writer"
	"github.com/kansa-audit/kansa/pipeline/access"
	"github.com/kansa-audit/kansa/pipeline/broker"
	"github.com/kansa-audit/kansa/pipeline/deadletter"
	"github.com/kansa-audit/kansa/pipeline/engine"
	"github.com/kansa-audit/kansa/pipeline/health"
	"github.com/kansa-audit/kansa/pipeline/request"
	"github.com/kansa-audit/kansa/pipeline/settings"
	"github.com/kansa-audit/kansa/producers/gateway"
)

// Sources are what the metrics are of. A part that is nil is not in this process.
type Sources struct {
	JS     jetstream.JetStream
	Writer interface{ Stats() writer.Stats }
	Rollup *rollup.Rollup
	// Compared counts the sealed hours that were compared with the table; nil if the rollup is not here.
	Compared func() uint64
	Progress *rollup.Progress
	Exporter *exporter.Exporter
	Gateway  *gateway.Gateway
	// Recording knows which trails are off.
	Recording *recording.Reader
	Hour      time.Duration
	// DeadLetters counts them.
	DeadLetters *deadletter.Index
	// Floor knows how far all writers have come.
	Floor *floor.Floor
	// Shards are those of this process' writer.
	Shards []*health.Floor
	Disks  []health.Disk
	// Restarts counts, by role, how often it had to begin again.
	Restarts map[string]func() uint64
	// Engine counts restarts of the embedded engine and says how its slots are used.
	Engine interface {
		Restarts() int64
		Slots(ctx context.Context) ([]engine.SlotUse, error)
	}
	// Destinations are those of the exporter.
	Destinations interface {
		Destinations(ctx context.Context, organization string) ([]settings.Destination, error)
	}
	// Keys are the API keys.
	Keys interface {
		Keys(ctx context.Context, organization string) ([]access.Key, error)
	}
	Certificates *health.Certificates
	// Refused counts what limits refused, by limit; Panics those that were caught.
	Refused func() map[string]uint64
	Panics  func() uint64
	// Report is what the checks of this process find.
	Report func(ctx context.Context) health.Report
}

// scrapeTimeout bounds one look at everything.
const scrapeTimeout = 5 * time.Second

// Registry has the metrics of this process, and of the sources once there are any.
type Registry struct {
	registry *prometheus.Registry
	log      *slog.Logger
}

// New returns a registry.
func New(sources func() *Sources, log *slog.Logger) *Registry {
	r := &Registry{prometheus.NewRegistry(), log}
	r.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{sources: sources, log: log})
	return r
}

// Handler serves them to Prometheus.
func (r *Registry) Handler() http.Handler {
	return promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, ErrorLog: slog.NewLogLogger(r.log.Handler(), slog.LevelWarn),
	})
}

// Figures are the counters and gauges of Kansa and of its process, by name and labels as Prometheus writes them.
func (r *Registry) Figures() map[string]float64 {
	families, err := r.registry.Gather()
	if err != nil { // the others are there all the same
		r.log.Warn("figures are not complete", slog.Any("error", err))
	}
	all := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "kansa_") && !strings.HasPrefix(f.GetName(), "process_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			name := f.GetName()
			if len(labels) > 0 {
				name += "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.GetCounter() != nil:
				all[name] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				all[name] = m.GetGauge().GetValue()
			}
		}
	}
	return all
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("kansa_"+name, help, labels, nil)
}

var (
	streamMessages = desc("stream_messages", "Messages that a stream holds.", "stream")
	streamBytes    = desc("stream_bytes", "Bytes that a stream holds on disk.", "stream")
	streamLimit    = desc("stream_max_bytes", "Bytes at which a stream is full; absent without a bound.", "stream")
	lagMessages    = desc("consumer_lag_messages", "Messages that a consumer has not acknowledged.", "consumer")
	lagSeconds     = desc("writer_lag_seconds", "Age of the first message that the writer has not acknowledged; 0 if all are.")
	floorAge       = desc("writer_ack_floor_age_seconds", "Time for which the writer has settled nothing though messages wait; 0 if none does.")
	redelivered    = desc("consumer_redelivered_messages", "Messages on their way that were delivered before.", "consumer")
	deadLetters    = desc("dead_letters", "Dead letters that wait for somebody.")

	stored       = desc("writer_events_stored_total", "Events that this process stored.")
	skipped      = desc("writer_events_skipped_total", "Events that were stored already and left out.")
	duplicates   = desc("writer_events_duplicate_total", "Events that their producers published again under the same ids, and that were left out.")
	rejected     = desc("writer_events_rejected_total", "Events that this process put on the dead letters.")
	unrecorded   = desc("writer_events_unrecorded_total", "Events that this process left out because their trail is switched off.")
	inserts      = desc("writer_inserts_total", "Inserts that succeeded.")
	insertErrors = desc("writer_insert_errors_total", "Inserts that failed and were tried again.")

	gatewayUnrecorded = desc("gateway_events_unrecorded_total", "Events that this gateway took and left out because their trail is switched off.")
	trailsOff         = desc("trails_off", "Trails that are switched off.")

	rolledUpUntil = desc("rollup_done_until_timestamp_seconds", "All hours before this time are rolled up.")
	rollupLag     = desc("rollup_lag_seconds", "Time since the end of the last hour that is rolled up.")
	partitions    = desc("rollup_partitions_total", "Partitions that this process made.")
	alarms        = desc("rollup_agreement_failures_total", "Hours that this process could not seal because their accounts disagree or messages were lost.")
	blocked       = desc("rollup_blocked_trails", "Organizations' trails that wait for a repair before their next hour can be sealed.")

	restarts = desc("watchdog_restarts_total", "Times that a role of this process had to begin again: a pull or an insert was stuck, or its consumer was gone.", "role")
	diskFree = desc("disk_free_bytes", "Bytes that are free on the disk of a directory that this process writes to.", "directory")

	deliveries = desc("exporter_deliveries_total", "Attempts of this process to deliver an archive.", "result")

	deliveryAge = desc("exporter_failing_delivery_age_seconds", "Time since the first failure of the delivery that this process has failed at for longest; 0 if none fails.")
	paused      = desc("exporter_destinations_paused", "Destinations that somebody has paused.")

	deadReasons     = desc("dead_letters_by_reason", "Dead letters by what is wrong with them, without the values; rare ones together.", "reason")
	deadDropped     = desc("dead_letters_dropped_total", "Dead letters that this process removed because their organization had more than streams.dead_letter_max_age or dead_letter_max_bytes, by bound: age or size.", "bound")
	gatewayRequests = desc("gateway_requests_total", "Requests that this gateway answered, by status.", "code")
	gatewayEvents   = desc("gateway_events_total", "Events of these requests: accepted, or rejected.", "result")

	rollupHours    = desc("rollup_hours_total", "Hours that this process sealed.")
	compared       = desc("table_hours_compared_total", "Sealed hours that this process compared with the table; what differs is kansa_health_check{check=\"table\"}.")
	rollupSpent    = desc("rollup_seconds_total", "Seconds that it took to seal them.")
	rollupLast     = desc("rollup_last_hour_seconds", "Seconds that the last one took.")
	engineRestarts = desc("engine_restarts_total", "Times that the embedded ClickHouse of this process had to be started again.")
	engineSlots    = desc("engine_slots", "Requests that the embedded ClickHouse runs at once for a purpose: insert, system, read or reader (analysts). Each purpose also takes from the ones before it.", "purpose")
	engineUsed     = desc("engine_slots_used", "Requests that the embedded ClickHouse runs for a purpose.", "purpose")
	engineWaiting  = desc("engine_requests_waiting", "Requests that wait for a slot of the embedded ClickHouse.", "purpose")

	roleReady   = desc("role_ready", "1 while a role of this process does its work, 0 while a check of it is failing: what /readyz says.", "role")
	healthCheck = desc("health_check", "1 while a check finds nothing, 0 while it finds something: what /readyz, kansa doctor and kansa top report. Severity is that of what it finds.", "role", "check", "severity")
	diskBytes   = desc("disk_bytes", "Bytes of the disk of a directory that this process writes to.", "directory")

	certificateEnds = desc("certificate_expiry_timestamp_seconds", "When a certificate expires that this process shows, is shown or trusts.", "certificate")
	keyEnds         = desc("api_key_expiry_timestamp_seconds", "When an API key expires, by the key's id.", "key")

	refused = desc("limits_refused_total", "Requests that this process refused because a limit was reached, by limit.", "limit")
	panics  = desc("panics_total", "Panics that this process caught: faults of the program, which its log describes.")
)

type collector struct {
	sources func() *Sources
	log     *slog.Logger
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		streamMessages, streamBytes, streamLimit, lagMessages, lagSeconds, redelivered, deadLetters, stored, skipped, duplicates, rejected, inserts,
		insertErrors, rolledUpUntil, rollupLag, partitions, alarms, blocked, deliveries, floorAge, restarts, diskFree, unrecorded, gatewayUnrecorded,
		trailsOff, deliveryAge, paused, deadReasons, deadDropped, gatewayRequests, gatewayEvents, rollupHours, compared, rollupSpent, rollupLast, engineRestarts, engineSlots, engineUsed, engineWaiting, roleReady, healthCheck,
		diskBytes, certificateEnds, keyEnds, refused, panics,
	} {
		out <- d
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.sources()
	if s == nil {
		return
	}
	defer func() { _ = request.Caught(context.Background(), c.log, "metrics", recover()) }() // what is missing, an alert finds
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	if err := errors.Join(s.streams(ctx, gauge), s.consumers(ctx, gauge), s.rollup(ctx, gauge), s.trails(ctx, gauge),
		s.expiries(ctx, gauge), s.paused(ctx, gauge), s.reasons(ctx, gauge, func(bound string, n uint64) { count(deadDropped, n, bound) })); err != nil {
		c.log.Warn("metrics are not complete", slog.Any("error", err))
	}
	if w := s.Writer; w != nil {
		st := w.Stats()
		count(stored, st.Stored)
		count(skipped, st.Skipped)
		count(duplicates, st.Duplicates)
		count(rejected, st.Rejected)
		count(unrecorded, st.Unrecorded)
		count(inserts, st.Inserts)
		count(insertErrors, st.Failures)
	}
	if g := s.Gateway; g != nil {
		st := g.Stats()
		count(gatewayUnrecorded, st.Unrecorded)
		count(gatewayEvents, st.Accepted, "accepted")
		count(gatewayEvents, st.Rejected, "rejected")
		for code, n := range st.Answers {
			count(gatewayRequests, n, strconv.Itoa(code))
		}
	}
	if len(s.Shards) > 0 {
		oldest := time.Duration(0)
		for _, shard := range s.Shards {
			age, _, _ := shard.Age()
			oldest = max(oldest, age)
		}
		gauge(floorAge, oldest.Seconds())
	}
	if s.Refused != nil {
		for limit, n := range s.Refused() {
			count(refused, n, limit)
		}
	}
	if s.Panics != nil {
		count(panics, s.Panics())
	}
	for role, n := range s.Restarts {
		count(restarts, n(), role)
	}
	for _, d := range s.Disks {
		if free, all, err := d.Free(); err == nil {
			gauge(diskFree, float64(free), d.Name)
			gauge(diskBytes, float64(all), d.Name)
		}
	}
	if r := s.Rollup; r != nil {
		st := r.Stats()
		count(partitions, st.Partitions)
		count(alarms, st.Alarms)
		count(rollupHours, st.Hours)
		count(compared, s.Compared())
		out <- prometheus.MustNewConstMetric(rollupSpent, prometheus.CounterValue, st.Spent.Seconds())
		gauge(rollupLast, st.Last.Seconds())
	}
	if s.Engine != nil {
		count(engineRestarts, uint64(s.Engine.Restarts()))
		slots, err := s.Engine.Slots(ctx)
		if err != nil {
			c.log.Warn("metrics of the engine's slots are missing", slog.Any("error", err))
		}
		for _, u := range slots {
			gauge(engineSlots, float64(u.Size), u.Purpose)
			gauge(engineUsed, float64(u.Used), u.Purpose)
			gauge(engineWaiting, float64(u.Waiting), u.Purpose)
		}
	}
	if s.Report != nil {
		report := s.Report(ctx)
		for _, c := range report.Checks {
			well := 0.0
			if c.OK {
				well = 1
			}
			gauge(healthCheck, well, c.Role, c.Check, string(c.Severity))
		}
		for _, r := range report.Roles {
			works := 1.0
			if r.State == string(health.Failing) {
				works = 0
			}
			gauge(roleReady, works, r.Role)
		}
	}
	if x := s.Exporter; x != nil {
		gauge(deliveryAge, x.FailingFor().Seconds())
		count(deliveries, x.Stats().Delivered, "delivered")
		count(deliveries, x.Stats().Failed, "failed")
		count(deliveries, x.Stats().GivenUp, "given_up")
	}
}

type gauger func(d *prometheus.Desc, v float64, labels ...string)

func (s *Sources) streams(ctx context.Context, gauge gauger) error {
	list := s.JS.ListStreams(ctx)
	for info := range list.Info() {
		gauge(streamMessages, float64(info.State.Msgs), info.Config.Name)
		gauge(streamBytes, float64(info.State.Bytes), info.Config.Name)
		if info.Config.MaxBytes > 0 {
			gauge(streamLimit, float64(info.Config.MaxBytes), info.Config.Name)
		}
		if info.Config.Name == broker.StreamDeadLetter {
			gauge(deadLetters, float64(info.State.Msgs))
		}
	}
	return list.Err()
}

func (s *Sources) consumers(ctx context.Context, gauge gauger) error {
	shards, age, err := s.Floor.Lag(ctx)
	errs := []error{err}
	if err == nil {
		gauge(lagSeconds, age.Seconds())
	}
	var all []*jetstream.ConsumerInfo
	for _, shard := range shards {
		all = append(all, shard.ConsumerInfo)
	}
	for stream, name := range map[string]string{broker.StreamHours: broker.ConsumerRollup, broker.StreamExports: broker.ConsumerExporter} {
		consumer, err := s.JS.Consumer(ctx, stream, name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, consumer.CachedInfo())
	}
	for _, info := range all {
		gauge(lagMessages, float64(info.NumPending)+float64(info.NumAckPending), info.Name)
		gauge(redelivered, float64(info.NumRedelivered), info.Name)
	}
	return errors.Join(errs...)
}

func (s *Sources) trails(ctx context.Context, gauge gauger) error {
	if s.Recording == nil {
		return nil
	}
	now, err := s.Recording.Now(ctx)
	if err != nil {
		return err
	}
	gauge(trailsOff, float64(now.Trails()))
	return nil
}

// expiries tells of what expires: once the keys and certificates are known that there are.
func (s *Sources) expiries(ctx context.Context, gauge gauger) error {
	var errs []error
	if s.Certificates != nil {
		ends, err := s.Certificates.Ends(ctx)
		errs = append(errs, err)
		for who, end := range ends {
			gauge(certificateEnds, float64(end.Unix()), who)
		}
	}
	if s.Keys != nil {
		all, err := s.Keys.Keys(ctx, "")
		errs = append(errs, err)
		for i := range all {
			gauge(keyEnds, float64(all[i].Expires.Unix()), all[i].ID)
		}
	}
	return errors.Join(errs...)
}

func (s *Sources) paused(ctx context.Context, gauge gauger) error {
	if s.Destinations == nil {
		return nil
	}
	all, err := s.Destinations.Destinations(ctx, "")
	if err != nil {
		return err
	}
	n := 0
	for i := range all {
		if all[i].Paused {
			n++
		}
	}
	gauge(paused, float64(n))
	return nil
}

func (s *Sources) rollup(ctx context.Context, gauge gauger) error {
	if s.Progress == nil {
		return nil
	}
	next, err := s.Progress.Next(ctx)
	if err != nil {
		return err
	}
	if !next.IsZero() {
		gauge(rolledUpUntil, float64(next.Unix()))
		gauge(rollupLag, max(0, time.Since(next).Seconds()))
	}
	waiting, err := s.Progress.Waiting(ctx)
	if err != nil {
		return err
	}
	gauge(blocked, float64(waiting))
	return nil
}
